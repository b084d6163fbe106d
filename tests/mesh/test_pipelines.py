"""Rerank, pipelines and shared embeddings over a real mesh of two nodes, by HTTP and curl."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import transformers

from blip_node.audio.decode import decode
from tests.mesh.rig import MODELS, Rig
from tests.models.make_tiny_rerank import CHECKS
from tests.models.random_heads import NER, NLI, make_bert, make_t5
from tests.models.random_sorters import make_sorter
from tests.models.tones import RATE, keys_file
from tests.unit.gateway_mesh import served

TEXTS = ["we bake bread in the oven", "the team score a goal", "my python code is new"]


def models(folder: Path) -> dict[str, Any]:
    made = {
        "nli": make_bert(folder / "nli", "ForSequenceClassification", NLI),
        "ner": make_bert(folder / "ner", "ForTokenClassification", NER),
        "bert": make_bert(folder / "bert", "ForMaskedLM"),
        "t5": make_t5(folder / "t5"),
        "sounds": make_sorter(folder / "sounds", "wav2vec2"),
        "tiny-rerank": MODELS / "tiny-rerank",
        "tiny-embed": MODELS / "tiny-embed",
    }
    loaded = {name: {"source": str(path)} for name, path in made.items()}
    for name in ("tiny-rerank", "tiny-embed"):
        loaded[name]["preload"] = True  # type: ignore[assignment]
    return loaded


async def post(http: aiohttp.ClientSession, path: str, **body: Any) -> tuple[Any, Any]:
    async with http.post(path, json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return answer, response.headers


def shared(headers: Any) -> bool:
    """Whether both nodes took part. Sure of the first large request only: the broker learns."""
    return set(headers["X-Blip-Node"].split(", ")) == {"node-1", "node-2"}


async def reranks(http: aiohttp.ClientSession, origin: str) -> None:
    query, passage = CHECKS[0]
    documents = [each for _, each in CHECKS[1:]] + [passage]
    body = {"model": "tiny-rerank", "query": query, "documents": documents}
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", f"{origin}/v1/rerank", "--json", json.dumps(body), stdout=-1
    )
    out, _ = await process.communicate()
    answer = json.loads(out)
    assert answer["results"][0]["index"] == len(documents) - 1
    assert (
        answer["results"][0]["relevance_score"]
        > 0.9
        > 0.1
        > answer["results"][1]["relevance_score"]
    )
    # an embedding model does it, too
    answer, _ = await post(http, "/v1/rerank", **{**body, "model": "tiny-embed"})
    assert answer["results"][0]["index"] == len(documents) - 1
    many = ["the river in the forest " * 4] * 900 + [passage] + ["a goal"] * 99
    answer, headers = await post(http, "/v2/rerank", **{**body, "documents": many, "top_n": 1})
    assert answer["results"][0]["index"] == 900
    assert len(headers["X-Blip-Task"].split(", ")) == 8
    assert shared(headers)


async def pipelines(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/pipelines") as response:
        rows = {row["task"]: row["models"] for row in (await response.json())["data"]}
    assert rows["zero-shot-classification"] == ["nli"]
    assert rows["token-classification"] == ["ner"]
    assert rows["fill-mask"] == ["bert"]
    assert rows["summarization"] == rows["translation"] == ["t5"]
    ask: dict[str, Any] = {"inputs": TEXTS, "parameters": {"candidate_labels": ["food", "sport"]}}
    answer, _ = await post(http, "/v1/pipelines/zero-shot-classification", model="nli", **ask)
    for labels in answer["results"]:
        assert {each["label"] for each in labels} == {"food", "sport"}
        assert sum(each["score"] for each in labels) == pytest.approx(1, abs=1e-5)
    answer, _ = await post(http, "/v1/pipelines/text-classification", model="nli", inputs=TEXTS)
    assert all(len(labels) == len(NLI) for labels in answer["results"])
    answer, _ = await post(http, "/v1/pipelines/token-classification", model="ner", inputs=TEXTS)
    for text, entities in zip(TEXTS, answer["results"], strict=True):
        assert all(text[e["start"] : e["end"]] == e["word"] for e in entities)
    answer, _ = await post(http, "/v1/pipelines/fill-mask", model="bert", inputs="a [MASK] river")
    assert len(answer["results"][0][0]) == 5
    embedded, _ = await post(http, "/v1/embeddings", model="bert", input="a river")
    assert len(embedded["data"][0]["embedding"]) == 32
    ask = {"inputs": TEXTS[:2], "parameters": {"max_new_tokens": 4}}
    answer, _ = await post(http, "/v1/pipelines/summarization", model="t5", **ask)
    assert len(answer["results"]) == 2
    assert 2 <= answer["usage"]["completion_tokens"] <= 8
    body = {"model": "ner", "inputs": "a", "parameters": {}}
    async with http.post("/v1/pipelines/fill-mask", json=body) as response:
        assert response.status == 404
        error = (await response.json())["error"]
    assert error["message"] == "the model 'ner' does not do 'fill-mask', only token-classification"
    async with http.post(
        "/v1/pipelines/text-classification", json={"model": "nli", "inputs": ["a", "river " * 90]}
    ) as response:
        error = (await response.json())["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "inputs.1")


async def sounds(origin: str, folder: Path) -> None:
    file = folder / "keys.wav"
    file.write_bytes(keys_file("123"))
    process = await asyncio.create_subprocess_exec(
        "curl",
        "-sS",
        f"{origin}/v1/pipelines/audio-classification",
        *("-F", "model=sounds", "-F", f"inputs=@{file}", "-F", 'parameters={"top_k": 2}'),
        stdout=-1,
    )
    out, _ = await process.communicate()
    (labels,) = json.loads(out)["results"]
    theirs = transformers.pipeline("audio-classification", str(folder / "sounds"))
    samples = decode(file.read_bytes(), RATE)
    for one, other in zip(labels, theirs(samples, top_k=2), strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


async def embeddings(http: aiohttp.ClientSession, origin: str) -> None:
    texts = [f"{TEXTS[n % 3]} {'bread ' * (n % 7)}{n}" for n in range(1500)]
    async with openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none") as client:
        raw = await client.embeddings.with_raw_response.create(model="tiny-embed", input=texts)
        assert shared(raw.headers)
        answer = raw.parse()
        some = [0, 1, 700, 1499]
        alone = await client.embeddings.create(model="tiny-embed", input=[texts[n] for n in some])
    for one, at in zip(alone.data, some, strict=True):
        assert answer.data[at].index == at
        assert answer.data[at].embedding == pytest.approx(one.embedding, abs=1e-5)
    texts[1300] = "bread " * 90
    async with http.post(
        "/v1/embeddings", json={"model": "tiny-embed", "input": texts}
    ) as response:
        error = (await response.json())["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input.1300")
    assert error["message"].startswith("input 1300 has 92 tokens")


@pytest.mark.timeout(120)
async def test_pipelines(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not there")
    async with (
        Rig(nodes=2, models=models(tmp_path)) as rig,
        served(rig.dispatcher) as origin,
        aiohttp.ClientSession(origin) as http,
    ):
        await reranks(http, origin)
        await embeddings(http, origin)
        await pipelines(http)
        await sounds(origin, tmp_path)

"""Rerank and the pipelines over HTTP, the SDK and the verbs; and requests that several share."""

from __future__ import annotations

import asyncio
import io
import json
from array import array
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from blip.cli import main
from blip.client import AsyncBlip, Blip
from blip.client.pipelines import Ranked
from blip.errors import ContextTooLong, InvalidRequest, NotFound
from blip.gateway.mesh import Answer, ServedModel
from blip.gateway.routes.pipelines import TASKS
from blip.gateway.routes.pipelines.media import MEDIA_TASKS
from blip.gateway.shares import LEAST, MOST, TURNS, cut, places
from blip.kinds.pipelines import results_from_wire
from blip.protocol.messages import Model, NodeEntry
from tests.unit.gateway_mesh import MemoryMesh, failing, mesh, served, vector

DOCUMENTS = ["the river", "we bake bread", {"text": "bread in the oven"}]


class SeveralDevices(MemoryMesh):
    """A mesh whose every model is on several nodes of two devices each."""

    def models(self) -> list[ServedModel]:
        kinds = {"embedder": ("embedding",), "tiny-rerank": ("rerank",)}
        return [
            ServedModel(name, kinds.get(name, ("fill-mask",)), None, ("a", "b"), 2)
            for name in self.nodes_by_model
        ]

    def nodes(self) -> list[NodeEntry]:
        (node,) = super().nodes()
        (device,) = node.advert.devices
        advert = node.advert._replace(
            models=[Model(model.name, list(model.kinds)) for model in self.models()],
            devices=[device, device._replace(id="other")],
        )
        return [node._replace(id=id, advert=advert) for id in ("a", "b")]


@pytest.fixture
def several() -> SeveralDevices:
    return SeveralDevices(mesh().nodes_by_model)


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(backend) as origin, aiohttp.ClientSession(origin) as session:
        yield session


async def post(http: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as response:
        return response.status, await response.json()


# --- rerank ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_rerank(http: aiohttp.ClientSession, path: str) -> None:
    ask = {"model": "tiny-rerank", "query": "bread oven", "documents": DOCUMENTS}
    status, answer = await post(http, path, **ask)
    assert status == 200
    assert answer["results"] == [
        {"index": 2, "relevance_score": 1.0},
        {"index": 1, "relevance_score": 0.5},
        {"index": 0, "relevance_score": 0.0},
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert answer["meta"]["api_version"] == {"version": "2"}
    assert answer["meta"]["warnings"] == []
    _, answer = await post(http, path, **ask, top_n=1, return_documents=True, truncate=True)
    assert answer["results"] == [
        {"index": 2, "relevance_score": 1.0, "document": {"text": "bread in the oven"}}
    ]
    assert answer["meta"]["warnings"] == ["the ends of 1 documents were cut off"]


async def test_rerank_passes_on_what_was_asked(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    ask = {"model": "tiny-rerank", "query": "a", "documents": ["b"]}
    await post(http, "/v1/rerank", **ask, max_tokens_per_doc=7, raw_scores=True, truncate=True)
    (sent,) = backend.inputs
    assert (sent.document_tokens, sent.raw, sent.truncate, sent.first) == (7, True, True, 0)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": [{"image": "x"}]}, "documents.0"),
        ({"query": ""}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"rank_fields": ["title"]}, "rank_fields"),
    ],
)
async def test_rerank_refuses(
    http: aiohttp.ClientSession, change: dict[str, Any], param: str
) -> None:
    ask = {"model": "tiny-rerank", "query": "a", "documents": ["b"], **change}
    status, answer = await post(http, "/v1/rerank", **ask)
    assert status == 400
    assert answer["error"]["param"].startswith(param)


async def test_scores_that_cannot_be(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    async def short(value: Any) -> Any:
        yield Answer(bytes(4), {}, 1.0)

    async def broken(value: Any) -> Any:
        yield Answer(array("f", [1.0, float("nan")]).tobytes(), {}, 1.0)

    for node in (short, broken):
        backend.nodes_by_model["m"] = node
        status, answer = await post(http, "/v1/rerank", model="m", query="a", documents=["b", "c"])
        assert (status, answer["error"]["code"]) == (500, "runtime_failed")


async def test_an_embedding_model_compares_vectors(several: SeveralDevices) -> None:
    async with served(several) as origin, aiohttp.ClientSession(origin) as http:
        ask = {"model": "embedder", "query": "bread", "documents": ["soup", "bread", "cake"]}
        status, answer = await post(http, "/v1/rerank", **ask)
        assert status == 200
        best = answer["results"][0]
        assert best["index"] == 1
        assert best["relevance_score"] == pytest.approx(1)
        one, other = vector("bread", 8), vector("cake", 8)
        lengths = sum(x * x for x in one) ** 0.5 * sum(x * x for x in other) ** 0.5
        cosine = sum(x * y for x, y in zip(one, other, strict=True)) / lengths
        found = {each["index"]: each["relevance_score"] for each in answer["results"]}
        assert found[2] == pytest.approx(cosine)
        assert answer["usage"]["total_tokens"] == 12
        for name in ("truncate", "raw_scores"):
            status, answer = await post(http, "/v1/rerank", **ask, **{name: True})
            assert (status, answer["error"]["param"]) == (400, name)
        status, answer = await post(http, "/v1/rerank", **{**ask, "documents": ["a", ""]})
        assert (status, answer["error"]["param"]) == (400, "documents.1")


@pytest.mark.parametrize(("at", "param"), [(0, "query"), (2, "documents.1")])
async def test_a_text_that_is_too_long_to_embed_keeps_its_name(
    several: SeveralDevices, at: int, param: str
) -> None:
    async def narrow(value: Any) -> Any:
        if value.texts:
            raise ContextTooLong(
                f"input {at} has 99 tokens; the model takes 64",
                details={"input": at, "prompt_tokens": 99, "limit": 64},
            )
        yield b""

    several.nodes_by_model["embedder"] = narrow
    async with served(several) as origin, aiohttp.ClientSession(origin) as http:
        status, answer = await post(
            http, "/v1/rerank", model="embedder", query="a", documents=["b", "c"]
        )
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert answer["error"]["param"] == param
    assert answer["error"]["message"] == f"'{param}' has 99 tokens; the model takes 64"


# --- pipelines -------------------------------------------------------------------------------


async def test_every_task(http: aiohttp.ClientSession) -> None:
    found = {}
    for task in TASKS:
        status, answer = await post(http, f"/v1/pipelines/{task.name}", **task.example)
        assert status == 200, answer
        assert (answer["task"], answer["model"]) == (task.name, task.example["model"])
        assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 1
        found[task.name] = answer["results"]
    assert found["text-classification"][1] == [
        {"label": "I DO NOT", "score": 0.75},
        {"label": "OTHER", "score": 0.25},
    ]
    assert [each["label"] for each in found["zero-shot-classification"][0]] == ["sport", "food"]
    assert found["token-classification"] == [
        [{"entity_group": "PER", "score": 0.5, "word": "Ada", "start": 0, "end": 3}]
    ]
    assert found["fill-mask"][0][0][0]["token_str"] == "it"
    assert found["question-answering"][0][0] == {
        "answer": "Ada",
        "score": 0.5,
        "start": 0,
        "end": 3,
    }
    assert found["summarization"] == [{"summary_text": "summarization of A long story."}]
    assert found["translation"] == [{"translation_text": "translation of Good morning"}]
    assert found["text2text-generation"][0]["generated_text"].startswith("text2text-generation of")
    assert found["feature-extraction"] == [[[0, 1], [2, 3]]]


async def test_parameters_arrive(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    async def sent(task: str, inputs: Any, **parameters: Any) -> Any:
        body = {"model": "bert", "inputs": inputs, "parameters": parameters}
        status, answer = await post(http, f"/v1/pipelines/{task}", **body)
        assert status == 200, answer
        return backend.inputs[-1]

    value = await sent("text-classification", "a", top_k=1, function_to_apply="none")
    assert (value.texts, value.top_k, value.activation) == (["a"], 1, "none")
    value = await sent("fill-mask", ["[MASK]"], targets=["x"], truncate=True)
    assert (value.targets, value.truncate) == (["x"], True)
    value = await sent("token-classification", "a", aggregation_strategy="max", ignore_labels=[])
    assert (value.aggregation, value.ignore_labels) == ("max", [])
    value = await sent("translation", "a", src_lang="en", tgt_lang="de", num_beams=2)
    assert (value.task, value.source, value.target, value.num_beams) == (
        "translation",
        "en",
        "de",
        2,
    )
    asked = [{"question": "q", "context": "c"}, {"question": "r", "context": "d"}]
    value = await sent("question-answering", asked, doc_stride=5, handle_impossible_answer=True)
    assert (value.questions, value.contexts, value.stride) == (["q", "r"], ["c", "d"], 5)
    assert value.impossible


@pytest.mark.parametrize(
    ("task", "body", "param"),
    [
        ("text-classification", {"inputs": []}, "inputs"),
        ("text-classification", {"inputs": "a", "parameters": {"topk": 1}}, "parameters.topk"),
        ("zero-shot-classification", {"inputs": "a"}, "parameters"),
        (
            "zero-shot-classification",
            {
                "inputs": "a",
                "parameters": {"candidate_labels": ["b"], "hypothesis_template": "it is"},
            },
            "parameters.hypothesis_template",
        ),
        (
            "zero-shot-classification",
            {"inputs": ["a"] * 1000, "parameters": {"candidate_labels": ["b"] * 20}},
            "inputs",
        ),
        ("question-answering", {"inputs": {"question": "a"}}, "inputs.context"),
        ("summarization", {"inputs": "a", "parameters": {"src_lang": "en"}}, "parameters.src_lang"),
    ],
)
async def test_bad_bodies_name_the_field(
    http: aiohttp.ClientSession, task: str, body: dict[str, Any], param: str
) -> None:
    status, answer = await post(http, f"/v1/pipelines/{task}", model="bert", **body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_unknown_tasks(http: aiohttp.ClientSession) -> None:
    for name, hint in (
        ("text-clasification", "Did you mean 'text-classification'?"),
        ("ner", "It is called token-classification here."),
        ("text-to-image", "/v1/images/generations"),
        ("nonsense", "Known are text-classification,"),
    ):
        status, answer = await post(http, f"/v1/pipelines/{name}", model="bert")
        assert (status, answer["error"]["code"]) == (404, "not_found")
        assert hint in answer["error"]["hint"]
    async with http.get("/v1/pipelines/fill-mask") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"


async def test_the_list_of_tasks(several: SeveralDevices) -> None:
    async with (
        served(several) as origin,
        aiohttp.ClientSession(origin) as http,
        http.get("/v1/pipelines") as response,
    ):
        rows = {row["task"]: row for row in (await response.json())["data"]}
    assert set(rows) == {task.name for task in (*TASKS, *MEDIA_TASKS)}
    assert "bert" in rows["fill-mask"]["models"]
    assert rows["summarization"]["kind"] == "text2text-generation"
    assert rows["summarization"]["models"] == []


async def test_answers_that_make_no_sense(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    for payload in (b"\xc1", b"\x90", b"\x91\x01", b"\x91\x91\x92\x01\xa1x"):

        async def odd(value: Any, payload: bytes = payload) -> Any:
            yield Answer(payload, {}, 1.0)

        backend.nodes_by_model["odd"] = odd
        status, answer = await post(
            http, "/v1/pipelines/text-classification", model="odd", inputs="a"
        )
        assert (status, answer["error"]["code"]) == (500, "runtime_failed")
    with pytest.raises(ValueError, match="2 results"):
        results_from_wire(b"\x91\x01", 2)


@pytest.mark.parametrize(
    ("path", "body", "raised", "param"),
    [
        ("/v1/embeddings", {"input": ["a"]}, "texts.7", "input.7"),
        ("/api/embeddings", {"prompt": "a"}, "texts.0", None),
        ("/api/v1/inference/embeddings", {"text": ["a"]}, "texts.7", None),
        ("/v1/pipelines/fill-mask", {"inputs": ["a"]}, "texts.7", "inputs.7"),
        ("/v1/pipelines/fill-mask", {"inputs": ["a"]}, "targets", "parameters.targets"),
        ("/v1/pipelines/fill-mask", {"inputs": ["a"]}, "model", "model"),
        ("/v1/pipelines/fill-mask", {"inputs": ["a"]}, None, None),
        (
            "/v1/pipelines/question-answering",
            {"inputs": {"question": "a", "context": "b"}},
            "questions.7",
            "inputs.7",
        ),
    ],
)
async def test_errors_name_the_fields_of_the_request(
    http: aiohttp.ClientSession,
    backend: MemoryMesh,
    path: str,
    body: dict[str, Any],
    raised: str | None,
    param: str | None,
) -> None:
    backend.nodes_by_model["m"] = failing(InvalidRequest("no", param=raised))
    status, answer = await post(http, path, model="m", **body)
    assert status == 400
    if path.startswith("/v1/"):
        assert answer["error"]["param"] == param
    elif "inference" in path:
        assert answer["error"]["param"] == "text.7"
    else:
        assert answer["param"] == "prompt.0"


# --- shares ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "tasks", "expected"),
    [
        ([1], 4, [1]),
        ([1] * 6, 3, [2, 2, 2]),
        ([1] * 7, 3, [3, 2, 2]),
        ([100, 1, 1, 1], 4, [1, 3]),
        ([1, 1, 1, 100], 2, [4]),
        ([1] * 3, 9, [1, 1, 1]),
    ],
)
def test_parts(costs: list[float], tasks: int, expected: list[int]) -> None:
    parts = cut(costs, tasks)
    assert [len(part) for part in parts] == expected
    assert [at for part in parts for at in part] == list(range(len(costs)))


def test_places(several: SeveralDevices) -> None:
    nodes = several.nodes()
    assert places(nodes, "embedding", "embedder") == 4
    assert places(nodes, "chat", "embedder") == 0
    first = nodes[0]
    gone = first._replace(status="lost")
    broken = first._replace(
        advert=first.advert._replace(models=[Model("embedder", ["embedding"], error="no")])
    )
    drained = first._replace(advert=first.advert._replace(draining=True))
    busy = [device._replace(state="yielding") for device in first.advert.devices[:1]]
    half = first._replace(advert=first.advert._replace(devices=busy + first.advert.devices[1:]))
    for node, count in ((gone, 2), (broken, 2), (drained, 2), (half, 3)):
        assert places([node, nodes[1]], "embedding", "embedder") == count
    one = first._replace(
        advert=first.advert._replace(models=[Model("embedder", ["embedding"], max_replicas=1)])
    )
    assert places([one, one], "embedding", "embedder") == 1


async def test_many_texts_are_several_tasks(several: SeveralDevices) -> None:
    texts = [f"text {number} " + "x" * 80 for number in range(2000)]
    async with served(several) as origin, aiohttp.ClientSession(origin) as http:
        async with http.post(
            "/v1/embeddings", json={"model": "embedder", "input": texts}
        ) as response:
            answer = await response.json()
            assert len(response.headers["X-Blip-Task"].split(", ")) == 4 * TURNS
        assert len(several.inputs) == 4 * TURNS < MOST
        assert [value.first for value in several.inputs] == sorted(
            {value.first for value in several.inputs}
        )
        assert [row["index"] for row in answer["data"]] == list(range(2000))
        for at in (0, 777, 1999):
            assert answer["data"][at]["embedding"] == pytest.approx(vector(texts[at], 8))
        assert answer["usage"]["prompt_tokens"] == 2000 * 3
        several.inputs.clear()
        async with http.post("/api/embed", json={"model": "embedder", "input": texts}) as response:
            ollama = await response.json()
        assert len(several.inputs) == 4 * TURNS
        assert ollama["prompt_eval_count"] == 2000 * 3
        assert ollama["embeddings"][777] == pytest.approx(vector(texts[777], 8))
        several.inputs.clear()
        path = "/api/v1/inference/embeddings"
        async with http.post(path, json={"model": "embedder", "text": texts}) as response:
            original = await response.json()
        assert len(several.inputs) == 4 * TURNS
        assert original["result"]["embeddings"][1999] == pytest.approx(vector(texts[1999], 8))
        assert original["worker_id"] == "büro-1"


async def test_few_texts_are_one_task(several: SeveralDevices) -> None:
    async with served(several) as origin, aiohttp.ClientSession(origin) as http:
        texts = ["x" * int(4 * LEAST - 8), "y"]
        await post(http, "/v1/embeddings", model="embedder", input=texts)
        await post(http, "/v1/embeddings", model="embedder", input="x" * 100_000)
        assert len(several.inputs) == 2


async def test_rerank_and_pipelines_are_shared_too(several: SeveralDevices) -> None:
    documents = [f"{number} " + "x" * 100 for number in range(1000)]
    documents[900] = "bread oven"
    async with served(several) as origin, aiohttp.ClientSession(origin) as http:
        ask = {"model": "tiny-rerank", "query": "bread oven", "documents": documents}
        _, answer = await post(http, "/v1/rerank", **ask, top_n=1)
        assert answer["results"] == [{"index": 900, "relevance_score": 1.0}]
        assert len(several.inputs) == 4 * TURNS
        assert sum(len(value.documents) for value in several.inputs) == 1000
        several.inputs.clear()
        texts = [f"[MASK] {number} " + "x" * 40 for number in range(1000)]
        _, answer = await post(http, "/v1/pipelines/fill-mask", model="bert", inputs=texts)
        assert [each[0][0]["sequence"] for each in answer["results"]] == texts
        assert 1 < len(several.inputs) <= 4 * TURNS
        assert several.inputs[1].first == len(several.inputs[0].texts)


# --- SDK and verbs ---------------------------------------------------------------------------


async def test_sdk(several: SeveralDevices) -> None:
    async with served(several) as url, AsyncBlip(url) as client:
        ranked = await client.rerank("tiny-rerank", "bread", ["soup", "bread"], top_n=1)
        assert ranked.ranking == [Ranked(1, 1.0)]
        assert ranked.usage["total_tokens"] == 2
        asked = {"question": "q", "context": "context"}
        answer = await client.pipeline("question-answering", "squad", asked, top_k=2, seed=None)
        assert answer.results == [[{"answer": "con", "score": 0.5, "start": 0, "end": 3}]]
        assert several.inputs[-1].top_k == 2
        with pytest.raises(NotFound, match="no pipeline 'a/b'"):
            await client.pipeline("a/b", "bert", "x")
        with pytest.raises(InvalidRequest):
            await client.pipeline("fill-mask", "bert", "x", top=1)


async def test_blocking_sdk() -> None:
    def use(url: str) -> None:
        with Blip(url) as client:
            found = client.rerank("tiny-rerank", "bread", ["soup", "bread"]).ranking
            assert [each.index for each in found] == [1, 0]
            texts = client.pipeline("summarization", "bart", ["a", "b"]).results
            assert texts[1] == {"summary_text": "summarization of b"}

    async with served(mesh()) as url:
        await asyncio.to_thread(use, url)


async def blip(*args: str) -> int:
    async with served(mesh()) as url:
        return await asyncio.to_thread(main, [*args, "--url", url])


async def test_verbs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLIP_API_KEY", raising=False)
    assert await blip("rerank", "tiny-rerank", "bread oven", "soup", "bread", "--truncate") == 0
    said = capsys.readouterr()
    assert said.out == " 0.5000  bread\n 0.0000  soup\n"
    assert "the ends of 1 documents" in said.err
    assert await blip("rerank", "tiny-rerank", "bread", "soup", "bread", "--json", "-n", "1") == 0
    assert json.loads(capsys.readouterr().out)["ranking"] == [
        {"index": 1, "score": 1.0, "text": "bread"}
    ]
    ask = ["pipeline", "zero-shot-classification", "nli", "a", "b", "-l", "x", "-l", "y"]
    assert await blip(*ask) == 0
    assert capsys.readouterr().out == "a\n 0.5000  x\n 0.5000  y\nb\n 0.5000  x\n 0.5000  y\n"
    assert await blip("pipeline", "question-answering", "squad", "text", "-q", "what") == 0
    assert capsys.readouterr().out == " 0.5000  tex\n"
    assert await blip("pipeline", "translation", "nllb", "hi", "-s", "tgt_lang=de") == 0
    assert capsys.readouterr().out == "translation of hi\n"
    assert await blip("pipeline", "feature-extraction", "bert", "hi") == 0
    assert capsys.readouterr().out.startswith("2 numbers [0.0000, 1.0000, ...]")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert await blip("pipeline", "fill-mask", "bert", "-s", "top_k=1", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 2
    assert await blip("pipeline", "fill-mask", "bert", "x", "-s", "top_k") == 1
    assert "--set top_k=3" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert await blip("pipeline", "fill-mask", "bert") == 1
    assert "there is no text" in capsys.readouterr().err

"""Rerank and embeddings that two real nodes share, by HTTP."""

from __future__ import annotations

from typing import Any

import aiohttp
import openai
import pytest

from tests.mesh.rig import MODELS as FOLDER
from tests.mesh.rig import Rig
from tests.models.make_tiny_rerank import CHECKS
from tests.unit.gateway_mesh import served

TEXTS = ["we bake bread in the oven", "the team score a goal", "my python code is new"]


MODELS = {
    name: {"source": str(FOLDER / name), "preload": True} for name in ("tiny-rerank", "tiny-embed")
}


async def post(http: aiohttp.ClientSession, path: str, **body: Any) -> tuple[Any, Any]:
    async with http.post(path, json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return answer, response.headers


def shared(headers: Any) -> bool:
    """Whether both nodes took part. Sure of the first large request only: the broker learns."""
    return set(headers["X-Blip-Node"].split(", ")) == {"node-1", "node-2"}


async def reranks(http: aiohttp.ClientSession) -> None:
    query, passage = CHECKS[0]
    body = {"model": "tiny-rerank", "query": query}
    many = ["the river in the forest " * 4] * 900 + [passage] + ["a goal"] * 99
    answer, headers = await post(http, "/v2/rerank", **{**body, "documents": many, "top_n": 1})
    assert answer["results"][0]["index"] == 900
    assert len(headers["X-Blip-Task"].split(", ")) == 8
    assert shared(headers)


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
async def test_shared_batches() -> None:
    async with (
        Rig(nodes=2, models=MODELS) as rig,
        served(rig.dispatcher) as origin,
        aiohttp.ClientSession(origin) as http,
    ):
        await reranks(http)
        await embeddings(http, origin)

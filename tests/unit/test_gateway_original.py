"""BitingLip's faces, asked as its documents ask and answered as they say."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from blip.errors import NodeLost
from tests.unit.gateway_mesh import MemoryMesh, failing, mesh, png, served, vector

TEXT = "/api/v1/inference/text-generation"
VECTORS = "/api/v1/inference/embeddings"
IMAGES = "/api/v1/inference/image-generation"

#: From BitingLip's README, word for word.
LINES = (
    r"""curl -X POST http://localhost:8001/api/v1/inference/text-generation \
  -H "Content-Type: application/json" \
  -d '{"model": "gpt2", "prompt": "Hello world", "max_tokens": 50}'""",
    r"""curl -X POST http://localhost:8001/api/v1/inference/text-generation \
  -H "Authorization: Bearer YOUR_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "gpt2",
    "prompt": "The future of AI is",
    "max_tokens": 100,
    "temperature": 0.7
  }'""",
)


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(backend) as origin, aiohttp.ClientSession(origin) as session:
        yield session


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("line", LINES)
async def test_documented_lines(backend: MemoryMesh, line: str) -> None:
    backend.nodes_by_model["gpt2"] = backend.nodes_by_model["parrot"]
    async with served(backend) as origin:
        shell = line.replace("http://localhost:8001", origin).replace("curl", "curl -sS", 1)
        process = await asyncio.create_subprocess_shell(shell, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
    answer = json.loads(out)
    prompt = json.loads(line[line.index("{") : line.rindex("}") + 1])["prompt"]
    assert answer["status"] == "completed"
    assert answer["result"] == {
        "generated_text": prompt,
        "tokens_generated": len(prompt.split(" ")),
        "finish_reason": "stop",
        "model_used": "gpt2",
    }
    assert (answer["task_id"], answer["worker_id"]) == ("0" * 32, "büro-1")
    took = datetime.fromisoformat(answer["completed_at"]) - datetime.fromisoformat(
        answer["created_at"]
    )
    assert took.total_seconds() == pytest.approx(answer["processing_time"], abs=1e-5)


def test_the_documentation_has_such_a_line() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "api.md").read_text(encoding="utf-8")
    assert LINES[0] in text


async def test_fields(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    body: dict[str, Any] = {"model": "parrot", "text": "a b c"}
    async with http.post(TEXT, json=body) as response:
        assert response.status == 200
    more = {"stop_sequences": ["\n\n", "Human:"], "seed": 7, "repetition_penalty": 1.1}
    body = {**body, **more, "max_tokens": 2, "temperature": 0, "top_p": 1, "top_k": 0}
    async with http.post(TEXT, json=body) as response:
        assert (await response.json())["result"]["finish_reason"] == "length"
    plain, full = (value.model_dump(exclude_defaults=True) for value in backend.inputs)
    defaults = {"max_tokens": 512, "temperature": 0.7, "top_p": 0.9, "top_k": 50}
    assert plain == {"prompt": "a b c", **defaults}
    assert full == {
        "prompt": "a b c",
        "max_tokens": 2,
        "temperature": 0.0,
        "stop": ["\n\n", "Human:"],
        "seed": 7,
        "repetition_penalty": 1.1,
    }


async def test_names_and_addresses_of_its_other_documents(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    # README.md of https://github.com/BitingLip/gateway-manager
    body = {"model_name": "parrot", "prompt": "a b c", "max_length": 2, "temperature": 0.7}
    for path in (TEXT, TEXT.removeprefix("/api")):
        async with http.post(path, json=body) as response:
            result = (await response.json())["result"]
        assert (result["generated_text"], result["model_used"]) == ("a b", "parrot")
    assert [value.max_tokens for value in backend.inputs] == [2, 2]
    async with http.post(VECTORS.removeprefix("/api"), json={"model": "parrot"}) as response:
        assert (await response.json())["error"]["code"] == "INVALID_REQUEST"


async def test_stream(http: aiohttp.ClientSession) -> None:
    body = {"model": "parrot", "prompt": "Quantum computing is", "stream": True}
    async with http.post(TEXT, json=body) as response:
        assert response.content_type == "text/event-stream"
        blocks = (await response.text()).removesuffix("\n\n").split("\n\n")
    assert [json.loads(block.removeprefix("data: ")) for block in blocks] == [
        {"token": "Quantum", "partial_text": "Quantum"},
        {"token": " computing", "partial_text": "Quantum computing"},
        {"token": " is", "partial_text": "Quantum computing is"},
        {"done": True, "final_text": "Quantum computing is"},
    ]


async def test_embeddings(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    for body in ({"text": ["a", "b"]}, {"input": "a"}):
        async with http.post(VECTORS, json={"model": "embedder", **body}) as response:
            answer = await response.json()
        assert answer["status"] == "completed"
        texts = backend.inputs[-1].texts
        assert answer["result"]["embeddings"] == [pytest.approx(vector(t, 8)) for t in texts]
        assert answer["result"]["dimensions"] == 8
        assert answer["result"]["model_used"] == "embedder"
    assert [value.texts for value in backend.inputs] == [["a", "b"], ["a"]]


#: The request of BitingLip's API reference, but for the model.
DOCUMENTED_IMAGE = {
    "model": "toy-shapes",
    "prompt": "A beautiful sunset over snow-capped mountains",
    "negative_prompt": "blurry, low quality, distorted",
    "width": 1024,
    "height": 1024,
    "steps": 50,
    "guidance_scale": 7.5,
    "seed": 42,
    "num_images": 1,
}


async def test_images(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    async with http.post(IMAGES, json=DOCUMENTED_IMAGE | {"num_images": 2}) as response:
        answer = await response.json()
    assert response.status == 200, answer
    assert answer["status"] == "completed"
    assert answer["processing_time"] > 0
    result = answer["result"]
    assert (result["model_used"], result["steps_completed"]) == ("toy-shapes", 50)
    for number, image in enumerate(result["images"]):
        async with aiohttp.request("GET", image.pop("url")) as fetched:  # without any key
            assert fetched.content_type == "image/png"
            assert await fetched.read() == png(1024, 1024, 42 + number)
        assert image == {"width": 1024, "height": 1024, "format": "png", "seed": 42 + number}
    sent = backend.inputs[0].model_dump(exclude_defaults=True)
    assert sent == {
        "prompt": DOCUMENTED_IMAGE["prompt"],
        "negative_prompt": DOCUMENTED_IMAGE["negative_prompt"],
        "width": 1024,
        "height": 1024,
        "steps": 50,
        "guidance_scale": 7.5,
        "seed": 42,
    }


async def test_images_with_the_names_of_its_code(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    for seed in (-1, None):
        body = {"model": "toy-shapes", "text": "x", "num_inference_steps": 4, "seed": seed}
        async with http.post(IMAGES, json=body) as response:
            assert response.status == 200, await response.text()
    first, second = backend.inputs
    assert (first.prompt, first.steps, first.guidance_scale) == ("x", 4, 7.5)
    assert first.width is None
    assert min(first.seed, second.seed) >= 0
    assert first.seed != second.seed


@pytest.mark.parametrize(
    ("route", "body", "status", "code", "field"),
    [
        (TEXT, {"model": "nobody", "prompt": "a"}, 404, "MODEL_NOT_FOUND", "model"),
        (TEXT, {"model": "parrot"}, 400, "INVALID_REQUEST", "prompt"),
        (TEXT, {"prompt": "a"}, 400, "INVALID_REQUEST", "model"),
        (
            TEXT,
            {"model": "a", "model_name": "b", "prompt": "a"},
            400,
            "INVALID_REQUEST",
            "model_name",
        ),
        (
            TEXT,
            {"model": "a", "prompt": "a", "max_tokens": 1, "max_length": 1},
            400,
            "INVALID_REQUEST",
            "max_length",
        ),
        (TEXT, {"model": "parrot", "prompt": "a", "text": "a"}, 400, "INVALID_REQUEST", "text"),
        (TEXT, {"model": "parrot", "prompt": "a", "n": 1}, 400, "INVALID_REQUEST", "n"),
        (IMAGES, {"model": "toy-shapes"}, 400, "INVALID_REQUEST", "prompt"),
        (
            IMAGES,
            {"model": "toy-shapes", "prompt": "a", "text": "a"},
            400,
            "INVALID_REQUEST",
            "text",
        ),
        (
            IMAGES,
            {"model": "toy-shapes", "prompt": "a", "width": 5},
            400,
            "INVALID_REQUEST",
            "width",
        ),
        (IMAGES, {"model": "nobody", "prompt": "a"}, 404, "MODEL_NOT_FOUND", "model"),
        (VECTORS, {"model": "embedder"}, 400, "INVALID_REQUEST", "text"),
        (
            VECTORS,
            {"model": "embedder", "text": "a", "input": "a"},
            400,
            "INVALID_REQUEST",
            "input",
        ),
    ],
)
async def test_errors(
    http: aiohttp.ClientSession,
    route: str,
    body: dict[str, Any],
    status: int,
    code: str,
    field: str,
) -> None:
    async with http.post(route, json=body) as response:
        error = (await response.json())["error"]
        assert response.status == status
        assert error["request_id"] == response.headers["X-Request-ID"]
    assert (error["code"], error["details"]["field"]) == (code, field)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", error["timestamp"])


async def test_errors_after_the_first_byte(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    backend.nodes_by_model["broken"] = failing(NodeLost("gone"), after=1)
    body = {"model": "broken", "prompt": "a", "stream": True}
    async with http.post(TEXT, json=body) as response:
        first, last = (await response.text()).removesuffix("\n\n").split("\n\n")
    assert json.loads(first.removeprefix("data: "))["token"] == "0 "
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "NODE_LOST"

"""Ollama's API through the real ``ollama`` client."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import ollama
import pytest

from blip.errors import ContextTooLong, NodeLost, Overloaded
from blip.gateway.mesh import ServedModel, Timing
from blip.gateway.routes.ollama.dialect import durations
from blip.gateway.routes.ollama.models import size_name
from blip.gateway.settings import GatewaySettings
from blip.kinds.chat import ChatInput
from blip.kinds.completion import CompletionInput
from blip.kinds.text import Delta, delta_to_wire
from blip.protocol.messages import Device, Model, NodeEntry, Replica
from tests.unit.gateway_mesh import MemoryMesh, Work, failing, mesh, served, vector
from tests.unit.test_gateway_openai import SAID

MESSAGES: list[Any] = [
    {"role": "system", "content": "Repeat."},
    {"role": "user", "content": SAID},
]


@contextlib.asynccontextmanager
async def client_of(
    backend: MemoryMesh, settings: GatewaySettings | None = None, **headers: str
) -> AsyncIterator[ollama.AsyncClient]:
    async with served(backend, settings) as origin:
        client = ollama.AsyncClient(origin, headers=headers)
        async with client:
            yield client


async def test_chat() -> None:
    backend = mesh()
    async with client_of(backend) as client:
        answer = await client.chat(
            "parrot:latest",
            MESSAGES,
            options={
                "seed": 7,
                "num_predict": 50,
                "stop": ["never"],
                "repeat_penalty": 1.1,
                "repeat_last_n": -1,
                "num_ctx": 4096,
                "mirostat": 0,
            },
            tools=[],
            think=False,
            keep_alive="5m",
        )
    assert answer.message.content == f"{SAID} #7"
    assert answer.message.role == "assistant"
    assert (answer.model, answer.done, answer.done_reason) == ("parrot:latest", True, "stop")
    words = len(SAID.split(" "))
    assert (answer.prompt_eval_count, answer.eval_count) == (words, words + 1)
    assert answer.total_duration is not None
    assert answer.prompt_eval_duration is not None
    assert answer.eval_duration is not None
    assert answer.load_duration == 0
    assert 0 < answer.prompt_eval_duration + answer.eval_duration <= answer.total_duration
    assert answer.created_at is not None
    assert abs((datetime.fromisoformat(answer.created_at) - datetime.now(UTC)).total_seconds()) < 60
    assert backend.inputs[0].model_dump(exclude_defaults=True) == {
        "messages": MESSAGES,
        "max_tokens": 50,
        "temperature": 0.8,  # Ollama's defaults
        "top_k": 40,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["never"],
        "repetition_penalty": 1.1,
    }


async def test_chat_stream_goes_round() -> None:
    backend = mesh()
    async with client_of(backend) as client:
        parts = [part async for part in await client.chat("parrot", MESSAGES, stream=True)]
        assert "".join(part.message.content or "" for part in parts) == SAID
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert all(part.total_duration is None for part in parts[:-1])
        assert parts[-1].done_reason == "stop"
        assert parts[-1].eval_count == len(parts) - 1 == len(SAID.split(" "))
        whole = await client.chat("parrot", MESSAGES)
        turns: Any = [*MESSAGES, whole.message, {"role": "user", "content": "b"}]
        again = await client.chat("parrot", turns)
    assert again.message.content == "b"
    assert backend.inputs[-1].messages[2].content == SAID


@pytest.mark.parametrize("streamed", [False, True])
async def test_generate(streamed: bool) -> None:
    backend = mesh()
    async with client_of(backend) as client:
        request: Any = {"model": "parrot", "prompt": "a b", "system": "Repeat."}
        if streamed:
            parts = [part async for part in await client.generate(**request, stream=True)]
            text = "".join(part.response or "" for part in parts)
            last = parts[-1]
        else:
            last = await client.generate(**request)
            text = last.response or ""
    assert (text, last.done, last.done_reason) == ("a b", True, "stop")
    (value,) = backend.inputs
    assert isinstance(value, ChatInput)
    assert [(each.role, each.content) for each in value.messages] == [
        ("system", "Repeat."),
        ("user", "a b"),
    ]


async def test_raw_prompts_are_continued() -> None:
    backend = mesh()
    async with client_of(backend) as client:
        answer = await client.generate("parrot", "a b c", raw=True, options={"num_predict": 2})
        assert (answer.response, answer.done_reason) == ("a b", "length")
        with pytest.raises(ollama.ResponseError, match="'system'"):
            await client.generate("parrot", "a", raw=True, system="x")
    (value,) = backend.inputs
    assert isinstance(value, CompletionInput)
    assert value.prompt == "a b c"


@pytest.mark.parametrize("streamed", [False, True])
async def test_logprobs(streamed: bool) -> None:
    async with client_of(mesh()) as client:
        request: Any = {"model": "parrot", "prompt": "é b", "logprobs": True, "top_logprobs": 1}
        if streamed:
            rows = [
                row
                async for part in await client.generate(**request, stream=True)
                for row in part.logprobs or ()
            ]
        else:
            rows = list((await client.generate(**request)).logprobs or ())
    assert [(row.token, row.logprob) for row in rows] == [("é", -0.5), (" b", -0.5)]
    assert [top.token for top in rows[0].top_logprobs or ()] == ["the"]


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"seed": -1, "num_predict": -1}, {}),
        ({"num_predict": -2, "stop": []}, {}),
        ({"temperature": 0, "top_k": 0, "top_p": 1.0}, None),
        ({"repeat_last_n": 64}, {}),  # without a penalty it says nothing
        ({"presence_penalty": 1.5, "frequency_penalty": -0.5}, None),
    ],
)
async def test_options(options: dict[str, Any], sent: dict[str, Any] | None) -> None:
    backend = mesh()
    async with client_of(backend) as client:
        await client.generate("parrot", "a", options=options)
    found = backend.inputs[0].model_dump()
    if sent is None:
        assert {name: found[name] for name in options} == options
    else:
        assert (found["seed"], found["max_tokens"], found["stop"]) == (None, None, [])


async def test_embed() -> None:
    backend = mesh()
    async with client_of(backend) as client:
        answer = await client.embed("embedder", ["one", "two"], dimensions=5, truncate=True)
        single = await client.embed("embedder:latest", "one")
        old = await client.embeddings("embedder", "one")
    assert [list(each) for each in answer.embeddings] == [
        pytest.approx(vector(text, 5)) for text in ("one", "two")
    ]
    assert answer.prompt_eval_count == 6
    assert answer.total_duration is not None
    assert answer.total_duration > 0
    assert list(single.embeddings[0]) == list(old.embedding) == pytest.approx(vector("one", 8))
    assert [value.texts for value in backend.inputs] == [["one", "two"], ["one"], ["one"]]


async def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = mesh()
    models = [
        ServedModel("chatty", ("chat", "completion"), 2048, ("a", "b"), 2),
        ServedModel("echo", ("echo",), None, ("a",), 1),
        ServedModel("vectors", ("embedding",), None, ("a",), 1),
    ]
    (entry,) = backend.nodes()

    def node(name: str, replicas: list[Replica]) -> NodeEntry:
        advert = entry.advert._replace(
            devices=[Device("gpu0", "gpu", "G", 9, 9), Device("cpu", "cpu", "C", 9, 9)],
            models=[Model("chatty", ["chat"], load_bytes=500, parameters=134_515_008)],
            replicas=replicas,
        )
        return entry._replace(id=name, name=name, advert=advert)

    nodes = [
        node("a", [Replica("chatty", "gpu0", "ready", 4, memory=100, unload_in=60.0)]),
        node(
            "b",
            [
                Replica("chatty", "cpu", "ready", 4, memory=10, unload_in=90.0),
                Replica("vectors", "cpu", "ready", 4, memory=7),
                Replica("echo", "cpu", "ready", 4),
                Replica("chatty", "gpu0", "loading", 4, memory=100),
            ],
        ),
    ]
    monkeypatch.setattr(MemoryMesh, "models", lambda self: models)
    monkeypatch.setattr(MemoryMesh, "nodes", lambda self: nodes)
    async with client_of(backend) as client:
        tags = (await client.list()).models
        loaded = (await client.ps()).models
        shown = await client.show("chatty:latest")
        with pytest.raises(ollama.ResponseError) as caught:
            await client.show("chaty")
    assert [(tag.model, tag.size) for tag in tags] == [("chatty", 500), ("vectors", 0)]
    assert tags[0].details is not None
    assert tags[0].details.parameter_size == "134.5M"
    chatty, vectors = loaded
    assert (chatty.name, chatty.size, chatty.size_vram) == ("chatty", 110, 100)
    assert chatty.context_length == 2048
    assert chatty.expires_at is not None
    assert 60 < (chatty.expires_at - datetime.now(UTC)).total_seconds() <= 90
    assert (vectors.name, vectors.size, vectors.size_vram) == ("vectors", 7, 0)
    assert vectors.expires_at is None
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo == {
        "general.name": "chatty",
        "general.parameter_count": 134_515_008,
        "general.context_length": 2048,
    }
    assert caught.value.status_code == 404


async def test_show_by_the_older_name_and_version() -> None:
    async with served(mesh()) as origin, aiohttp.ClientSession(origin) as http:
        async with http.post("/api/show", json={"name": "parrot"}) as response:
            assert (await response.json())["capabilities"] == ["completion", "tools"]
        async with http.post("/api/show", json={}) as response:
            assert response.status == 400
        async with http.get("/api/version") as response:
            assert set(await response.json()) == {"version"}


@pytest.mark.parametrize(
    ("parameters", "name"),
    [(0, ""), (999, "999"), (30_000, "30.0K"), (134_515_008, "134.5M"), (8_030_000_000, "8.0B")],
)
def test_sizes(parameters: int, name: str) -> None:
    assert size_name(parameters) == name


def test_durations() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    found = durations(Timing(queue=0.5, load=1.0, first=1.75, total=2.0), usage)
    assert found.model_dump() == {
        "total_duration": 2_000_000_000,
        "load_duration": 1_000_000_000,
        "prompt_eval_count": 3,
        "prompt_eval_duration": 250_000_000,
        "eval_count": 5,
        "eval_duration": 250_000_000,
    }
    # queue and load are told by another machine: rounding may not make time negative
    assert durations(Timing(queue=0.5, load=0.1, first=0.55, total=0.6), {}).load_duration > 0
    assert durations(Timing(queue=0.5, load=0.1, first=0.55), {}).prompt_eval_duration == 0


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "error", [Overloaded("full"), ContextTooLong("too long"), NodeLost("gone")]
)
async def test_errors_before_the_first_byte(error: Any, streamed: bool) -> None:
    backend = mesh()
    backend.nodes_by_model["broken"] = failing(error)
    async with client_of(backend) as client:
        with pytest.raises(ollama.ResponseError) as caught:  # noqa: PT012
            if streamed:
                [part async for part in await client.generate("broken", "a", stream=True)]
            else:
                await client.generate("broken", "a")
    assert (caught.value.error, caught.value.status_code) == (error.message, error.status)


async def test_errors_after_the_first_byte() -> None:
    backend = mesh()
    backend.nodes_by_model["broken"] = failing(NodeLost("gone"), after=2)
    text = ""
    async with client_of(backend) as client:
        with pytest.raises(ollama.ResponseError, match="gone"):  # noqa: PT012
            async for part in await client.generate("broken", "a", stream=True):
                text += part.response or ""
    assert text == "0 1 "


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("chat", {"tools": [{"type": "retrieval"}]}, "tools.0.type"),
        ("chat", {"think": "high"}, "think"),
        ("chat", {"options": {"min_p": 0.05}}, "options.min_p"),
        ("chat", {"options": {"mirostat": 2}}, "options.mirostat"),
        (
            "chat",
            {"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}},
            "options.repeat_last_n",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": "x", "images": ["https://x/y.png"]}]},
            "messages.0.images.0",
        ),
        ("chat", {"messages": [{"role": "assistant", "content": "x"}]}, "messages.0.role"),
        ("generate", {"context": [1, 2]}, "context"),
        ("generate", {"template": "{{ .Prompt }}"}, "template"),
        ("generate", {"suffix": "x"}, "suffix"),
    ],
)
async def test_refused_by_name(route: str, fields: dict[str, Any], param: str) -> None:
    least: dict[str, Any] = {"messages": MESSAGES} if route == "chat" else {"prompt": "a"}
    async with served(mesh()) as origin, aiohttp.ClientSession(origin) as http:
        body = {"model": "parrot", **least, **fields}
        async with http.post(f"/api/{route}", json=body) as response:
            found = await response.json()
    assert response.status == 400
    assert (found["code"], found["param"]) == ("unsupported_field", param)
    assert f"'{param}'" in found["error"]


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("chat", {"messages": []}, "messages"),
        ("generate", {"prompt": ""}, "prompt"),
        ("generate", {"top_logprobs": 1}, "top_logprobs"),
        ("generate", {"options": {"temprature": 1}}, "options.temprature"),
        ("embed", {"input": []}, "input"),
    ],
)
async def test_wrong_by_name(route: str, fields: dict[str, Any], param: str) -> None:
    least: dict[str, Any] = {"prompt": "a"} if route == "generate" else {}
    async with served(mesh()) as origin, aiohttp.ClientSession(origin) as http:
        body = {"model": "parrot", **least, **fields}
        async with http.post(f"/api/{route}", json=body) as response:
            found = await response.json()
    assert response.status == 400
    assert (found["code"], found["param"]) == ("invalid_request", param)


async def test_unknown_model_and_key() -> None:
    settings = GatewaySettings(api_keys={"anna": hashlib.sha256(b"k").hexdigest()})
    backend = mesh()
    async with client_of(backend, settings, authorization="Bearer k") as client:
        with pytest.raises(ollama.ResponseError) as caught:
            await client.chat("nobody", MESSAGES)
        assert caught.value.status_code == 404
        await client.chat("parrot", MESSAGES)
        assert backend.options[0].tenant == "anna"
    async with client_of(backend, settings) as client:
        with pytest.raises(ollama.ResponseError) as caught:
            await client.list()
        assert caught.value.status_code == 401


async def test_silence_is_filled_with_lines_that_add_nothing() -> None:
    async def slow(value: Any) -> Work:
        yield delta_to_wire(Delta("a \u2028", [1]))
        async for part in backend.nodes_by_model["silent"](value):
            yield part

    backend = mesh()
    backend.nodes_by_model["slow"] = slow
    body = {"model": "slow", "prompt": "x"}
    lines: list[Any] = []
    async with (
        served(backend, GatewaySettings(heartbeat=0.05)) as origin,
        aiohttp.ClientSession(origin) as http,
        http.post("/api/generate", json=body) as response,
    ):
        assert response.content_type == "application/x-ndjson"
        async for line in response.content:
            assert len(line.decode().splitlines()) == 1
            lines.append(json.loads(line))
            if len(lines) == 3:
                break
    assert [line["response"] for line in lines] == ["a \u2028", "", ""]
    assert not any(line["done"] for line in lines)

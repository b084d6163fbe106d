"""Streams as bytes: framing, coalescing, errors half-way, silence, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from blip.errors import NodeLost, Overloaded
from blip.gateway.mesh import Answer
from blip.gateway.routes.chat.answers import ChatCompletionChunk
from blip.gateway.routes.completions import Completion
from blip.gateway.settings import GatewaySettings
from blip.kinds.text import Delta, Finish, delta_to_wire
from tests.unit.gateway_mesh import MemoryMesh, Work, failing, mesh, served

CHAT = "/v1/chat/completions"


def chat(model: str = "parrot", content: str = "one two three", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "stream": True, **fields}


@contextlib.asynccontextmanager
async def http_of(
    backend: MemoryMesh, settings: GatewaySettings | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(backend, settings) as origin, aiohttp.ClientSession(origin) as session:
        yield session


async def events(response: aiohttp.ClientResponse) -> list[str]:
    """Split a stream as strictly as the standard lets us: data lines, each ended by a blank one."""
    assert response.content_type == "text/event-stream"
    text = await response.text()
    assert text.endswith("\n\n")
    blocks = text[:-2].split("\n\n")
    # str.splitlines knows more line ends than the standard does; some clients use it
    assert all(len(block.splitlines()) == 1 for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


async def cancelled(backend: MemoryMesh) -> None:
    """Wait until every call has been cancelled."""
    async with asyncio.timeout(10):
        await backend.called.wait()
        for call in backend.calls:
            await call.ended.wait()
    assert all(call.cancelled for call in backend.calls)


async def test_chat_events() -> None:
    backend = mesh()
    content = 'quote " slash \\ line \n\r\u0085\u2028\u2029 \x00 end'
    async with http_of(backend) as http, http.post(CHAT, json=chat(content=content)) as response:
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["X-Blip-Task"] == backend.calls[0].task_id
        assert response.headers["X-Blip-Timing"].startswith("queue=0.0000;load=0.0000;first=")
        found = await events(response)
    assert found.pop() == "[DONE]"
    chunks = [json.loads(event) for event in found]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True, extra="forbid")
        assert "usage" not in chunk  # only where it was asked for
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert deltas[-1] == {}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == content
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_choices_interleave() -> None:
    async with http_of(mesh()) as http:
        body = chat(content="a b c d e f g", n=2, stream_options={"include_usage": True})
        async with http.post(CHAT, json=body) as response:
            tasks = response.headers["X-Blip-Task"].split(", ")
            found = await events(response)
    assert len(tasks) == 2
    assert found.pop() == "[DONE]"
    chunks = [json.loads(event) for event in found]
    usage = chunks.pop()
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 7, "completion_tokens": 14, "total_tokens": 21}
    assert all(chunk["usage"] is None for chunk in chunks)
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert order[:2] == [0, 1]  # both roles first
    middle = order[2:-2]
    assert middle != sorted(middle)
    for index in (0, 1):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in own) == "a b c d e f g"
        assert [c["finish_reason"] for c in own[-2:]] == [None, "stop"]


async def test_completion_events() -> None:
    async with http_of(mesh()) as http:
        body = {"model": "parrot", "prompt": ["a b", "c"], "stream": True}
        async with http.post("/v1/completions", json=body) as response:
            found = await events(response)
    assert found.pop() == "[DONE]"
    texts = {0: "", 1: ""}
    for event in found:
        completion = json.loads(event)
        completion.setdefault("usage", None)
        Completion.model_validate(completion, strict=True, extra="forbid")
        choice = completion["choices"][0]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "a b", 1: "c"}


def chunks_of(data: bytes) -> list[bytes]:
    """Undo HTTP's chunked encoding; each chunk is one write of the server."""
    found = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        found.append(data[:length])
        data = data[length + 2 :]
    return found


async def raw_post(origin: str, path: str, body: Any, version: bytes = b"1.1") -> bytes:
    host, _, port = origin.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body).encode()
    writer.write(
        b"POST %s HTTP/%s\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
        % (path.encode(), version, len(data), data)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head
    found = await reader.read()
    writer.close()
    await writer.wait_closed()
    return found


async def test_what_is_pending_is_one_write() -> None:
    async def burst(value: Any) -> Work:
        for number in range(40):
            yield delta_to_wire(Delta(f"{number} ", [number]))
        await asyncio.sleep(0.02)
        for number in range(40):
            yield delta_to_wire(Delta(f"{number} ", [number]))
        yield Answer(delta_to_wire(Finish("stop")), {}, 1.0)

    backend = mesh()
    backend.nodes_by_model["burst"] = burst
    async with served(backend) as origin:
        writes = chunks_of(await raw_post(origin, CHAT, chat("burst")))
        old = await raw_post(origin, CHAT, chat("burst"), b"1.0")
    counts = [write.count(b"data: ") for write in writes]
    assert counts[0] == 41  # the role and the first burst
    assert sum(counts) == 1 + 80 + 1 + 1
    assert counts[-1] == 0  # the end of the response
    assert len(counts) <= 4
    assert old.count(b"data: ") == 83  # HTTP/1.0: no chunks, ended by the close
    assert old.endswith(b"data: [DONE]\n\n")


async def test_error_half_way() -> None:
    backend = mesh()
    backend.nodes_by_model["broken"] = failing(NodeLost("gone", hint="again"), after=3)
    for choices in (1, 2):
        body = chat("broken", n=choices)
        async with http_of(backend) as http, http.post(CHAT, json=body) as response:
            assert response.status == 200
            found = await events(response)
        last = json.loads(found[-1])
        assert last["error"]["code"] == "node_lost"
        assert last["error"]["hint"] == "again"
        assert last["error"]["request_id"] == response.headers["X-Request-ID"]
        assert "[DONE]" not in found
        assert len(found) >= choices + 3 + 1  # what came before the error is there


async def test_unexpected_error_half_way(caplog: pytest.LogCaptureFixture) -> None:
    backend = mesh()
    backend.nodes_by_model["broken"] = failing(ZeroDivisionError("secret"), after=1)
    with caplog.at_level(logging.ERROR, "blip.gateway"):
        async with http_of(backend) as http, http.post(CHAT, json=chat("broken")) as response:
            found = await events(response)
    assert json.loads(found[-1])["error"]["code"] == "internal_error"
    assert "secret" not in found[-1]
    assert "ZeroDivisionError: secret" in caplog.text


async def test_error_first_is_an_http_error() -> None:
    backend = mesh()
    backend.nodes_by_model["broken"] = failing(Overloaded("full", retry_after=0.5))
    async with http_of(backend) as http:
        for choices in (1, 2):
            async with http.post(CHAT, json=chat("broken", n=choices)) as response:
                assert response.status == 429
                assert response.headers["Retry-After"] == "1"
                assert (await response.json())["error"]["code"] == "overloaded"


async def test_silence_is_filled() -> None:
    async def slow(value: Any) -> Work:
        yield delta_to_wire(Delta("a", [1]))
        await asyncio.sleep(0.3)
        yield Answer(delta_to_wire(Finish("stop", "b")), {}, 1.0)

    backend = mesh()
    backend.nodes_by_model["slow"] = slow
    settings = GatewaySettings(heartbeat=0.02)
    async with http_of(backend, settings) as http, http.post(CHAT, json=chat("slow")) as response:
        text = await response.text()
    comments = [block for block in text.split("\n\n") if block.startswith(":")]
    assert len(comments) >= 2
    assert set(comments) == {": still here"}
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("model", ["endless", "silent"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_cancels(choices: int, model: str, stream: bool) -> None:
    backend = mesh()
    async with served(backend) as origin:
        session = aiohttp.ClientSession(origin)
        body = chat(model, n=choices, stream=stream)
        if stream and model == "endless":
            response = await session.post(CHAT, json=body)
            await response.content.readany()
            response.close()
        else:
            with pytest.raises(asyncio.TimeoutError):
                await session.post(CHAT, json=body, timeout=aiohttp.ClientTimeout(0.2))
        await session.close()
        await cancelled(backend)
        assert len(backend.calls) == choices
        # the gateway still serves others
        async with aiohttp.ClientSession(origin) as other:
            async with other.post(CHAT, json=chat()) as response:
                assert (await events(response))[-1] == "[DONE]"
            async with other.get("/metrics") as response:
                metrics = await response.text()
    assert f'blip_tasks_total{{kind="chat",outcome="cancelled"}} {choices}.0' in metrics
    assert 'route="/v1/chat/completions",status="499"' in metrics
    assert "blip_http_requests_in_flight 1.0" in metrics  # this one


async def test_an_abrupt_end_of_the_connection_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = mesh()
    async with served(backend) as origin:
        host, _, port = origin.removeprefix("http://").partition(":")
        for _ in range(3):
            reader, writer = await asyncio.open_connection(host, int(port))
            data = json.dumps(chat("endless")).encode()
            writer.write(
                b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                % (CHAT.encode(), len(data), data)
            )
            await reader.readuntil(b"data: ")
            writer.transport.abort()
        await cancelled(backend)
    assert caplog.records == []


async def test_a_slow_client_slows_its_own_stream() -> None:
    """What a client does not read stays with the node: the gateway takes no more parts."""
    text = "x" * 65536

    async def flood(value: Any) -> Work:
        while True:
            yield delta_to_wire(Delta(text, [1]))
            await asyncio.sleep(0)

    backend = mesh()
    backend.nodes_by_model["flood"] = flood
    async with served(backend) as origin:
        session = aiohttp.ClientSession(origin, read_bufsize=1024)
        response = await session.post(CHAT, json=chat("flood"))
        async with asyncio.timeout(20):
            while backend.calls[0].waiting < 100:  # noqa: ASYNC110  (a count is not an event)
                await asyncio.sleep(0.001)
        response.close()
        await session.close()
        await cancelled(backend)


async def test_shutdown_cancels() -> None:
    backend = mesh()
    stack = contextlib.AsyncExitStack()
    origin = await stack.enter_async_context(served(backend, shutdown_timeout=0.05))
    async with aiohttp.ClientSession(origin) as session:
        response = await session.post(CHAT, json=chat("endless"))
        await response.content.readany()
        await stack.aclose()
        await cancelled(backend)
        with pytest.raises(aiohttp.ClientError):
            await response.read()
        response.close()

"""The SDK against the gateway's real routes, over HTTP, with a mesh in memory behind them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from blip.client import AsyncBlip, Blip, GatewayUnreachable, TextStream
from blip.client.answers import Origin as Who
from blip.client.answers import error_from, piece_from, read_timing, vectors_from
from blip.client.sse import Events
from blip.errors import (
    ContextTooLong,
    DeadlineExceeded,
    DeadlineUnreachable,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    NodeLost,
    Overloaded,
    Unauthorized,
)
from blip.gateway.mesh import Health
from blip.gateway.settings import GatewaySettings
from tests.unit.gateway_mesh import failing, mesh, served, vector


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLIP_URL", raising=False)
    monkeypatch.delenv("BLIP_API_KEY", raising=False)


# --- what the mesh is -----------------------------------------------------------------------


async def test_models_mesh_tasks_ready() -> None:
    backend = mesh()
    backend.checks = [Health("broker", False, "gone", True)]
    async with served(backend) as url, AsyncBlip(url) as client:
        models = await client.models()
        assert [model.id for model in models] == sorted(backend.nodes_by_model)
        assert models[0].kinds == ("chat", "completion")
        assert (models[0].context, models[0].nodes, models[0].ready) == (2048, ("büro-1",), 1)
        view = await client.mesh()
        assert view["nodes"][0]["replicas"][0]["model"] == "parrot"
        assert [task["state"] for task in await client.tasks()] == ["running"]
        ready, report = await client.ready()
        assert not ready
        assert report["checks"][0]["detail"] == "gone"
        backend.checks = []
        assert (await client.ready())[0]


# --- what it does ---------------------------------------------------------------------------


async def test_chat() -> None:
    backend = mesh()
    async with served(backend) as url, AsyncBlip(url) as client:
        answer = await client.chat("parrot", "one two three", max_tokens=2, seed=None)
        assert answer.text == "one two"
        assert answer.finish_reason == "length"
        assert answer.usage["completion_tokens"] == 2
        assert answer.origin.node == "b?ro-1"
        assert answer.origin.task_id == backend.calls[0].task_id
        assert answer.origin.request_id
        assert set(answer.origin.timing) == {"queue", "load", "first", "total"}
        turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
        assert (await client.chat("parrot", turns)).text == "hello"
        assert [turn.role for turn in backend.inputs[-1].messages] == ["system", "user"]


async def test_chat_stream() -> None:
    async with served(mesh()) as url, AsyncBlip(url) as client:
        async with client.chat_stream("parrot", "ein Fluß 流れ 🌊") as stream:
            pieces = [piece async for piece in stream]
        assert "".join(pieces) == "ein Fluß 流れ 🌊"
        assert len(pieces) > 1
        assert stream.finish_reason == "stop"
        assert stream.usage["completion_tokens"] == 4
        assert stream.origin.node == "b?ro-1"


async def test_completions() -> None:
    async with served(mesh()) as url, AsyncBlip(url) as client:
        assert (await client.complete("parrot", "a b c")).text == "a b c"
        async with client.complete_stream("parrot", "a b c", max_tokens=2) as stream:
            assert "".join([piece async for piece in stream]) == "a b"
        assert stream.finish_reason == "length"


async def test_embeddings() -> None:
    async with served(mesh()) as url, AsyncBlip(url) as client:
        answer = await client.embed("embedder", ["one", "two"])
        assert answer.vectors == [vector("one", 8), vector("two", 8)]
        assert answer.usage["prompt_tokens"] == 6
        assert len((await client.embed("embedder", "one", dimensions=4)).vectors[0]) == 4


async def test_echo() -> None:
    async with served(mesh()) as url, AsyncBlip(url) as client:
        assert (await client.echo("grüß dich")).body == "grüß dich".encode()
        assert (await client.echo(size=3, chunks=2)).body == bytes(6)


async def test_what_is_said_about_a_task() -> None:
    backend = mesh()
    said: dict[str, Any] = {
        "priority": 2,
        "deadline": 1.5,
        "require": {"node": "büro-1", "memory": "2GiB"},
    }
    async with served(backend) as url, AsyncBlip(url) as client:
        await client.chat("parrot", "x", **said)
        await client.complete("parrot", "x", **said)
        await client.embed("embedder", "x", **said)
        await client.echo("x", **said)
        async with client.chat_stream("parrot", "x", **said):
            pass
        async with client.complete_stream("parrot", "x", **said):
            pass
        assert len(backend.options) == 6
        for options in backend.options:
            assert (options.priority, options.deadline) == (2, 1.5)
            assert options.require == {"node": ["büro-1"], "memory": 2 << 30}
        await client.echo("x", require="vendor!=amd")
        assert backend.options[-1].require == {"not": {"vendor": ["amd"]}}
        with pytest.raises(InvalidRequest, match=r"require\.colour"):
            await client.echo("x", require={"colour": "red"})
        with pytest.raises(InvalidRequest) as wrong:
            await client.echo("x", priority=0)
        assert wrong.value.param == "X-Blip-Priority"


async def test_details_of_errors() -> None:
    backend = mesh()
    late = DeadlineUnreachable("late", retry_after=3, details={"earliest_finish": 4.5})
    backend.nodes_by_model["late"] = failing(late)
    async with served(backend) as url, AsyncBlip(url) as client:
        with pytest.raises(DeadlineUnreachable) as caught:
            await client.chat("late", "x", deadline=1)
        assert caught.value.details["earliest_finish"] == 4.5
        assert caught.value.retry_after == 3


async def test_leaving_a_stream_cancels_the_task() -> None:
    backend = mesh()
    async with served(backend) as url, AsyncBlip(url) as client:
        async with client.chat_stream("endless", "go") as stream:
            async for _ in stream:
                break
        await asyncio.wait_for(backend.calls[0].ended.wait(), 10)
        assert backend.calls[0].cancelled


async def test_iterating_outside_the_block() -> None:
    async with AsyncBlip() as client:
        with pytest.raises(RuntimeError, match="async with"):
            await anext(client.chat_stream("parrot", "x"))


# --- errors ---------------------------------------------------------------------------------


async def test_the_meshs_errors_come_as_themselves() -> None:
    backend = mesh()
    backend.nodes_by_model["long"] = failing(ContextTooLong("9 tokens, 4 fit", param="messages"))
    backend.nodes_by_model["busy"] = failing(Overloaded("full", retry_after=7))
    async with served(backend) as url, AsyncBlip(url) as client:
        with pytest.raises(ModelNotFound, match="parot"):
            await client.chat("parot", "x")
        with pytest.raises(InvalidRequest) as wrong:
            await client.chat("parrot", "x", temperature=9)
        assert wrong.value.param == "temperature"
        with pytest.raises(ContextTooLong) as long:
            await client.chat("long", "x")
        assert long.value.param == "messages"
        assert long.value.hint == "Shorten the prompt or lower max_tokens."
        assert long.value.details["request_id"]
        with pytest.raises(Overloaded) as busy:
            async with client.chat_stream("busy", "x"):
                pass
        assert busy.value.retry_after == 7


async def collect(stream: TextStream, seen: list[str]) -> None:
    async with stream:
        async for piece in stream:
            seen.append(piece)


async def test_an_error_in_mid_stream() -> None:
    backend = mesh()
    backend.nodes_by_model["dies"] = failing(NodeLost("the node is gone"), after=3)
    async with served(backend) as url, AsyncBlip(url) as client:
        seen: list[str] = []
        with pytest.raises(NodeLost, match="the node is gone"):
            await collect(client.chat_stream("dies", "x"), seen)
        assert "".join(seen) == "0 1 2 "


async def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GatewaySettings(api_keys={"me": hashlib.sha256(b"secret").hexdigest()})
    async with served(mesh(), settings) as url:
        async with AsyncBlip(url) as client:
            with pytest.raises(Unauthorized):
                await client.models()
        async with AsyncBlip(url, "secret") as client:
            assert await client.models()
        monkeypatch.setenv("BLIP_API_KEY", "secret")
        monkeypatch.setenv("BLIP_URL", url.removeprefix("http://") + "/")
        async with AsyncBlip() as client:
            assert client.url == url
            assert await client.models()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://name.invalid:80", "http://a:b"])
async def test_nobody_there(url: str) -> None:
    async with AsyncBlip(url) as client:
        with pytest.raises(GatewayUnreachable) as caught:
            await client.models()
        assert url in caught.value.message
        with pytest.raises(GatewayUnreachable):
            async with client.chat_stream("m", "x"):
                pass


async def test_the_reason_is_readable() -> None:
    async with AsyncBlip("http://127.0.0.1:1") as client:
        with pytest.raises(GatewayUnreachable, match="1: Connection refused"):
            await client.models()


async def test_too_slow() -> None:
    async with served(mesh()) as url, AsyncBlip(url, timeout=0.2) as client:
        with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
            await client.chat("silent", "x")
        with pytest.raises(DeadlineExceeded):
            async with client.chat_stream("silent", "x"):
                pass


Handler = Callable[[web.Request], Any]


async def answering(handler: Handler) -> tuple[web.AppRunner, str]:
    """Serve something that is no gateway."""
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def test_something_else_is_there() -> None:
    async def other(request: web.Request) -> web.Response:
        return web.Response(status=200 if "models" in request.path else 418, text="<html>tea")

    runner, url = await answering(other)
    try:
        async with AsyncBlip(url) as client:
            with pytest.raises(InternalError, match="not JSON"):
                await client.models()
            with pytest.raises(InternalError, match="status 418 and no error envelope: '<html>"):
                await client.chat("m", "x")
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("cut", ["between", "within"])
async def test_a_stream_that_breaks_off(cut: str) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\n')
        if cut == "within":
            assert request.transport is not None
            await asyncio.sleep(0.05)
            request.transport.abort()
        return response

    runner, url = await answering(broken)
    seen: list[str] = []
    try:
        async with AsyncBlip(url) as client:
            with pytest.raises(NodeLost, match="broke off"):
                await collect(client.chat_stream("m", "x"), seen)
    finally:
        await runner.cleanup()
    assert seen == ["hi"]


# --- the blocking client --------------------------------------------------------------------


async def test_blocking() -> None:
    backend = mesh()
    backend.nodes_by_model["dies"] = failing(NodeLost("gone"), after=1)

    def use(url: str) -> list[str]:
        with Blip(url) as client:
            assert client.url == url
            assert client.ready()[0]
            assert len(client.models()) == len(backend.nodes_by_model)
            assert client.mesh()["nodes"]
            assert client.tasks()
            assert client.chat("parrot", "a b").text == "a b"
            assert client.complete("parrot", "a b").text == "a b"
            assert client.embed("embedder", "x").vectors == [vector("x", 8)]
            assert client.echo("y").body == b"y"
            with client.complete_stream("parrot", "c d") as raw:
                assert "".join(raw) == "c d"
            with pytest.raises(NodeLost), client.chat_stream("dies", "x") as stream:
                list(stream)
            with client.chat_stream("parrot", "one two") as stream:
                pieces = list(stream)
            assert stream.finish_reason == "stop"
            assert stream.usage["completion_tokens"] == 2
            assert stream.origin.node
            with client.chat_stream("endless", "x") as endless:
                next(iter(endless))
        client.close()
        return pieces

    async with served(backend) as url:
        assert await asyncio.to_thread(use, url) == ["one", " two"]
        await asyncio.wait_for(backend.calls[-1].ended.wait(), 10)


# --- pure parts -----------------------------------------------------------------------------

LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=6)


@given(
    st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.data(),
)
def test_events_survive_any_cut(events: list[list[str]], newline: str, data: st.DataObject) -> None:
    text = "".join(
        f": comment{newline}event: x{newline}"
        + "".join(f"data: {line}{newline}" for line in lines)
        + newline
        for lines in events
    ).encode()
    reader, found = Events(), []
    # a lone CR at the very end stays undecided until the next byte
    text += b":"
    while text:
        size = data.draw(st.integers(1, len(text)))
        found += reader.feed(text[:size])
        text = text[size:]
    assert found == ["\n".join(lines) for lines in events]


def test_events_without_a_space() -> None:
    assert Events().feed(b"data:x\ndata\n\n\n\n") == ["x\n"]


def test_timing() -> None:
    assert read_timing("queue=0.5;load=0;junk;total=x") == {"queue": 0.5, "load": 0.0}
    assert read_timing("") == {}


def test_pieces() -> None:
    assert piece_from('{"choices": [], "usage": {"a": 1}}').usage == {"a": 1}
    assert piece_from('{"choices": [{"delta": {}}]}').text == ""
    with pytest.raises(ModelNotFound):
        piece_from('{"error": {"code": "model_not_found", "message": "no"}}')


def test_vectors() -> None:
    rows = [{"index": 1, "embedding": [1]}, {"index": 0, "embedding": "AACAPw=="}]
    assert vectors_from({"data": rows}, Who()).vectors == [[1.0], [1.0]]
    assert struct.unpack("<f", b"\0\0\x80?") == (1.0,)
    for bad in ("AAA=", "!"):
        with pytest.raises(InternalError, match="not float32"):
            vectors_from({"data": [{"index": 0, "embedding": bad}]}, Who())


@given(st.binary(max_size=40))
def test_any_failed_response_is_an_error(body: bytes) -> None:
    assert "status 500" in error_from(500, body, {}, "http://x").message


def test_unknown_codes_and_dates() -> None:
    body = json.dumps({"error": {"code": "from_the_future", "message": "m", "near": ["a"]}})
    error = error_from(500, body.encode(), {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "x")
    assert type(error) is InternalError
    assert error.retry_after is None
    assert error.details == {"near": ["a"]}

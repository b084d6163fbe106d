"""A real engine behind a node: another mesh's gateway with tiny-chat, over real HTTP."""

from __future__ import annotations

import array
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from blip.cli.local import free_port
from blip.config import Config
from blip.errors import BlipError, ModelLoadFailed, ModelNotFound, NodeLost
from blip.kinds.completion import CompletionInput
from blip.kinds.echo import EchoInput
from blip.kinds.embedding import EmbeddingInput, EmbeddingText
from blip.kinds.text import Delta, delta_from_wire, finish_from_wire
from tests.mesh.rig import ECHO, TINY, Rig
from tests.mesh.test_mesh_text import ZEN, chat, text_of
from tests.unit.engine_server import chunk, engine_server, hangs, refuses, streams, usage
from tests.unit.gateway_mesh import served

JAPAN = "What is the capital of Japan?"
TOKYO = "The capital of Japan is Tokyo."

#: An engine is noticed, and missed, quickly: tests wait for it.
QUICK = {"health_interval": 0.5, "prefix": "up/"}


def names(rig: Rig) -> dict[str, str]:
    """What a mesh's first node offers of its upstreams: names, and why they cannot be had."""
    entry = rig.dispatcher.nodes()[0]
    return {m.name: m.error for m in entry.advert.models if m.name.startswith("up/")}


async def test_an_upstream_answers_as_the_model_itself() -> None:
    one_slot = {name: {**model, "slots": 1} for name, model in TINY.items()}
    async with (
        Rig(models=one_slot) as inner,
        served(inner.dispatcher) as url,
        Rig(upstreams={"inner": {"url": f"{url}/v1", **QUICK}}) as outer,
    ):
        await outer.until(lambda: "up/tiny-chat" in names(outer))
        await same_answers(outer, inner)
        await same_stream(outer, inner)
        await cancel_frees_the_slot(outer, inner)


async def same_answers(outer: Rig, inner: Rig) -> None:
    offered = {m.name: m for m in outer.dispatcher.models()}
    assert offered["up/tiny-chat"].kinds == ("chat", "completion")
    assert offered["up/tiny-embed"].kinds == ("embedding",)
    assert offered["up/tiny-chat"].context is not None
    sampled = {"temperature": 0.9, "seed": 7, "max_tokens": 40, "stop": ["better"]}
    for value in (chat(JAPAN), chat(ZEN, **sampled), chat(JAPAN, logprobs=2)):
        direct = inner.call("chat", "tiny-chat", value)
        passed = outer.call("chat", "up/tiny-chat", value)
        assert (await text_of(passed))[0] == (await text_of(direct))[0]
        assert (await passed.answer()).usage == (await direct.answer()).usage
        ends = [finish_from_wire((await each.answer()).payload) for each in (passed, direct)]
        assert ends[0].reason == ends[1].reason
    prompt = CompletionInput(prompt="Beautiful is", temperature=0.0, max_tokens=20)
    direct = inner.call("completion", "tiny-chat", prompt)
    passed = outer.call("completion", "up/tiny-chat", prompt)
    assert (await text_of(passed))[0] == (await text_of(direct))[0]
    texts: list[EmbeddingText] = ["the cat sleeps", "prices fell"]
    asked = EmbeddingInput(texts=texts)
    vectors = [
        array.array("f", bytes((await each.answer()).payload))
        for each in (
            inner.call("embedding", "tiny-embed", asked),
            outer.call("embedding", "up/tiny-embed", asked),
        )
    ]
    assert vectors[1] == pytest.approx(vectors[0], abs=1e-6)
    # the engine's own words about a request that is wrong
    with pytest.raises(BlipError, match="context") as error:
        await outer.call("chat", "up/tiny-chat", chat("word " * 5000)).answer()
    assert error.value.status == 400


async def same_stream(outer: Rig, inner: Rig) -> None:
    """Piece by piece, with the log-probabilities."""
    deltas: dict[str, list[Delta]] = {}
    for rig, model in ((inner, "tiny-chat"), (outer, "up/tiny-chat")):
        call = rig.call("chat", model, chat(JAPAN, logprobs=2))
        deltas[model] = [delta_from_wire(part) async for parts in call.parts() for part in parts]
    ours = [row for delta in deltas["tiny-chat"] for row in delta.logprobs or ()]
    theirs = [row for delta in deltas["up/tiny-chat"] for row in delta.logprobs or ()]
    assert len(theirs) == len(ours) > 5
    for mine, row in zip(ours, theirs, strict=True):
        assert (row.token, row.raw) == (mine.token, mine.raw)
        assert row.logprob == pytest.approx(mine.logprob, abs=1e-4)
    assert len(deltas["up/tiny-chat"]) > 5
    assert all(delta.ids == [] for delta in deltas["up/tiny-chat"])


async def cancel_frees_the_slot(outer: Rig, inner: Rig) -> None:
    """The engine's only slot is free again at once, and our worker serves on."""
    for _ in range(5):  # an answer may be done before a busy machine looks
        call = outer.call("chat", "up/tiny-chat", chat(ZEN))
        await call.started()
        under_way = [task for task in inner.dispatcher.tasks() if task.state == "running"]
        if under_way:
            break
        await text_of(call)
    (running,) = under_way
    call.cancel()
    await inner.until(
        lambda: any(
            task.id == running.id and task.state == "cancelled" for task in inner.dispatcher.tasks()
        )
    )
    assert (await text_of(inner.call("chat", "tiny-chat", chat(JAPAN))))[0] == TOKYO
    assert (await text_of(outer.call("chat", "up/tiny-chat", chat(JAPAN))))[0] == TOKYO


@asynccontextmanager
async def gateway_process(broker: str, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A gateway as users run it, which can be killed; it knows its models."""
    config = Config.model_validate(
        {
            "gateway": {"port": port, "brokers": [broker]},
            "log": {"level": "warning"},
        }
    )
    code = (
        "import sys; from blip.config import restore; from blip.gateway import server; "
        "sys.exit(server.main(restore(sys.argv[1])))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, config.model_dump_json()
    )
    try:
        async with aiohttp.ClientSession() as http:
            while not await listed(http, f"http://127.0.0.1:{port}/v1/models"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def listed(http: aiohttp.ClientSession, url: str) -> list[Any]:
    """Return what a gateway lists, nothing while it does not answer."""
    try:
        async with http.get(url) as response:
            rows: list[Any] = (await response.json())["data"]
            return rows
    except aiohttp.ClientError:
        return []


async def test_an_engine_that_dies_fails_what_was_half_said_and_comes_back() -> None:
    port = free_port()
    upstreams = {"inner": {"url": f"http://127.0.0.1:{port}/v1", "models": ["tiny-*"], **QUICK}}
    async with Rig(models=TINY) as inner, Rig(upstreams=upstreams, models=ECHO) as outer:
        async with gateway_process(inner.endpoint, port) as engine:
            await outer.until(lambda: names(outer).get("up/tiny-chat") == "")
            # several, so that none is done before the engine is dead
            calls = [outer.call("chat", "up/tiny-chat", chat(ZEN)) for _ in range(6)]
            other = outer.call("echo", "echo", EchoInput(text="unharmed", delay=0.5))
            for call in calls[:3]:
                await call.started()
            engine.kill()
            for call in calls[:3]:
                with pytest.raises(NodeLost, match="upstream 'inner'"):
                    await text_of(call)
                assert call.task.place.attempt == 1
            for call in calls[3:]:  # not begun, or half said: there is nobody else either way
                with pytest.raises(BlipError, match="upstream 'inner'"):
                    await text_of(call)
            assert bytes((await other.answer()).payload) == b"unharmed"
            # and the models say why they are away
            await outer.until(lambda: "upstream 'inner'" in names(outer).get("up/tiny-chat", ""))
            with pytest.raises(ModelLoadFailed, match="upstream 'inner' cannot be reached"):
                outer.call("chat", "up/tiny-chat", chat(JAPAN))
        async with gateway_process(inner.endpoint, port):
            await outer.until(lambda: names(outer).get("up/tiny-chat") == "")
            assert (await text_of(outer.call("chat", "up/tiny-chat", chat(JAPAN))))[0] == TOKYO


async def test_what_has_not_begun_goes_elsewhere() -> None:
    """One node's engine is dead without its knowing; the other node's works."""
    async with Rig(models=TINY) as inner, served(inner.dispatcher) as url:
        slow = {**QUICK, "health_interval": 600.0}
        port = free_port()
        async with Rig(models=ECHO, upstreams={"a": {"url": f"{url}/v1", **slow}}) as outer:
            async with gateway_process(inner.endpoint, port) as engine:
                outer._upstreams = {"b": {"url": f"http://127.0.0.1:{port}/v1", **slow}}
                await outer.start_node("node-2")
                await outer.until(
                    lambda: any(
                        len(model.nodes) == 2
                        for model in outer.dispatcher.models()
                        if model.name == "up/tiny-chat"
                    )
                )
                engine.kill()
            calls = [outer.call("chat", "up/tiny-chat", chat(JAPAN)) for _ in range(6)]
            texts = await asyncio.gather(*map(text_of, calls))
            assert {text for text, _ in texts} == {TOKYO}
            assert {call.node for call in calls} == {"node-1"}
            assert max(call.task.place.attempt for call in calls) > 1


async def test_a_node_keeps_step_with_its_engine() -> None:
    """An engine of the test's own: its list changes, it hangs, it refuses and then serves."""
    llama = {"id": "llama", "owned_by": "vllm", "max_model_len": 512}
    qwen = {"id": "qwen", "owned_by": "vllm"}
    good = streams(chunk("Hello"), chunk(None, "stop"), usage(4, 2))
    async with (
        engine_server(models={"data": [llama]}, chat=good) as engine,
        Rig(upstreams={"own": {"url": engine.url, "timeout": 1.0, **QUICK}}, models=ECHO) as rig,
    ):
        await rig.until(lambda: names(rig) == {"up/llama": ""})
        (before,) = rig.nodes[0].workers()  # echo's
        call = rig.call("chat", "up/llama", chat("hello"))
        assert await text_of(call) == ("Hello", [])
        assert (await call.answer()).usage == {"prompt_tokens": 4, "completion_tokens": 2}
        (worker,) = set(rig.nodes[0].workers()) - {before}
        maps = await asyncio.to_thread(Path(f"/proc/{worker}/maps").read_text)
        assert "torch" not in maps
        # the engine's memory is its own
        await rig.until(
            lambda: (
                [
                    each.memory
                    for each in rig.dispatcher.nodes()[0].advert.replicas
                    if each.model == "up/llama" and each.state == "ready"
                ]
                == [0]
            )
        )
        # it hangs: that request fails, and nothing else does
        engine.chat = hangs(chunk("Hel"))
        stuck = rig.call("chat", "up/llama", chat("hello"))
        await stuck.started()
        engine.chat = good
        assert (await text_of(rig.call("chat", "up/llama", chat("hello"))))[0] == "Hello"
        with pytest.raises(NodeLost, match="said nothing for 1 s"):
            await text_of(stuck)
        # it is busy for a second: the only node is tried again, when the engine wants it
        busy = refuses(429, {"error": {"message": "slow down"}}, **{"Retry-After": "1"})
        answers = iter([busy, good])
        engine.chat = lambda request: next(answers)(request)
        asked = len(engine.bodies)
        call = rig.call("chat", "up/llama", chat("hello"))
        assert (await text_of(call))[0] == "Hello"
        assert len(engine.bodies) == asked + 2
        # another model takes the place of the first, whose worker goes
        engine.models = {"data": [qwen]}
        await rig.until(lambda: names(rig) == {"up/qwen": ""})
        with pytest.raises(ModelNotFound):
            rig.call("chat", "up/llama", chat("hello"))
        await rig.until(lambda: rig.nodes[0].workers() == [before])

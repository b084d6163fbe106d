"""Replicas that come and go: two models on a device for one, idle ones, pinned ones, orders."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psutil
import pytest

from blip.errors import NoCapacity
from blip.gateway.call import LiveCall
from blip.kinds.chat import ChatInput, ChatMessage
from blip.kinds.embedding import EmbeddingInput
from blip.kinds.text import delta_from_wire, finish_from_wire
from blip.protocol import messages, versions
from blip.protocol.link import LinkEvent, Ready
from blip.protocol.messages import Hello, Message, Order, Ordered
from blip.transport.links import Dialer
from blip_node.arena import BLOCK_BYTES, BLOCKS
from tests.mesh.rig import MODELS, Rig

MIB = 1 << 20

#: What admission leaves alone, and room for one of the two models: each takes some 40 MiB.
ONE = {"cpu": "off", "devices": [{"id": "one", "name": "Made for one", "memory": (256 + 60) * MIB}]}
TWO = {
    "cpu": "off",
    "devices": [{"id": "one", "name": "Made for two", "memory": (256 + 200) * MIB}],
}

CHAT, EMBED = "tiny-chat", "tiny-embed"
QUESTION, ANSWER = "What is the capital of Japan?", "The capital of Japan is Tokyo."
ZEN = "Recite the Zen of Python."


def models(*, chat: dict[str, Any] | None = None, embed: dict[str, Any] | None = None) -> Any:
    return {
        CHAT: {"source": str(MODELS / CHAT), **(chat or {})},
        EMBED: {"source": str(MODELS / EMBED), **(embed or {})},
    }


def ask(rig: Rig, text: str) -> LiveCall:
    value = ChatInput(messages=[ChatMessage(role="user", content=text)], temperature=0.0)
    return rig.call("chat", CHAT, value)


async def text_of(call: LiveCall) -> str:
    text = ""
    async for parts in call.parts():
        text += "".join(delta_from_wire(part).text for part in parts)
    return text + finish_from_wire((await call.answer()).payload).text


async def embed(rig: Rig) -> int:
    answer = await rig.call("embedding", EMBED, EmbeddingInput(texts=["the cat sleeps"])).answer()
    return len(answer.payload)


def advert(rig: Rig) -> messages.Advert:
    return rig.dispatcher.nodes()[0].advert


def states(rig: Rig) -> dict[str, str]:
    return {replica.model: replica.state for replica in advert(rig).replicas}


@contextlib.asynccontextmanager
async def watched(rig: Rig, look: Callable[[messages.Advert], None]) -> AsyncIterator[None]:
    """Look at every advert that comes meanwhile."""

    async def watch() -> None:
        while True:
            look(advert(rig))
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        if not watching.done():
            watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


class Operator:
    """Someone with a link to a node, who gives it orders."""

    def __init__(self, rig: Rig) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._numbers = 0
        self.heard: list[Ordered] = []
        self._new = asyncio.Event()
        endpoint = next(e for e in rig.dispatcher.nodes()[0].endpoints if e.startswith("tcp"))
        self._dialer = Dialer(rig.context, endpoint, self._hello, self._on_event, data=True)

    @staticmethod
    def _hello() -> Hello:
        return Hello("gateway", "operator", 1, versions.LOW, versions.HIGH)

    def _on_event(self, event: LinkEvent | Message) -> None:
        if isinstance(event, Ready):
            self._ready.set_result(None)
        elif isinstance(event, Ordered):
            self.heard.append(event)
            self._new.set()

    async def give(self, verb: str, model: str, device: str = "", **options: Any) -> int:
        """Give an order and return its number."""
        await self._ready
        self._numbers += 1
        self._dialer.send(Order(self._numbers, verb, device, model, options))
        return self._numbers

    async def until(self, number: int, *wanted: str) -> Ordered:
        """Wait until an order is in one of these states."""
        while True:
            for said in self.heard:
                if said.number == number and said.state in wanted:
                    return said
            self._new.clear()
            await asyncio.wait_for(self._new.wait(), 30)

    async def order(self, verb: str, model: str, device: str = "", **options: Any) -> Ordered:
        """Give an order and return its last word."""
        return await self.until(await self.give(verb, model, device, **options), "done", "failed")

    def close(self) -> None:
        self._dialer.close()


@contextlib.asynccontextmanager
async def operator(rig: Rig) -> AsyncIterator[Operator]:
    someone = Operator(rig)
    try:
        yield someone
    finally:
        someone.close()


async def test_two_models_on_a_device_for_one_take_turns() -> None:
    seen: set[tuple[str, ...]] = set()

    def look(told: messages.Advert) -> None:
        device = told.devices[0]
        ready = [each for each in told.replicas if each.state == "ready"]
        seen.add(tuple(each.model for each in ready))
        assert sum(each.memory for each in ready) <= device.memory_total
        assert 0 <= device.memory_free <= device.memory_total

    async with Rig(models=models(), node=ONE) as rig, watched(rig, look):
        for _ in range(4):
            assert await text_of(ask(rig, QUESTION)) == ANSWER
            await rig.until(lambda: states(rig) == {CHAT: "ready"})
            assert await embed(rig) > 0
            await rig.until(lambda: states(rig) == {EMBED: "ready"})
        told = advert(rig)
        took = told.replicas[0].memory
        assert took > 10 * MIB
        assert told.devices[0].memory_free == told.devices[0].memory_total - took
        known = {model.name: model for model in told.models}
        assert known[EMBED].memory == took, "the measured footprint is what is planned with"
        assert known[CHAT].parameters > 200_000
        assert len(rig.nodes[0].workers()) == 1
    assert {(CHAT,), (EMBED,)} <= seen
    assert (CHAT, EMBED) not in seen
    assert (EMBED, CHAT) not in seen


async def test_a_measured_footprint_outlives_the_node() -> None:
    async with Rig(models=models(), node=ONE) as rig:
        guessed = {model.name: model.memory for model in advert(rig).models}
        await embed(rig)
        await rig.until(lambda: states(rig) == {EMBED: "ready"})
        took = advert(rig).replicas[0].memory
        assert took != guessed[EMBED]
        rig.nodes[0].process.terminate()
        await rig.nodes[0].process.wait()
        await rig.start_node("node-1")

        def known() -> bool:
            entries = [entry for entry in rig.dispatcher.nodes() if entry.status == "ready"]
            return any(
                {model.name: model.memory for model in entry.advert.models}
                == {CHAT: guessed[CHAT], EMBED: took}
                and not entry.advert.replicas
                for entry in entries
            )

        await rig.until(known)


async def test_an_idle_model_goes_after_its_keep_alive() -> None:
    async with Rig(models=models(embed={"keep_alive": 1.0}), node=TWO) as rig:
        assert await text_of(ask(rig, QUESTION)) == ANSWER
        await embed(rig)
        await rig.until(lambda: states(rig) == {CHAT: "ready", EMBED: "ready"})
        chat, other = sorted(advert(rig).replicas)
        assert chat.unload_in is None
        assert other.unload_in is not None
        assert 0 <= other.unload_in <= 1.0
        assert not chat.pinned
        await rig.until(lambda: states(rig) == {CHAT: "ready"}, 15)
        await rig.until(lambda: len(rig.nodes[0].workers()) == 1)
        assert await embed(rig) > 0  # and comes again when it is asked for


async def test_a_pinned_model_keeps_its_room() -> None:
    async with Rig(models=models(chat={"pin": True, "preload": True}), node=ONE) as rig:
        assert advert(rig).replicas[0].pinned
        with pytest.raises(NoCapacity) as error:
            await embed(rig)
        details = error.value.details
        assert details["need"] > details.get("free", details.get("best_free"))
        assert f"'{EMBED}' needs" in error.value.message
        assert states(rig) == {CHAT: "ready"}
        assert await text_of(ask(rig, QUESTION)) == ANSWER
        async with operator(rig) as someone:
            failed = await someone.order("load", EMBED)
            assert (failed.state, failed.code) == ("failed", "no_capacity")
            assert failed.details["need"] > failed.details["free"]
            assert failed.details["total"] == (256 + 60) * MIB
            done = await someone.order("load", CHAT, pin=False)
            assert done.state == "done"
            done = await someone.order("load", EMBED)
            assert done.state == "done", done
            await rig.until(lambda: states(rig) == {EMBED: "ready"})


async def test_orders_load_and_unload() -> None:
    async with Rig(models=models(), node=TWO) as rig, operator(rig) as someone:
        number = await someone.give("load", CHAT, pin=True, keep_alive=60)
        twice = await someone.give("load", CHAT, "one")
        done = await someone.until(number, "done", "failed")
        assert done.state == "done"
        assert done.details["device"] == "one"
        assert done.details["seconds"] > 0
        assert done.details["memory"] > 10 * MIB
        assert (await someone.until(twice, "done", "failed")).state == "done"
        assert len(rig.nodes[0].workers()) == 1
        reports = [said for said in someone.heard if said.number == number]
        assert [said.state for said in reports[:-1]] == ["running"] * (len(reports) - 1)
        shares = [said.details["progress"] for said in reports[:-1]]
        assert shares
        assert shares == sorted(shares)
        assert all(0 <= share <= 1 for share in shares)
        await rig.until(lambda: states(rig) == {CHAT: "ready"})
        assert advert(rig).replicas[0].pinned

        again = await someone.order("load", CHAT)
        assert again.state == "done"
        assert again.details["seconds"] < 1

        unknown = await someone.order("load", "tiny-chatt")
        assert (unknown.state, unknown.code) == ("failed", "model_not_found")
        assert CHAT in unknown.text
        assert CHAT in unknown.details["near"]
        nowhere = await someone.order("load", CHAT, "two")
        assert nowhere.state == "failed"
        assert "one" in nowhere.details["hint"]
        odd = await someone.order("load", CHAT, pin="yes")
        assert (odd.code, odd.details["param"]) == ("invalid_request", "pin")
        nameless = await someone.order("unload", "")
        assert (nameless.code, nameless.details["param"]) == ("invalid_request", "model")

        gone = await someone.order("unload", CHAT)
        assert gone.state == "done"
        assert gone.details["replicas"] == 1
        await rig.until(lambda: not advert(rig).replicas)
        assert advert(rig).devices[0].memory_free == (256 + 200) * MIB
        nothing = await someone.order("unload", CHAT)
        assert (nothing.state, nothing.details["replicas"]) == ("done", 0)


async def test_unload_waits_for_what_runs_unless_forced() -> None:
    async with Rig(models=models(), node=TWO) as rig, operator(rig) as someone:
        whole = await text_of(ask(rig, ZEN))
        call = ask(rig, ZEN)
        await call.started()
        number = await someone.give("unload", CHAT)
        said = await someone.until(number, "running", "done", "failed")
        assert said.state == "running"
        assert said.details["jobs"] == 1
        assert await text_of(call) == whole
        assert call.task.place.attempt == 1
        assert (await someone.until(number, "done", "failed")).state == "done"

        call = ask(rig, ZEN)  # loads it again
        await call.started()
        assert (await someone.order("unload", CHAT, force=True)).state == "done"
        assert await text_of(call) == whole  # resumed by a worker that had to load first
        assert call.task.place.attempt > 1


# --- out of memory, for real: the kernel gives a process no more than its limit -----------------

#: A prompt is computed 256 tokens at a time, and each takes 256 KiB in the layer between.
WIDE = 65_536
LONG, SHORT = "word " * 200, "hi"

#: What every worker maps for its results, before it loads.
ARENA = BLOCKS * BLOCK_BYTES


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two models that idle beside each other, one of which needs much for long prompts."""
    from tests.models.random_models import make_random

    folder = make_random(
        tmp_path_factory.mktemp("wide"), intermediate_size=WIDE, num_hidden_layers=1
    )
    return {"wide": {"source": str(folder)}, EMBED: {"source": str(MODELS / EMBED)}}


def say(rig: Rig, text: str) -> LiveCall:
    value = ChatInput(
        messages=[ChatMessage(role="user", content=text)], temperature=0.0, max_tokens=2
    )
    return rig.call("chat", "wide", value)


@contextlib.contextmanager
def limited(pid: int, more: int) -> Iterator[None]:
    """Let a process, and those it forks, map ``more`` bytes beyond what it has now."""
    process = psutil.Process(pid)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + more, psutil.RLIM_INFINITY))
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_AS, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))


async def load_both(rig: Rig) -> tuple[int, int]:
    """Load both models; return their workers' pids, the wide one's first."""
    await say(rig, SHORT).answer()
    [first] = rig.nodes[0].workers()
    await embed(rig)
    await rig.until(lambda: states(rig) == {"wide": "ready", EMBED: "ready"})
    [second] = set(rig.nodes[0].workers()) - {first}
    return first, second


async def test_a_run_out_of_memory_gets_the_room_of_idle_models_and_runs_again(
    wide: dict[str, Any],
) -> None:
    async with Rig(models=wide, node=TWO) as rig:
        worker, idle = await load_both(rig)
        with limited(worker, 40 * MIB):
            psutil.Process(idle).suspend()  # its end takes seconds: nothing runs again before
            call = say(rig, LONG)
            await rig.until(lambda: states(rig).get(EMBED) == "stopping")
            assert len(advert(rig).replicas) == 2
        answer = await text_of(call)
        assert call.task.place.attempt == 1
        await rig.until(lambda: states(rig) == {"wide": "ready"})
        assert rig.nodes[0].workers() == [worker]
        assert await text_of(say(rig, LONG)) == answer


async def test_out_of_memory_with_nothing_to_evict_says_the_numbers(wide: dict[str, Any]) -> None:
    async with Rig(models=wide, node=TWO) as rig:
        await say(rig, SHORT).answer()
        [worker] = rig.nodes[0].workers()
        with limited(worker, 40 * MIB):
            with pytest.raises(NoCapacity, match="ran out of memory") as error:
                await text_of(say(rig, LONG))
            details = error.value.details
            assert details["device"] == "one"
            assert details["total"] == (256 + 200) * MIB
            assert 0 < details["need"] < details["total"]
            assert 0 < details["free"] < details["total"]
            await text_of(say(rig, SHORT))  # the replica lives
        assert rig.nodes[0].workers() == [worker]


async def test_a_load_out_of_memory_is_tried_once_more_with_the_room_of_idle_models(
    wide: dict[str, Any],
) -> None:
    async with Rig(models=wide, node=TWO) as rig:
        await embed(rig)
        [idle] = rig.nodes[0].workers()
        with limited(psutil.Process(idle).ppid(), ARENA + 50 * MIB):
            psutil.Process(idle).suspend()
            call = say(rig, SHORT)
            await rig.until(lambda: states(rig).get(EMBED) == "stopping")
        await text_of(call)
        assert call.task.place.attempt == 1
        await rig.until(lambda: states(rig) == {"wide": "ready"})


async def test_a_load_that_never_fits_corrects_what_is_believed(wide: dict[str, Any]) -> None:
    async with Rig(models=wide, node=TWO) as rig:
        await embed(rig)
        [idle] = rig.nodes[0].workers()
        believed = next(each.memory for each in advert(rig).models if each.name == "wide")
        with limited(psutil.Process(idle).ppid(), ARENA + 50 * MIB):
            with pytest.raises(NoCapacity, match="ran out of memory") as error:
                await text_of(say(rig, SHORT))
            assert error.value.details["need"] > believed
            await rig.until(
                lambda: next(m.memory for m in advert(rig).models if m.name == "wide") > believed
            )
            await rig.until(lambda: states(rig) == {"wide": "failed"})
            with pytest.raises(NoCapacity):  # refused, not tried: nothing has changed
                await text_of(say(rig, SHORT))
            assert rig.nodes[0].workers() == []
            assert await embed(rig) > 0
        async with operator(rig) as someone:  # who orders it knows better
            assert (await someone.order("load", "wide")).state == "done"

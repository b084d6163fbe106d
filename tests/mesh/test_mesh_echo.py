"""Tasks through broker, node and worker, over real sockets; and what happens when parts die."""

from __future__ import annotations

import asyncio
import collections
import os
import signal

import pytest

from blip.errors import BlipError, Cancelled, DeadlineExceeded, ModelNotFound, NodeLost
from blip.kinds.echo import EchoInput
from tests.mesh.rig import Rig


async def read(call: object) -> bytes:
    """Return the whole stream of a call."""
    out = b""
    async for parts in call.parts():  # type: ignore[attr-defined]
        out += b"".join(map(bytes, parts))
    return out


async def test_it_answers() -> None:
    async with Rig() as rig:
        call = rig.call("echo", "echo", EchoInput(text="hello"))
        answer = await call.answer()
        assert bytes(answer.payload) == b"hello"
        assert call.node == "node-1"
        assert call.timing.total is not None
        assert call.timing.total > 0
        # small, framed, through the arena, and too large for one block of it
        for size in (10, 20_000, 1_000_000, 5_000_000):
            answer = await rig.call("echo", "echo", EchoInput(size=size)).answer()
            assert len(answer.payload) == size
        stream = rig.call("echo", "echo", EchoInput(text="ab", chunks=50))
        assert await read(stream) == b"ab" * 50
        assert [task.state for task in rig.dispatcher.tasks()] == ["succeeded"] * 6


async def test_a_slow_reader_stops_its_own_stream_only() -> None:
    async with Rig() as rig:
        slow = rig.call("echo", "echo", EchoInput(size=500_000, chunks=40))
        await slow.started()
        quick = rig.call("echo", "echo", EchoInput(size=500_000, chunks=40))
        assert len(await read(quick)) == 20_000_000
        # the slow one was given no more than its window and one message
        assert sum(map(len, slow._parts)) <= 1024 * 1024 + 500_000
        assert len(await read(slow)) == 20_000_000


async def test_unknown_models_name_near_ones() -> None:
    async with Rig() as rig:
        with pytest.raises(ModelNotFound, match=r"'echoo'.*did you mean 'echo'"):
            rig.call("echo", "echoo", EchoInput())
        with pytest.raises(ModelNotFound, match="does not do 'chat'"):
            rig.call("chat", "echo", EchoInput())


async def test_cancel_frees_the_slot() -> None:
    async with Rig(models={"echo": {"source": "builtin:echo", "slots": 1}}) as rig:
        call = rig.call("echo", "echo", EchoInput(delay=60))
        await rig.until(lambda: call.task.state.value == "running")
        call.cancel()
        call.cancel()
        with pytest.raises(Cancelled):
            await call.answer()
        answer = await rig.call("echo", "echo", EchoInput(text="next")).answer()
        assert bytes(answer.payload) == b"next"
        assert rig.broker is not None
        ledger = rig.broker.scheduler.ledger
        await rig.until(lambda: not len(ledger))


async def test_deadline() -> None:
    async with Rig() as rig:
        call = rig.call("echo", "echo", EchoInput(text="a", chunks=100, interval=5), timeout=0.3)
        with pytest.raises(DeadlineExceeded):
            await call.answer()
        assert rig.broker is not None
        ledger = rig.broker.scheduler.ledger
        await rig.until(lambda: not len(ledger))


async def test_work_is_spread_by_load() -> None:
    async with Rig(nodes=2) as rig:
        calls = [rig.call("echo", "echo", EchoInput(delay=0.5)) for _ in range(32)]
        await asyncio.gather(*(call.answer() for call in calls))
        shares = collections.Counter(call.node for call in calls)
        assert sorted(shares) == ["node-1", "node-2"]
        assert min(shares.values()) >= 12


async def test_killing_a_node_fails_nothing_that_had_not_streamed() -> None:
    async with Rig(nodes=2) as rig:
        calls = [rig.call("echo", "echo", EchoInput(text=str(n), delay=1)) for n in range(32)]
        await rig.until(lambda: all(call.task.state.value == "running" for call in calls))
        assert {call.node for call in calls} == {"node-1", "node-2"}
        await rig.nodes[0].kill()
        answers = await asyncio.gather(*(call.answer() for call in calls))
        assert [bytes(answer.payload) for answer in answers] == [b"%d" % n for n in range(32)]
        assert {call.node for call in calls} == {"node-2"}


async def test_a_stream_that_cannot_resume_says_how_much_was_delivered() -> None:
    async with Rig(nodes=2) as rig:
        call = rig.call("echo", "echo", EchoInput(text="abc", chunks=100, interval=0.05))
        await call.started()
        serving = next(node for node in rig.nodes if node.name == call.node)
        await serving.kill()
        with pytest.raises(NodeLost) as error:
            await call.answer()
        assert error.value.details["delivered"] >= 3


async def test_killing_a_worker_is_retried() -> None:
    async with Rig() as rig:
        await rig.call("echo", "echo", EchoInput(text="warm")).answer()
        (worker,) = rig.nodes[0].workers()
        call = rig.call("echo", "echo", EchoInput(text="again", delay=1))
        await rig.until(lambda: call.task.state.value == "running")
        os.kill(worker, signal.SIGKILL)
        answer = await call.answer()
        assert bytes(answer.payload) == b"again"
        assert call.task.place.attempt >= 2


async def test_a_frozen_node_is_left_and_comes_back() -> None:
    async with Rig(nodes=2) as rig:
        calls = [rig.call("echo", "echo", EchoInput(delay=0.3)) for _ in range(8)]
        frozen = rig.nodes[0]
        frozen.signal(signal.SIGSTOP)
        await asyncio.gather(*(call.answer() for call in calls))
        await rig.until(
            lambda: {n.name: n.status for n in rig.dispatcher.nodes()}.get("node-1") == "lost"
        )
        frozen.signal(signal.SIGCONT)
        await rig.until(lambda: all(n.status == "ready" for n in rig.dispatcher.nodes()))
        served: set[str] = set()
        while served != {"node-1", "node-2"}:  # the test's own limit ends this
            calls = [rig.call("echo", "echo", EchoInput(delay=0.2)) for _ in range(8)]
            await asyncio.gather(*(call.answer() for call in calls))
            served |= {call.node for call in calls}


async def test_without_a_broker_gateways_place_by_themselves() -> None:
    async with Rig(nodes=2) as rig:
        running = [rig.call("echo", "echo", EchoInput(delay=0.5)) for _ in range(4)]
        await rig.until(lambda: all(call.task.state.value == "running" for call in running))
        rig.stop_broker()
        new = [rig.call("echo", "echo", EchoInput(delay=0.1)) for _ in range(16)]
        await asyncio.gather(*(call.answer() for call in (*running, *new)))
        assert {call.node for call in new} == {"node-1", "node-2"}


async def test_a_broker_that_restarts_rebuilds_itself() -> None:
    async with Rig(nodes=2) as rig:
        running = [rig.call("echo", "echo", EchoInput(delay=2)) for _ in range(6)]
        await rig.until(lambda: all(call.task.state.value == "running" for call in running))
        rig.stop_broker()
        await rig.start_broker()
        assert rig.broker is not None
        scheduler = rig.broker.scheduler
        await rig.until(lambda: len(scheduler.ledger) == 6, 3.0)
        assert {lease.key for lease in scheduler.ledger.leases()} == {
            (call.id, 1) for call in running
        }
        await asyncio.gather(*(call.answer() for call in running))
        await rig.until(lambda: not len(scheduler.ledger))
        answer = await rig.call("echo", "echo", EchoInput(text="still here")).answer()
        assert bytes(answer.payload) == b"still here"


async def test_no_node_at_all() -> None:
    async with Rig(nodes=0) as rig:
        with pytest.raises(BlipError, match="no node is connected"):
            rig.call("echo", "echo", EchoInput())


async def test_a_node_that_is_asked_to_end_finishes_what_it_runs() -> None:
    async with Rig(nodes=2) as rig:
        calls = [rig.call("echo", "echo", EchoInput(text="x", delay=0.8)) for _ in range(8)]
        await rig.until(lambda: all(call.task.state.value == "running" for call in calls))
        before = [call.node for call in calls]
        rig.nodes[0].process.terminate()
        await asyncio.gather(*(call.answer() for call in calls))
        assert [call.node for call in calls] == before
        assert await rig.nodes[0].process.wait() == 0

"""The echo runtime, and the table that all runtimes are found by."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from blip.errors import Cancelled, ConfigError
from blip.kinds import KINDS
from blip_node.runtimes import RUNTIMES, LoadSpec, runtime_for
from blip_node.runtimes.echo import EchoRuntime
from tests.models.jobs import RecordingJob


def runtime(speed: float = 1.0) -> EchoRuntime:
    echo = EchoRuntime()
    echo.load(LoadSpec("echo", "", "cpu", 8, speed=speed), lambda share: None)
    return echo


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replaces the event loop's timers by ones that fire at once and record their delays."""
    delays: list[float] = []
    loop_class = asyncio.SelectorEventLoop
    started = 0.0

    def time(self: Any) -> float:
        return started + sum(delays)

    def call_later(self: Any, delay: float, callback: Any, *args: Any) -> Any:
        delays.append(delay)
        return self.call_soon(callback, *args)

    monkeypatch.setattr(loop_class, "call_later", call_later)
    monkeypatch.setattr(loop_class, "time", time)
    return delays


class TestAnswers:
    async def test_a_text_comes_back_in_the_outcome(self) -> None:
        job = RecordingJob("echo", text="héllo")
        outcome = await runtime().run(job)
        assert bytes(outcome.payload) == "héllo".encode()
        assert job.parts == []

    async def test_nothing_comes_back_as_nothing(self) -> None:
        assert bytes((await runtime().run(RecordingJob("echo"))).payload) == b""

    @pytest.mark.parametrize("size", [1, 256, 257, 100_000])
    async def test_sizes_are_exact_and_contents_known(self, size: int) -> None:
        outcome = await runtime().run(RecordingJob("echo", size=size))
        assert bytes(outcome.payload) == bytes(n % 256 for n in range(size))

    async def test_chunks_are_emitted_and_the_outcome_is_empty(self) -> None:
        job = RecordingJob("echo", size=300, chunks=5)
        outcome = await runtime().run(job)
        assert job.parts == [bytes(n % 256 for n in range(300))] * 5
        assert outcome.payload == b""

    async def test_chunks_of_a_size_are_one_buffer(self) -> None:
        echo = runtime()
        large = (await echo.run(RecordingJob("echo", size=1000))).payload
        small = (await echo.run(RecordingJob("echo", size=10))).payload
        assert isinstance(large, memoryview)
        assert isinstance(small, memoryview)
        assert large.obj is small.obj
        echo.close()
        assert bytes(small) == bytes(range(10))

    async def test_units_are_the_kinds_own(self) -> None:
        job = RecordingJob("echo", text="a", chunks=3)
        assert (await runtime().run(job)).units == KINDS["echo"].units(job.input)


class TestPace:
    async def test_delay_work_and_intervals(self, clock: list[float]) -> None:
        job = RecordingJob("echo", text="a", chunks=4, delay=2, work=6, interval=0.5)
        await runtime(speed=4).run(job)
        assert clock == pytest.approx([3.5, 0.5, 0.5, 0.5])
        assert len(job.parts) == 4

    async def test_a_single_chunk_is_paced_too(self, clock: list[float]) -> None:
        await runtime(speed=0.5).run(RecordingJob("echo", text="a", work=3))
        assert clock == [6.0]

    async def test_a_million_chunks_let_others_run(self) -> None:
        job = RecordingJob("echo", size=1, chunks=10_000)
        running = asyncio.create_task(runtime().run(job))
        turns = 0
        while not running.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 100
        large = RecordingJob("echo", size=1024 * 1024, chunks=10)
        running = asyncio.create_task(runtime().run(large))
        seen = set()
        while not running.done():
            seen.add(len(large.parts))
            await asyncio.sleep(0)
        assert len(seen) >= 10


class TestCredit:
    async def test_no_chunk_without_credit(self) -> None:
        job = RecordingJob("echo", size=1, chunks=10)
        job._on_emit = lambda job: setattr(job, "writable", len(job.parts) != 3)
        running = asyncio.create_task(runtime().run(job))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(job.parts) == 3
        job.let(writable=True)
        await running
        assert len(job.parts) == 10


class TestCancel:
    @pytest.mark.parametrize("fields", [{"delay": 600}, {"work": 600}])
    async def test_asleep_at_the_start(self, fields: dict[str, Any]) -> None:
        await self.cancelled(RecordingJob("echo", text="a", **fields), after=0)

    async def test_asleep_between_chunks(self) -> None:
        await self.cancelled(RecordingJob("echo", text="a", chunks=3, interval=60), after=1)

    async def test_waiting_for_credit(self) -> None:
        job = RecordingJob("echo", text="a", chunks=3)
        job.writable = False
        await self.cancelled(job, after=0)

    async def test_at_full_speed(self) -> None:
        job = RecordingJob("echo", size=1, chunks=1_000_000)
        job._on_emit = lambda job: setattr(job, "cancelled", len(job.parts) == 7)
        with pytest.raises(Cancelled):
            await runtime().run(job)
        assert len(job.parts) == 7

    async def test_before_it_began(self) -> None:
        job = RecordingJob("echo", text="a")
        job.cancelled = True
        with pytest.raises(Cancelled):
            await runtime().run(job)

    async def test_news_that_is_no_cancel_wakes_and_sleeps_on(self, clock: list[float]) -> None:
        job = RecordingJob("echo", text="a", delay=5)
        running = asyncio.create_task(runtime().run(job))
        await asyncio.sleep(0)
        job.let(writable=True)
        await running
        assert sum(clock) == 5

    async def cancelled(self, job: RecordingJob, after: int) -> None:
        running = asyncio.create_task(runtime().run(job))
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(job.parts) == after
        assert not running.done()
        job.cancel()
        with pytest.raises(Cancelled):
            await running
        assert len(job.parts) == after


class TestTable:
    def test_every_kind_has_a_runtime_that_says_so(self) -> None:
        assert set(RUNTIMES) == set(KINDS)
        for kind in KINDS:
            assert kind in runtime_for([kind]).kinds

    def test_chat_and_completion_share_one(self) -> None:
        assert runtime_for(("completion", "chat")) is runtime_for(["chat"])

    def test_what_no_runtime_serves(self) -> None:
        with pytest.raises(ConfigError, match="'telepathy'"):
            runtime_for(["chat", "telepathy"])
        with pytest.raises(ConfigError, match="cannot serve chat and embedding"):
            runtime_for(["embedding", "chat"])
        with pytest.raises(ConfigError, match="no kind"):
            runtime_for([])

    def test_asking_for_runtimes_imports_no_torch(self) -> None:
        code = (
            "import sys; from blip_node.runtimes import RUNTIMES, runtime_for\n"
            "import blip_node.models\n"
            "print([runtime_for([kind])().kinds for kind in RUNTIMES])\n"
            "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
        )
        subprocess.run(
            [sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)}
        )

    def test_what_is_preloaded_exists(self) -> None:
        import importlib.util

        for kind in RUNTIMES:
            for module in runtime_for([kind]).preload:
                assert importlib.util.find_spec(module), module

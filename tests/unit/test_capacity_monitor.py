"""The monitor: threads, snapshots that age, providers that fail or hang."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from blip_node.capacity import (
    AmdProvider,
    Capacity,
    CpuProvider,
    DeviceEvent,
    DeviceInfo,
    DeviceSample,
    Monitor,
    NvmlProvider,
    Provider,
    StaticDevice,
    StaticProvider,
)
from tests.fake_nvml import H100, RTX_4090, FakeGpus
from tests.unit.fake_amdsmi import FakeAmdSmi, instinct, lose, radeon

#: Tests wait for threads, never for the clock: only ``refresh`` and the first look sample.
NEVER = 3600.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A provider whose every call a test can delay or break."""

    fallback = False
    reason: str | None = None

    def __init__(self, clock: Callable[[], float], name: str = "scripted", *ids: str) -> None:
        self.name = name
        self.ids = ids or ("dev",)
        self.free: int | None = 1000
        self.own_pids: Collection[int] = ()
        self.entered = threading.Semaphore(0)
        self.sampled = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.probe_error: Exception | None = None
        self.sample_error: Exception | None = None
        self.close_error: Exception | None = None
        self.report: Callable[[DeviceEvent], None] | None = None
        self.calls: list[str] = []
        self._clock = clock

    def probe(self) -> list[DeviceInfo]:
        self.calls.append("probe")
        self.gate.wait()
        if self.probe_error:
            raise self.probe_error
        return [DeviceInfo(id, i, "test", "x", memory_total=1000) for i, id in enumerate(self.ids)]

    def sample(self, own_pids: Collection[int]) -> list[DeviceSample]:
        self.own_pids = own_pids
        self.entered.release()
        at = self._clock()
        self.gate.wait()
        try:
            if self.sample_error:
                raise self.sample_error
            return [DeviceSample(id, at, memory_free=self.free) for id in self.ids]
        finally:
            self.sampled.release()

    def watch(self, report: Callable[[DeviceEvent], None]) -> None:
        self.calls.append("watch")
        self.report = report

    def close(self) -> None:
        self.calls.append("close")
        if self.close_error:
            raise self.close_error


def until(condition: Callable[[], bool]) -> None:
    """Wait for other threads; the test's own timeout is the limit."""
    while not condition():
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert {t for t in threading.enumerate() if t.name.startswith("blip-")} <= before


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run(clock: Clock) -> Iterator[Callable[..., Monitor]]:
    monitors: list[Monitor] = []

    def run(*providers: Provider, interval: float = NEVER) -> Monitor:
        monitor = Monitor(providers, interval=interval, clock=clock)
        monitors.append(monitor)
        monitor.start()
        until(lambda: all(r.sample for r in monitor.capacity().readings))
        return monitor

    yield run
    for monitor in monitors:
        monitor.close()


Run = Callable[..., Monitor]


def free(monitor: Monitor, device: str = "dev") -> int | None:
    reading = monitor.capacity().get(device)
    return reading.sample.memory_free if reading and reading.sample else None


def test_readings_age_until_the_next_look(clock: Clock, run: Run) -> None:
    provider = Scripted(clock)
    monitor = run(provider)
    until(lambda: free(monitor) == 1000)
    before = monitor.capacity()
    assert (before.at, before.readings[0].age, before.missing) == (100.0, 0.0, {})
    clock.now = 107.5
    assert monitor.capacity().readings[0].age == 7.5
    assert before.readings[0].age == 0.0  # a snapshot does not change
    provider.free = 400
    monitor.refresh()
    until(lambda: free(monitor) == 400)
    assert monitor.capacity().readings[0].age == 0.0
    assert before.readings[0].sample is not None
    assert before.readings[0].sample.memory_free == 1000


def test_it_samples_by_itself(clock: Clock, run: Run) -> None:
    provider = Scripted(clock)
    run(provider, interval=0.01)
    for _ in range(5):
        assert provider.sampled.acquire(timeout=30)


def test_providers_learn_our_pids(clock: Clock, run: Run) -> None:
    provider = Scripted(clock)
    monitor = run(provider)
    monitor.own_pids = frozenset({7, 8})
    monitor.refresh()
    until(lambda: provider.own_pids == {7, 8})


def test_a_hanging_provider_ages_alone_and_close_leaves_it_behind(
    clock: Clock, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, fine = Scripted(clock, "stuck"), Scripted(clock, "fine", "other")
    monitor = run(stuck, fine)
    until(lambda: free(monitor) == free(monitor, "other") == 1000)
    assert stuck.entered.acquire(timeout=30)  # the first look
    stuck.gate.clear()
    stuck.free = fine.free = 1
    clock.now = 130.0
    monitor.refresh()
    assert stuck.entered.acquire(timeout=30)
    until(lambda: free(monitor, "other") == 1)
    ages = {reading.info.id: reading.age for reading in monitor.capacity().readings}
    assert ages == {"dev": 30.0, "other": 0.0}
    monitor.close(timeout=0.05)
    assert "provider stuck hangs in its driver" in caplog.text
    assert ("close" in stuck.calls, "close" in fine.calls) == (False, True)
    stuck.gate.set()
    until(lambda: "close" in stuck.calls)


def test_until_the_first_look_is_finished_nothing_is_there(clock: Clock) -> None:
    slow = Scripted(clock, "slow")
    slow.gate.clear()
    monitor = Monitor([slow, CpuProvider(fallback=True)], interval=NEVER, clock=clock)
    assert monitor.capacity().missing.keys() == {"slow", "cpu"}
    monitor.start()
    until(lambda: monitor.capacity().missing.keys() == {"slow"})
    assert monitor.capacity().readings == ()  # not a CPU node while the GPU driver wakes up
    slow.gate.set()
    until(lambda: free(monitor) == 1000)
    assert [reading.info.id for reading in monitor.capacity().readings] == ["dev"]
    monitor.close()


@pytest.mark.parametrize("error", [KeyError("libamd_smi.so"), OSError("no libze_loader")])
def test_a_provider_that_raises_is_a_reason(clock: Clock, run: Run, error: Exception) -> None:
    broken = Scripted(clock, "broken")
    broken.probe_error = error
    monitor = run(broken, CpuProvider(fallback=True, clock=clock))
    until(lambda: len(monitor.capacity().readings) == 1)
    capacity = monitor.capacity()
    assert [reading.info.id for reading in capacity.readings] == ["cpu"]
    assert capacity.missing == {"broken": f"{type(error).__name__}: {error}"}
    until(lambda: broken.calls == ["probe", "close"])  # and its thread has ended


def test_sampling_that_raises_ages_the_reading_and_recovers(
    clock: Clock, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Scripted(clock)
    monitor = run(provider)
    until(lambda: free(monitor) == 1000)
    provider.sample_error = RuntimeError("driver trouble")
    clock.now = 103.0
    monitor.refresh()
    until(lambda: "scripted" in monitor.capacity().missing)
    capacity = monitor.capacity()
    assert capacity.missing == {"scripted": "RuntimeError: driver trouble"}
    assert (capacity.readings[0].age, free(monitor)) == (3.0, 1000)
    while provider.sampled.acquire(blocking=False):
        pass
    monitor.refresh()
    assert provider.sampled.acquire(timeout=30)
    provider.sample_error = None
    monitor.refresh()
    until(lambda: monitor.capacity().missing == {})
    assert caplog.text.count("driver trouble") == 1


def test_trouble_while_closing_is_logged(
    clock: Clock, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Scripted(clock)
    provider.close_error = OSError("still busy")
    run(provider).close()
    assert "still busy" in caplog.text


def test_ids_that_two_providers_claim(clock: Clock, run: Run) -> None:
    monitor = run(
        Scripted(clock, "first", "a", "b"),
        StaticProvider([StaticDevice("b", "mine"), StaticDevice("c", "other")], clock=clock),
    )
    until(lambda: len(monitor.capacity().readings) == 3)
    capacity = monitor.capacity()
    assert [(r.info.id, r.info.vendor) for r in capacity.readings] == [
        ("a", "test"),
        ("b", "test"),
        ("c", "static"),
    ]
    assert "'b'" in capacity.missing["static"]


def test_cpu_only_if_asked_for_beside_others(clock: Clock, run: Run) -> None:
    monitor = run(Scripted(clock), CpuProvider(fallback=False, clock=clock))
    until(lambda: len(monitor.capacity().readings) == 2)


def test_events_are_kept_the_latest_of_each_code(
    clock: Clock, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Scripted(clock)
    monitor = run(provider)
    until(lambda: provider.report is not None)
    assert provider.report is not None
    for at, code, fatal in [(1.0, 13, False), (2.0, 79, True), (3.0, 13, False)]:
        provider.report(DeviceEvent("dev", at, code, f"Xid {code}.", fatal))
    [reading] = monitor.capacity().readings
    assert [(event.at, event.code) for event in reading.events] == [(2.0, 79), (3.0, 13)]
    assert reading.fault == "Xid 79."
    assert [r.levelno for r in caplog.records] == [logging.WARNING, logging.ERROR, logging.WARNING]


def test_close_is_harmless_before_start_and_twice(clock: Clock) -> None:
    provider = Scripted(clock)
    monitor = Monitor([provider], clock=clock)
    monitor.close()
    monitor.close()
    assert provider.calls == []


def test_changed_needs_a_loop() -> None:
    with pytest.raises(ValueError, match="loop"):
        Monitor([], changed=lambda: None)


class Listener:
    """Counts ``changed``, and sees that it comes on the loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.count = 0
        self._news = asyncio.Event()

    def __call__(self) -> None:
        assert asyncio.get_running_loop() is self.loop
        self.count += 1
        self._news.set()

    async def calls(self, count: int) -> None:
        """Wait for the call of that number; one too many fails."""
        while self.count < count:
            self._news.clear()
            await self._news.wait()
        assert self.count == count


async def test_changed_is_called_on_the_loop_for_news_only(clock: Clock) -> None:
    provider, listener = Scripted(clock), Listener()
    monitor = Monitor([provider], interval=NEVER, changed=listener, loop=listener.loop, clock=clock)
    monitor.start()
    await listener.calls(1)
    assert free(monitor) == 1000
    for _ in range(3):  # the same numbers again are no news
        while provider.sampled.acquire(blocking=False):
            pass
        monitor.refresh()
        await asyncio.to_thread(provider.sampled.acquire)
    provider.free = 500
    monitor.refresh()
    await listener.calls(2)
    assert free(monitor) == 500
    assert provider.report is not None
    provider.report(DeviceEvent("dev", 1.0, 79, "Xid 79.", fatal=True))
    await listener.calls(3)
    assert monitor.capacity().readings[0].fault == "Xid 79."
    await asyncio.to_thread(monitor.close)
    assert listener.count == 3


async def test_news_on_its_way_at_close_is_not_delivered(clock: Clock) -> None:
    provider, listener = Scripted(clock), Listener()
    monitor = Monitor([provider], interval=NEVER, changed=listener, loop=listener.loop, clock=clock)
    monitor.start()
    until(lambda: free(monitor) == 1000)  # blocks the loop, so that nothing is delivered yet
    monitor.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert listener.count == 0


def test_a_closed_loop_is_no_trouble(clock: Clock) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    provider = Scripted(clock)
    monitor = Monitor([provider], interval=NEVER, changed=lambda: None, loop=loop, clock=clock)
    monitor.start()
    until(lambda: free(monitor) == 1000)
    monitor.close()


# ---- with the real NVML provider, over a fake NVML ----


@pytest.fixture
def gpus(tmp_path: Path) -> Iterator[FakeGpus]:
    gpus = FakeGpus(tmp_path / "gpus", [H100, RTX_4090])
    with gpus.loaded():
        yield gpus


def settled(monitor: Monitor) -> bool:
    """Tell whether both cards have been measured."""
    readings = monitor.capacity().readings
    return len(readings) == 2 and all(reading.sample for reading in readings)


def used(capacity: Capacity, index: int) -> int | None:
    sample = capacity.readings[index].sample
    return sample.memory_used if sample else None


def test_fake_nvml_from_start_to_loss(gpus: FakeGpus, run: Run) -> None:
    monitor = run(NvmlProvider(), CpuProvider())
    until(lambda: settled(monitor))
    monitor.own_pids = frozenset({os.getpid()})
    gpus.set(1, memory_used=1 << 30, processes=f"{os.getpid()}:{1 << 29}")
    monitor.refresh()
    until(lambda: used(monitor.capacity(), 1) == 1 << 30)
    sample = monitor.capacity().readings[1].sample
    assert sample is not None
    assert sample.foreign_memory == 1 << 29
    gpus.xid(0, 79)
    gpus.set(0, lost=1)
    monitor.refresh()
    until(lambda: monitor.capacity().readings[0].fault is not None)
    assert monitor.capacity().readings[1].fault is None


def test_a_lost_device_is_logged_once(
    gpus: FakeGpus, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = run(NvmlProvider())
    until(lambda: settled(monitor))

    def look() -> None:
        before = [reading.sample for reading in monitor.capacity().readings]
        monitor.refresh()
        until(lambda: before[1] is not monitor.capacity().readings[1].sample)

    gpus.set(0, lost=1)
    look()
    look()
    id = monitor.capacity().readings[0].info.id
    assert [r.getMessage() for r in caplog.records] == [f"device {id} is lost: GPU is lost."]
    gpus.set(0, lost=None)
    look()
    assert monitor.capacity().readings[0].fault is None


def test_cards_of_two_vendors_and_one_of_each_lost(gpus: FakeGpus, run: Run) -> None:
    smi = FakeAmdSmi([radeon(0), instinct(1)])
    with smi.installed():
        monitor = run(NvmlProvider(), AmdProvider(), CpuProvider())
        until(lambda: len(monitor.capacity().readings) == 4)
        gpus.set(0, lost=1)
        lose(smi.cards[1])
        monitor.refresh()
        until(lambda: sum(r.fault is not None for r in monitor.capacity().readings) == 2)
        capacity = monitor.capacity()
        monitor.close()
    assert [(r.info.vendor, r.fault is None) for r in capacity.readings] == [
        ("nvidia", False),
        ("nvidia", True),
        ("amd", True),
        ("amd", False),
    ]
    assert capacity.missing == {}
    assert all(r.info.gpu for r in capacity.readings)


def test_fake_nvml_without_a_driver_makes_a_cpu_node(
    gpus: FakeGpus, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    gpus.set_machine(error={"nvmlInitWithFlags": 9})
    caplog.set_level(logging.INFO)
    monitor = run(NvmlProvider(), CpuProvider())
    until(lambda: [r.info.id for r in monitor.capacity().readings] == ["cpu"])
    assert "not loaded" in monitor.capacity().missing["nvml"]
    assert "capacity provider nvml: The NVIDIA driver is installed but not loaded" in caplog.text


class Watched(NvmlProvider):
    """The real provider; ``entered`` counts its samples as they begin."""

    entered = threading.Semaphore(0)

    def sample(self, own_pids: Collection[int]) -> list[DeviceSample]:
        self.entered.release()
        return super().sample(own_pids)


def test_fake_nvml_hangs_and_the_snapshot_ages(
    gpus: FakeGpus, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    provider = Watched(clock=clock)
    monitor = Monitor([provider], interval=NEVER, clock=clock)
    monitor.start()
    until(lambda: settled(monitor))
    assert provider.entered.acquire(timeout=30)
    gpus.set(0, hang={"nvmlDeviceGetPowerUsage": 10**9}, temperature=99)
    clock.now = 160.0
    monitor.refresh()
    assert provider.entered.acquire(timeout=30)
    monitor.close(timeout=0.05)
    assert "provider nvml hangs in its driver" in caplog.text
    [first, second] = monitor.capacity().readings
    assert (first.age, second.age) == (60.0, 60.0)
    assert first.sample is not None
    assert first.sample.temperature == 31
    gpus.set(0, hang=None)
    until(lambda: not any(t.name in {"blip-nvml", "blip-xid"} for t in threading.enumerate()))

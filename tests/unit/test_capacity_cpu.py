"""The CPU provider: on this machine, and under control groups laid out in a folder."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from blip_node.capacity.cpu import CpuProvider

GIB = 1 << 30


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def machine(root: Path, cgroup: str = "0::/", cpuinfo: str = "", **files: str) -> Path:
    """Lay out /proc and /sys under ``root``; ``files`` are cgroup files, __ for /, _dot_ for '.'"""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup + "\n")
    (root / "proc/cpuinfo").write_text(cpuinfo)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def test_this_machine() -> None:
    clock = Clock()
    provider = CpuProvider(clock=clock)
    [info] = provider.probe()
    assert (info.id, info.vendor, info.index) == ("cpu", "cpu", 0)
    assert info.name
    assert info.memory_total is not None
    assert 0 < info.memory_total <= psutil.virtual_memory().total
    assert info.cores is not None
    assert 1 <= info.cores <= (os.cpu_count() or 1)
    assert (info.gpu, info.visibility) == (False, dict.fromkeys(info.visibility, ""))
    time.sleep(0.1)  # the kernel counts processor time in steps of 10 ms
    clock.now = 101.0
    [sample] = provider.sample(())
    assert sample.at == 101.0
    assert sample.memory_free is not None
    assert sample.memory_used is not None
    assert 0 < sample.memory_free < info.memory_total
    assert sample.memory_free + sample.memory_used == info.memory_total
    assert sample.foreign_memory == sample.memory_used
    assert sample.utilization is not None
    assert sample.foreign_utilization is not None
    assert 0 <= sample.foreign_utilization <= sample.utilization <= 1
    assert sample.own_memory == 0
    assert (sample.temperature, sample.power, sample.throttle, sample.processes) == (None,) * 4
    assert not sample.lost
    provider.watch(lambda event: pytest.fail(f"a processor reported {event}"))
    provider.close()


def test_memory_of_our_workers_is_not_foreign() -> None:
    provider = CpuProvider()
    provider.probe()
    [sample] = provider.sample([os.getpid(), 2**31 - 1])  # the second one does not exist
    assert sample.memory_used is not None
    assert sample.foreign_memory is not None
    assert 0 < sample.memory_used - sample.foreign_memory < sample.memory_used
    assert sample.own_memory == sample.memory_used - sample.foreign_memory


class Times(dict[str, float]):
    """What psutil's named tuples of times are, as far as the provider looks at them."""

    def _asdict(self) -> dict[str, float]:
        return self


class Machine:
    """A machine whose processors and processes a test lets work; two cores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = Times(user=0.0, system=0.0, idle=0.0, iowait=0.0, guest=0.0)
        self.spent = {os.getpid(): 0.0}
        monkeypatch.setattr(psutil, "cpu_times", lambda: Times(self.times))
        monkeypatch.setattr(psutil, "Process", self.process)

    def process(self, pid: int) -> Any:
        if pid not in self.spent:
            raise psutil.NoSuchProcess(pid)
        times = SimpleNamespace(user=self.spent[pid], system=0.0)
        return SimpleNamespace(cpu_times=lambda: times, memory_info=lambda: SimpleNamespace(rss=7))

    def second(self, idle: float, iowait: float = 0.0, guest: float = 0.0, **own: float) -> None:
        """Let a second pass: seconds of two cores that were idle, and what our processes used."""
        self.times["idle"] += idle
        self.times["iowait"] += iowait
        self.times["user"] += 2 - idle - iowait
        self.times["guest"] += guest
        for pid, seconds in own.items():
            number = os.getpid() if pid == "agent" else int(pid.removeprefix("pid"))
            self.spent[number] = self.spent.get(number, 0.0) + seconds


def test_what_others_use_is_all_but_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, machine_ = Clock(), Machine(monkeypatch)
    provider = CpuProvider(clock=clock)
    provider.probe()

    def use(*own_pids: int) -> tuple[float | None, float | None]:
        clock.now += 1
        [sample] = provider.sample(own_pids)
        return sample.utilization, sample.foreign_utilization

    machine_.second(idle=1.0)
    assert use() == (0.5, 0.5)
    machine_.second(idle=0.5, iowait=0.5, guest=0.5)  # a guest's time is part of user already
    assert use() == (0.5, 0.5)
    machine_.second(idle=1.0, agent=0.5)  # the agent is ours too
    assert use() == (0.5, 0.25)
    machine_.second(idle=0.0, pid41=1.0, agent=0.25)  # a worker that started in this second
    assert use(41, 42) == (1.0, 0.375)
    machine_.second(idle=1.0, pid41=1.0)
    assert use(41, 42) == (0.5, 0.0)
    machine_.second(idle=1.0, pid41=1.5)  # two moments: never below zero
    assert use(41) == (0.5, 0.0)
    del machine_.spent[41]
    machine_.second(idle=1.0)
    assert use(41) == (0.5, 0.5)
    assert use(41) == (None, None)  # processor time that stands still tells nothing


def test_utilization_needs_time_between_two_looks() -> None:
    clock = Clock()
    provider = CpuProvider(clock=clock)
    provider.probe()
    clock.now += 0.01
    assert provider.sample(())[0].utilization is None
    clock.now += 0.2
    time.sleep(0.1)
    assert provider.sample(())[0].utilization is not None
    clock.now += 0.01
    assert provider.sample(())[0].utilization is None


def test_the_name_is_the_processors(tmp_path: Path) -> None:
    root = machine(tmp_path, cpuinfo="processor\t: 0\nmodel name\t: A Fine CPU @ 3GHz\n")
    assert CpuProvider(root=root).probe()[0].name == "A Fine CPU @ 3GHz"
    (root / "proc/cpuinfo").unlink()
    assert CpuProvider(root=root).probe()[0].name


def test_a_containers_limits_are_kept(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        memory_dot_max=str(GIB // 2),
        memory_dot_current=str(GIB // 4),
        memory_dot_stat=f"anon 1\ninactive_file {GIB // 8}",
        cpu_dot_max="50000 100000",
    )
    provider = CpuProvider(root=root)
    [info] = provider.probe()
    assert (info.memory_total, info.cores) == (GIB // 2, 1)
    [sample] = provider.sample(())
    assert sample.memory_free == GIB // 2 - GIB // 8  # the file cache can be dropped
    assert sample.memory_used == GIB // 8


def test_the_tightest_group_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        cgroup="1:name=systemd:/old\n0::/system.slice/blip.service",
        system_dot_slice__memory_dot_max=str(GIB // 4),
        system_dot_slice__memory_dot_current=str(GIB),  # over its limit: nothing is free
        system_dot_slice__blip_dot_service__memory_dot_max=str(GIB // 2),
        system_dot_slice__blip_dot_service__memory_dot_current="0",
    )
    provider = CpuProvider(root=root)
    assert provider.probe()[0].memory_total == GIB // 4
    [sample] = provider.sample(())
    assert (sample.memory_free, sample.memory_used) == (0, GIB // 4)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory_dot_max": "max", "memory_dot_current": "5", "cpu_dot_max": "max 100000"},
        {"memory_dot_max": "nonsense", "memory_dot_current": "", "cpu_dot_max": ""},
    ],
)
def test_no_limit_means_the_whole_machine(tmp_path: Path, files: dict[str, str]) -> None:
    [info] = CpuProvider(root=machine(tmp_path, **files)).probe()
    assert info.memory_total == psutil.virtual_memory().total
    assert info.cores == len(os.sched_getaffinity(0))


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert CpuProvider(root=machine(tmp_path)).probe()[0].cores == os.cpu_count()

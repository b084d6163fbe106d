"""The CPU provider: on this machine, and under control groups laid out in a folder."""

from __future__ import annotations

import os
from pathlib import Path

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
    clock.now = 101.0
    [sample] = provider.sample(())
    assert sample.at == 101.0
    assert sample.memory_free is not None
    assert sample.memory_used is not None
    assert 0 < sample.memory_free < info.memory_total
    assert sample.memory_free + sample.memory_used == info.memory_total
    assert sample.foreign_memory == sample.memory_used
    assert sample.utilization is not None
    assert 0 <= sample.utilization <= 1
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


def test_utilization_needs_time_between_two_looks() -> None:
    clock = Clock()
    provider = CpuProvider(clock=clock)
    provider.probe()
    clock.now += 0.01
    assert provider.sample(())[0].utilization is None
    clock.now += 0.2
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

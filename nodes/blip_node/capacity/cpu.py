"""The processor and main memory as one device, measured with psutil.

On Linux the limits of the control group (version 2) that the node runs in are kept: in a container
the machine's memory is not ours to promise.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import psutil

from blip_node.capacity.device import DeviceEvent, DeviceInfo, DeviceSample

#: psutil measures utilisation between two calls, and asks for at least this time between them.
SHORTEST_S = 0.1


class CpuProvider:
    """One device, "cpu". With ``fallback`` it only counts where there is no GPU."""

    name = "cpu"
    reason: str | None = None

    def __init__(
        self,
        *,
        fallback: bool = True,
        clock: Callable[[], float] = time.monotonic,
        root: Path = Path("/"),
    ) -> None:
        self.fallback = fallback
        self._clock = clock
        self._root = root
        self._groups: tuple[Path, ...] = ()
        self._measured = 0.0

    def probe(self) -> list[DeviceInfo]:
        """Describe the processor and start its utilisation clock."""
        self._groups = tuple(_groups(self._root))
        psutil.cpu_percent(interval=None)
        self._measured = self._clock()
        total = psutil.virtual_memory().total
        limits = [limit for limit, _ in self._memory_limits()]
        return [
            DeviceInfo(
                id="cpu",
                index=0,
                vendor="cpu",
                name=_name(self._root),
                memory_total=min([total, *limits]),
                cores=self._cores(),
            )
        ]

    def sample(self, own_pids: Collection[int]) -> list[DeviceSample]:
        """Measure memory and utilisation; never waits."""
        at = self._clock()
        memory = psutil.virtual_memory()
        total, free = memory.total, memory.available
        for limit, used in self._memory_limits():
            total = min(total, limit)
            free = min(free, max(0, limit - used))
        utilization = None
        if at - self._measured >= SHORTEST_S:
            utilization = psutil.cpu_percent(interval=None) / 100
            self._measured = at
        return [
            DeviceSample(
                id="cpu",
                at=at,
                memory_free=free,
                memory_used=total - free,
                foreign_memory=max(0, total - free - sum(map(_resident, own_pids))),
                utilization=utilization,
            )
        ]

    def watch(self, report: Callable[[DeviceEvent], None]) -> None:
        """Do nothing: a processor reports no events."""

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _memory_limits(self) -> Iterator[tuple[int, int]]:
        """Yield (limit, bytes in use that cannot be reclaimed) of each group that has a limit."""
        for group in self._groups:
            limit, used = _read(group / "memory.max"), _read(group / "memory.current")
            if limit.isdigit() and used.isdigit():
                cache = 0  # what the kernel would drop before anyone is killed
                for line in _read(group / "memory.stat").splitlines():
                    if line.startswith("inactive_file "):
                        cache = int(line.split()[1])
                yield int(limit), int(used) - cache

    def _cores(self) -> int:
        """Count the cores this process may use, by affinity and by quota."""
        try:
            cores = len(os.sched_getaffinity(0))
        except AttributeError:  # not Linux
            cores = os.cpu_count() or 1
        for group in self._groups:
            quota, _, period = _read(group / "cpu.max").partition(" ")
            if quota.isdigit() and period.isdigit():
                cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
        return cores


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of our control group and of those around it, innermost first."""
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):  # version 2; in a container usually just "0::/"
            group = top / line.removeprefix("0::/")
            while group != top:
                yield group
                group = group.parent
            yield top


def _name(root: Path) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "CPU"


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it ended, or is not ours to look at
        return 0

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

#: Utilisation is measured between two looks; the kernel counts in steps of 10 ms, so looks closer
#: together than this would say little.
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
        self._times = (0.0, 0.0)
        self._own: dict[int, float] = {}

    def probe(self) -> list[DeviceInfo]:
        """Describe the processor and start its utilisation clock."""
        self._groups = tuple(_groups(self._root))
        self._times = _times()
        self._own = _spent(())
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
        own = sum(map(_resident, own_pids))
        utilization = foreign = None
        if at - self._measured >= SHORTEST_S:
            utilization, foreign = self._use(own_pids)
            self._measured = at
        return [
            DeviceSample(
                id="cpu",
                at=at,
                memory_free=free,
                memory_used=total - free,
                own_memory=own,
                foreign_memory=max(0, total - free - own),
                utilization=utilization,
                foreign_utilization=foreign,
            )
        ]

    def _use(self, own_pids: Collection[int]) -> tuple[float | None, float | None]:
        """Return the machine's utilisation since the last look, and that of others."""
        (total, idle), (total_before, idle_before) = _times(), self._times
        spent, spent_before = _spent(own_pids), self._own
        self._times, self._own = (total, idle), spent
        passed = total - total_before
        if passed <= 0:
            return None, None
        busy = min(1.0, max(0.0, 1 - (idle - idle_before) / passed))
        # A worker seen for the first time was started just now: all it did is of this interval.
        ours = sum(max(0.0, now - spent_before.get(pid, 0.0)) for pid, now in spent.items())
        return busy, max(0.0, busy - ours / passed)

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


def _times() -> tuple[float, float]:
    """Return seconds that the machine's processors have had, and those of them spent idle."""
    times = psutil.cpu_times()._asdict()
    # what guests use is part of user and nice already
    total = sum(value for name, value in times.items() if not name.startswith("guest"))
    return total, times["idle"] + times.get("iowait", 0.0)


def _spent(pids: Collection[int]) -> dict[int, float]:
    """Return processor seconds used so far by these workers and by this agent itself."""
    spent = {}
    for pid in {*pids, os.getpid()}:
        try:
            times = psutil.Process(pid).cpu_times()
            spent[pid] = times.user + times.system
        except psutil.Error:
            pass  # it ended, or is not ours to look at
    return spent


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it ended, or is not ours to look at
        return 0

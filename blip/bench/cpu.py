"""CPU time of other processes, and of the machine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

#: Process ids by role, at one moment.
Pids = Mapping[str, Iterable[int]]
#: CPU seconds so far, by role (or thread of one) and process.
Usage = Mapping[tuple[str, int], float]


def process_seconds(pid: int) -> float:
    """Return the CPU seconds that a process has used, its ended threads included; 0 if it is gone.

    Linux keeps them to the nanosecond; the 10 ms ticks of /proc would round a whole role away.
    """
    if psutil.LINUX:
        try:
            # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of the kernel's posix-timers.h, which is
            # what clock_getcpuclockid(3) returns
            return time.clock_gettime(~pid << 3 | 2)
        except OSError:
            return 0.0
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def descendants(pid: int) -> list[int]:
    """Return the ids of the processes below ``pid``."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def machine_seconds() -> float:
    """Return the CPU seconds that all programs of the machine have used, over all cores."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def snapshot(pids: Pids) -> Usage:
    """Return what each process has used so far, by role."""
    return {(role, pid): process_seconds(pid) for role, some in pids.items() for pid in some}


def thread_snapshot(pids: Pids) -> Usage:
    """Return what the threads of each process have used so far, by ``role thread``.

    The names are the kernel's, which libraries set (``ZMQbg/IO/0``). Kept in ticks of 10 ms.
    """
    found: dict[tuple[str, int], float] = {}
    for role, some in pids.items():
        for pid in some:
            for thread, seconds in _threads(pid):
                key = (f"{role} {'main' if thread == pid else _name(pid, thread)}", pid)
                found[key] = found.get(key, 0.0) + seconds
    return found


def spent(before: Usage, after: Usage) -> dict[str, float]:
    """Return the CPU seconds between two snapshots by role; a new process counts from its start."""
    total: dict[str, float] = {}
    for (role, pid), seconds in after.items():
        gone = before.get((role, pid), 0.0)
        total[role] = total.get(role, 0.0) + max(0.0, seconds - gone)
    return total


def _threads(pid: int) -> list[tuple[int, float]]:
    try:
        threads = psutil.Process(pid).threads()
    except psutil.Error:
        return []
    return [(thread.id, thread.user_time + thread.system_time) for thread in threads]


def _name(pid: int, thread: int) -> str:
    try:
        return Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip()
    except OSError:
        return "other"

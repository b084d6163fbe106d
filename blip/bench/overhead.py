"""``blip bench overhead``: the whole path of an echo against a bare server that echoes.

All stacks stay up. Every round visits each of them for about a second a case, in an order that
rotates, and only figures of the same round are compared (:mod:`blip.bench.report`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import platform
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from blip import __version__
from blip.bench import stacks, tables
from blip.bench.cases import Case, select
from blip.bench.cpu import machine_seconds, snapshot, spent, thread_snapshot
from blip.bench.load import Generator
from blip.bench.report import Aim, Pair, Row, Visit, aims, summarise
from blip.bench.stacks import Stack
from blip.cli import FAILURE, INTERRUPTED, render

#: Seconds that a mesh gets to come to rest, and over which it is then measured: five heartbeats.
SETTLE, IDLE_SECONDS = 1.0, 5.0

Results = dict[str, list[Pair]]


def main(
    *,
    rounds: int = 5,
    seconds: float = 1.0,
    cases: str = "",
    as_json: bool = False,
    profile: bool = False,
) -> int:
    """Measure and print; return 0 unless a request failed: an aim that is missed is a result.

    ``cases`` selects some, such as ``echo-64,mib,idle``; ``seconds`` is the length of a visit.
    ``profile`` adds the CPU time of each thread. Raises :class:`~blip.errors.BlipError` if a
    stack does not come up, ``ConfigError`` for a case that does not exist.
    """
    chosen, idle = select(cases)
    try:
        return asyncio.run(_main(chosen, idle, rounds, seconds, as_json, profile))
    except asyncio.CancelledError:
        return INTERRUPTED


async def _main(
    cases: Sequence[Case], idle: bool, rounds: int, seconds: float, as_json: bool, profile: bool
) -> int:
    began = time.monotonic()
    shares = None
    with ended_by_signals():
        async with stacks.bare() as bare, stacks.blip(render.note) as blip:
            bench = Bench(blip, bare, seconds, profile=profile)
            results = await bench.rounds(cases, rounds)
            if idle:
                shares = await bench.idle()
    rows = [summarise(pairs) for pairs in results.values()]
    found = aims(results, shares)
    if as_json:
        render.print_json(_document(results, rows, found, shares, seconds))
    else:
        _print(rows, found, shares, rounds, seconds, time.monotonic() - began)
    for row in rows:
        for what, count in row.errors.items():
            render.note(f"{row.case}: {count} x {what}")
    return FAILURE if any(row.errors for row in rows) else 0


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Take the stacks down when we are asked to end by a signal; Ctrl-C asyncio minds itself."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    numbers = (signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


class Bench:
    """Visits two stacks that are up. ``seconds`` is the length of a visit."""

    def __init__(self, blip: Stack, bare: Stack, seconds: float, *, profile: bool = False) -> None:
        self._blip = blip
        self._bare = bare
        self._seconds = seconds
        self._profile = profile

    async def rounds(self, cases: Sequence[Case], count: int) -> Results:
        """Visit both stacks in every case of every round; whoever is first takes turns."""
        results: Results = {case.name: [] for case in cases}
        async with Generator() as generator:
            for number in range(count if cases else 0):
                render.note(f"round {number + 1} of {count}")
                for turn, case in enumerate(cases):
                    order = [self._blip, self._bare]
                    if (number + turn) % 2:
                        order.reverse()
                    visits = {
                        stack.name: await self.visit(generator, stack, case) for stack in order
                    }
                    results[case.name].append(Pair(visits["blip"], visits["bare"]))
        return results

    async def visit(self, generator: Generator, stack: Stack, case: Case) -> Visit:
        """Drive one case against one stack."""
        await generator.prepare(case.load(stack.port, stack.headers, self._seconds))
        pids = stack.pids()
        threads_before = thread_snapshot(pids) if self._profile else {}
        machine = machine_seconds()
        before = snapshot(pids)
        sample = await generator.go()
        after = snapshot(pids)
        machine = machine_seconds() - machine
        threads = spent(threads_before, thread_snapshot(pids)) if self._profile else {}
        cpu = spent(before, after)
        others = (machine - sum(cpu.values()) - sample.cpu) / sample.seconds
        return Visit(case, sample, cpu, max(0.0, others), threads)

    async def idle(self) -> dict[str, float]:
        """Return the share of a core that each role uses while nothing is asked of it."""
        await asyncio.sleep(SETTLE)
        pids = self._blip.pids()
        before, began = snapshot(pids), time.monotonic()
        await asyncio.sleep(IDLE_SECONDS)
        used, passed = spent(before, snapshot(pids)), time.monotonic() - began
        return {role: seconds / passed for role, seconds in used.items()}


def _print(
    rows: Sequence[Row],
    found: Sequence[Aim],
    idle: Mapping[str, float] | None,
    rounds: int,
    seconds: float,
    took: float,
) -> None:
    print(
        f"blip {__version__} (gateway, broker, {stacks.NODES} nodes) against bare aiohttp, "
        f"{os.cpu_count()} cores\n"
        f"medians [quartiles] of {rounds} rounds of {seconds:g} s visits, "
        f"{render.duration(took)} in all"
    )
    plain = [row for row in rows if not row.streamed]
    streamed = [row for row in rows if row.streamed]
    shown = []
    if plain:
        shown.append(tables.requests(plain))
    if streamed:
        shown.append(tables.streams(streamed))
    if rows:
        shown.append(tables.where(rows))
    if any(row.threads for row in rows):
        shown.append(tables.threads(rows))
    if idle is not None:
        shown.append(tables.idle(idle))
    if found:
        shown.append(tables.aims(found))
    tables.print_tables(shown)
    if rows:
        others = max(row.others for row in rows)
        print(f"Other programs kept up to {others:.2f} cores busy meanwhile (median of a case).")


def _document(
    results: Results,
    rows: Sequence[Row],
    found: Sequence[Aim],
    idle: Mapping[str, float] | None,
    seconds: float,
) -> dict[str, Any]:
    """Return everything, raw visits included, for programs. Times are seconds."""
    raw = {
        name: [{stack: _raw(visit) for stack, visit in pair._asdict().items()} for pair in pairs]
        for name, pairs in results.items()
    }
    document = {
        "version": __version__,
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "seconds": seconds,
        "cases": {row.case: asdict(row) for row in rows},
        "idle": idle,
        "aims": [asdict(aim) | {"met": aim.met} for aim in found],
        "rounds": raw,
    }
    plain: dict[str, Any] = without_nan(document)
    return plain


def _raw(visit: Visit) -> dict[str, Any]:
    return {"sample": asdict(visit.sample), "cpu": visit.cpu, "others": visit.others}


def without_nan(value: Any) -> Any:
    """Return the value with null for NaN, which JSON does not have."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value

"""``blip bench placement``: how long the broker takes to decide, and the memory it needs.

The real scheduler in one process, without sockets: what is measured is the deciding. Around it a
crowd of made-up nodes in virtual time (:mod:`blip.bench.crowd`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

from blip import __version__, lifecycle
from blip.bench.crowd import Crowd, Shape
from blip.cli import render
from blip.errors import ConfigError

MICRO = 1e6
KIB = 1024

#: Every node offers all models of the small mesh, and two of them, or six, fit on a device. In the
#: large one each offers some of a thousand, popular ones more often, so that a thing like the most
#: popular model is on thousands of nodes.
_TWO, _SIX = Shape(64, 4, 16, 16, 2), Shape(64, 4, 16, 16, 6)
_LARGE = Shape(10_000, 1, 1000, 8, 2)

#: Work that arrives as a share of what the devices can do: next to nothing, and busy but stable.
_IDLE, _BUSY = 0.02, 0.8

#: Half of what the broker lets wait by default.
_QUEUE = 512

#: Numbers of nodes at which memory is weighed: if it is linear, each costs the same.
MEMORY_NODES = (1_000, 3_000, 10_000)

#: Decisions that are not measured first, as a share of those that are: caches and branches.
_WARM_UP = 0.25


@dataclass(frozen=True, slots=True)
class Case:
    """A mesh in a state, and the seconds that the median decision may take there."""

    name: str
    shape: Shape
    limit: float


CASES = tuple(
    Case(f"{name}-{state}", replace(shape, load=load, tickets=tickets), limit)
    for name, shape, limit in (("64-2", _TWO, 50e-6), ("64-6", _SIX, 50e-6), ("10k", _LARGE, 1e-3))
    for state, load, tickets in (("idle", _IDLE, 0), ("busy", _BUSY, 0), ("queue", _BUSY, _QUEUE))
)

#: Stands among the cases for the weighing of memory.
MEMORY = "memory"
NAMES = (*(case.name for case in CASES), MEMORY)


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds; NaN-free: of nothing measured all are 0."""

    median: float
    p99: float
    mean: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up measurements."""
        if not values:
            return cls(0.0, 0.0, 0.0, 0)
        ordered = sorted(values)
        last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        return cls(median(ordered), last, fmean(ordered), len(ordered))


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured in one case. ``decode`` and ``advert`` make up the taking of an advert.

    ``refused`` is the share of attempts that found the queue full, ``running`` and ``waiting``
    are attempts at the end.
    """

    case: str
    shape: Shape
    limit: float
    place: Spread
    release: Spread
    decode: Spread
    advert: Spread
    tick: Spread
    running: int
    waiting: int
    refused: float

    @property
    def met(self) -> bool:
        """Whether the median decision is quick enough."""
        return self.place.median <= self.limit

    @property
    def adverts(self) -> float:
        """Adverts a second that one core takes if it does nothing else."""
        each = self.decode.mean + self.advert.mean
        return 1 / each if each else 0.0


@dataclass(frozen=True, slots=True)
class Weight:
    """Bytes that Python objects of the broker take with that many nodes, two adverts of each."""

    nodes: int
    bytes: int

    @property
    def each(self) -> float:
        """Bytes a node."""
        return self.bytes / self.nodes


def main(*, cases: str = "", decisions: int = 2000, as_json: bool = False) -> int:
    """Measure and print; return 0 whether or not the aims are met.

    ``cases`` selects some, such as ``64-2,10k-busy,memory``; ``decisions`` are measured in each.
    Raises ``ConfigError`` for a case that does not exist.
    """
    chosen, weighed = select(cases)
    rows = []
    for case in chosen:
        render.note(case.name)
        rows.append(measure(case, decisions))
    weights = []
    if weighed:
        render.note(MEMORY)
        weights = weigh(MEMORY_NODES, _LARGE)
    if as_json:
        render.print_json(document(rows, weights))
    else:
        _print(rows, weights)
    return 0


def select(names: str) -> tuple[list[Case], bool]:
    """Return the cases that a list like ``64-2,10k-busy`` names, and whether memory is among them.

    The beginning of a name stands for all that begin with it; an empty list for everything. Raises
    :class:`~blip.errors.ConfigError`.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(NAMES)
    for each in wanted:
        if not any(f"{name}-".startswith(f"{each}-") for name in NAMES):
            raise ConfigError(
                f"--cases: there is no case called '{each}'",
                hint=f"There are {', '.join(NAMES)}; 64-2 stands for all that begin with it.",
            )

    def meant(name: str) -> bool:
        return any(f"{name}-".startswith(f"{each}-") for each in wanted)

    return [case for case in CASES if meant(case.name)], meant(MEMORY)


def measure(case: Case, decisions: int, settle: float = 5.0) -> Row:
    """Bring a mesh into the state of a case within ``settle`` virtual seconds, and measure."""
    with _collecting_as_the_broker():
        crowd = Crowd(case.shape)
        crowd.grow()
        crowd.fill(settle)
        for _ in range(int(decisions * _WARM_UP)):
            crowd.step()
        crowd.forget()
        refused = crowd.refused
        for _ in range(decisions):
            crowd.step()
    times = crowd.timed
    return Row(
        case.name,
        case.shape,
        case.limit,
        place=Spread.of(times.place),
        release=Spread.of(times.release),
        decode=Spread.of(times.decode),
        advert=Spread.of(times.advert),
        tick=Spread.of(times.tick),
        running=crowd.running,
        waiting=len(crowd.scheduler.tickets),
        refused=(crowd.refused - refused) / max(1, len(times.place)),
    )


def weigh(counts: Sequence[int], shape: Shape) -> list[Weight]:
    """Let nodes join an idle mesh, up to each of ``counts`` in turn, and weigh the broker.

    Counts what Python allocates, so it is exact and the same on every machine, but leaves out what
    the allocator wastes.
    """
    found = []
    for count in counts:
        gc.collect()
        crowd = Crowd(replace(shape, nodes=count))
        crowd.prepare()
        gc.collect()
        tracemalloc.start(1)
        try:
            crowd.grow()
            gc.collect()
            ours, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        found.append(Weight(count, ours))
    return found


@contextlib.contextmanager
def _collecting_as_the_broker() -> Iterator[None]:
    """Have the garbage collector do what it does in a broker, and undo that."""
    before = gc.get_threshold()
    lifecycle.tune_gc()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def document(rows: Sequence[Row], weights: Sequence[Weight]) -> dict[str, Any]:
    """Return everything for programs. Times are seconds, sizes are bytes."""
    return {
        "version": __version__,
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "cases": {
            row.case: asdict(row) | {"adverts_per_second": row.adverts, "met": row.met}
            for row in rows
        },
        "memory": [asdict(weight) | {"each": weight.each} for weight in weights],
    }


def _print(rows: Sequence[Row], weights: Sequence[Weight]) -> None:
    from blip.bench import tables

    shown = []
    if rows:
        shown.append(tables.decisions(rows))
    if weights:
        shown.append(tables.weights(weights))
    print(f"blip {__version__}, one scheduler on one of {os.cpu_count()} cores")
    tables.print_tables(shown)

"""How fast a model's tokens came: from times to figures. Pure.

Ratios are taken within a round and then their median, as in :mod:`blip.bench.report`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from blip.bench.report import Aim, Quartiles
from blip.errors import ConfigError, RuntimeFailed

#: Tokens of prompts and of answers; requests take all combinations in turn. Different, so that
#: requests join and leave while others are under way.
PROMPTS, ANSWERS = (16, 32, 64, 128), (32, 64, 96)

#: Requests of one visit for each that is under way at a time, and the fewest.
EACH, LEAST = 2, 6

#: How much faster than one after the other 32 at a time are to be. A pass over the weights serves
#: them all; a CPU pays for their arithmetic nevertheless.
SPEEDUP = {"cpu": 3.0, "cuda": 15.0}

#: The company in which that is looked at.
CROWD = 32

#: The most that may be asked for: a visit takes that many times two answers.
MOST = 512

#: What a token may wait longer for the mesh, in seconds: 5 % of a step of 20 ms.
ADDED = 0.05 * 0.020

Request = tuple[list[int], int]


@dataclass(frozen=True, slots=True)
class Times:
    """What one visit measured, in seconds.

    ``gap`` is the time between two tokens of one answer, ``first`` from a request to its first.
    """

    tokens: int
    seconds: float
    gap: float
    gap_p99: float
    first: float
    #: CPU of the mesh beside the worker, for one token.
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Visit:
    """The three ways in one round. ``differing`` counts answers of the runtime that were not
    ``generate``'s, token for token, of those that both gave.
    """

    alone: Times
    runtime: Times
    mesh: Times | None
    differing: int


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the rounds, for so many requests at a time."""

    company: int
    alone: Times
    runtime: Times
    mesh: Times | None
    #: The rates as multiples of ``generate``'s in the same round.
    speedup: Quartiles
    mesh_speedup: Quartiles | None
    #: By how much the median gap in the mesh is longer than in the runtime by itself.
    added: Quartiles | None
    differing: int


def companies_of(numbers: str) -> list[int]:
    """Read how many requests are to run at a time, such as "1,8,32".

    Raises :class:`~blip.errors.ConfigError`.
    """
    try:
        found = sorted({int(number) for number in numbers.split(",")})
    except ValueError:
        found = []
    if not found or not 1 <= found[0] <= found[-1] <= MOST:
        raise ConfigError(
            f"'{numbers}' are no numbers of requests", hint=f"Write such as 1,8,32; up to {MOST}."
        )
    return found


def requests_of(company: int, vocabulary: int) -> list[Request]:
    """Return the requests of a visit: random tokens, the same ones every time."""
    source = random.Random(company)
    return [
        (
            [source.randrange(1, vocabulary) for _ in range(PROMPTS[number % len(PROMPTS)])],
            ANSWERS[number % len(ANSWERS)],
        )
        for number in range(max(LEAST, EACH * company))
    ]


def times_of(
    answers: Sequence[Sequence[float]], seconds: float, cpu: float = 0.0, tokens: int = 0
) -> Times:
    """Sum up: of each answer when it was asked for, and when each of its tokens came.

    ``tokens`` is how many there were, if some came without text and so without a time.
    """
    gaps = sorted(
        later - earlier for each in answers for earlier, later in itertools.pairwise(each[1:])
    )
    firsts = [each[1] - each[0] for each in answers if len(each) > 1]
    tokens = tokens or sum(len(each) - 1 for each in answers)
    if not gaps:
        raise RuntimeFailed("no answer had two tokens: there is nothing to measure")
    return Times(
        tokens,
        seconds,
        median(gaps),
        gaps[round((len(gaps) - 1) * 0.99)],
        median(firsts),
        cpu / tokens,
    )


def summarise(company: int, visits: Sequence[Visit]) -> Row:
    """Return the medians of the rounds."""
    meshes = [visit.mesh for visit in visits if visit.mesh is not None]
    pairs = [(visit, visit.mesh) for visit in visits if visit.mesh is not None]
    return Row(
        company,
        _median([visit.alone for visit in visits]),
        _median([visit.runtime for visit in visits]),
        _median(meshes) if meshes else None,
        Quartiles.of([visit.runtime.rate / visit.alone.rate for visit in visits]),
        Quartiles.of([mesh.rate / visit.alone.rate for visit, mesh in pairs]) if pairs else None,
        Quartiles.of([mesh.gap - visit.runtime.gap for visit, mesh in pairs]) if pairs else None,
        sum(visit.differing for visit in visits),
    )


def _median(times: Sequence[Times]) -> Times:
    middle = sorted(times, key=lambda each: each.rate)[len(times) // 2]
    return Times(
        middle.tokens,
        middle.seconds,
        median(each.gap for each in times),
        median(each.gap_p99 for each in times),
        median(each.first for each in times),
        median(each.cpu for each in times),
    )


def aims(rows: Sequence[Row], device: str) -> list[Aim]:
    """Return what blip sets itself, as far as it was measured."""
    found = []
    for row in rows:
        if row.company == CROWD:
            what = f"{CROWD} at a time, against one after the other"
            limit = SPEEDUP.get(device.partition(":")[0], SPEEDUP["cuda"])
            found.append(Aim(what, "at least", limit, row.speedup, "x"))
        if row.company == 1 and row.added is not None:
            found.append(
                Aim("added to a token by the mesh", "at most", ADDED, row.added, "ms", 1e3)
            )
    return found

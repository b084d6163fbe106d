"""From visits to figures: medians over rounds of the ratios within each round. Pure.

Both stacks are visited in every round, one right after the other, so that a machine that is busy
for a while slows both; the ratio survives what absolute figures do not.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from blip.bench.cases import Case
from blip.bench.load import Sample, Spread

#: Whose idle CPU counts: the store's is its own, and workers only wait.
_AT_REST = ("gateway", "broker", "nodes")
#: The largest share of a core that is 0 % when rounded.
_ZERO = 0.005


@dataclass(frozen=True, slots=True)
class Visit:
    """One stack in one case of one round."""

    case: Case
    sample: Sample
    #: CPU seconds of the stack by role.
    cpu: Mapping[str, float]
    #: Cores that programs kept busy which have no part in this.
    others: float = 0.0
    #: CPU seconds of the stack by role and thread, where that was asked for.
    threads: Mapping[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many requests, or tokens of streams, were answered."""
        return self.sample.events if self.case.streamed else self.sample.answers

    def each(self, seconds: float) -> float:
        """Return the share of one request or token in ``seconds``; NaN if there was none."""
        return seconds / self.count if self.count else math.nan


class Pair(NamedTuple):
    """Both stacks in the same case of the same round."""

    blip: Visit
    bare: Visit


class Quartiles(NamedTuple):
    """Half of the values lie between ``q1`` and ``q3``. All NaN if one of the values is."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Return the quartiles of at least one value."""
        if any(map(math.isnan, values)):
            return cls(math.nan, math.nan, math.nan)
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(q1, median, q3)


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric: absolute medians, and over the rounds the ratio and the difference of a pair."""

    blip: float
    bare: float
    ratio: Quartiles
    added: Quartiles


def _p50(spread: Spread) -> float:
    return spread.p50 if spread.count else math.nan


def _p99(spread: Spread) -> float:
    return spread.p99 if spread.count else math.nan


#: What is compared of requests: seconds, or a number a second; NaN where there is nothing.
REQUEST_METRICS: dict[str, Callable[[Visit], float]] = {
    "rate": lambda visit: visit.count / visit.sample.seconds,
    "p50": lambda visit: _p50(visit.sample.latency),
    "p99": lambda visit: _p99(visit.sample.latency),
    "cpu": lambda visit: visit.each(sum(visit.cpu.values())),
}

#: What is compared of streams; ``delay`` is from the making of a token to its arrival.
STREAM_METRICS: dict[str, Callable[[Visit], float]] = {
    "rate": REQUEST_METRICS["rate"],
    "first_p50": lambda visit: _p50(visit.sample.first),
    "gap_p99": lambda visit: _p99(visit.sample.gap),
    "delay_p50": lambda visit: _p50(visit.sample.delay),
    "delay_p99": lambda visit: _p99(visit.sample.delay),
    "cpu": REQUEST_METRICS["cpu"],
}


@dataclass(frozen=True, slots=True)
class Row:
    """One case over all rounds."""

    case: str
    streamed: bool
    figures: dict[str, Figure]
    #: CPU seconds of blip for a request or token, by role: where the time goes.
    roles: dict[str, float]
    #: The same by role and thread, where that was asked for.
    threads: dict[str, float]
    #: CPU seconds of the generator for a request or token of blip's; no part of any other figure.
    generator: float
    #: Cores that other programs kept busy meanwhile.
    others: float
    #: What went wrong, with either stack, and how often.
    errors: dict[str, int]


def summarise(pairs: Sequence[Pair]) -> Row:
    """Sum up the rounds of one case; at least one."""
    case = pairs[0].blip.case
    metrics = STREAM_METRICS if case.streamed else REQUEST_METRICS
    errors: Counter[str] = Counter()
    for pair in pairs:
        for name, visit in pair._asdict().items():
            errors.update({f"{name}: {what}": n for what, n in visit.sample.errors.items()})
    blip = [pair.blip for pair in pairs]
    return Row(
        case=case.name,
        streamed=case.streamed,
        figures={name: compare(metric, pairs) for name, metric in metrics.items()},
        roles=_shares(blip, [visit.cpu for visit in blip]),
        threads=_shares(blip, [visit.threads for visit in blip]),
        generator=_shares(blip, [{"": visit.sample.cpu} for visit in blip])[""],
        others=statistics.median(visit.others for pair in pairs for visit in pair),
        errors=dict(errors),
    )


def compare(metric: Callable[[Visit], float], pairs: Sequence[Pair]) -> Figure:
    """Compare one metric of the two stacks, round by round."""
    both = [(metric(pair.blip), metric(pair.bare)) for pair in pairs]
    return Figure(
        blip=Quartiles.of([blip for blip, _ in both]).median,
        bare=Quartiles.of([bare for _, bare in both]).median,
        ratio=Quartiles.of([blip / bare if bare else math.nan for blip, bare in both]),
        added=Quartiles.of([blip - bare for blip, bare in both]),
    )


def _shares(visits: Sequence[Visit], parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return seconds for a request or token, over all rounds, by the names in ``parts``."""
    count = sum(visit.count for visit in visits)
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: sum(part.get(name, 0.0) for part in parts) / count if count else math.nan
        for name in names
    }


@dataclass(frozen=True, slots=True)
class Aim:
    """A figure that blip aims at, and what was reached. ``scale`` turns it into ``unit``."""

    what: str
    bound: str
    limit: float
    reached: Quartiles
    unit: str
    scale: float = 1.0

    @property
    def met(self) -> bool:
        """Whether the median keeps to the limit; NaN does not."""
        median = self.reached.median
        return median >= self.limit if self.bound == "at least" else median <= self.limit


#: The aims about one case: what, case, metric, ratio to bare or what is added, bound, limit.
_AIMS = (
    ("CPU per request, 64 connections", "echo-64", "cpu", "ratio", "at most", 2.5),
    ("throughput, 64 connections", "echo-64", "rate", "ratio", "at least", 0.5),
    ("throughput, 256 connections", "echo-256", "rate", "ratio", "at least", 0.5),
    ("p50 added, 1 connection", "echo-1", "p50", "added", "at most", 0.5e-3),
    ("p50 added to a token, 64 streams", "paced-64", "delay_p50", "added", "at most", 0.35e-3),
    ("throughput of 1 MiB, 1 connection", "mib-1", "rate", "ratio", "at least", 0.5),
    ("throughput of 1 MiB, 16 connections", "mib-16", "rate", "ratio", "at least", 0.5),
)


def aims(results: Mapping[str, Sequence[Pair]], idle: Mapping[str, float] | None) -> list[Aim]:
    """Compare what was measured with what the mesh may cost; what was not measured is left out.

    ``results`` are the rounds by case; ``idle`` the shares of a core by role, None if not measured.
    """
    found = []
    for what, case, metric, how, bound, limit in _AIMS:
        if pairs := results.get(case):
            metrics = STREAM_METRICS if pairs[0].blip.case.streamed else REQUEST_METRICS
            figure = compare(metrics[metric], pairs)
            if how == "ratio":
                found.append(Aim(what, bound, limit, figure.ratio, "x bare"))
            else:
                found.append(Aim(what, bound, limit, figure.added, "ms", 1e3))
    few, many = results.get("echo-64"), results.get("echo-256")
    if few and many:
        rate = REQUEST_METRICS["rate"]
        kept = [
            rate(b.blip) / rate(a.blip) if rate(a.blip) else math.nan
            for a, b in zip(few, many, strict=True)
        ]
        what = "blip's own throughput, 256 connections"
        found.append(Aim(what, "at least", 1.0, Quartiles.of(kept), "x that at 64"))
    if idle is not None:
        share = Quartiles.of([sum(idle.get(role, 0.0) for role in _AT_REST)])
        what = "idle CPU of gateway, broker and nodes"
        found.append(Aim(what, "at most", _ZERO, share, "% of a core", 100.0))
    return found

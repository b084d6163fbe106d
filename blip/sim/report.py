"""From what happened to figures. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from blip.sim.machine import Device
from blip.sim.mesh import Outcome, Record
from blip.sim.node import Node


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one policy. Seconds, shares from 0 to 1, counts; NaN where there is nothing.

    ``mean``, ``p50`` and ``p99`` are of the latency of tasks that got their answer. ``growth`` is
    the mean latency of the last quarter of tasks by that of the second: about 1 where the mesh
    keeps up. ``ideal`` is when all work could have been done with nobody ever idle.
    """

    policy: str
    tasks: int
    done: int
    denied: int
    mean: float
    p50: float
    p99: float
    growth: float
    #: Work done as a share of what the devices could have done while they were there.
    utilization: float
    cold_loads: int
    makespan: float
    ideal: float
    #: Share of the tasks with a deadline that met it.
    hits: float
    #: The mean latency of each tenant, where there are any.
    tenants: dict[str, float]
    recalled: int
    refused: int
    lost: int
    decision_p50: float
    decision_p99: float
    #: Mean and 99th percentile by the oracle's, where it ran as well.
    mean_ratio: float = math.nan
    p99_ratio: float = math.nan


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    """Sum up the runs of one policy, at least one; they differ by their seeds."""
    records = [record for outcome in outcomes for record in counted(outcome)]
    latencies = sorted(record.latency for record in records if record.finished >= 0)
    due = [record for record in records if record.task.deadline]
    met = [r for r in due if 0 <= r.latency <= r.task.deadline * (1 + 1e-9)]
    decisions = sorted(seconds for outcome in outcomes for seconds in outcome.decisions)

    def count(what: str) -> int:
        return sum(outcome.counts.get(what, 0) for outcome in outcomes)

    return Summary(
        policy=outcomes[0].policy,
        tasks=len(records),
        done=len(latencies),
        denied=sum(bool(record.code) for record in records),
        mean=fmean(latencies) if latencies else math.nan,
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        growth=fmean(_growth(counted(outcome)) for outcome in outcomes),
        utilization=fmean(map(_utilization, outcomes)),
        cold_loads=sum(len(d.loads) for outcome in outcomes for _, d in devices(outcome)),
        makespan=fmean(max(r.finished for r in outcome.records) for outcome in outcomes),
        ideal=fmean(map(_ideal, outcomes)),
        hits=len(met) / len(due) if due else math.nan,
        tenants=_tenants(records),
        recalled=count("recalled"),
        refused=count("refused"),
        lost=count("lost"),
        decision_p50=percentile(decisions, 0.5),
        decision_p99=percentile(decisions, 0.99),
    )


def compare(summaries: Sequence[Summary]) -> list[Summary]:
    """Add the ratios to the oracle, if it is among them."""
    oracle = next((each for each in summaries if each.policy == "oracle"), None)
    if oracle is None:
        return list(summaries)
    compared = []
    for each in summaries:
        values = {name: getattr(each, name) for name in Summary.__slots__}
        values["mean_ratio"] = _ratio(each.mean, oracle.mean)
        values["p99_ratio"] = _ratio(each.p99, oracle.p99)
        compared.append(Summary(**values))
    return compared


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which that share of ascending values lies; NaN of nothing."""
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def devices(outcome: Outcome) -> list[tuple[Node, Device]]:
    """Return every device there was, with its node."""
    return [
        (node, device) for node in outcome.nodes for device in (*node.past, *node.devices.values())
    ]


def as_dict(summary: Summary) -> dict[str, Any]:
    """Return the figures for JSON, which knows no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(summary).items()
    }


#: Columns of the table: header, field, how it is written. Those without news are left out.
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("policy", "policy", "{}"),
    ("mean s", "mean", "{:.2f}"),
    ("x oracle", "mean_ratio", "{:.2f}"),
    ("p50 s", "p50", "{:.2f}"),
    ("p99 s", "p99", "{:.2f}"),
    ("x oracle", "p99_ratio", "{:.2f}"),
    ("growth", "growth", "{:.1f}"),
    ("makespan s", "makespan", "{:.1f}"),
    ("deadlines met", "hits", "{:.1%}"),
    ("busy", "utilization", "{:.0%}"),
    ("cold loads", "cold_loads", "{}"),
    ("denied", "denied", "{}"),
    ("refused", "refused", "{}"),
    ("lost", "lost", "{}"),
    ("recalled", "recalled", "{}"),
    ("decision µs", "decision_p50", "micro"),
    ("p99 µs", "decision_p99", "micro"),
)

#: Left out of the table where they are 0 for everybody.
_RARE = {"cold_loads", "denied", "refused", "lost", "recalled"}


def rows(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of a table."""
    shown = []
    for header, name, form in _COLUMNS:
        values = [getattr(each, name) for each in summaries]
        nothing = all(isinstance(value, float) and math.isnan(value) for value in values)
        if not nothing and not (name in _RARE and not any(values)):
            shown.append((header, name, form))
    lines = [[_cell(getattr(each, name), form) for _, name, form in shown] for each in summaries]
    headers = [header for header, _, _ in shown]
    tenants = dict.fromkeys(name for each in summaries for name in each.tenants)
    for name in tenants:
        headers.append(f"{name} mean s")
        for each, line in zip(summaries, lines, strict=True):
            line.append(_cell(each.tenants.get(name, math.nan), "{:.2f}"))
    return headers, lines


def _cell(value: Any, form: str) -> str:
    if isinstance(value, float) and math.isnan(value):
        return ""
    return f"{value * 1e6:.0f}" if form == "micro" else form.format(value)


def counted(outcome: Outcome) -> list[Record]:
    """Return the tasks that figures count: all but the first few."""
    return outcome.records[int(outcome.scenario.warmup * len(outcome.records)) :]


def _ideal(outcome: Outcome) -> float:
    work = sum(record.task.size for record in outcome.records)
    return work / outcome.scenario.capacity


def _tenants(records: Sequence[Record]) -> dict[str, float]:
    of: dict[str, list[float]] = {}
    for record in records:
        if record.task.tenant and record.finished >= 0:
            of.setdefault(record.task.tenant, []).append(record.latency)
    return {name: fmean(of[name]) for name in sorted(of)}


def _growth(records: Sequence[Record]) -> float:
    quarter = len(records) // 4
    early = [r.latency for r in records[quarter : 2 * quarter] if r.finished >= 0]
    late = [r.latency for r in records[len(records) - quarter :] if r.finished >= 0]
    return _ratio(fmean(late), fmean(early)) if early and late else math.nan


def _utilization(outcome: Outcome) -> float:
    done = sum(device.done for _, device in devices(outcome))
    could = sum(
        node.uptime(outcome.end) * node.make.speed * len(node.devices) for node in outcome.nodes
    )
    slots = outcome.scenario.capacity / sum(
        make.speed * make.devices * make.count for make in outcome.scenario.nodes
    )
    return _ratio(done, could * slots)


def _ratio(value: float, by: float) -> float:
    return value / by if by else math.nan

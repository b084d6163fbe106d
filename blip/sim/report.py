"""From what happened to figures. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    recalled: int
    refused: int
    lost: int
    decision_p50: float
    decision_p99: float
    #: Mean and 99th percentile by the oracle's, where it ran as well.
    mean_ratio: float = math.nan
    p99_ratio: float = math.nan


def summarise(outcome: Outcome) -> Summary:
    """Sum up one run."""
    counted = _counted(outcome)
    latencies = sorted(record.latency for record in counted if record.finished >= 0)
    due = [record for record in counted if record.task.deadline]
    met = [r for r in due if 0 <= r.latency <= r.task.deadline * (1 + 1e-9)]
    decisions = sorted(outcome.decisions)
    work = sum(record.task.size for record in outcome.records)
    speed = sum(node.make.speed * len(node.devices) for node in outcome.nodes)
    finished = max((record.finished for record in outcome.records), default=math.nan)
    return Summary(
        policy=outcome.policy,
        tasks=len(counted),
        done=len(latencies),
        denied=sum(bool(record.code) for record in counted),
        mean=fmean(latencies) if latencies else math.nan,
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        growth=_growth(counted),
        utilization=_utilization(outcome),
        cold_loads=sum(len(device.loads) for _, device in devices(outcome)),
        makespan=finished,
        ideal=work / speed,
        hits=len(met) / len(due) if due else math.nan,
        recalled=outcome.counts.get("recalled", 0),
        refused=outcome.counts.get("refused", 0),
        lost=outcome.counts.get("lost", 0),
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
    return [header for header, _, _ in shown], lines


def _cell(value: Any, form: str) -> str:
    if isinstance(value, float) and math.isnan(value):
        return ""
    return f"{value * 1e6:.0f}" if form == "micro" else form.format(value)


def _counted(outcome: Outcome) -> list[Record]:
    return outcome.records[int(outcome.scenario.warmup * len(outcome.records)) :]


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


def totals(summaries: Mapping[str, Sequence[Summary]]) -> dict[str, Any]:
    """Return everything for JSON, by scenario."""
    return {name: [as_dict(each) for each in of] for name, of in summaries.items()}

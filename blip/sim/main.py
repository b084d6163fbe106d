"""``blip sim``: run a scenario, print a table of its policies, draw a picture."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip.cli import FAILURE, render
from blip.errors import ConfigError
from blip.sim import report, scenario
from blip.sim.brokered import memory_per_node
from blip.sim.mesh import Outcome
from blip.sim.report import Summary
from blip.sim.run import repeat
from blip.sim.scenario import Scenario


def main(
    name: str | None,
    *,
    variant: str | None = None,
    tasks: int | None = None,
    seed: int | None = None,
    policies: str = "",
    plot: Path | None = None,
    no_plot: bool = False,
    as_json: bool = False,
) -> int:
    """Run a scenario with its variants, or only one; without a name, list what there is.

    ``plot`` is where the picture goes (default: the scenario's name in this folder); variants
    have theirs beside it. Returns 1 if a picture could not be drawn: the table is there all the
    same. Raises :class:`~blip.errors.ConfigError`.
    """
    if name is None:
        return _list(as_json)
    chosen = _choose(scenario.load(name), variant)
    changes: dict[str, Any] = {}
    if tasks is not None:
        changes["tasks"] = tasks
    if seed is not None:
        changes["seed"] = seed
    if policies:
        changes["policies"] = tuple(each.strip() for each in policies.split(","))
        scenario.check_policies(changes["policies"], "--policies")
    documents = []
    failed = False
    for each in chosen:
        each = dataclasses.replace(each, **changes)
        began = time.monotonic()
        outcomes, summaries = [], []
        for policy in each.policies:
            render.note(f"{each.name}: {policy}")
            runs = repeat(each, policy, time.perf_counter)
            summaries.append(report.summarise(runs))
            if not no_plot:
                outcomes.append(runs[0])
        summaries = report.compare(summaries)
        memory = memory_per_node(each) if each.measure_memory else None
        if as_json:
            documents.append(_document(each, summaries, memory))
        else:
            _print(each, summaries, memory, time.monotonic() - began)
        if not no_plot:
            failed |= not _draw(outcomes, _picture(each, chosen[0], plot))
    if as_json:
        render.print_json({"scenarios": documents})
    return FAILURE if failed else 0


def _list(as_json: bool) -> int:
    titles = {name: scenario.load(name) for name in scenario.names()}
    if as_json:
        listed = [{"name": n, "title": of[n].title} for n, of in titles.items()]
        render.print_json({"scenarios": listed})
        return 0
    lines = []
    for name, of in titles.items():
        variants = ", ".join(key.partition("/")[2] for key in of if key != name)
        lines.append((name, of[name].title, variants))
    print(render.table(("SCENARIO", "WHAT", "VARIANTS"), lines))
    return 0


def _choose(scenarios: dict[str, Scenario], variant: str | None) -> list[Scenario]:
    if variant is None:
        return list(scenarios.values())
    base = next(iter(scenarios))
    full = base if variant == base else f"{base}/{variant}"
    if full not in scenarios:
        there = ", ".join(key.partition("/")[2] for key in scenarios if key != base) or "none"
        raise ConfigError(
            f"'{base}' has no variant '{variant}'; there are: {there}",
            hint=f"'{base}' itself is the scenario without any.",
        )
    return [scenarios[full]]


def _print(
    of: Scenario, summaries: Sequence[Summary], memory: float | None, seconds: float
) -> None:
    header, lines = report.rows(summaries)
    print(f"{of.name}: {of.title or of.name}")
    print(render.table(header, lines))
    if memory is not None:
        print(f"The broker holds {render.size(memory)} for each node.")
    ideal = summaries[0].ideal
    often = f" {of.repeats} times" if of.repeats > 1 else ""
    notes = [f"{of.tasks} tasks{often}, simulated in {seconds:.1f} s", f"seed {of.seed}"]
    if of.arrivals.process == "at_once":
        first = summaries[0]
        notes.append(
            f"shared ideally it takes {ideal:.1f} s, {first.policy} {first.makespan / ideal:.3f}x"
        )
    print("; ".join(notes) + "\n")


def _document(of: Scenario, summaries: Sequence[Summary], memory: float | None) -> dict[str, Any]:
    return {
        "name": of.name,
        "title": of.title,
        "seed": of.seed,
        "repeats": of.repeats,
        "memory_per_node": memory,
        "policies": [report.as_dict(each) for each in summaries],
    }


def _picture(of: Scenario, first: Scenario, plot: Path | None) -> Path:
    file = of.name.replace("/", "-")
    if plot is None:
        return Path(f"{file}.png")
    if of is first or of.name == first.name:
        return plot
    return plot.with_stem(f"{plot.stem}-{of.name.partition('/')[2]}")


def _draw(outcomes: Sequence[Outcome], path: Path) -> bool:
    from blip.sim import plot

    try:
        plot.draw(outcomes, path)
    except ConfigError as error:
        render.note(f"error: {error.message}")
        render.note(f"hint: {error.hint}")
        return False
    render.note(f"drawn: {path}")
    return True

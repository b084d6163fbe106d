"""Runs a scenario under each of its policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from blip.sim.baselines import BASELINES
from blip.sim.brokered import Brokered
from blip.sim.mesh import Mesh, Outcome
from blip.sim.oracle import Oracle
from blip.sim.policy import Policy, World
from blip.sim.scenario import Scenario


def repeat(scenario: Scenario, policy: str, stopwatch: Callable[[], float]) -> list[Outcome]:
    """Run one policy as often as the scenario says, each time with the next seed."""
    return [
        simulate(dataclasses.replace(scenario, seed=scenario.seed + number), policy, stopwatch)
        for number in range(scenario.repeats)
    ]


def simulate(scenario: Scenario, policy: str, stopwatch: Callable[[], float]) -> Outcome:
    """Run one policy through a scenario; ``stopwatch`` times its decisions, nothing else."""
    makers: dict[str, Callable[[World], Policy]] = {
        "broker": partial(Brokered, stopwatch=stopwatch),
        "oracle": Oracle,
        **BASELINES,
    }
    return Mesh(scenario, makers[policy]).run(policy)

"""Who asks for what, and when."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from blip.sim.scenario import Scenario, Sizes, Tenant


class Task(NamedTuple):
    """A task as it truly is, and ``units``, which is what the broker is told of its ``size``.

    ``deadline`` is in seconds from its arrival; 0 for none.
    """

    number: int
    arrives: float
    model: str
    size: float
    units: float
    tenant: str = ""
    priority: int = 5
    deadline: float = 0.0


def model_names(scenario: Scenario) -> list[str]:
    """Return the names of a scenario's models, the most popular first."""
    return [f"m{number}" for number in range(scenario.models.count)]


def popularity(scenario: Scenario) -> list[float]:
    """Return the share of tasks that each model gets."""
    weights = [1 / (rank + 1) ** scenario.models.zipf for rank in range(scenario.models.count)]
    whole = sum(weights)
    return [weight / whole for weight in weights]


def tasks(scenario: Scenario, rng: random.Random) -> list[Task]:
    """Draw all tasks, in order of arrival."""
    names = model_names(scenario)
    sums = list(accumulate(popularity(scenario)))
    tenants = scenario.tenants or (Tenant(""),)
    shares = list(accumulate(tenant.share for tenant in tenants))
    whose = [
        tenants[min(bisect(shares, rng.random()), len(tenants) - 1)] for _ in range(scenario.tasks)
    ]
    process = _times(scenario, rng)
    drawn = []
    for tenant in whose:
        at = 0.0 if tenant.at_once else next(process)
        model = names[min(bisect(sums, rng.random()), len(names) - 1)]
        size, units = _size(scenario.sizes, rng)
        limits = scenario.deadlines
        due = rng.uniform(limits.least, limits.most) if rng.random() < limits.share else 0.0
        drawn.append((at, model, size, units, tenant.name, tenant.priority, due))
    drawn.sort(key=lambda each: each[0])
    return [Task(number, *each) for number, each in enumerate(drawn)]


def _size(sizes: Sizes, rng: random.Random) -> tuple[float, float]:
    """Draw a size and what is said of it."""
    middle = math.log(sizes.mean) - sizes.sigma**2 / 2
    size = rng.lognormvariate(middle, sizes.sigma) if sizes.sigma else sizes.mean
    if sizes.limit:
        size = min(size, sizes.limit)
    off = math.exp(rng.gauss(0.0, sizes.error)) if sizes.error else 1.0
    return size, size * off if sizes.known else sizes.limit


def _times(scenario: Scenario, rng: random.Random) -> Iterator[float]:
    """Yield when tasks arrive, without end."""
    arrivals = scenario.arrivals
    now = 0.0
    if arrivals.process == "at_once":
        while True:
            yield now
    rate = arrivals.load * scenario.capacity / scenario.sizes.mean
    if arrivals.process == "poisson":
        while True:
            now += rng.expovariate(rate)
            yield now
    cycle = arrivals.burst_seconds + arrivals.calm_seconds
    calm = rate * cycle / (arrivals.burst * arrivals.burst_seconds + arrivals.calm_seconds)
    bursting, ends = False, rng.expovariate(1 / arrivals.calm_seconds)
    while True:
        ahead = rng.expovariate(calm * arrivals.burst if bursting else calm)
        if now + ahead <= ends:
            now += ahead
            yield now
        else:  # without memory: what was drawn for the old rate may be dropped
            now, bursting = ends, not bursting
            mean = arrivals.burst_seconds if bursting else arrivals.calm_seconds
            ends = now + rng.expovariate(1 / mean)

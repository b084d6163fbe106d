"""The scheduler against simulated machines, in virtual time, with fixed seeds."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from statistics import mean

import pytest

from tests.unit.broker_mesh import Job, Mesh, SimNode, check, model, percentile

#: Ten mixed cards, as in the study that the design is based on.
SPEEDS = (1, 1, 1, 1, 2, 2, 2, 4, 4, 8)
MEAN, SIGMA = 2.0, 0.8


def arrivals(count: int, load: float, seed: int, models: int = 1) -> list[Job]:
    """Poisson arrivals, lognormal sizes, estimates of them that are off by 30 %, Zipf models."""
    rng = random.Random(seed)
    now, jobs = 0.0, []
    for _ in range(count):
        now += rng.expovariate(load * sum(SPEEDS) / MEAN)
        size = rng.lognormvariate(math.log(MEAN) - SIGMA**2 / 2, SIGMA)
        name = f"m{min(int(rng.paretovariate(0.9)) - 1, models - 1)}"
        jobs.append(Job(now, name, units=size * math.exp(rng.gauss(0, 0.3)), size=size))
    return jobs


def cards(**options: object) -> list[SimNode]:
    """The ten cards; their advertised speeds are right."""
    return [
        SimNode(f"card{number}", speed, speed, **options)  # type: ignore[arg-type]
        for number, speed in enumerate(SPEEDS)
    ]


def latencies(jobs: list[Job]) -> list[float]:
    """Seconds from arrival to end, without the first tenth."""
    assert not any(job.denied for job in jobs)
    return [job.finished - job.arrives for job in jobs[len(jobs) // 10 :]]


def by_adverts(jobs: list[Job], interval: float, seed: int) -> list[float]:
    """Latencies when each job goes to the card that last advertised the shortest queue."""
    rng = random.Random(seed)
    free_at = [0.0] * len(SPEEDS)
    ends: list[list[float]] = [[] for _ in SPEEDS]
    seen = [0] * len(SPEEDS)
    beats = [(rng.random() * interval, card) for card in range(len(SPEEDS))]
    heapq.heapify(beats)
    out = []
    for job in jobs:
        while beats[0][0] <= job.arrives:
            at, card = heapq.heappop(beats)
            ends[card] = [end for end in ends[card] if end > at]
            seen[card] = len(ends[card])
            heapq.heappush(beats, (at + interval, card))
        card = min(range(len(SPEEDS)), key=lambda number: (seen[number], rng.random()))
        free_at[card] = max(job.arrives, free_at[card]) + job.size / SPEEDS[card]
        ends[card].append(free_at[card])
        out.append(free_at[card] - job.arrives)
    return out[len(out) // 10 :]


def test_the_ledger_beats_adverts_two_seconds_old() -> None:
    jobs = arrivals(2500, 0.8, seed=1)
    mesh = Mesh(cards(resident=["m0"]), [model("m0")], heartbeat=2.0)
    mesh.run(jobs)
    ledger, adverts = latencies(jobs), by_adverts(jobs, 2.0, seed=1)
    assert percentile(adverts, 0.99) > 4 * percentile(ledger, 0.99)
    assert mean(adverts) > 3 * mean(ledger)
    check(mesh.broker)


def test_models_stay_where_they_are_loaded() -> None:
    """Six models, two fit on a card, a load takes six seconds."""
    jobs = arrivals(1500, 0.4, seed=2, models=6)
    models = [model(f"m{number}", memory=10, load=2.3) for number in range(6)]
    mesh = Mesh(cards(load=6.0), models)
    mesh.run(jobs)
    loads = sum(node.loads for node in mesh.nodes.values())
    assert loads < 0.02 * len(jobs), "affinity-blind placement reloads for half of all"
    assert percentile(latencies(jobs), 0.5) < 1.0
    check(mesh.broker)


@pytest.mark.parametrize("told", [(1.0, 3.0), (1.0, 1.0), (3.0, 1.0)])
def test_a_pair_of_speeds_one_to_three_shares_in_proportion(told: tuple[float, float]) -> None:
    """Whatever speeds are advertised: what counts is what was learned."""
    jobs = [Job(0.0, units=2.0, size=2.0) for _ in range(200)]
    slow = SimNode("slow", 1.0, told[0], resident=["m"])
    fast = SimNode("fast", 3.0, told[1], resident=["m"])
    Mesh([slow, fast], [model()]).run(jobs)
    shares = Counter(job.node for job in jobs)
    assert 2.7 < shares["fast"] / shares["slow"] < 3.3
    ideal = 200 * 2.0 / (1 + 3)
    assert max(job.finished for job in jobs) < 1.05 * ideal


def test_batching_replicas_share_evenly_under_load() -> None:
    rng = random.Random(3)
    now, jobs = 0.0, []
    for _ in range(600):
        now += rng.expovariate(4.0)
        jobs.append(Job(now, units=2.0, size=2.0))
    nodes = [SimNode(name, 1.0, resident=["m"]) for name in ("a", "b", "c")]
    mesh = Mesh(nodes, [model(slots=8)])
    mesh.run(jobs)
    shares = Counter(job.node for job in jobs)
    assert all(170 < shares[name] < 230 for name in "abc"), shares
    check(mesh.broker)


@pytest.mark.parametrize(("rate", "worst"), [(0.3, 30.0), (0.8, 90.0)])
def test_two_models_that_do_not_fit_together_share_a_card(rate: float, worst: float) -> None:
    """Neither starves, and the longer the queues, the fewer the swaps: 0.8 of it is not too much.

    Tasks take a second, loads five: swapping for every change of model would need 2.4 times the
    time there is.
    """
    rng = random.Random(4)
    now, jobs = 0.0, []
    for _ in range(300):
        now += rng.expovariate(rate)
        jobs.append(Job(now, "often" if rng.random() < 0.8 else "seldom", units=1, size=1.0))
    models = [model("often", memory=20, load=2), model("seldom", memory=20, load=2)]
    card = SimNode("card", 1.0, load=5.0)
    mesh = Mesh([card], models)
    mesh.run(jobs)
    assert not any(job.denied for job in jobs)
    for name in ("often", "seldom"):
        assert max(job.finished - job.arrives for job in jobs if job.model == name) < worst
    changes = sum(a.model != b.model for a, b in itertools.pairwise(jobs))
    assert card.loads <= changes + 1
    if rate > 0.5:
        assert card.loads < changes / 2
    check(mesh.broker)

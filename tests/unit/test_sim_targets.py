"""What placement must reach, in the scenarios that come with blip: shorter runs, several seeds."""

from __future__ import annotations

import dataclasses
import time

import pytest

from blip.sim import scenario
from blip.sim.report import Summary, compare, summarise
from blip.sim.run import repeat


def run(name: str, *policies: str, **changes: object) -> dict[str, Summary]:
    of = scenario.load(name.partition("/")[0])[name]
    of = dataclasses.replace(of, **changes)  # type: ignore[arg-type]
    summaries = compare([summarise(repeat(of, each, time.perf_counter)) for each in policies])
    return {each.policy: each for each in summaries}


def test_ten_mixed_cards_are_within_a_quarter_of_the_oracle() -> None:
    found = run("mixed10", "broker", "oracle", "least_queue", tasks=2000, repeats=3)
    assert found["broker"].mean_ratio < 1.25
    assert found["broker"].p99_ratio < 1.25
    assert found["least_queue"].p99 > 4 * found["broker"].p99
    assert found["broker"].denied == 0


@pytest.mark.parametrize("variant", ["noisy", "unknown"])
def test_ten_mixed_cards_that_are_less_well_known(variant: str) -> None:
    found = run(f"mixed10/{variant}", "broker", "oracle", tasks=2000, repeats=3)
    assert found["broker"].mean_ratio < 1.25
    assert found["broker"].p99_ratio < 1.3


def test_rates_that_stay_wrong_cost_little() -> None:
    found = run("mixed10/stubborn", "broker", "oracle", "memory_blind", tasks=2000, repeats=3)
    assert found["broker"].mean_ratio < 1.25
    assert found["broker"].p99_ratio < 1.5
    assert found["broker"].p99 < found["memory_blind"].p99


def test_unknown_lengths_cost_little_on_average() -> None:
    found = run("mixed10/lengths", "broker", "oracle", "least_queue", tasks=2000, repeats=3)
    assert found["broker"].mean_ratio < 1.6
    assert found["least_queue"].p99 > 4 * found["broker"].p99


@pytest.mark.xfail(
    strict=True,
    reason="an attempt bound beyond the slots waits for one of unknown length (Settings.prefetch)",
)
def test_unknown_lengths_cost_little_in_the_tail() -> None:
    found = run("mixed10/lengths", "broker", "oracle", tasks=2000, repeats=3)
    assert found["broker"].p99_ratio < 1.6


@pytest.mark.parametrize("name", ["pair", "pair/untold"])
def test_a_pair_shares_by_speed(name: str) -> None:
    found = run(name, "broker", "round_robin")
    assert found["broker"].makespan < 1.05 * found["broker"].ideal
    assert found["round_robin"].makespan > 1.5 * found["round_robin"].ideal


def test_models_stay_where_they_are_loaded() -> None:
    found = run("zipf", "broker", "oracle", tasks=2000, repeats=6)
    assert found["broker"].mean_ratio < 1.1
    assert found["broker"].p99_ratio < 1.1
    blind = run("zipf", "affinity_blind", tasks=1200, repeats=1)["affinity_blind"]
    assert blind.growth > 1.5, "it falls ever further behind"
    assert blind.mean > 50 * found["broker"].mean


def test_deadlines_are_met() -> None:
    found = run("deadlines", "broker", "fifo", "fifo_drop", tasks=2000)
    assert found["broker"].hits > 1.5 * found["fifo"].hits
    assert found["broker"].hits > found["fifo_drop"].hits


def test_bursts_heat_and_churn_stay_near_the_oracle() -> None:
    for name in ("bursts", "thermal", "churn"):
        found = run(name, "broker", "oracle", "least_queue", tasks=2000)
        assert found["broker"].mean < 1.3 * found["oracle"].mean, name
        assert found["broker"].p99 < 1.4 * found["oracle"].p99, name
        assert found["broker"].p99 < 0.8 * found["least_queue"].p99, name
        assert found["broker"].denied == 0, name


def test_a_small_part_of_the_large_mesh() -> None:
    """A tenth of it: all is placed, and decisions are timed."""
    of = scenario.load("mesh10k")["mesh10k"]
    nodes = tuple(dataclasses.replace(group, count=group.count // 10) for group in of.nodes)
    models = dataclasses.replace(of.models, count=of.models.count // 10)
    found = run("mesh10k", "broker", tasks=1000, nodes=nodes, models=models)["broker"]
    assert found.done == found.tasks
    assert 0 < found.decision_p50 <= found.decision_p99

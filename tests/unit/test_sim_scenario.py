"""Scenarios: what their files may say, and what is drawn from them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from blip.errors import ConfigError
from blip.sim import scenario
from blip.sim.arrivals import tasks
from blip.sim.node import build

NODES = '[[nodes]]\nname = "n"\n'


def one(text: str) -> scenario.Scenario:
    return scenario.parse("s", 'title = "t"\n' + text)["s"]


@pytest.mark.parametrize("name", scenario.names())
def test_what_comes_with_blip_is_right(name: str) -> None:
    for full, of in scenario.load(name).items():
        assert full.split("/")[0] == name
        assert of.title
        assert of.policies[0] == "broker"


def test_the_scenarios_that_there_must_be() -> None:
    wanted = {"mixed10", "pair", "zipf", "bursts", "thermal", "churn", "deadlines", "mesh10k"}
    assert wanted <= set(scenario.names())
    big = scenario.load("mesh10k")["mesh10k"]
    assert sum(group.count for group in big.nodes) == 10_000
    assert big.models.count == 1000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (NODES + "sped = 1", r"unknown key 'nodes\[0\]\.sped'; did you mean 'speed'"),
        ("[link]\n" + NODES, "unknown key 'link'; did you mean 'links'"),
        (NODES + "speed = 0", r"'nodes\[0\]\.speed' must be above 0, not 0"),
        (NODES + "count = 1.5", r"'nodes\[0\]\.count' must be a whole number, not 1\.5"),
        (NODES + "tells_health = 1", r"'nodes\[0\]\.tells_health' must be true or false"),
        (NODES + "throttle = [[2, 1], [1, 1]]", r"'nodes\[0\]\.throttle' must be a list of"),
        (NODES + "throttle = 3", r"'nodes\[0\]\.throttle' must be a list of"),
        (NODES + 'foreign = [[0, "x"]]', r"'nodes\[0\]\.foreign' must be a list of"),
        (NODES + NODES, "'nodes' has two of the name 'n'"),
        ("nodes = []", "'nodes' must list at least one"),
        ("nodes = 1", "'nodes' must be a list"),
        ("tasks = 1", "'nodes' is missing"),
        ("[[nodes]]\nspeed = 1", r"'nodes\[0\]\.name' is missing"),
        ("sizes = 1\n" + NODES, "'sizes' must be a table"),
        ('policies = ["best"]\n' + NODES, "'policies' is one of broker, .*, not 'best'"),
        ("policies = []\n" + NODES, "'policies' must not be empty"),
        ("warmup = 0.95\n" + NODES, "'warmup' must be at least 0 and at most 0.9, not 0.95"),
        ('name = "x"\n' + NODES, "'name' is not for scenarios to choose"),
        ('arrivals.process = "all"\n' + NODES, r"'arrivals\.process' is one of poisson"),
        ("sizes.known = false\n" + NODES, r"needs a 'sizes\.limit'"),
        ("broker.heartbeat = 5\n" + NODES, "heartbeat < suspect_after < lost_after"),
        ("deadlines.least = 99\n" + NODES, r"'deadlines\.least' is more than"),
        (NODES + '[[tenants]]\nname = "a"\nshare = 0.5', "shares of 'tenants' must add up to 1"),
        ("variants = 1\n" + NODES, "'variants' must be a table"),
        (NODES + "[variants.x]\ntask = 1", r"unknown key 'variants\.x\.task'"),
        (NODES + "[variants.x.sizes]\nmean = 0", r"'variants\.x\.sizes\.mean' must be above 0"),
        (NODES + "[variants.X]\ntasks = 1", r"'variants\.X' must be a table under a name"),
        ("tasks = ", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        one(text)


def test_variants_change_only_what_they_say() -> None:
    found = scenario.parse(
        "s",
        'title = "t"\nsizes.mean = 3.0\nsizes.sigma = 1\n' + NODES + "[variants.small]\nsizes"
        " = { mean = 1 }",
    )
    assert list(found) == ["s", "s/small"]
    assert found["s"].sizes.mean == 3.0
    assert found["s/small"].sizes == scenario.Sizes(mean=1.0, sigma=1.0)
    assert found["s/small"].nodes == found["s"].nodes


def test_finding_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('title = "t"\n' + NODES)
    assert list(scenario.load(str(file))) == ["mine"]
    file.write_text("x = 1")
    with pytest.raises(ConfigError, match=r"mine\.toml: unknown key 'x'"):
        scenario.load(str(file))
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"mine\.toml"):
        scenario.load(str(file))
    with pytest.raises(ConfigError, match="there is no file"):
        scenario.load(str(tmp_path / "other.toml"))
    with pytest.raises(ConfigError, match="did you mean 'mixed10'") as error:
        scenario.load("mixed")
    assert "zipf" in error.value.hint


# --- what is drawn --------------------------------------------------------------------------


def test_the_same_seed_is_the_same_tasks() -> None:
    of = one("tasks = 50\n" + NODES)
    assert tasks(of, random.Random(3)) == tasks(of, random.Random(3))
    assert tasks(of, random.Random(3)) != tasks(of, random.Random(4))


@pytest.mark.parametrize("process", ["poisson", "bursts"])
def test_load_is_work_by_capacity(process: str) -> None:
    # bursts are long beside tasks and rare, so it takes many for the average
    of = one(
        f'tasks = 60000\narrivals.process = "{process}"\narrivals.load = 0.5\n'
        "arrivals.burst_seconds = 2\narrivals.calm_seconds = 8\n" + NODES + "count = 10"
    )
    drawn = tasks(of, random.Random(1))
    work = sum(task.size for task in drawn)
    assert work / (drawn[-1].arrives * of.capacity) == pytest.approx(0.5, rel=0.1)
    assert [task.arrives for task in drawn] == sorted(task.arrives for task in drawn)


def test_bursts_come_in_bursts() -> None:
    def spread(process: str) -> float:
        of = one(f'tasks = 20000\narrivals.process = "{process}"\n' + NODES + "count = 10")
        counts = Counter(int(task.arrives) for task in tasks(of, random.Random(1)))
        per_second = [counts[second] for second in range(max(counts))]
        middle = fmean(per_second)
        return fmean((count - middle) ** 2 for count in per_second) / middle

    assert spread("poisson") == pytest.approx(1.0, rel=0.2)
    assert spread("bursts") > 2


def test_sizes_and_what_is_told_of_them() -> None:
    drawn = tasks(one("tasks = 20000\n" + NODES), random.Random(1))
    assert fmean(task.size for task in drawn) == pytest.approx(2.0, rel=0.05)
    assert all(task.units == task.size for task in drawn)
    bound = one("tasks = 2000\nsizes.known = false\nsizes.limit = 4\n" + NODES)
    told = tasks(bound, random.Random(1))
    assert {task.units for task in told} == {4.0}
    assert max(task.size for task in told) == 4.0
    off = tasks(one("tasks = 200\nsizes.error = 0.3\n" + NODES), random.Random(1))
    assert sum(task.units != task.size for task in off) == 200
    same = tasks(one("tasks = 20\nsizes.sigma = 0\n" + NODES), random.Random(1))
    assert {task.size for task in same} == {2.0}


def test_models_by_zipf_tenants_and_deadlines() -> None:
    of = one(
        "tasks = 12000\nmodels.count = 3\nmodels.zipf = 1\ndeadlines.share = 0.5\n"
        + NODES
        + '[[tenants]]\nname = "a"\nshare = 0.75\nat_once = true\n'
        + '[[tenants]]\nname = "b"\nshare = 0.25\npriority = 2\n'
    )
    drawn = tasks(of, random.Random(1))
    models = Counter(task.model for task in drawn)
    assert models["m0"] / models["m2"] == pytest.approx(3.0, rel=0.1)
    assert all((task.arrives == 0.0) == (task.tenant == "a") for task in drawn)
    assert {task.priority for task in drawn if task.tenant == "b"} == {2}
    due = [task.deadline for task in drawn if task.deadline]
    assert len(due) == pytest.approx(6000, rel=0.1)
    assert all(5 <= each <= 30 for each in due)


def test_nodes_offer_what_is_popular_more_often() -> None:
    of = one("models.count = 100\nmodels.zipf = 1\n" + NODES + "count = 300\noffers = 5")
    nodes = build(of, random.Random(1))
    offered = Counter(model.name for node in nodes for model in node.models)
    assert all(len(node.models) == 5 for node in nodes)
    assert offered["m0"] > 3 * offered["m50"] > 0
    assert all(set(node.resident) <= {model.name for model in node.models} for node in nodes)

"""Figures, tables, pictures, and the verb that shows them."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from blip.cli import FAILURE, USAGE, main
from blip.sim.arrivals import Task
from blip.sim.mesh import Outcome, Record
from blip.sim.report import Summary, as_dict, compare, percentile, rows, summarise
from blip.sim.run import simulate
from blip.sim.scenario import Nodes, Scenario

SMALL = """
title = "two cards"
tasks = 40
policies = ["broker", "oracle", "random"]

[[nodes]]
name = "a"
[[nodes]]
name = "b"
speed = 2
[variants.long]
sizes.mean = 4
"""


def records(latencies: Sequence[float], deadline: float = 0.0, tenant: str = "") -> list[Record]:
    return [
        Record(Task(number, 1.0, "m0", 2.0, 2.0, tenant, deadline=deadline), finished=1.0 + latency)
        for number, latency in enumerate(latencies)
    ]


def outcome(of: list[Record], policy: str = "broker", **counts: int) -> Outcome:
    scenario = Scenario("s", "t", (Nodes("n", speed=4.0),), warmup=0.0)
    return Outcome(policy, scenario, of, [], 10.0, [1e-5, 3e-5], counts)


def test_figures() -> None:
    found = summarise([outcome(records([1.0, 2.0, 3.0, 6.0], 3.0), lost=2)])
    assert (found.tasks, found.done, found.denied, found.lost) == (4, 4, 0, 2)
    assert (found.mean, found.p50, found.p99) == (3.0, 3.0, 6.0)
    assert found.growth == 3.0
    assert found.hits == 0.75
    assert found.makespan == 7.0
    assert found.ideal == 2.0
    assert found.decision_p50 == 3e-5


def test_what_failed_is_no_latency() -> None:
    failed = records([5.0])
    failed[0].finished, failed[0].code = -1.0, "overloaded"
    found = summarise([outcome(failed)])
    assert (found.done, found.denied) == (0, 1)
    assert math.isnan(found.mean)
    assert as_dict(found)["mean"] is None


def test_repeats_are_counted_together() -> None:
    found = summarise([outcome(records([1.0] * 4)), outcome(records([3.0] * 4))])
    assert (found.tasks, found.mean, found.growth) == (8, 2.0, 1.0)


def test_ratios_to_the_oracle() -> None:
    pair = [summarise([outcome(records([value] * 4), name)]) for name, value in
            (("broker", 3.0), ("oracle", 2.0))]  # fmt: skip
    assert [each.mean_ratio for each in compare(pair)] == [1.5, 1.0]
    assert [each.p99_ratio for each in compare(pair)] == [1.5, 1.0]
    assert math.isnan(compare(pair[:1])[0].mean_ratio)


def test_percentiles() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert percentile([1.0], 0.99) == 1.0
    assert math.isnan(percentile([], 0.5))


def test_the_table_leaves_out_what_says_nothing() -> None:
    plain = summarise([outcome(records([1.0] * 4))])
    header, lines = rows([plain])
    assert "lost" not in header
    assert "deadlines met" not in header
    assert len(lines[0]) == len(header)
    busy = dataclasses.replace(plain, lost=1, hits=0.5)
    header, lines = rows([plain, busy])
    assert lines[1][header.index("lost")] == "1"
    assert lines[0][header.index("deadlines met")] == ""
    assert lines[1][header.index("deadlines met")] == "50.0%"
    assert lines[0][header.index("decision µs")] == "30"


def test_tenants_have_columns() -> None:
    header, lines = rows([summarise([outcome(records([1.0] * 4, tenant="ann"))])])
    assert dict(zip(header, lines[0], strict=True))["ann mean s"] == "1.00"


def test_what_devices_did_is_summed_up() -> None:
    of = Scenario("s", "t", (Nodes("n", 2, resident=0),), tasks=30, warmup=0.0)
    found = summarise([simulate(of, "random", lambda: 0.0)])
    assert found.cold_loads == 2
    assert 0 < found.utilization < 1


# --- the verb -------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_without_a_name_it_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim"]) == 0
    assert "mixed10" in capsys.readouterr().out
    assert main(["sim", "--json"]) == 0
    names = [each["name"] for each in json.loads(capsys.readouterr().out)["scenarios"]]
    assert "zipf" in names


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures. matplotlib keeps the fonts open that it has used, so this is once."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "small.toml").write_text(SMALL)
    (folder / "many.toml").write_text(SMALL.replace('name = "b"', 'name = "b"\ncount = 30'))
    with contextlib.chdir(folder):
        assert main(["sim", "small.toml"]) == 0
        assert main(["sim", "small.toml", "--plot", "x.png", "--variant", "long"]) == 0
        assert main(["sim", "many.toml", "--plot", "y.png"]) == 0
        assert main(["sim", "small.toml", "--plot", "no/x.png"]) == FAILURE
    return folder


def test_each_variant_has_its_picture(drawn: Path) -> None:
    pictures = {path.name: path.read_bytes() for path in drawn.glob("*.png")}
    assert set(pictures) == {"small.png", "small-long.png", "x.png", "y.png", "y-long.png"}
    assert all(data.startswith(b"\x89PNG") and len(data) > 10_000 for data in pictures.values())
    # few devices are bars with names, many are a curve
    assert pictures["small.png"] != pictures["y.png"]


def test_each_variant_has_its_table(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", str(small), "--no-plot"]) == 0
    told = capsys.readouterr().out
    assert "small: two cards" in told
    assert "small/long: two cards" in told


def test_options_change_what_runs(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--variant", "small", "--tasks", "20", "--seed", "7", "--policies", "random"]
    assert main(["sim", str(small), *words, "--no-plot", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["scenarios"]
    assert [(each["name"], each["seed"]) for each in document] == [("small", 7)]
    assert [each["policy"] for each in document[0]["policies"]] == ["random"]
    assert document[0]["policies"][0]["tasks"] == 18
    assert not list(small.parent.glob("*.png"))


def test_memory_and_makespan_are_shown_where_they_are_the_point(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write_text('measure_memory = true\narrivals.process = "at_once"\n' + SMALL)
    assert main(["sim", str(small), "--variant", "small", "--no-plot"]) == 0
    told = capsys.readouterr().out
    assert "KiB for each node" in told
    assert "shared ideally it takes" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "there is no scenario 'nothing'"),
        (["pair", "--variant", "x"], "'pair' has no variant 'x'; there are: untold"),
        (["pair", "--policies", "best"], "'--policies' is one of broker"),
    ],
)
def test_wrong_usage(
    words: list[str], told: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", *words]) == USAGE
    assert told in capsys.readouterr().err


def test_without_matplotlib_the_table_is_there_all_the_same(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, globals, locals, fromlist or (), level)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["sim", str(small), "--variant", "small"]) == FAILURE
    out, err = capsys.readouterr()
    assert "broker" in out
    assert "pip install 'blip-mesh[sim]'" in err


def test_a_picture_that_cannot_be_written(
    drawn: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", str(small), "--variant", "small", "--plot", "no/x.png"]) == FAILURE
    assert "the plot cannot be written" in capsys.readouterr().err


def test_every_figure_is_in_json() -> None:
    found = as_dict(summarise([outcome(records([1.0] * 4))]))
    assert set(found) == set(Summary.__slots__)

"""``blip bench placement`` on tiny meshes. Nothing here looks at how fast anything was."""

from __future__ import annotations

import gc
import json
from dataclasses import replace

import pytest

from blip.bench import placement
from blip.bench.crowd import Crowd, Shape
from blip.bench.placement import CASES, Case, Spread
from blip.errors import ConfigError
from tests.unit.broker_mesh import check

TINY = Shape(4, 2, 6, 6, 2, load=0.5)


def test_a_case_measures_every_call_of_the_scheduler() -> None:
    before = gc.get_threshold()
    row = placement.measure(Case("tiny", TINY, 10.0), 60, settle=2.0)
    assert row.place.count >= 60
    for spread in (row.place, row.release, row.decode, row.advert, row.tick):
        assert 0 < spread.median <= spread.p99
        assert spread.count > 0
    assert row.running > 0
    assert row.refused == 0
    assert row.met
    assert row.adverts == 1 / (row.decode.mean + row.advert.mean)
    assert not replace(row, limit=0.0).met
    assert gc.get_threshold() == before, "the collector is as it was"


@pytest.mark.parametrize("loaded", [2, 6])
def test_the_crowd_keeps_scheduler_and_nodes_in_step(loaded: int) -> None:
    """What the nodes really run is what the ledger says, to the last attempt."""
    crowd = Crowd(replace(TINY, loaded=loaded, load=0.8))
    crowd.grow()
    crowd.fill(20.0)
    check(crowd.scheduler)
    assert crowd.held == {lease.key for lease in crowd.scheduler.ledger.leases()}
    assert crowd.scheduler.stats(crowd.now)["nodes"] == {"ready": 4}


def test_a_queue_is_kept_up() -> None:
    crowd = Crowd(replace(TINY, tickets=20))
    crowd.grow()
    crowd.fill(1.0)
    for _ in range(50):
        crowd.step()
        assert len(crowd.scheduler.tickets) >= 20
    check(crowd.scheduler)


def test_memory_is_weighed_for_each_number_of_nodes() -> None:
    small, large = placement.weigh((5, 10), TINY)
    assert (small.nodes, large.nodes) == (5, 10)
    assert 0 < small.bytes < large.bytes
    assert large.each == large.bytes / 10


def test_a_spread_sums_up() -> None:
    assert Spread.of([]) == Spread(0.0, 0.0, 0.0, 0)
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 3.0, 2.0, 3)
    assert Spread.of([1.0] * 98 + [5.0, 9.0]).p99 == 9.0


def test_cases_are_selected_by_the_beginnings_of_their_names() -> None:
    assert placement.select("") == (list(CASES), True)
    chosen, weighed = placement.select("64-2, 10k-busy")
    assert [case.name for case in chosen] == ["64-2-idle", "64-2-busy", "64-2-queue", "10k-busy"]
    assert not weighed
    assert placement.select("memory") == ([], True)
    with pytest.raises(ConfigError, match="no case called '64-'"):
        placement.select("64-")


def test_what_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "CASES", (Case("tiny", TINY, 10.0),))
    monkeypatch.setattr(placement, "NAMES", ("tiny", "memory"))
    monkeypatch.setattr(placement, "MEMORY_NODES", (2, 4))
    monkeypatch.setattr(placement, "_LARGE", TINY)
    assert placement.main(decisions=20, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cases"]["tiny"]["place"]["count"] >= 20
    assert found["cases"]["tiny"]["met"] is True
    assert [weight["nodes"] for weight in found["memory"]] == [2, 4]
    assert placement.main(decisions=20) == 0
    out = capsys.readouterr().out
    for words in ("tiny", "adverts/s", "met", "KiB a node", "4 nodes"):
        assert words in out

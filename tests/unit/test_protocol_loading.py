"""Where a model is loaded when a person names no device."""

from __future__ import annotations

import pytest

from blip.errors import (
    ModelLoadFailed,
    ModelNotFound,
    ModelTooLarge,
    NoCapacity,
    NoNode,
    Unavailable,
)
from blip.protocol.loading import choose_load, has_replica
from blip.protocol.messages import NodeEntry
from tests.unit.broker_mesh import GIB, advert, device, model, ready


def entry(node_id: str, status: str = "ready", **statement: object) -> NodeEntry:
    return NodeEntry(node_id, 7, node_id, "", [], status, advert(**statement))  # type: ignore[arg-type]


def pick(entries: list[NodeEntry], at: str = "") -> tuple[str, str]:
    spot = choose_load(entries, "m", at)
    return spot.entry.id, spot.device.id


def test_the_fastest_that_has_room() -> None:
    slow, fast = entry("slow"), entry("fast", devices=[device(speed=3)])
    full = entry("full", devices=[device(speed=9, free=1)])
    assert pick([slow, full, fast]) == ("fast", "gpu0")
    assert pick([slow, full]) == ("slow", "gpu0")
    roomy = entry("roomy", devices=[device(total=80)])
    assert pick([slow, roomy]) == ("roomy", "gpu0")


def test_idle_replicas_make_room_unless_they_are_pinned() -> None:
    card = [device(speed=9, free=1)]
    idle = entry("idle", devices=card, replicas=[ready("x", memory=20)])
    pinned = entry("pinned", devices=card, replicas=[ready("x", memory=20)._replace(pinned=True)])
    busy = entry("busy", devices=card, replicas=[ready("x", memory=20, active=1)])
    promised = entry("promised", devices=[device(speed=9)._replace(reserved=22 * GIB)])
    assert pick([entry("slow"), idle]) == ("idle", "gpu0")
    for other in (pinned, busy, promised):
        assert pick([entry("slow"), other]) == ("slow", "gpu0")


def test_one_more_replica_before_one_that_is_there() -> None:
    loaded = entry("loaded", devices=[device(speed=9)], replicas=[ready()])
    assert pick([loaded, entry("other")]) == ("other", "gpu0")
    assert pick([loaded]) == ("loaded", "gpu0")
    assert has_replica(loaded, "m")
    assert has_replica(loaded, "m", "gpu0")
    assert not has_replica(loaded, "m", "gpu1")
    assert not has_replica(loaded, "x")


def test_only_what_takes_something() -> None:
    out = [
        entry("suspect", status="suspect"),
        entry("draining", draining=True),
        entry("cordoned", devices=[device()._replace(state="cordoned", reason="new fan")]),
        entry("sick", devices=[device(health=0)]),
        entry("broken", models=[model(error="no such file", retry_in=9)]),
    ]
    assert pick([*out, entry("good")]) == ("good", "gpu0")
    with pytest.raises(ModelLoadFailed, match="no such file") as broken:
        pick(out)
    assert broken.value.retry_after == 9
    with pytest.raises(Unavailable, match="gpu0 of cordoned is cordoned: new fan"):
        pick(out[2:3])
    with pytest.raises(Unavailable, match="gpu0 of sick is unhealthy"):
        pick(out[3:4])
    with pytest.raises(Unavailable, match="no device of a node that is ready"):
        pick(out[:2])


def test_a_device_by_its_id() -> None:
    two = entry("two", devices=[device("gpu0", speed=9), device("gpu1")])
    assert pick([two], "gpu1") == ("two", "gpu1")
    with pytest.raises(Unavailable):
        pick([two], "gpu7")


def test_no_room_comes_with_the_numbers() -> None:
    small = entry("small", devices=[device(total=24, free=3)])
    with pytest.raises(NoCapacity, match=r"needs 4\.0 GiB; .* 3\.0 GiB \(gpu0 of small\)") as wrong:
        pick([small])
    assert wrong.value.details == {
        "need": 4 * GIB,
        "most": 3 * GIB,
        "node": "small",
        "device": "gpu0",
    }
    with pytest.raises(ModelTooLarge, match=r"needs 40\.0 GiB; .* 24\.0 GiB"):
        pick([entry("small", models=[model(memory=40)])])
    # a device that does not tell its size is tried
    assert pick([entry("unknown", devices=[device(total=0)])]) == ("unknown", "gpu0")


def test_nobody_has_it() -> None:
    with pytest.raises(NoNode):
        pick([])
    with pytest.raises(ModelNotFound, match="did you mean 'mm'") as wrong:
        choose_load([entry("a", models=[model("mm")]), entry("b")], "mmm")
    assert wrong.value.details["near"]
    with pytest.raises(ModelNotFound, match="node a does not have"):
        choose_load([entry("a")], "x")

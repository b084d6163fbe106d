"""A gateway's own placement, without a broker."""

from __future__ import annotations

import random
from collections import Counter

from blip.errors import Unsatisfiable
from blip.protocol import constraints
from blip.protocol.messages import NodeEntry, Replica
from blip.protocol.placement import choose, unsatisfiable
from tests.unit.broker_mesh import GIB, advert, device, model, ready


def entry(
    node_id: str, status: str = "ready", incarnation: int = 7, **statement: object
) -> NodeEntry:
    return NodeEntry(node_id, incarnation, node_id, "", [], status, advert(**statement))  # type: ignore[arg-type]


def idle(node: str, device_id: str) -> int:
    return 0


def pick(
    entries: list[NodeEntry], *, kind: str = "chat", name: str = "m", **given: object
) -> str | None:
    found = choose(
        entries,
        kind,
        name,
        given.get("in_flight", idle),  # type: ignore[arg-type]
        given.get("exclude", ()),  # type: ignore[arg-type]
        random.Random(1).random,
        given.get("require"),  # type: ignore[arg-type]
    )
    return None if found is None else found[0]


def test_returns_node_incarnation_and_device() -> None:
    assert choose([entry("a")], "chat", "m", idle, (), random.Random(1).random) == ("a", 7, "gpu0")


def test_only_ready_healthy_nodes_that_serve_it_are_chosen() -> None:
    broken = model(error="no such file", retry_in=9)
    hopeless = [
        entry("suspect", status="suspect"),
        entry("lost", status="lost"),
        entry("draining", draining=True),
        entry("sick", devices=[device(health=0)]),
        entry("other-model", models=[model("x")]),
        entry("other-kind", models=[model("m", "image")]),
        entry("broken", models=[broken]),
        entry("small", devices=[device(total=2)]),
        entry("excluded"),
    ]
    assert pick(hopeless, exclude={"excluded"}) is None
    assert pick([], exclude=()) is None
    assert pick([*hopeless, entry("good")], exclude={"excluded"}) == "good"


def test_an_error_whose_pause_is_over_may_be_tried_again() -> None:
    assert pick([entry("a", models=[model(error="out of memory", retry_in=0)])]) == "a"


def test_warm_beats_cold_until_its_queue_outweighs_a_load() -> None:
    warm = entry("warm", replicas=[ready(slots=2)])
    cold = entry("cold", devices=[device(bandwidth=1e9)])
    assert pick([cold, warm]) == "warm"
    # 4 GiB at 1 GB/s and the start: 5.3 s, as much as 2.6 attempts ahead at 2 s each.
    assert pick([cold, warm], in_flight=lambda node, _: 5 if node == "warm" else 0) == "warm"
    assert pick([cold, warm], in_flight=lambda node, _: 6 if node == "warm" else 0) == "cold"


def test_a_load_under_way_is_joined() -> None:
    loading = Replica("m", "gpu0", "loading", 4, progress=0.1)
    assert pick([entry("a"), entry("loading", replicas=[loading]), entry("b")]) == "loading"


def test_idle_replicas_make_room_and_busy_ones_do_not() -> None:
    full = device(total=24, free=1)
    assert pick([entry("a", devices=[full], replicas=[ready("x", memory=20)])]) == "a"
    busy = ready("x", memory=20, active=1)
    assert pick([entry("a", devices=[full], replicas=[busy])]) is None
    nothing = model("m", memory=0, load=0)
    assert pick([entry("a", devices=[full], models=[nothing], replicas=[busy])]) == "a"


def test_what_a_node_reports_counts_like_our_own() -> None:
    entries = [
        entry("a", replicas=[ready(slots=4, active=3, queued=1)]),
        entry("b", replicas=[ready(slots=4)]),
    ]
    assert pick(entries, in_flight=lambda node, _: 2 if node == "b" else 0) == "b"


def test_many_nodes_share_in_proportion_to_speed() -> None:
    speeds = {f"n{i}": speed for i, speed in enumerate((1, 1, 1, 1, 2, 2, 2, 4, 4, 8))}
    entries = [
        entry(name, devices=[device(speed=speed)], replicas=[ready()])
        for name, speed in speeds.items()
    ]
    rng = random.Random(5)
    held: Counter[str] = Counter()
    for _ in range(2600):
        found = choose(entries, "chat", "m", lambda node, _: held[node], (), rng.random)
        assert found is not None
        held[found[0]] += 1
    for name, speed in speeds.items():
        assert 0.85 * 100 * speed < held[name] < 1.15 * 100 * speed, held


def test_strange_numbers_do_not_upset_it() -> None:
    odd = device(speed=0.0, free=-3)
    entries = [entry(f"n{i}", devices=[odd], models=[model(memory=0, slots=-1)]) for i in range(9)]
    assert pick(entries) is not None
    assert choose(entries, "chat", "m", idle, (), lambda: 1.0) is not None


def test_devices_that_take_nothing_are_left_out() -> None:
    for state in ("yielding", "draining", "cordoned"):
        out = entry("out", devices=[device()._replace(state=state)], replicas=[ready()])
        assert pick([out]) is None
        assert pick([out, entry("good")]) == "good"


def test_what_a_task_requires() -> None:
    large = entry("large", devices=[device(total=48)])
    fast = entry("fast", devices=[device(speed=9)], replicas=[ready()])
    entries = [large, fast]
    assert pick(entries) == "fast"
    assert pick(entries, require=constraints.parse("memory>=40GiB")) == "large"
    assert pick(entries, require=constraints.parse("node!=fast")) == "large"
    assert pick(entries, require=constraints.parse("memory>=80GiB")) is None


def test_labels_of_the_node() -> None:
    cellar = entry("cellar")
    cellar = cellar._replace(advert=cellar.advert._replace(labels={"zone": "cellar"}))
    require = constraints.parse("label.zone=cellar")
    assert pick([entry("attic"), cellar], require=require) == "cellar"
    assert pick([entry("attic")], require=require) is None


def test_the_nearest_miss_is_named() -> None:
    require = constraints.parse("vendor=cuda; memory>=80GiB; gpu=test")
    near, far = entry("near"), entry("far", devices=[device(kind="amd", total=8)])
    error = unsatisfiable([far, near], "chat", "m", require)
    assert isinstance(error, Unsatisfiable)
    assert "nearest is gpu0 of near, but it has 24.0 GiB of memory, not 80.0 GiB" in error.message
    assert error.details == {
        "nearest": {"node": "near", "device": "gpu0"},
        "lacking": ["it has 24.0 GiB of memory, not 80.0 GiB"],
    }


def test_what_could_be_had_is_not_unsatisfiable() -> None:
    require = constraints.parse("memory>=40GiB")
    full = entry("full", devices=[device(total=48, free=0)])
    assert pick([full], require=require) is None
    assert unsatisfiable([full, entry("small")], "chat", "m", require) is None
    lost = entry("lost", status="lost", devices=[device(total=48)])
    assert unsatisfiable([lost, entry("small")], "chat", "m", require) is not None
    assert unsatisfiable([], "chat", "m", require) is None
    assert unsatisfiable([entry("other", models=[model("x")])], "chat", "m", require) is None


def test_pinned_replicas_and_promised_memory_make_no_room() -> None:
    full = device(total=24, free=1)
    pinned = ready("x", memory=20)._replace(pinned=True)
    assert pick([entry("a", devices=[full], replicas=[pinned])]) is None
    promised = device(total=24)._replace(reserved=22 * GIB)
    assert pick([entry("a", devices=[promised])]) is None


def test_no_more_replicas_than_are_wanted() -> None:
    limited = [model()._replace(max_replicas=1)]
    warm = entry("warm", models=limited, replicas=[ready()])
    cold = entry("cold", models=limited, devices=[device(bandwidth=1e12)])
    assert pick([warm, cold], in_flight=lambda node, _: 99 if node == "warm" else 0) == "warm"
    # where the one that is loaded is out of the question, another is better than none
    assert pick([warm, cold], exclude={"warm"}) == "cold"

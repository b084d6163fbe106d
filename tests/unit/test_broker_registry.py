"""Nodes: who is alive, and what gateways are told about it."""

from __future__ import annotations

import itertools

import pytest

from blip.broker import registry as registry_module
from blip.broker.registry import (
    TRANSITIONS,
    Admission,
    Event,
    Hearing,
    Liveness,
    NodeRecord,
    Registry,
    Status,
)
from blip.errors import ConfigError
from blip.protocol.codec import CONTROL_LIMIT, pack
from blip.protocol.messages import Advert, NodeEntry, Replica, Running
from tests.unit.broker_mesh import GIB, advert, device, model, ready


def registry(**limits: float) -> Registry:
    limits.setdefault("stall_after", 1e9)
    return Registry(Liveness(**limits))


def hello(mesh: Registry, node_id: str = "a", incarnation: int = 1, now: float = 0.0) -> Admission:
    return mesh.hello(node_id, incarnation, node_id.upper(), "host", ["tcp://a:1"], now)


def status(mesh: Registry, node_id: str = "a") -> Status:
    node = mesh.get(node_id)
    return Status.GONE if node is None else node.status


def told(mesh: Registry, since: int) -> tuple[list[NodeEntry], list[str], int]:
    """Nodes and gone ids since a version, whatever the pages."""
    pages, version = mesh.changes(since)
    return (
        [entry for page in pages for entry in page.nodes],
        [gone for page in pages for gone in page.gone],
        version,
    )


# --- liveness -----------------------------------------------------------------------------------


def test_every_status_but_gone_answers_every_event() -> None:
    assert set(TRANSITIONS) == set(Status) - {Status.GONE}
    for row in TRANSITIONS.values():
        assert set(row) == set(Event)


def test_a_life() -> None:
    mesh = registry()
    assert hello(mesh) is Admission.NEW
    assert status(mesh) is Status.JOINED
    assert mesh.advert("a", advert(), 0.0) is Hearing.ACCEPTED
    assert status(mesh) is Status.READY
    assert mesh.tick(2.9) == []
    (change,) = mesh.tick(3.0)
    assert (change.before, change.after) == (Status.READY, Status.SUSPECT)
    assert mesh.heard("a", 4.0)[0].after is Status.READY
    mesh.tick(7.0)
    mesh.advert("a", advert(), 8.0)
    assert status(mesh) is Status.READY
    mesh.tick(11.0)
    (change,) = mesh.tick(18.0)
    assert change.after is Status.LOST
    assert mesh.heard("a", 18.0) == []
    assert status(mesh) is Status.LOST, "a ping does not say what it can still do"
    (change,) = mesh.tick(78.0)
    assert change.after is Status.GONE
    assert "a" not in mesh
    assert len(mesh) == 0


def test_a_long_silence_is_told_step_by_step() -> None:
    mesh = registry()
    hello(mesh)
    mesh.advert("a", advert(), 0.0)
    assert [change.after for change in mesh.tick(99.0)] == [
        Status.SUSPECT,
        Status.LOST,
        Status.GONE,
    ]


def test_a_lost_node_heals_by_its_advert() -> None:
    mesh = registry()
    hello(mesh)
    mesh.advert("a", advert(), 0.0)
    mesh.tick(20.0)
    assert mesh.advert("a", advert(), 21.0) is Hearing.ACCEPTED
    assert status(mesh) is Status.READY


def test_unreachable_is_lost_at_once_and_goodbye_is_gone() -> None:
    mesh = registry()
    hello(mesh)
    mesh.advert("a", advert(), 0.0)
    assert mesh.unreachable("a", 0.1)[0].after is Status.LOST
    assert mesh.unreachable("a", 0.2) == []
    assert mesh.goodbye("a", 0.3)[0].after is Status.GONE
    assert mesh.goodbye("a", 0.4) == []
    assert mesh.unreachable("stranger", 0.5) == []
    assert mesh.heard("stranger", 0.5) == []


def test_our_own_stall_is_not_held_against_nodes() -> None:
    mesh = registry(stall_after=1.0)
    hello(mesh)
    mesh.advert("a", advert(), 0.0)
    mesh.tick(0.5)
    assert mesh.tick(60.5) == [], "we slept for a minute"
    for step in range(1, 8):
        mesh.tick(60.5 + step * 0.5)
    assert status(mesh) is Status.SUSPECT, "and now it is the node that is silent"


def test_slow_ticks_still_find_the_dead() -> None:
    mesh = registry(stall_after=1.0)
    hello(mesh)
    mesh.advert("a", advert(), 0.0)
    for step in range(1, 100):
        mesh.tick(step * 2.0)
    assert status(mesh) is Status.GONE


@pytest.mark.parametrize(
    "limits",
    [
        {"suspect_after": 0},
        {"suspect_after": 11},
        {"lost_after": 61},
        {"stall_after": 0},
        {"suspect_after": float("nan")},
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="liveness"):
        Liveness(**limits)


# --- incarnations and numbers -------------------------------------------------------------------


def test_incarnations() -> None:
    mesh = registry()
    hello(mesh, incarnation=5)
    mesh.advert("a", advert(number=40), 0.0)
    assert hello(mesh, incarnation=4) is Admission.REJECTED
    assert status(mesh) is Status.READY
    assert hello(mesh, incarnation=5) is Admission.RETURNED
    assert status(mesh) is Status.READY
    assert mesh.advert("a", advert(number=40), 1.0) is Hearing.STALE
    assert hello(mesh, incarnation=6) is Admission.SUPERSEDED
    assert status(mesh) is Status.JOINED
    assert mesh.advert("a", advert(number=0), 1.0) is Hearing.ACCEPTED, "it counts from 0 again"


def test_stale_and_unknown_adverts_change_nothing() -> None:
    mesh = registry()
    assert mesh.advert("a", advert(), 0.0) is Hearing.UNKNOWN
    hello(mesh)
    mesh.advert("a", advert(number=7), 0.0)
    assert mesh.advert("a", advert(number=6, draining=True), 1.0) is Hearing.STALE
    node = mesh.get("a")
    assert node is not None
    assert node.advert is not None
    assert not node.advert.draining
    assert node.heard == 0.0, "an old advert is no sign of life"
    assert isinstance(mesh.nodes()[0], NodeRecord)


# --- what gateways are told ---------------------------------------------------------------------


def test_the_first_answer_is_a_whole_table() -> None:
    mesh = registry()
    pages, version = mesh.changes(0)
    assert pages == [(True, [], [])]
    assert version > 0
    assert mesh.changes(version) == ([], version)
    hello(mesh)
    assert mesh.changes(version)[0] == [], "a node without an advert is no use to anyone"
    running = [Running(bytes(16), 1)]
    mesh.advert("a", advert(running=running), 0.0)
    (entry,), gone, version = told(mesh, version)
    assert gone == []
    assert entry[:6] == ("a", 1, "A", "host", ["tcp://a:1"], "ready")
    assert entry.advert.running == [], "other gateways' attempts stay here"
    assert mesh.changes(version) == ([], version)


def test_each_gateway_has_a_cursor_of_its_own_and_changes_coalesce() -> None:
    mesh = registry()
    hello(mesh, "a")
    hello(mesh, "b")
    mesh.advert("a", advert(), 0.0)
    mesh.advert("b", advert(), 0.0)
    _, _, early = told(mesh, 0)
    mesh.advert("a", advert(draining=True), 0.1)
    mesh.advert("a", advert(), 0.2)
    mesh.unreachable("a", 0.3)
    nodes, _, late = told(mesh, early)
    assert [(entry.id, entry.status) for entry in nodes] == [("a", "lost")]
    assert mesh.changes(late)[0] == []
    mesh.goodbye("a", 0.4)
    assert told(mesh, late)[1] == ["a"]
    nodes, gone, _ = told(mesh, early)
    assert (nodes, gone) == ([], ["a"])
    pages, _ = mesh.changes(0)
    assert [(page.reset, [n.id for n in page.nodes], page.gone) for page in pages] == [
        (True, ["b"], [])
    ]


def test_who_comes_back_is_no_longer_gone() -> None:
    mesh = registry()
    hello(mesh)
    mesh.advert("a", advert(), 0.0)
    _, _, cursor = told(mesh, 0)
    mesh.goodbye("a", 1.0)
    hello(mesh, incarnation=2)
    assert told(mesh, cursor)[1] == ["a"]
    mesh.advert("a", advert(), 1.0)
    nodes, gone, _ = told(mesh, cursor)
    assert [entry.incarnation for entry in nodes] == [2]
    assert gone == []


def test_a_restarted_node_is_suspect_to_others_until_it_advertises() -> None:
    mesh = registry()
    hello(mesh)
    mesh.advert("a", advert(), 0.0)
    _, _, cursor = told(mesh, 0)
    hello(mesh, incarnation=2, now=1.0)
    (entry,), _, cursor = told(mesh, cursor)
    assert (entry.incarnation, entry.status) == (2, "suspect")
    mesh.advert("a", advert(number=0), 1.1)
    (entry,), _, _ = told(mesh, cursor)
    assert entry.status == "ready"


def test_new_endpoints_are_news() -> None:
    mesh = registry()
    hello(mesh)
    mesh.advert("a", advert(), 0.0)
    _, _, cursor = told(mesh, 0)
    mesh.hello("a", 1, "A", "host", ["tcp://elsewhere:1"], 1.0)
    (entry,), _, _ = told(mesh, cursor)
    assert entry.endpoints == ["tcp://elsewhere:1"]


BASE = {
    "devices": [device(free=20)],
    "models": [model("m"), model("broken", error="no", retry_in=9)],
    "replicas": [ready(slots=4, active=1)],
}


@pytest.mark.parametrize(
    ("news", "changed"),
    [
        (True, {"draining": True}),
        (True, {"devices": [device(free=15)]}),
        (True, {"devices": [device(free=20, health=0.5)]}),
        (True, {"devices": [device(free=20, speed=2)]}),
        (True, {"devices": [device(free=20), device("gpu1")]}),
        (True, {"models": [model("m")]}),
        (True, {"replicas": []}),
        (True, {"replicas": [Replica("m", "gpu0", "stopping", 4)]}),
        (True, {"replicas": [ready(slots=8)]}),
        (False, {}),
        (False, {"devices": [device(free=19.9)]}),
        (False, {"devices": [device(free=20)._replace(utilization=0.7, temperature=80, age=1)]}),
        (False, {"models": [model("m"), model("broken", error="no", retry_in=8)]}),
        (False, {"replicas": [ready(slots=4, active=4, queued=2)]}),
        (False, {"running": [Running(bytes(16), 1)]}),
    ],
)
def test_what_is_news_and_what_is_noise(news: bool, changed: dict[str, object]) -> None:
    mesh = registry()
    hello(mesh)
    mesh.advert("a", advert(**BASE), 0.0)  # type: ignore[arg-type]
    _, _, cursor = told(mesh, 0)
    mesh.advert("a", advert(**(BASE | changed)), 1.0)  # type: ignore[arg-type]
    assert bool(told(mesh, cursor)[0]) is news
    if changed and not news and "running" not in changed:
        mesh.advert("a", advert(**(BASE | changed)), 5.5)  # type: ignore[arg-type]
        assert told(mesh, cursor)[0], "noise is told with the next refresh"
    if not changed:
        mesh.advert("a", advert(**BASE), 60.0)  # type: ignore[arg-type]
        assert not told(mesh, cursor)[0], "nothing at all is not"


def test_slow_drift_is_told() -> None:
    mesh = registry()
    hello(mesh)
    mesh.advert("a", advert([device(free=20)]), 0.0)
    _, _, cursor = told(mesh, 0)
    for step in range(1, 9):
        mesh.advert("a", advert([device(free=20 - step / 10)]), step / 10)
    assert told(mesh, cursor)[0], "compared with what was told, not with the advert before"


def test_a_thousand_nodes_fit_into_control_messages() -> None:
    mesh = registry()
    models = [model(f"model-{i}") for i in range(16)]
    for number in range(1000):
        hello(mesh, f"node-{number:04}")
        mesh.advert(f"node-{number:04}", advert([device()] * 4, models, [ready()] * 8), 0.0)
    pages, version = mesh.changes(0)
    assert [page.reset for page in pages] == [True] + [False] * (len(pages) - 1)
    names = [entry.id for page in pages for entry in page.nodes]
    assert len(names) == len(set(names)) == 1000
    for page in pages:
        # Raises if it is too large; pages that are far from full would be too many messages.
        size = pack(1, page, CONTROL_LIMIT).size
        assert size > CONTROL_LIMIT / 10 or page is pages[-1]
    mesh.advert("node-0500", advert(draining=True), 0.5)
    pages, _ = mesh.changes(version)
    assert [entry.id for page in pages for entry in page.nodes] == ["node-0500"]


def test_a_cursor_from_too_long_ago_or_another_broker_gets_the_whole_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_module, "GONE_LIMIT", 3)
    mesh = registry()
    hello(mesh, "stays")
    mesh.advert("stays", advert(), 0.0)
    _, _, cursor = told(mesh, 0)
    for number in range(5):
        hello(mesh, f"n{number}")
        mesh.advert(f"n{number}", advert(), 0.0)
        mesh.goodbye(f"n{number}", 0.0)
    pages, version = mesh.changes(cursor)
    assert pages[0].reset
    assert [entry.id for entry in pages[0].nodes] == ["stays"]
    assert mesh.changes(version) == ([], version)
    assert mesh.changes(version + 100)[0][0].reset


def test_a_cursor_that_is_used_always_ends_up_with_the_same_table() -> None:
    """Applying deltas one by one gives what a whole table gives."""
    mesh = registry()
    mirror: dict[str, NodeEntry] = {}
    cursor = 0
    script = itertools.cycle("hahxaagta")
    for step, what in zip(range(200), script, strict=False):
        node_id = f"n{step % 7}"
        now = step * 1.0
        if what == "h":
            hello(mesh, node_id, incarnation=step, now=now)
        elif what == "a":
            mesh.advert(node_id, advert([device(free=step % 20)]), now)
        elif what == "x":
            mesh.unreachable(node_id, now)
        elif what == "g":
            mesh.goodbye(node_id, now)
        else:
            mesh.tick(now)
        if step % 3 == 0:
            pages, cursor = mesh.changes(cursor)
            for page in pages:
                if page.reset:
                    mirror.clear()
                mirror |= {entry.id: entry for entry in page.nodes}
                for gone in page.gone:
                    mirror.pop(gone, None)
    pages, cursor = mesh.changes(cursor)
    for page in pages:
        mirror |= {entry.id: entry for entry in page.nodes}
        for gone in page.gone:
            mirror.pop(gone, None)
    whole = {entry.id: entry for entry in told(mesh, 0)[0]}
    assert {name: (e.status, e.incarnation) for name, e in mirror.items()} == {
        name: (e.status, e.incarnation) for name, e in whole.items()
    }


def test_adverts_are_kept_as_they_are() -> None:
    mesh = registry()
    hello(mesh)
    statement: Advert = advert([device(total=24 * GIB / GIB)])
    mesh.advert("a", statement, 0.0)
    node = mesh.get("a")
    assert node is not None
    assert node.advert is statement
    assert node.placeable
    assert node.connected

"""What a node refuses, and that it says why with numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.errors import ModelLoadFailed
from blip.protocol.attempt import Refusal
from blip.protocol.messages import Refuse, Submit
from blip_node.admission import (
    HEADROOM_BYTES,
    QUEUE_FACTOR,
    Fit,
    decide,
    fit,
    ran_out,
    victims,
)
from blip_node.catalogue import Catalogue, Entry
from blip_node.executions import Event, Execution, Executions
from blip_node.models.spec import ModelSpec
from blip_node.replica import Replica, State

TASK = b"t" * 16
GIB = 2**30
NOW = 100.0


def submit(**changes: Any) -> Submit:
    return Submit(TASK, 2, "echo", "echo", "cpu", 10.0, 1024, b"")._replace(**changes)


@pytest.fixture
def entry() -> Entry:
    catalogue = Catalogue()
    catalogue.add([ModelSpec("echo", "builtin:echo")])
    found = catalogue.get("echo")
    assert found is not None
    return found


def ask(entry: Entry | None, asked: Submit | None = None, **facts: Any) -> Refuse | None:
    usual: dict[str, Any] = {
        "now": 0.0,
        "draining": False,
        "executions": Executions(),
        "device_known": True,
        "device_refusal": "",
        "replica": None,
        "room": Fit(0, 0, (), True),
    }
    return decide(asked or submit(), entry=entry, **{**usual, **facts})


def code(refusal: Refuse | None) -> Refusal:
    assert refusal is not None
    assert refusal.text
    return Refusal(refusal.code)


def test_it_accepts(entry: Entry) -> None:
    assert ask(entry) is None


def test_a_cancelled_attempt_is_refused(entry: Entry) -> None:
    executions = Executions()
    executions.bury(TASK, 2, 0.0)
    assert code(ask(entry, executions=executions)) is Refusal.SUPERSEDED


def test_an_older_attempt_is_refused_a_newer_one_is_not(entry: Entry) -> None:
    executions = Executions()
    executions.add(Execution(submit(), None, 0.0))
    assert code(ask(entry, submit(attempt=1), executions=executions)) is Refusal.SUPERSEDED
    assert ask(entry, submit(attempt=3), executions=executions) is None


def test_what_is_late_draining_or_unknown(entry: Entry) -> None:
    assert code(ask(entry, submit(expires_in=0.0))) is Refusal.EXPIRED
    assert code(ask(entry, draining=True)) is Refusal.DRAINING
    assert code(ask(None)) is Refusal.UNKNOWN_MODEL
    assert code(ask(entry, submit(kind="chat"))) is Refusal.UNKNOWN_MODEL
    assert code(ask(entry, device_known=False)) is Refusal.NO_MEMORY
    refused = ask(entry, device_refusal="device 'cpu' is draining")
    assert code(refused) is Refusal.DRAINING
    assert refused is not None
    assert refused.text == "device 'cpu' is draining"


def test_a_model_that_could_not_be_loaded_says_why_until_it_may_be_tried_again(
    entry: Entry,
) -> None:
    entry.broken(ModelLoadFailed("the file is truncated"), 0.0)
    refusal = ask(entry, now=1.0)
    assert code(refusal) is Refusal.LOAD_FAILED
    assert refusal is not None
    assert "truncated" in refusal.text
    assert ask(entry, now=entry.retry_at) is None


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(entry: Entry) -> None:
    refusal = ask(entry, room=Fit(8 * GIB, 2 * GIB, (), False))
    assert code(refusal) is Refusal.NO_MEMORY
    assert refusal is not None
    numbers = {"need": 8 * GIB, "free": 2 * GIB, "total": 0, "device": "cpu"}
    assert refusal.details == numbers
    assert "8,192 MiB" in refusal.text


def test_a_full_queue_is_busy(entry: Entry) -> None:
    replica = Replica("echo", "cpu", 1, 0, 0.0)
    replica.state = State.READY
    for _ in range(QUEUE_FACTOR):
        replica.waiting.append(Execution(submit(), None, 0.0))
    assert ask(entry, replica=replica) is None
    replica.waiting.append(Execution(submit(), None, 0.0))
    assert code(ask(entry, replica=replica)) is Refusal.BUSY


def test_a_replica_that_stops_is_busy(entry: Entry) -> None:
    replica = Replica("echo", "cpu", 1, 0, 0.0)
    replica.state = State.STOPPING
    assert code(ask(entry, replica=replica)) is Refusal.BUSY
    replica.state, replica.leaving = State.READY, True
    assert code(ask(entry, replica=replica)) is Refusal.BUSY


def replica(model: str, memory: int, used: float, *, busy: bool = False) -> Replica:
    made = Replica(model, "gpu", 1, memory, 0.0)
    made.state, made.used = State.READY, used
    if busy:
        execution = Execution(submit(), None, 0.0)
        execution.move(Event.START)
        made.jobs[1] = execution
    return made


def test_what_needs_nothing_fits_anywhere() -> None:
    assert fit(0, 0, 5 * GIB, [], NOW).fits
    assert fit(GIB, None, 0, [], NOW).fits


def test_headroom_and_reservations_count() -> None:
    assert fit(GIB, GIB + HEADROOM_BYTES, 0, [], NOW).fits
    assert not fit(GIB, GIB + HEADROOM_BYTES - 1, 0, [], NOW).fits
    assert not fit(GIB, GIB + HEADROOM_BYTES, 1, [], NOW).fits


def test_idle_replicas_make_room_oldest_first_and_no_more_than_needed() -> None:
    old, new = replica("old", GIB, 1.0), replica("new", GIB, 20.0)
    busy = replica("busy", 4 * GIB, 0.0, busy=True)
    room = fit(GIB, HEADROOM_BYTES, 0, [new, busy, old], NOW)
    assert room.fits
    assert room.evict == (old,)
    room = fit(3 * GIB, HEADROOM_BYTES, 0, [new, busy, old], NOW)
    assert not room.fits
    assert room.free == 2 * GIB


def test_a_pinned_replica_makes_no_room() -> None:
    pinned = replica("pinned", GIB, 1.0)
    pinned.pinned = True
    room = fit(GIB, HEADROOM_BYTES, 0, [pinned], NOW)
    assert (room.fits, room.free, room.evict) == (False, 0, ())


def test_what_is_being_unloaded_is_waited_for_before_anyone_else_goes() -> None:
    going, idle = replica("going", GIB, NOW), replica("idle", GIB, 0.0)
    going.state = State.STOPPING
    assert fit(GIB, HEADROOM_BYTES, 0, [idle, going], NOW).evict == (going,)
    going.state, going.worker = State.FAILED, object()
    assert fit(GIB, HEADROOM_BYTES, 0, [idle, going], NOW).evict == (going,)
    going.worker = None
    assert fit(GIB, HEADROOM_BYTES, 0, [idle, going], NOW).evict == (idle,)


def test_a_dear_reload_outweighs_a_longer_silence() -> None:
    dear, cheap = replica("dear", GIB, 0.0), replica("cheap", GIB, 60.0)
    dear.load_bytes, cheap.load_bytes = 30 * GIB, GIB
    assert victims(GIB, [dear, cheap], NOW, float(GIB)) == ((cheap,), GIB)
    dear.used = -1000.0  # but not for ever
    assert victims(GIB, [dear, cheap], NOW, float(GIB)) == ((dear,), GIB)
    # and on a device that loads at once, silence alone counts
    dear.used = 59.0
    assert victims(GIB, [dear, cheap], NOW, 1e15) == ((dear,), GIB)


def test_a_large_victim_spares_the_small_ones_chosen_before_it() -> None:
    small, middle = replica("small", GIB, 0.0), replica("middle", 2 * GIB, 10.0)
    large = replica("large", 8 * GIB, 50.0)
    chosen, freed = victims(5 * GIB, [small, middle, large], NOW, None)
    assert (chosen, freed) == ((large,), 8 * GIB)
    chosen, freed = victims(9 * GIB, [small, middle, large], NOW, None)
    assert (chosen, freed) == ((small, large), 9 * GIB)


@given(
    short=st.integers(1, 40),
    facts=st.lists(
        st.tuples(st.integers(0, 10), st.floats(0, 100), st.integers(0, 50), st.booleans()),
        max_size=8,
    ),
)
def test_victims_are_enough_and_each_of_them_is_needed(
    short: int, facts: list[tuple[int, float, int, bool]]
) -> None:
    there = []
    for number, (memory, used, reload, busy) in enumerate(facts):
        made = replica(str(number), memory, used, busy=busy)
        made.load_bytes = reload * GIB
        there.append(made)
    chosen, freed = victims(short, there, NOW, float(GIB))
    assert freed == sum(each.memory for each in chosen)
    assert all(each.evictable for each in chosen)
    if freed < short:
        assert freed == sum(each.memory for each in there if each.evictable)
    else:
        assert all(freed - each.memory < short for each in chosen)


def test_a_load_that_ran_out_of_memory_is_not_tried_again_at_once(entry: Entry) -> None:
    failed = replica("echo", GIB, 0.0)
    failed.state, failed.retry_at = State.FAILED, 30.0
    failed.failure = ran_out("echo", "gpu", 3 * GIB, 2 * GIB, 4 * GIB, "CUDA out of memory")
    refusal = ask(entry, replica=failed, now=29.0)
    assert code(refusal) is Refusal.NO_MEMORY
    assert refusal is not None
    assert refusal.details == {
        "need": 3 * GIB,
        "free": 2 * GIB,
        "total": 4 * GIB,
        "device": "gpu",
    }
    assert "3,072 MiB" in refusal.text
    assert ask(entry, replica=failed, now=30.0) is None
    assert code(ask(entry, replica=failed, now=30.0, room=Fit(GIB, 0, (), False))) is (
        Refusal.NO_MEMORY
    )


def test_the_catalogue_rejects_with_a_reason_and_goes_on(tmp_path: Path) -> None:
    catalogue = Catalogue()
    catalogue.add(
        [
            ModelSpec("gone", str(tmp_path / "nothing-here")),
            ModelSpec("echo", "builtin:echo", slots=3),
            ModelSpec("echo", "builtin:echo", slots=9),
        ]
    )
    assert [entry.spec.name for entry in catalogue] == ["echo"]
    assert len(catalogue) == 1
    assert "nothing-here" in catalogue.rejected["gone"].message
    found = catalogue.get("echo")
    assert found is not None
    assert found.slots == 3
    assert found.advert(0.0, gpu=False)[:3] == ("echo", ["echo"], 0)
    found.broken(ModelLoadFailed("no"), 5.0)
    told = found.advert(10.0, gpu=False)
    assert (told.error, told.retry_in) == ("no", 25.0)
    assert found.advert(35.0, gpu=False).error == ""

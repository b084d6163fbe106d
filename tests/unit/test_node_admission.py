"""What a node refuses, and that it says why with numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blip.errors import ModelLoadFailed
from blip.protocol.attempt import Refusal
from blip.protocol.messages import Refuse, Submit
from blip_node.admission import HEADROOM_BYTES, QUEUE_FACTOR, Fit, decide, fit
from blip_node.catalogue import Catalogue, Entry
from blip_node.executions import Event, Execution, Executions
from blip_node.models.spec import ModelSpec
from blip_node.replica import Replica, State

TASK = b"t" * 16
GIB = 2**30


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
    assert refusal.details == {"need": 8 * GIB, "free": 2 * GIB}
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


def replica(model: str, memory: int, used: float, *, busy: bool = False) -> Replica:
    made = Replica(model, "gpu", 1, memory, 0.0)
    made.state, made.used = State.READY, used
    if busy:
        execution = Execution(submit(), None, 0.0)
        execution.move(Event.START)
        made.jobs[1] = execution
    return made


def test_what_needs_nothing_fits_anywhere() -> None:
    assert fit(0, 0, 5 * GIB, []).fits
    assert fit(GIB, None, 0, []).fits


def test_headroom_and_reservations_count() -> None:
    assert fit(GIB, GIB + HEADROOM_BYTES, 0, []).fits
    assert not fit(GIB, GIB + HEADROOM_BYTES - 1, 0, []).fits
    assert not fit(GIB, GIB + HEADROOM_BYTES, 1, []).fits


def test_idle_replicas_make_room_oldest_first_and_no_more_than_needed() -> None:
    old, new = replica("old", GIB, 1.0), replica("new", GIB, 2.0)
    busy = replica("busy", 4 * GIB, 0.0, busy=True)
    room = fit(GIB, HEADROOM_BYTES, 0, [new, busy, old])
    assert room.fits
    assert room.evict == (old,)
    room = fit(3 * GIB, HEADROOM_BYTES, 0, [new, busy, old])
    assert not room.fits
    assert room.free == 2 * GIB


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

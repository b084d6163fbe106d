"""The life of a replica, and how long a crashed worker stays down."""

from __future__ import annotations

import pytest

from blip.protocol.messages import Submit
from blip_node.executions import Execution
from blip_node.replica import (
    HEALTHY_AFTER,
    LONGEST_PAUSE,
    TRANSITIONS,
    Event,
    Replica,
    State,
    pause,
)


def replica(state: State = State.LOADING, slots: int = 2) -> Replica:
    made = Replica("m", "cpu", slots, 100, 0.0)
    made.state = state
    return made


def execution(number: int) -> Execution:
    task = number.to_bytes(16, "big")
    return Execution(Submit(task, 1, "echo", "m", "cpu", 10.0, 1024, b""), None, 0.0)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_an_illegal_event_changes_nothing(state: State, event: Event) -> None:
    made = replica(state)
    target = TRANSITIONS[state].get(event)
    assert made.move(event) is (target is not None)
    assert made.state is (target or state)


def test_every_state_can_be_stopped() -> None:
    for state in State:
        if state is not State.STOPPING:
            assert TRANSITIONS[state][Event.STOP] is State.STOPPING


def test_pauses_grow_to_a_limit() -> None:
    pauses = [pause(crashes) for crashes in range(1, 20)]
    assert pauses[0] == 0.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


def test_a_worker_that_served_for_long_starts_again_at_once() -> None:
    made = replica(State.READY)
    for _ in range(3):
        last = made.crashed(1.0)
    assert last > 0
    assert made.crashed(HEALTHY_AFTER + 1) == 0.0


def test_slots_bound_what_starts() -> None:
    made = replica(State.READY)
    attempts = [execution(number) for number in range(4)]
    made.waiting.extend(attempts)
    assert made.startable() == attempts[:2]
    made.jobs = dict(enumerate(attempts[:2]))
    assert made.startable() == []
    del made.jobs[0]
    assert made.startable() == attempts[2:3]


def test_nothing_starts_before_it_is_loaded() -> None:
    made = replica(State.LOADING)
    made.waiting.append(execution(1))
    assert made.startable() == []
    assert not made.idle


def test_idle_means_that_nobody_would_notice() -> None:
    made = replica(State.READY)
    assert made.idle
    made.waiting.append(execution(1))
    assert not made.idle


def test_the_advert_tells_loading_from_ready() -> None:
    made = replica(State.LOADING)
    made.progress = 0.5
    assert made.advert(2.0)[2:10] == ("loading", 2, 0, 0, 100, 0.5, 2.0, "")
    made.state = State.BACKOFF
    assert made.advert(2.0).state == "loading"
    made.state, made.load_seconds = State.READY, 1.5
    assert made.advert(9.0).load_seconds == 1.5
    assert made.advert(9.0).progress == 1.0

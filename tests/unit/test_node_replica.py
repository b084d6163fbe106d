"""The life of a replica, and how long a crashed worker stays down."""

from __future__ import annotations

import pytest

from blip.errors import ModelLoadFailed
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


def retried(number: int) -> Execution:
    made = execution(number)
    made.retried = True
    return made


def test_what_ran_out_of_memory_runs_alone() -> None:
    made = replica(State.READY, slots=4)
    again, *others = retried(0), execution(1), execution(2)
    made.jobs = {7: others[0]}
    made.waiting.extend([again, others[1]])
    assert made.startable() == [], "it waits for those beside it, and holds up those behind it"
    made.jobs = {}
    assert made.startable() == [again]
    made.jobs = {8: again}
    assert made.startable() == []
    made.jobs = {}
    assert made.startable() == [others[1]]


def test_those_before_it_start_without_it() -> None:
    made = replica(State.READY, slots=4)
    first, again = execution(0), retried(1)
    made.waiting.extend([first, again])
    assert made.startable() == [first]
    assert list(made.waiting) == [again]


def test_nothing_starts_while_memory_is_waited_for() -> None:
    made = replica(State.READY)
    made.waits_for = [replica(State.STOPPING)]
    made.waiting.append(execution(1))
    assert made.startable() == []


def test_an_idle_replica_is_unloaded_after_its_keep_alive_unless_it_is_pinned() -> None:
    made = replica(State.READY)
    made.used = 100.0
    assert made.unload_in(1e9) is None
    made.keep_alive = 30.0
    assert made.unload_in(110.0) == 20.0
    assert made.unload_in(131.0) == 0.0
    told = made.advert(110.0)
    assert (told.pinned, told.idle, told.unload_in) == (False, 10.0, 20.0)
    made.jobs[1] = execution(1)
    assert (made.idle_for(500.0), made.unload_in(500.0)) == (0.0, 30.0)
    made.jobs.clear()
    made.pinned = True
    assert made.idle
    assert not made.evictable
    told = made.advert(500.0)
    assert (told.pinned, told.idle, told.unload_in) == (True, 400.0, None)


def test_a_replica_that_leaves_looks_like_one_that_stops() -> None:
    made = replica(State.READY)
    made.leaving = True
    assert made.advert(0.0).state == "stopping"
    made.state, made.failure = State.FAILED, ModelLoadFailed("no such file")
    assert made.advert(0.0)[2] == "failed"
    assert made.advert(0.0).error == "no such file"

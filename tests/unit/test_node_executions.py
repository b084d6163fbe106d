"""Attempts on a node: one terminal message each, and tombstones that outlive them."""

from __future__ import annotations

import pytest

from blip.protocol.messages import Running, Submit
from blip_node.executions import (
    TOMBSTONE_SECONDS,
    TRANSITIONS,
    Event,
    Execution,
    Executions,
    State,
)

TASK = b"t" * 16


def submit(attempt: int = 1, task: bytes = TASK, expires_in: float = 10.0) -> Submit:
    return Submit(task, attempt, "echo", "echo", "cpu", expires_in, 1024, b"{}")


def test_the_table_covers_every_state_and_ends() -> None:
    assert set(TRANSITIONS) == set(State)
    assert TRANSITIONS[State.ENDED] == {}
    for row in TRANSITIONS.values():
        assert all(isinstance(target, State) for target in row.values())


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_an_illegal_event_changes_nothing(state: State, event: Event) -> None:
    execution = Execution(submit(), "peer", 0.0)
    execution.state = state
    target = TRANSITIONS[state].get(event)
    assert execution.move(event) is (target is not None)
    assert execution.state is (target or state)


def test_an_attempt_ends_once() -> None:
    executions = Executions()
    execution = Execution(submit(), "peer", 0.0)
    executions.add(execution)
    assert executions.running() == [Running(TASK, 1, begun=False)]
    assert execution.move(Event.START)
    assert executions.running() == [Running(TASK, 1, begun=True)]
    assert executions.end(execution, 1.0)
    assert not executions.end(execution, 1.0)
    assert len(executions) == 0
    assert executions.buried(TASK, 1)
    assert not executions.buried(TASK, 2)


def test_a_tombstone_crumbles() -> None:
    executions = Executions()
    executions.bury(TASK, 1, 0.0)
    executions.bury(TASK, 2, TOMBSTONE_SECONDS - 1)
    assert executions.buried(TASK, 1)
    executions.bury(TASK, 3, TOMBSTONE_SECONDS + 1)
    assert not executions.buried(TASK, 1)
    assert executions.buried(TASK, 2)


def test_lookups() -> None:
    executions = Executions()
    one, two = Execution(submit(), "a", 0.0), Execution(submit(2, b"u" * 16), "b", 0.0)
    executions.add(one)
    executions.add(two)
    assert executions.get(TASK, 1) is one
    assert executions.get(TASK, 2) is None
    assert executions.current(b"u" * 16) is two
    assert executions.of("b") == [two]


def test_only_what_still_waits_expires() -> None:
    executions = Executions()
    waits = Execution(submit(expires_in=1.0), "a", 0.0)
    runs = Execution(submit(1, b"u" * 16, expires_in=1.0), "a", 0.0)
    executions.add(waits)
    executions.add(runs)
    assert runs.move(Event.START)
    assert executions.expired(0.5) == []
    assert executions.expired(1.0) == [waits]

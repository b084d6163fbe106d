"""Where a device stands: faults, canaries, owners, operators; and that it is never fooled."""

from __future__ import annotations

import itertools
from datetime import datetime
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from blip_node.capacity.device import DeviceEvent, DeviceInfo, DeviceSample, Reading
from blip_node.capacity.neighbour import QUIET_FOR, Limits, Neighbour, Policy, Use
from blip_node.standing import (
    ADVERTISED,
    CALM,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    TRANSITIONS,
    Event,
    Facts,
    Standing,
    State,
    Todo,
)

INFO = DeviceInfo("gpu", 0, "nvidia", "x")
NOON = datetime(2026, 1, 5, 12, 0)
GIB = 2**30


class Device:
    """A device whose agent looks every half second."""

    def __init__(self, policy: Policy = Policy.POLITE, cordoned: str | None = None) -> None:
        self.standing = Standing("gpu", Neighbour(policy, Limits(GIB, 0.25)), cordoned)
        self.now = 1000.0
        self.events: tuple[DeviceEvent, ...] = ()
        self.lost = False
        self.foreign = 0
        self.attempts = 0
        self.model = True

    def now_at(self) -> State:
        return self.standing.state

    def look(self) -> list[Todo]:
        sample = DeviceSample("gpu", self.now, lost=self.lost)
        facts = Facts(
            Reading(INFO, sample, 0.0, self.events), Use(self.foreign), self.attempts, self.model
        )
        todo = self.standing.step(facts, self.now, NOON)
        self.now += 0.5
        return todo

    def wait(self, seconds: float) -> list[Todo]:
        return [todo for _ in range(int(2 * seconds)) for todo in self.look()]

    def xid(self) -> None:
        self.events = (DeviceEvent("gpu", self.now, 79, "Xid 79.", True),)

    def order(self, event: Event, wish: str = "") -> list[Todo]:
        return self.standing.order(event, self.now, wish)


def at(state: State, **facts: Any) -> Device:
    """A device in a state, by the way that leads there."""
    device = Device(**facts)
    device.look()
    if state is State.YIELDING:
        device.foreign = GIB
        device.look()
    elif state is State.DRAINING:
        device.attempts = 1
        device.order(Event.DRAIN)
    elif state is State.CORDONED:
        device.order(Event.CORDON)
    elif state in (State.FAULTED, State.PROBING):
        device.xid()
        device.look()
        if state is State.PROBING:
            assert device.wait(FIRST_PAUSE + 1) == [Todo.PROBE]
    assert device.now_at() is state
    return device


def test_the_tables_are_whole() -> None:
    assert set(TRANSITIONS) == set(ADVERTISED) == set(State)
    assert set(ADVERTISED.values()) == {"ready", "yielding", "draining", "cordoned"}
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)


@pytest.mark.parametrize("state", list(State))
def test_only_a_ready_device_takes_anything_and_others_say_why(state: State) -> None:
    standing = at(state).standing
    assert (standing.refusal == "") is (state is State.READY)
    assert standing.word == ADVERTISED[state]
    assert (standing.reason == "") is (state is State.READY)
    assert standing.health == (0.0 if state in (State.FAULTED, State.PROBING) else 1.0)


def test_a_fault_ends_replicas_and_a_canary_readmits() -> None:
    device = Device()
    device.xid()
    assert device.look() == [Todo.END]
    assert device.standing.refusal == (
        "device 'gpu' is cordoned: Xid 79. A canary task will try it."
    )
    assert device.wait(FIRST_PAUSE - 1) == []
    assert device.wait(1.5) == [Todo.PROBE]
    assert device.now_at() is State.PROBING
    assert device.wait(60.0) == []
    device.standing.canary("", device.now)
    assert device.now_at() is State.READY
    assert device.standing.health == 1.0
    assert device.wait(60.0) == []


def test_a_canary_waits_for_the_driver() -> None:
    device = Device()
    device.lost = True
    assert device.look() == [Todo.END]
    assert device.wait(600.0) == []
    assert device.standing.reason.endswith("once its driver answers for it.")
    device.lost = False
    assert device.look() == [Todo.PROBE]
    device.lost = True  # again, while the canary runs
    assert device.look() == [Todo.ABORT, Todo.END]
    assert device.now_at() is State.FAULTED


def test_the_pause_grows_with_each_failure() -> None:
    device = at(State.FAULTED)
    pauses = []
    for _ in range(9):
        began = device.now
        while device.look() != [Todo.PROBE]:
            pass
        pauses.append(device.now - began)
        device.standing.canary("it crashed.", device.now)
        assert device.standing.reason == (
            "Xid 79. The canary failed: it crashed. A canary task will try it."
        )
    assert pauses[0] == pytest.approx(FIRST_PAUSE, abs=1)
    for before, after in itertools.pairwise(pauses):
        assert after == pytest.approx(min(LONGEST_PAUSE, 2 * before), abs=2)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE, abs=2)


def test_a_fault_right_after_a_canary_waits_longer_and_one_much_later_does_not() -> None:
    device = at(State.PROBING)
    device.standing.canary("", device.now)
    for calm, pause in ((10.0, 2 * FIRST_PAUSE), (CALM, FIRST_PAUSE)):
        assert device.wait(calm) == []
        device.xid()
        assert device.look() == [Todo.END]
        assert device.wait(pause - 1) == []
        assert device.wait(2) == [Todo.PROBE]
        device.standing.canary("", device.now)


def test_without_a_model_only_an_operator_readmits() -> None:
    device = at(State.FAULTED)
    device.model = False
    assert device.wait(3600.0) == []
    assert "only `blip uncordon` readmits it" in device.standing.reason
    assert device.order(Event.UNCORDON) == []
    assert device.now_at() is State.READY
    assert device.look() == []
    assert device.now_at() is State.READY


def test_an_operator_cannot_vouch_for_what_is_broken_now() -> None:
    device = Device()
    device.lost = True
    device.look()
    device.order(Event.UNCORDON)
    assert device.look() == [Todo.END]
    assert device.now_at() is State.FAULTED


def test_an_operators_cordon_hides_no_fault() -> None:
    device = at(State.CORDONED)
    device.attempts = 1  # it was cordoned, not drained
    device.xid()
    assert device.look() == [Todo.END]
    assert device.look() == []
    assert device.now_at() is State.CORDONED
    assert device.standing.health == 0
    device.order(Event.UNCORDON)
    assert device.look() == [Todo.END]
    assert device.now_at() is State.FAULTED
    assert device.wait(FIRST_PAUSE + 1) == [Todo.PROBE]


def test_orders_end_a_canary() -> None:
    for event, state in (
        (Event.CORDON, State.CORDONED),
        (Event.DRAIN, State.DRAINING),
        (Event.UNCORDON, State.READY),
    ):
        device = at(State.PROBING)
        assert device.order(event) == [Todo.ABORT]
        assert device.now_at() is state
        device.standing.canary("", device.now)  # too late
        assert device.now_at() is state


def test_a_drain_ends_cordoned() -> None:
    device = at(State.DRAINING)
    device.order(Event.DRAIN, "a new fan")
    assert device.wait(60.0) == []
    assert device.standing.refusal == (
        "device 'gpu' is draining: It finishes what runs, by an operator's order: a new fan."
    )
    device.attempts = 0
    assert device.look() == [Todo.FREE]
    assert device.now_at() is State.CORDONED
    assert device.standing.reason == "Cordoned by an operator: a new fan."
    device.order(Event.UNCORDON)
    assert device.look() == []
    assert device.now_at() is State.READY


def test_a_cordon_is_continued_after_a_restart() -> None:
    device = Device(cordoned="a new fan")
    device.wait(3600.0)
    assert device.standing.reason == "Cordoned by an operator: a new fan."
    assert device.standing.ordered


def test_it_yields_to_its_owner_and_comes_back() -> None:
    device = at(State.YIELDING)
    device.attempts = 1  # polite: what runs goes on
    assert set(device.wait(5.0)) == {Todo.FREE}
    device.foreign = 0
    assert set(device.wait(QUIET_FOR - 0.5)) == {Todo.FREE}
    assert device.wait(2.0) == []
    assert device.now_at() is State.READY


def test_strict_stops_what_runs() -> None:
    device = Device(Policy.STRICT)
    device.attempts = 2
    device.foreign = GIB
    assert device.look() == [Todo.END]
    device.attempts = 0
    assert device.look() == [Todo.FREE]


def test_no_canary_while_its_owner_uses_it() -> None:
    device = at(State.FAULTED)
    device.foreign = GIB
    assert device.wait(FIRST_PAUSE * 3) == []
    device.foreign = 0
    assert device.wait(QUIET_FOR + 1) == [Todo.PROBE]


@settings(max_examples=60, stateful_step_count=40, deadline=None)
class Machine(RuleBasedStateMachine):
    """Anything may happen in any order; see the invariants."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Device(Policy.STRICT)
        self.running = False  # a canary

    def act(self, todos: list[Todo]) -> None:
        for todo in todos:
            if todo is Todo.END:
                self.device.attempts = 0
            elif todo is Todo.PROBE:
                assert not self.running
                self.running = True
            elif todo is Todo.ABORT:
                assert self.running
                self.running = False

    @rule(seconds=st.sampled_from([0.5, 2.0, 15.0, 60.0]))
    def wait(self, seconds: float) -> None:
        for _ in range(int(2 * seconds)):
            if self.device.now_at() is State.READY:
                self.device.attempts += 1
            self.act(self.device.look())

    @rule()
    def finish(self) -> None:
        self.device.attempts = max(0, self.device.attempts - 1)

    @rule()
    def xid(self) -> None:
        self.device.xid()

    @rule(lost=st.booleans())
    def lose(self, lost: bool) -> None:
        self.device.lost = lost

    @rule(model=st.booleans())
    def models(self, model: bool) -> None:
        self.device.model = model

    @rule(foreign=st.sampled_from([0, 2 * GIB]))
    def use(self, foreign: int) -> None:
        self.device.foreign = foreign

    @rule(event=st.sampled_from([Event.CORDON, Event.UNCORDON, Event.DRAIN]))
    def order(self, event: Event) -> None:
        self.act(self.device.order(event))
        assert self.device.standing.ordered is (event is not Event.UNCORDON)

    @rule(error=st.sampled_from(["", "it crashed"]))
    def canary(self, error: str) -> None:
        if self.running:
            self.running = False
            self.device.standing.canary(error, self.device.now)

    @invariant()
    def a_canary_runs_exactly_while_probing(self) -> None:
        assert self.running is (self.device.now_at() is State.PROBING)

    @invariant()
    def a_lost_device_takes_nothing_once_looked_at(self) -> None:
        if self.device.lost:
            self.act(self.device.look())
            assert self.device.now_at() is not State.READY
            assert self.device.attempts == 0

    @invariant()
    def what_is_not_ready_says_why(self) -> None:
        standing = self.device.standing
        assert bool(standing.refusal) is (standing.state is not State.READY)
        assert standing.state is State.READY or standing.reason


TestMachine = Machine.TestCase

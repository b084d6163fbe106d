from __future__ import annotations

import signal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blip.cli.supervision import (
    BACKOFF_LIMIT,
    STEADY_AFTER,
    TRANSITIONS,
    Event,
    Finish,
    Instruction,
    Role,
    Say,
    Signal,
    Spawn,
    State,
    Supervisor,
)

GATEWAY = Role("gateway", ("gw",), rank=0, grace=30)
NODE_1 = Role("node-1", ("n1",), rank=1, grace=20)
NODE_2 = Role("node-2", ("n2",), rank=1, grace=20)
BROKER = Role("broker", ("b",), rank=2, grace=5)
ROLES = (GATEWAY, NODE_1, NODE_2, BROKER)


def running(*, ready: bool = True) -> Supervisor:
    supervisor = Supervisor(ROLES)
    supervisor.start(0)
    if ready:
        supervisor.ready()
    return supervisor


def spawned(steps: list[Instruction]) -> list[str]:
    return [step.role.name for step in steps if isinstance(step, Spawn)]


def signalled(steps: list[Instruction]) -> list[tuple[str, signal.Signals]]:
    return [(step.role.name, step.number) for step in steps if isinstance(step, Signal)]


def said(steps: list[Instruction]) -> str:
    return "\n".join(step.text for step in steps if isinstance(step, Say))


def test_starts_everything_the_last_to_stop_first() -> None:
    assert spawned(Supervisor(ROLES).start(0)) == ["broker", "node-1", "node-2", "gateway"]


def test_a_role_that_dies_comes_back_later_and_later() -> None:
    supervisor = running()
    now, waits = 1.0, []
    for _ in range(9):
        steps = supervisor.exited("node-1", 1, now)
        due = supervisor.deadline()
        assert due is not None
        waits.append(due - now)
        assert f"ended with code 1; starting it again in {waits[-1]:g} s" in said(steps)
        assert not spawned(supervisor.tick(due - 0.001))
        assert spawned(supervisor.tick(due)) == ["node-1"]
        now = due
    assert waits == [0.5, 1, 2, 4, 8, 16, BACKOFF_LIMIT, BACKOFF_LIMIT, BACKOFF_LIMIT]


def test_the_wait_starts_over_after_a_long_life() -> None:
    supervisor = running()
    supervisor.exited("node-1", 1, 1)
    supervisor.tick(1.5)
    supervisor.exited("node-1", 1, 1.5 + STEADY_AFTER)
    assert supervisor.deadline() == 1.5 + STEADY_AFTER + 0.5


def test_a_death_names_the_signal_and_shows_the_log() -> None:
    steps = running().exited("broker", -9, 1)
    assert "broker was ended by SIGKILL" in said(steps)
    assert [step.tail for step in steps if isinstance(step, Say)] == ["broker"]
    assert "signal 250" in said(running().exited("broker", -250, 1))


def test_stops_rank_by_rank() -> None:
    supervisor = running()
    assert signalled(supervisor.stop(10)) == [("gateway", signal.SIGTERM)]
    assert supervisor.stop(10) == []
    assert signalled(supervisor.exited("gateway", 0, 11)) == [
        ("node-1", signal.SIGTERM),
        ("node-2", signal.SIGTERM),
    ]
    assert supervisor.exited("node-2", 0, 12) == []
    assert signalled(supervisor.exited("node-1", 0, 12)) == [("broker", signal.SIGTERM)]
    assert supervisor.exited("broker", 0, 13) == [Finish(0)]
    assert supervisor.deadline() is None


def test_who_does_not_stop_in_time_is_killed() -> None:
    supervisor = running()
    supervisor.stop(10)
    assert supervisor.deadline() == 10 + GATEWAY.grace
    steps = supervisor.tick(40)
    assert signalled(steps) == [("gateway", signal.SIGKILL)]
    assert "gateway did not stop in 30 s" in said(steps)
    assert signalled(supervisor.exited("gateway", -9, 41))[0] == ("node-1", signal.SIGTERM)


def test_force_kills_all_that_run() -> None:
    supervisor = running()
    supervisor.exited("node-2", 1, 1)
    supervisor.stop(2)
    assert sorted(signalled(supervisor.force(3))) == [
        ("broker", signal.SIGKILL),
        ("gateway", signal.SIGKILL),
        ("node-1", signal.SIGKILL),
    ]
    assert supervisor.state("node-2") is State.ENDED
    for name in ("broker", "gateway"):
        assert supervisor.exited(name, -9, 4) == []
    assert supervisor.exited("node-1", -9, 4) == [Finish(0)]


def test_nothing_comes_back_while_stopping() -> None:
    supervisor = running()
    supervisor.exited("broker", 1, 1)
    supervisor.stop(1.2)
    assert supervisor.state("broker") is State.ENDED
    # one that was not asked yet may die too
    assert not spawned(supervisor.exited("node-1", 1, 1.3))
    assert supervisor.state("node-1") is State.ENDED
    assert not spawned(supervisor.tick(100))


def test_wrong_settings_end_the_start_at_once() -> None:
    supervisor = running(ready=False)
    steps = supervisor.exited("gateway", 2, 1)
    assert "gateway ended with code 2 before the mesh was up" in said(steps)
    assert signalled(steps) == [("node-1", signal.SIGTERM), ("node-2", signal.SIGTERM)]
    supervisor.exited("node-1", 0, 2)
    supervisor.exited("node-2", 0, 2)
    assert supervisor.exited("broker", 0, 2) == [Finish(1)]


def test_a_start_that_keeps_failing_is_given_up() -> None:
    supervisor = running(ready=False)
    now = 0.0
    for _ in range(2):
        steps = supervisor.exited("node-1", 1, now)
        assert "starting it again" in said(steps)
        now = supervisor.deadline() or 0
        supervisor.tick(now)
    assert "before the mesh was up" in said(supervisor.exited("node-1", 1, now))
    assert supervisor.stopping
    assert supervisor.code == 1


def test_once_ready_nothing_is_given_up() -> None:
    supervisor = running()
    for number in range(10):
        assert "starting it again" in said(supervisor.exited("gateway", 2, number * 100))
        supervisor.tick(number * 100 + 50)


def test_the_table_has_no_way_back_from_the_end() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is State.ENDED]
    assert set(TRANSITIONS.values()) | {State.IDLE} == set(State)
    assert {event for _, event in TRANSITIONS} == set(Event)


@pytest.mark.parametrize("stop_first", [True, False])
def test_an_empty_machine_finishes(stop_first: bool) -> None:
    supervisor = Supervisor(())
    assert (supervisor.stop(0) if stop_first else supervisor.force(0)) == [Finish(0)]


class Life(RuleBasedStateMachine):
    """Whatever happens: at most one process a role, nothing after the end, the end comes once."""

    @initialize()
    def start(self) -> None:
        self.supervisor = Supervisor(ROLES)
        self.now = 0.0
        self.alive: set[str] = set()
        self.finished = 0
        self.carry_out(self.supervisor.start(self.now))

    def carry_out(self, steps: list[Instruction]) -> None:
        for step in steps:
            match step:
                case Spawn(role):
                    assert role.name not in self.alive
                    assert not self.supervisor.stopping
                    self.alive.add(role.name)
                case Signal(role, _):
                    assert role.name in self.alive
                case Finish():
                    self.finished += 1

    @rule(data=st.data(), code=st.sampled_from([0, 1, 2, -9, -11]))
    @precondition(lambda self: self.alive)
    def exits(self, data: st.DataObject, code: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.discard(name)
        self.carry_out(self.supervisor.exited(name, code, self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 40.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.supervisor.tick(self.now))

    @rule()
    def ready(self) -> None:
        self.supervisor.ready()

    @rule()
    def stop(self) -> None:
        self.carry_out(self.supervisor.stop(self.now))

    @rule()
    def force(self) -> None:
        self.carry_out(self.supervisor.force(self.now))

    @invariant()
    def finishes_once_and_only_when_all_have_ended(self) -> None:
        states = [self.supervisor.state(role.name) for role in ROLES]
        ended = all(state is State.ENDED for state in states)
        assert self.finished == int(ended)
        if ended:
            assert not self.alive
            assert self.supervisor.deadline() is None

    @invariant()
    def nothing_waits_for_ever(self) -> None:
        for role in ROLES:
            state = self.supervisor.state(role.name)
            if state in (State.RUNNING, State.STOPPING, State.KILLED):
                assert role.name in self.alive
            if state in (State.WAITING, State.STOPPING):
                assert self.supervisor.deadline() is not None

    def teardown(self) -> None:
        # from any state, force and the exits that follow lead to the end
        self.carry_out(self.supervisor.force(self.now))
        for name in sorted(self.alive):
            self.alive.discard(name)
            self.carry_out(self.supervisor.exited(name, -9, self.now))
        assert self.finished == 1


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestLife = Life.TestCase

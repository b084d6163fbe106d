"""Keeps the roles of one machine running: what to do when, without doing it.

Events go in (a child ended, time passed, the user pressed Ctrl-C), instructions come out (start
this one, signal that one, say so). :mod:`blip.cli.up` carries them out. Times are seconds on any
clock that only goes forward.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

#: First wait before a role is started again; doubled with every further death.
BACKOFF_FIRST = 0.5
#: Longest wait. A role that dies for half an hour is tried about 60 times: cheap, and it heals.
BACKOFF_LIMIT = 30.0
#: A role that ran this long has recovered: its next death counts as the first.
STEADY_AFTER = 60.0
#: Deaths of a role before the mesh was ever ready, after which it is a mistake, not an accident.
FAILURES_AT_START = 3
#: Exit code of a role that cannot run as configured (the CLI's code for wrong usage).
EXIT_USAGE = 2


@dataclass(frozen=True, slots=True)
class Role:
    """One child process. ``rank`` orders the way down (the lowest stops first), ``grace`` is the
    time in seconds between SIGTERM and SIGKILL.
    """

    name: str
    argv: tuple[str, ...]
    rank: int
    grace: float


class State(enum.Enum):
    """Where a role is in its life."""

    IDLE = "idle"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPING = "stopping"
    KILLED = "killed"
    ENDED = "ended"


class Event(enum.Enum):
    """What can happen to a role."""

    START = "start"
    EXITED = "exited"
    GIVEN_UP = "given up"
    DUE = "due"
    STOP = "stop"
    FORCE = "force"


#: Every transition there is. A pair that is not here changes nothing.
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.IDLE, Event.START): State.RUNNING,
    (State.IDLE, Event.STOP): State.ENDED,
    (State.IDLE, Event.FORCE): State.ENDED,
    (State.RUNNING, Event.EXITED): State.WAITING,
    (State.RUNNING, Event.STOP): State.STOPPING,
    (State.RUNNING, Event.FORCE): State.KILLED,
    (State.WAITING, Event.DUE): State.RUNNING,
    (State.WAITING, Event.GIVEN_UP): State.ENDED,
    (State.WAITING, Event.STOP): State.ENDED,
    (State.WAITING, Event.FORCE): State.ENDED,
    (State.STOPPING, Event.EXITED): State.ENDED,
    (State.STOPPING, Event.DUE): State.KILLED,
    (State.STOPPING, Event.FORCE): State.KILLED,
    (State.KILLED, Event.EXITED): State.ENDED,
}


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start this role's process."""

    role: Role


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to the role: SIGTERM to its process, SIGKILL to its whole group."""

    role: Role
    number: signal.Signals


@dataclass(frozen=True, slots=True)
class Say:
    """Tell the user. ``tail``: show the last lines of that role's log as well."""

    text: str
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Finish:
    """All roles have ended; the supervisor ends with this code."""

    code: int


Instruction = Spawn | Signal | Say | Finish

#: What entering a state makes the adapter do.
_SIGNALS = {State.STOPPING: signal.SIGTERM, State.KILLED: signal.SIGKILL}


@dataclass(slots=True)
class _Child:
    role: Role
    state: State = State.IDLE
    started: float = 0.0
    deaths: int = 0
    #: When DUE comes: the end of a back-off, or of the grace period.
    due: float | None = None


@dataclass(slots=True)
class Supervisor:
    """All roles of this machine. Call its methods; carry out what they return, in order."""

    roles: Sequence[Role]
    #: Set once the mesh has answered; from then on no role is ever given up.
    was_ready: bool = False
    stopping: bool = False
    code: int = 0
    _children: dict[str, _Child] = field(init=False)
    _finished: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._children = {role.name: _Child(role) for role in self.roles}

    def state(self, name: str) -> State:
        """Return the state of a role."""
        return self._children[name].state

    def start(self, now: float) -> list[Instruction]:
        """Start every role, the last to stop first."""
        children = sorted(self._children.values(), key=lambda child: -child.role.rank)
        return [step for child in children for step in self._apply(child, Event.START, now)]

    def ready(self) -> None:
        """Note that the mesh has answered."""
        self.was_ready = True

    def exited(self, name: str, code: int, now: float) -> list[Instruction]:
        """A role's process has ended; ``code`` is negative for a signal."""
        child = self._children[name]
        expected = child.state in (State.STOPPING, State.KILLED)
        if now - child.started >= STEADY_AFTER:
            child.deaths = 0
        steps = self._apply(child, Event.EXITED, now)
        if not expected:
            child.deaths += 1
            steps += self._after_death(child, code, now)
        return steps + (self._next_rank(now) if self.stopping else [])

    def stop(self, now: float) -> list[Instruction]:
        """Drain: end the roles rank by rank, each within its grace."""
        if self.stopping:
            return []
        self.stopping = True
        waiting = (c for c in self._children.values() if c.state in (State.IDLE, State.WAITING))
        steps = [step for child in waiting for step in self._apply(child, Event.STOP, now)]
        return steps + self._next_rank(now)

    def force(self, now: float) -> list[Instruction]:
        """End everything at once."""
        self.stopping = True
        steps = self._apply_all(self._children.values(), Event.FORCE, now)
        return steps + self._next_rank(now)

    def tick(self, now: float) -> list[Instruction]:
        """Do what has become due."""
        due = [c for c in self._children.values() if c.due is not None and c.due <= now]
        steps: list[Instruction] = []
        for child in due:
            if child.state is State.STOPPING:
                steps.append(Say(f"{child.role.name} did not stop in {child.role.grace:g} s"))
            steps += self._apply(child, Event.DUE, now)
        return steps

    def deadline(self) -> float | None:
        """When :meth:`tick` is needed next; None for never."""
        return min((c.due for c in self._children.values() if c.due is not None), default=None)

    def _after_death(self, child: _Child, code: int, now: float) -> list[Instruction]:
        name = child.role.name
        how = f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        if self.stopping:
            return self._apply(child, Event.STOP, now)
        hopeless = not self.was_ready and (code == EXIT_USAGE or child.deaths >= FAILURES_AT_START)
        if hopeless:
            self.code = 1
            steps: list[Instruction] = [Say(f"{name} {how} before the mesh was up", tail=name)]
            return steps + self._apply(child, Event.GIVEN_UP, now) + self.stop(now)
        wait = min(BACKOFF_FIRST * 2 ** (child.deaths - 1), BACKOFF_LIMIT)
        child.due = now + wait
        return [Say(f"{name} {how}; starting it again in {wait:g} s", tail=name)]

    def _next_rank(self, now: float) -> list[Instruction]:
        """Stop the lowest rank that still runs; finish when none does."""
        alive = [c for c in self._children.values() if c.state is not State.ENDED]
        if not alive:
            steps: list[Instruction] = [] if self._finished else [Finish(self.code)]
            self._finished = True
            return steps
        rank = min(child.role.rank for child in alive)
        return self._apply_all([c for c in alive if c.role.rank == rank], Event.STOP, now)

    def _apply_all(self, children: Iterable[_Child], event: Event, now: float) -> list[Instruction]:
        return [step for child in children for step in self._apply(child, event, now)]

    def _apply(self, child: _Child, event: Event, now: float) -> list[Instruction]:
        after = TRANSITIONS.get((child.state, event))
        if after is None:
            return []
        child.state = after
        child.due = now + child.role.grace if after is State.STOPPING else None
        if after is State.RUNNING:
            child.started = now
            return [Spawn(child.role)]
        number = _SIGNALS.get(after)
        return [Signal(child.role, number)] if number is not None else []


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

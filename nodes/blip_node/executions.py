"""Attempts on this node, from SUBMIT to their one terminal message. Pure.

    WAITING -> RUNNING -> ENDED
       |          |
       +----------+-> STOPPING -> ENDED

WAITING is for a slot or for the model to load; STOPPING is a worker that has been asked to stop.
A tombstone outlives every attempt for a while, so that a CANCEL which overtakes its SUBMIT works
and a late or superseded SUBMIT is refused.
"""

from __future__ import annotations

import collections
from enum import Enum
from typing import Any

from blip.protocol.messages import Payload, Running, Submit


class State(Enum):
    """Where an attempt stands on its node."""

    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class Event(Enum):
    """What happens to it."""

    START = "start"  # handed to a worker
    STOP = "stop"  # cancelled, while a worker has it
    END = "end"  # its terminal message is due
    REQUEUE = "requeue"  # memory ran out before it had said anything


#: Every legal transition.
TRANSITIONS: dict[State, dict[Event, State]] = {
    State.WAITING: {Event.START: State.RUNNING, Event.END: State.ENDED},
    State.RUNNING: {
        Event.STOP: State.STOPPING,
        Event.END: State.ENDED,
        Event.REQUEUE: State.WAITING,
    },
    State.STOPPING: {Event.STOP: State.STOPPING, Event.END: State.ENDED},
    State.ENDED: {},
}

#: Long enough for a CANCEL and its SUBMIT to arrive in either order through any reconnect.
TOMBSTONE_SECONDS = 60.0


class Execution:
    """One attempt on this node."""

    __slots__ = (
        "announced",
        "attempt",
        "expires",
        "job",
        "kind",
        "loaded",
        "model",
        "part",
        "payload",
        "peer",
        "received",
        "replica",
        "retried",
        "started",
        "state",
        "task",
        "window",
    )

    def __init__(self, submit: Submit, peer: Any, now: float) -> None:
        self.task = submit.task
        self.attempt = submit.attempt
        self.kind = submit.kind
        self.model = submit.model
        self.window = submit.window
        self.payload: Payload = submit.payload
        self.peer = peer
        self.received = now
        self.expires = now + submit.expires_in
        self.state = State.WAITING
        #: When its model was loaded, if it had to wait for that; when a worker began on it.
        self.loaded: float | None = None
        self.started: float | None = None
        self.part = 0
        #: Whether its gateway has been told ACCEPT, or anything that says as much.
        self.announced = False
        #: The replica it waits for or runs on, and its number in the worker.
        self.replica: Any = None
        self.job = 0
        #: Whether it was queued again because memory ran out; it then runs alone, and once.
        self.retried = False

    def move(self, event: Event) -> bool:
        """Take a transition; False, and nothing changes, where it is not legal."""
        target = TRANSITIONS[self.state].get(event)
        if target is None:
            return False
        self.state = target
        return True


class Executions:
    """Every attempt that this node holds, and who was here lately."""

    def __init__(self) -> None:
        self._held: dict[bytes, Execution] = {}
        self._buried: dict[tuple[bytes, int], float] = {}
        self._graves: collections.deque[tuple[float, tuple[bytes, int]]] = collections.deque()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, task: bytes, attempt: int) -> Execution | None:
        """Return the attempt if it is held here."""
        held = self._held.get(task)
        return held if held is not None and held.attempt == attempt else None

    def current(self, task: bytes) -> Execution | None:
        """Return whichever attempt of the task is held here."""
        return self._held.get(task)

    def buried(self, task: bytes, attempt: int) -> bool:
        """Whether this attempt has ended, or was cancelled before it came."""
        return (task, attempt) in self._buried

    def add(self, execution: Execution) -> None:
        """Hold an attempt; there is none of its task yet."""
        assert execution.task not in self._held
        self._held[execution.task] = execution

    def end(self, execution: Execution, now: float) -> bool:
        """Let an attempt go; False if it had ended before: its terminal message was sent."""
        if not execution.move(Event.END):
            return False
        del self._held[execution.task]
        self.bury(execution.task, execution.attempt, now)
        return True

    def bury(self, task: bytes, attempt: int, now: float) -> None:
        """Remember an attempt that must not begin (any more)."""
        while self._graves and self._graves[0][0] <= now:
            self._buried.pop(self._graves.popleft()[1], None)
        self._buried[task, attempt] = now
        self._graves.append((now + TOMBSTONE_SECONDS, (task, attempt)))

    def of(self, peer: Any) -> list[Execution]:
        """Every attempt that this peer submitted."""
        return [held for held in self._held.values() if held.peer is peer]

    def on(self, device: str) -> list[Execution]:
        """Every attempt that waits or runs on a device."""
        return [
            held
            for held in self._held.values()
            if held.replica is not None and held.replica.device == device
        ]

    def expired(self, now: float) -> list[Execution]:
        """Every attempt that still waits although its task's deadline has passed."""
        return [
            held
            for held in self._held.values()
            if held.state is State.WAITING and held.expires <= now
        ]

    def running(self) -> list[Running]:
        """List what is held, for the advert."""
        return [
            Running(held.task, held.attempt, held.state is not State.WAITING)
            for held in self._held.values()
        ]

"""A replica: one model on one device, in one worker, or about to be. Pure.

LOADING -LOADED-> READY -STOP-> STOPPING -GONE-> (removed)
   |                |
   +---- GONE ------+-> BACKOFF -RETRY-> LOADING
   |
   +---- BROKEN ------> FAILED (its reason is advertised; a later task tries again)
"""

from __future__ import annotations

import collections
from enum import Enum
from typing import Any

from blip.protocol import messages
from blip_node.executions import Execution


class State(Enum):
    """Where a replica stands; the values are what adverts say."""

    LOADING = "loading"
    READY = "ready"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    FAILED = "failed"


class Event(Enum):
    """What happens to it."""

    LOADED = "loaded"
    BROKEN = "broken"  # the worker said why it cannot load
    GONE = "gone"  # the worker's process ended
    RETRY = "retry"
    STOP = "stop"


#: Every legal transition; what is missing leaves the state as it is.
TRANSITIONS: dict[State, dict[Event, State]] = {
    State.LOADING: {
        Event.LOADED: State.READY,
        Event.BROKEN: State.FAILED,
        Event.GONE: State.BACKOFF,
        Event.STOP: State.STOPPING,
    },
    State.READY: {Event.GONE: State.BACKOFF, Event.STOP: State.STOPPING},
    State.BACKOFF: {Event.RETRY: State.LOADING, Event.STOP: State.STOPPING},
    State.STOPPING: {Event.GONE: State.STOPPING},
    State.FAILED: {Event.GONE: State.FAILED, Event.STOP: State.STOPPING},
}

#: First and longest pause before a crashed worker is started again, in seconds. The first crash
#: is usually one task's fault, so the first restart is immediate.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0

#: A worker that served this long has recovered: the next crash counts as the first again.
HEALTHY_AFTER = 300.0

#: Crashes in a row after which the model is declared broken on this node for a while.
MAX_CRASHES = 5


def pause(crashes: int) -> float:
    """Seconds to wait before the start that follows this many crashes in a row."""
    if crashes <= 1:
        return 0.0
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (crashes - 2))


class Replica:
    """One model on one device. ``worker`` is the supervisor's handle, None while there is none."""

    def __init__(self, model: str, device: str, slots: int, memory: int, now: float) -> None:
        self.model = model
        self.device = device
        self.slots = slots
        #: Bytes it is expected to take until it is loaded, then what it does take.
        self.memory = memory
        self.state = State.LOADING
        self.worker: Any = None
        #: Attempts that wait for a slot or for loading, and those at the worker, by job number.
        self.waiting: collections.deque[Execution] = collections.deque()
        self.jobs: dict[int, Execution] = {}
        self.began = now
        self.used = now
        self.progress = 0.0
        self.load_seconds = 0.0
        self.crashes = 0
        self.error = ""

    @property
    def idle(self) -> bool:
        """Whether it could be evicted without anyone noticing."""
        return self.state is State.READY and not self.jobs and not self.waiting

    def move(self, event: Event) -> bool:
        """Take a transition; False, and nothing changes, where it is not legal."""
        target = TRANSITIONS[self.state].get(event)
        if target is None:
            return False
        self.state = target
        return True

    def crashed(self, now: float) -> float:
        """Account for a worker that ended by itself; return the pause before the next start."""
        if self.state is State.READY and now - self.began > HEALTHY_AFTER:
            self.crashes = 0
        self.crashes += 1
        return pause(self.crashes)

    def startable(self) -> list[Execution]:
        """Take from the queue what a free slot can run now."""
        out: list[Execution] = []
        while self.state is State.READY and self.waiting and len(self.jobs) + len(out) < self.slots:
            out.append(self.waiting.popleft())
        return out

    def advert(self, now: float) -> messages.Replica:
        """Describe it for an advert."""
        state = State.LOADING if self.state is State.BACKOFF else self.state
        return messages.Replica(
            self.model,
            self.device,
            state.value,
            self.slots,
            len(self.jobs),
            len(self.waiting),
            self.memory,
            1.0 if self.state is State.READY else self.progress,
            now - self.began if state is State.LOADING else self.load_seconds,
            self.error,
        )

"""A replica: one model on one device, in one worker, or about to be. Pure.

LOADING -LOADED-> READY -STOP-> STOPPING -GONE-> (removed)
   |                |
   +---- GONE ------+-> BACKOFF -RETRY-> LOADING
   |
   +---- BROKEN ------> FAILED (its reason is advertised; a later task tries again)

GONE in LOADING is a crash, or the end of a worker whose load ran out of memory and is tried again.
"""

from __future__ import annotations

import collections
from enum import Enum
from typing import Any

from blip.errors import BlipError
from blip.protocol import messages
from blip_node.executions import Execution


class State(Enum):
    """Where a replica stands; the values are what adverts say."""

    LOADING = "loading"
    READY = "ready"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    FAILED = "failed"


#: Not loaded yet, but its memory is promised to it.
LOADING = (State.LOADING, State.BACKOFF)


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
        #: Bytes read from disk to load it again.
        self.load_bytes = 0
        #: Never evicted; the seconds without work after which it is unloaded, None for never.
        self.pinned = False
        self.keep_alive: float | None = None
        #: Takes nothing new and is unloaded once it has done what it was given.
        self.leaving = False
        #: Whether it was ever given work, and the most memory its worker was seen to take.
        self.served = False
        self.peak = 0
        #: Replicas that must be gone before it may start, or go on: their memory is needed.
        self.waits_for: list[Replica] = []
        #: Whether its worker is being ended to load once more, and whether that was done.
        self.again = False
        self.retried = False
        #: Bytes that were free when it began to load; None where nobody tells.
        self.had: int | None = None
        #: Why its load failed, and until when that is taken as final for this device.
        self.failure: BlipError | None = None
        self.retry_at = 0.0

    @property
    def error(self) -> str:
        """Why its load failed, as a sentence."""
        return self.failure.message if self.failure is not None else ""

    @property
    def idle(self) -> bool:
        """Whether it could be unloaded without anyone noticing."""
        return self.state is State.READY and not self.jobs and not self.waiting

    @property
    def evictable(self) -> bool:
        """Whether its memory may be taken for others."""
        return self.idle and not self.pinned

    @property
    def going(self) -> bool:
        """Whether its worker is being ended for good, and its memory is about to be free."""
        failed = self.state is State.FAILED and self.worker is not None
        return failed or self.state is State.STOPPING

    def idle_for(self, now: float) -> float:
        """Seconds since it last had work; 0 while it has some, or is not loaded."""
        return max(0.0, now - self.used) if self.idle else 0.0

    def unload_in(self, now: float) -> float | None:
        """Seconds until it is unloaded for want of work; None if that will not happen."""
        if self.keep_alive is None or self.pinned or self.state is not State.READY:
            return None
        return max(0.0, self.keep_alive - self.idle_for(now))

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
        """Take from the queue what a free slot can run now.

        What ran out of memory once runs alone the second time.
        """
        out: list[Execution] = []
        if (
            self.state is not State.READY
            or self.waits_for
            or any(job.retried for job in self.jobs.values())
        ):
            return out
        while self.waiting and len(self.jobs) + len(out) < self.slots:
            alone = self.waiting[0].retried
            if alone and (self.jobs or out):
                break
            out.append(self.waiting.popleft())
            if alone:
                break
        return out

    def advert(self, now: float) -> messages.Replica:
        """Describe it for an advert."""
        state = State.LOADING if self.state is State.BACKOFF else self.state
        if self.leaving and state is not State.FAILED:
            state = State.STOPPING  # to others: it takes nothing new
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
            self.pinned,
            self.idle_for(now),
            self.unload_in(now),
        )

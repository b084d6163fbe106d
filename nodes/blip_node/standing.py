"""Where a device stands: whether it takes tasks, and who decides when it does again. Pure.

              +------ QUIET ------+
              v                   |
    +----- READY --- OWNER --> YIELDING
    |         |  \\________________/ |
    |       DRAIN      CORDON     FAULT
    |         v           v         v
    |     DRAINING --> CORDONED  FAULTED <-- FAIL -- PROBING
    |         |           |         |                 ^  |
    +-UNCORDON+-----------+---------+------ PROBE ----+ PASS (to READY)

An operator cordons and drains, and only an operator takes that back. A fault cordons too, and a
canary task takes that back: a small real one, tried after a pause. CORDONED says that it was the
operator; to the mesh a device of a fault is cordoned as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from blip_node.capacity.device import Reading
from blip_node.capacity.health import HEALTHY, Health
from blip_node.capacity.neighbour import Neighbour, Policy, Use


class State(Enum):
    """Where a device stands. Only READY takes anything new."""

    READY = "ready"
    YIELDING = "yielding"  # to its owner
    DRAINING = "draining"  # finishes what runs; then CORDONED
    CORDONED = "cordoned"  # by an operator, until an operator says otherwise
    FAULTED = "faulted"  # cordoned by a fault, until a canary passes
    PROBING = "probing"  # the canary is under way


class Event(Enum):
    """What happens to it."""

    FAULT = "fault"  # its health is 0
    OWNER = "owner"  # its owner is using it
    QUIET = "quiet"  # and has stopped
    CORDON = "cordon"  # an operator's orders
    UNCORDON = "uncordon"
    DRAIN = "drain"
    DRAINED = "drained"  # nothing runs there any more
    PROBE = "probe"  # the canary begins
    PASS = "pass"
    FAIL = "fail"


#: Every legal transition; what is missing leaves the state as it is. What an operator has ordered
#: outlasts faults and owners: those are looked at anew once it is taken back.
TRANSITIONS: dict[State, dict[Event, State]] = {
    State.READY: {
        Event.FAULT: State.FAULTED,
        Event.OWNER: State.YIELDING,
        Event.CORDON: State.CORDONED,
        Event.DRAIN: State.DRAINING,
    },
    State.YIELDING: {
        Event.FAULT: State.FAULTED,
        Event.QUIET: State.READY,
        Event.CORDON: State.CORDONED,
        Event.DRAIN: State.DRAINING,
    },
    State.DRAINING: {
        Event.DRAINED: State.CORDONED,
        Event.CORDON: State.CORDONED,
        Event.UNCORDON: State.READY,
    },
    State.CORDONED: {Event.UNCORDON: State.READY, Event.DRAIN: State.DRAINING},
    State.FAULTED: {
        Event.PROBE: State.PROBING,
        Event.UNCORDON: State.READY,
        Event.CORDON: State.CORDONED,
        Event.DRAIN: State.DRAINING,
    },
    State.PROBING: {
        Event.PASS: State.READY,
        Event.FAIL: State.FAULTED,
        Event.FAULT: State.FAULTED,
        Event.UNCORDON: State.READY,
        Event.CORDON: State.CORDONED,
        Event.DRAIN: State.DRAINING,
    },
}

#: How adverts say it: the mesh need not know who cordoned a device.
ADVERTISED: dict[State, str] = {
    State.READY: "ready",
    State.YIELDING: "yielding",
    State.DRAINING: "draining",
    State.CORDONED: "cordoned",
    State.FAULTED: "cordoned",
    State.PROBING: "cordoned",
}

#: Seconds before the first canary. A driver that resets a GPU by itself is done within a few; and
#: by then the workers that were ended are gone for certain, see ``supervisor.STOP_GRACE``.
FIRST_PAUSE = 10.0

#: The pause doubles with each canary that fails, up to this. A card that needs a person's hand
#: need not be tried more often, and one that was mended waits no longer.
LONGEST_PAUSE = 600.0

#: A device that was ready for so long has recovered: its next fault counts as the first.
CALM = 3600.0


class Todo(Enum):
    """What the node has to do about a device now."""

    #: End its replicas; their attempts fail and are placed elsewhere.
    END = "end"
    #: Unload what is idle there.
    FREE = "free"
    #: Run a canary.
    PROBE = "probe"
    #: Stop the canary: its answer does not matter any more.
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is so at the moment of a step: the device, others' use of it, and ours."""

    reading: Reading
    use: Use
    #: Attempts there, waiting or running.
    attempts: int
    #: Whether the node has a model that a canary can be run with.
    model: bool


class Standing:
    """One device. :meth:`step` it about every half second; ``cordoned`` continues an old order."""

    def __init__(self, device: str, neighbour: Neighbour, cordoned: str | None = None) -> None:
        self.device = device
        self.state = State.READY if cordoned is None else State.CORDONED
        #: Why the operator wants it so, if they said.
        self.wish = cordoned or ""
        self._neighbour = neighbour
        self._health = Health()
        self._verdict = HEALTHY
        self._owner = ""
        self._fault = ""
        self._felled = False
        self._model = True
        self._pause = FIRST_PAUSE
        self._retry = math.inf
        self._readmitted = -math.inf

    # --- what others are told ---------------------------------------------------------------

    @property
    def word(self) -> str:
        """The state as adverts say it."""
        return ADVERTISED[self.state]

    @property
    def health(self) -> float:
        """The health as adverts say it, 1 to 0."""
        if self.state in (State.FAULTED, State.PROBING):
            return 0.0
        return self._verdict.multiplier

    @property
    def reason(self) -> str:
        """Why it is not ready, or not wholly healthy, in a sentence or two; "" if it is both."""
        match self.state:
            case State.READY:
                return self._verdict.reason
            case State.YIELDING:
                return self._owner
            case State.DRAINING:
                return self._ordered("It finishes what runs, by an operator's order")
            case State.CORDONED:
                return self._ordered("Cordoned by an operator")
            case State.PROBING:
                return f"{self._fault} A canary task is trying it."
            case State.FAULTED if not self._model:
                return f"{self._fault} No model here can try it: only `blip uncordon` readmits it."
            case State.FAULTED if not self._health.answers:
                return f"{self._fault} A canary task will try it once its driver answers for it."
            case State.FAULTED:
                return f"{self._fault} A canary task will try it."

    @property
    def refusal(self) -> str:
        """Why it takes nothing new; "" if it does."""
        if self.state is State.READY:
            return ""
        return f"device '{self.device}' is {self.word}: {self.reason}"

    @property
    def ordered(self) -> bool:
        """Whether an operator has taken it out of service."""
        return self.state in (State.DRAINING, State.CORDONED)

    # --- what happens -----------------------------------------------------------------------

    def step(self, facts: Facts, now: float, local: datetime) -> list[Todo]:
        """Look at a device; return what to do, in this order. ``local`` is the time of day."""
        self._verdict = self._health.observe(facts.reading, now)
        self._owner = self._neighbour.observe(facts.use, now, local)
        self._model = facts.model
        todo: list[Todo] = []
        if self._verdict.multiplier > 0:
            self._felled = False
        elif self._fell(now, todo):
            return todo
        if self._owner and self._move(Event.OWNER):
            pass
        elif not self._owner:
            self._move(Event.QUIET)
        if self.state is State.YIELDING:
            strict = self._neighbour.policy is Policy.STRICT
            todo.append(Todo.END if strict and facts.attempts else Todo.FREE)
        elif self.state is State.DRAINING and not facts.attempts:
            self._move(Event.DRAINED)
            todo.append(Todo.FREE)
        elif self.state is State.FAULTED and self._may_probe(now):
            self._move(Event.PROBE)
            # what the canary is to judge is the past; what comes from now on is a new fault
            self._readmit(now)
            todo.append(Todo.PROBE)
        return todo

    def order(self, event: Event, now: float, wish: str = "") -> list[Todo]:
        """Take an operator's order: CORDON, UNCORDON or DRAIN."""
        was = self.state
        self.wish = wish
        if not self._move(event):
            return []
        if self.state is State.READY and was in (State.FAULTED, State.PROBING):
            self._readmit(now)  # the operator vouches for it
        return [Todo.ABORT] if was is State.PROBING else []

    def canary(self, error: str, now: float) -> None:
        """Take the end of a canary: "" if it passed, else what was wrong."""
        if not error and self._move(Event.PASS):
            self._readmitted = now
        elif error and self._move(Event.FAIL):
            self._fault = f"{self._fault.partition(' The canary failed: ')[0]}"
            self._fault += f" The canary failed: {error.rstrip('.')}."
            self._rest(now)

    def _fell(self, now: float, todo: list[Todo]) -> bool:
        """Take note that its health is 0; False if that is no news."""
        was = self.state
        if self._move(Event.FAULT):
            self._fault = self._verdict.reason
            if was is not State.PROBING and now - self._readmitted >= CALM:
                self._pause = FIRST_PAUSE
            self._rest(now)
        elif self._felled:
            return False
        self._felled = True
        todo += [Todo.ABORT, Todo.END] if was is State.PROBING else [Todo.END]
        return True

    def _rest(self, now: float) -> None:
        self._retry = now + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)

    def _may_probe(self, now: float) -> bool:
        # not while its owner has it: the canary's model would take their memory
        return now >= self._retry and self._health.answers and self._model and not self._owner

    def _readmit(self, now: float) -> None:
        self._health.readmit(now)
        self._verdict = HEALTHY
        self._felled = False

    def _ordered(self, text: str) -> str:
        return f"{text}: {self.wish.rstrip('.')}." if self.wish else f"{text}."

    def _move(self, event: Event) -> bool:
        target = TRANSITIONS[self.state].get(event)
        if target is None:
            return False
        self.state = target
        return True

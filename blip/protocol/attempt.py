"""The life of a task, as the gateway that owns it sees it.

A task is executed by attempts, one after the other, never two at once that could both deliver.
The events are what the broker, the node, the client and the clock say; :data:`TRANSITIONS` is all
that may follow. :class:`Task` decides which event something amounts to (a node lost may mean
RETRY or GIVE_UP) and returns commands; it does no I/O and never looks at a clock.

    PLACING -GRANT-> SUBMITTED -ACCEPT-> RUNNING -DONE-> SUCCEEDED
       ^                 |                  |
       +----- RETRY -----+------ RETRY -----+

A stream that has delivered something is only retried when it can resume: ``resume`` then gives
the payload that continues where the client's copy ends. Nothing is ever silently doubled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

from blip.errors import (
    BlipError,
    DeadlineExceeded,
    LocalProtocolError,
    ModelLoadFailed,
    NoCapacity,
    NodeLost,
    Overloaded,
    Unavailable,
    from_wire,
)
from blip.errors import (
    Cancelled as CancelledError,
)
from blip.protocol.credit import ReceiveWindow
from blip.protocol.messages import (
    Cancel,
    Cancelled,
    Credit,
    Data,
    Deny,
    Done,
    Fail,
    Grant,
    Message,
    Move,
    Payload,
    Place,
    Recall,
    Refuse,
    Release,
    Submit,
)


class State(Enum):
    """Where a task's current attempt stands. The last four are terminal for the client."""

    PLACING = "queued"
    SUBMITTED = "placed"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Event(Enum):
    """What can happen to the current attempt."""

    GRANT = "grant"  # the broker found a device
    ACCEPT = "accept"  # the node took it
    DATA = "data"  # a part of the result came
    RETRY = "retry"  # this attempt is over, another may follow
    GIVE_UP = "give up"  # this attempt is over and no other will follow
    DONE = "done"  # the node finished it
    CANCEL = "cancel"  # the client went away or asked
    EXPIRE = "expire"  # the task's deadline passed
    STOPPED = "stopped"  # the node confirms the cancel, ended otherwise, or cannot confirm any more


#: Every legal transition. What is missing is stale or illegal: dropped, and the state stays.
TRANSITIONS: dict[State, dict[Event, State]] = {
    State.PLACING: {
        Event.GRANT: State.SUBMITTED,
        Event.RETRY: State.PLACING,
        Event.GIVE_UP: State.FAILED,
        Event.CANCEL: State.CANCELLED,
        Event.EXPIRE: State.EXPIRED,
    },
    State.SUBMITTED: {
        Event.ACCEPT: State.RUNNING,
        Event.DATA: State.RUNNING,
        Event.DONE: State.SUCCEEDED,
        Event.RETRY: State.PLACING,
        Event.GIVE_UP: State.FAILED,
        Event.CANCEL: State.CANCELLING,
        Event.EXPIRE: State.CANCELLING,
    },
    State.RUNNING: {
        Event.ACCEPT: State.RUNNING,
        Event.DATA: State.RUNNING,
        Event.DONE: State.SUCCEEDED,
        Event.RETRY: State.PLACING,
        Event.GIVE_UP: State.FAILED,
        Event.CANCEL: State.CANCELLING,
        Event.EXPIRE: State.CANCELLING,
    },
    # The client has its answer (cancelled or expired) already; what remains is the node's word
    # that the slot is free again.
    State.CANCELLING: {
        Event.ACCEPT: State.CANCELLING,
        Event.DATA: State.CANCELLING,
        Event.STOPPED: State.CANCELLED,
    },
    State.SUCCEEDED: {},
    State.FAILED: {},
    State.CANCELLED: {},
    State.EXPIRED: {},
}

TERMINAL = (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED)


class Refusal(Enum):
    """Why a node says no; the ``code`` of a REFUSE. Every one means: try elsewhere."""

    BUSY = "busy"
    NO_MEMORY = "no_memory"
    DRAINING = "draining"
    UNKNOWN_MODEL = "unknown_model"
    LOAD_FAILED = "load_failed"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    #: Given back before it began, as its gateway asked: no fault of the node's.
    RECALLED = "recalled"


#: What the client hears if every node refused, by the last refusal's code.
REFUSED: dict[str, type[BlipError]] = {
    Refusal.BUSY.value: Overloaded,
    Refusal.NO_MEMORY.value: NoCapacity,
    Refusal.LOAD_FAILED.value: ModelLoadFailed,
    Refusal.EXPIRED.value: DeadlineExceeded,
}

#: Attempts that may fail on their way (node lost, worker crashed) before a task does. Two nodes
#: dying under one request is bad luck, three is the request's doing.
MAX_FAILURES = 3

#: Nodes that may refuse before a task fails. A refusal costs a round trip and no work.
MAX_REFUSALS = 8


class ToBroker(NamedTuple):
    """Command: tell the broker (or, without one, place it yourself)."""

    message: Message


class ToNode(NamedTuple):
    """Command: tell this node."""

    node: str
    incarnation: int
    message: Message


class Deliver(NamedTuple):
    """Command: hand a part of the result to the client."""

    payload: Payload


class Finish(NamedTuple):
    """Command: tell the client how it ended, a :class:`Done` or an error. Once a task."""

    outcome: Done | BlipError


Command = ToBroker | ToNode | Deliver | Finish
_NOTHING: tuple[Command, ...] = ()


class Task:
    """One task and its current attempt.

    ``place`` and ``payload`` describe the first attempt. ``resume``, where the kind allows it,
    returns a payload that continues after what was delivered so far, or None if what was delivered
    does not say enough for that.
    """

    __slots__ = (
        "delivered",
        "error",
        "exclude",
        "failures",
        "forgiven",
        "grant",
        "part",
        "payload",
        "place",
        "prior",
        "refusals",
        "resume",
        "state",
        "taken",
        "window",
        "window_size",
    )

    def __init__(
        self,
        place: Place,
        payload: Payload,
        *,
        window: int,
        resume: Callable[[], Payload | None] | None = None,
    ) -> None:
        self.place = place
        self.payload = payload
        self.resume = resume
        self.window_size = window
        self.window = ReceiveWindow(window)
        self.state = State.PLACING
        self.grant: Grant | None = None
        #: Parts of the current attempt, and bytes of all attempts, that were delivered.
        self.part = 0
        self.delivered = 0
        #: Bytes of all attempts that the client took, and bytes that earlier attempts delivered:
        #: taking those earns the current attempt's node no credit.
        self.taken = 0
        self.prior = 0
        self.failures = 0
        self.refusals = 0
        #: Nodes not to be tried again; those only refused or crashed may be forgiven once.
        self.exclude: dict[str, bool] = {}
        self.forgiven = False
        #: What went wrong last; it is what the client hears if nothing better can be said.
        self.error: BlipError | None = None

    # --- what others say --------------------------------------------------------------------

    def start(self) -> Sequence[Command]:
        """The first command of a task: find it a device."""
        return (ToBroker(self.place),)

    def granted(self, grant: Grant, expires_in: float) -> Sequence[Command]:
        """The broker found a device; the node has ``expires_in`` seconds to begin."""
        if grant.attempt != self.place.attempt or not self._move(Event.GRANT):
            # a lease that nobody wants any more must not stay in the ledger
            if self.grant is None or grant.attempt != self.grant.attempt:
                return (ToBroker(Release(grant.task, grant.attempt, "cancelled")),)
            return _NOTHING
        self.grant = grant
        self.part = 0
        self.prior = self.delivered
        self.window = ReceiveWindow(self.window_size)
        place = self.place
        submit = Submit(
            place.task,
            place.attempt,
            place.kind,
            place.model,
            grant.device,
            expires_in,
            self.window_size,
            self.payload,
        )
        return (ToNode(grant.node, grant.incarnation, submit),)

    def denied(self, deny: Deny) -> Sequence[Command]:
        """The broker found none."""
        if deny.attempt != self.place.attempt or self.state is not State.PLACING:
            return _NOTHING
        error = from_wire(deny.code, deny.text, deny.details)
        if self.exclude and not isinstance(error, Overloaded | DeadlineExceeded):
            if any(self.exclude.values()) and not self.forgiven:
                self.forgiven = True
                self.exclude = {node: soft for node, soft in self.exclude.items() if not soft}
                return self._again(())
            # the mesh ran out of nodes because of what happened on them: that is the story
            error = self.error or error
        return self._fail(error)

    def accepted(self, attempt: int) -> Sequence[Command]:
        """The node took the attempt."""
        if attempt == self.place.attempt:
            self._move(Event.ACCEPT)
        return _NOTHING

    def refused(self, refuse: Refuse) -> Sequence[Command]:
        """The node will not run it: try another."""
        if refuse.attempt != self.place.attempt or self.grant is None:
            return _NOTHING
        if self.state is State.CANCELLING:
            return self._stopped("refused")
        if refuse.code == Refusal.RECALLED.value and not self.part:
            # what was asked for: nobody's fault, and the node is as good as any
            place = self.place
            return self._again((ToBroker(Release(place.task, place.attempt, "recalled")),))
        if self.state is not State.SUBMITTED:
            return _NOTHING
        self.refusals += 1
        error = REFUSED.get(refuse.code, Unavailable)
        self.error = error(refuse.text, details={**refuse.details, "refusal": refuse.code})
        return self._over("refused", soft=True, again=self.refusals < MAX_REFUSALS)

    def moved(self, move: Move) -> Sequence[Command]:
        """The broker knows a better device: ask the node for the attempt, unless it has begun."""
        if move.attempt != self.place.attempt or self.grant is None or self.part:
            return _NOTHING
        if self.state not in (State.SUBMITTED, State.RUNNING):
            return _NOTHING
        recall = Recall(move.task, move.attempt)
        return (ToNode(self.grant.node, self.grant.incarnation, recall),)

    def data(self, data: Data) -> Sequence[Command]:
        """A part of the result."""
        if data.attempt != self.place.attempt:
            return _NOTHING
        if data.part != self.part:
            # parts were lost on the way: what follows cannot be delivered honestly
            return self.lost("a part of the answer was lost on the way", cancel=True)
        if not self._move(Event.DATA):
            return _NOTHING
        self.part += 1
        if self.state is State.CANCELLING:
            return _NOTHING
        self.delivered += len(data.payload)
        return (Deliver(data.payload),)

    def done(self, done: Done) -> Sequence[Command]:
        """The node finished."""
        if done.attempt != self.place.attempt or self.grant is None:
            return _NOTHING
        if self.state is State.CANCELLING:
            return self._stopped("done", done.units, done.run, done.load)
        if done.parts != self.part and self.state in (State.SUBMITTED, State.RUNNING):
            return self.lost("a part of the answer was lost on the way")
        if not self._move(Event.DONE):
            return _NOTHING
        release = Release(done.task, done.attempt, "done", done.units, done.run, done.load)
        return (Finish(done), ToBroker(release))

    def failed(self, fail: Fail) -> Sequence[Command]:
        """The node says that the attempt failed."""
        if fail.attempt != self.place.attempt or self.grant is None:
            return _NOTHING
        if self.state is State.CANCELLING:
            return self._stopped("failed")
        if self.state not in (State.SUBMITTED, State.RUNNING):
            return _NOTHING
        self.error = from_wire(fail.code, fail.text, fail.details)
        if not self.error.retryable:
            return self._fail(self.error, "failed")
        self.failures += 1
        return self._over("failed", soft=True, again=self._may_repeat())

    def stopped(self, cancelled: Cancelled) -> Sequence[Command]:
        """The node confirms the cancel, or stopped the attempt by itself."""
        if cancelled.attempt != self.place.attempt or self.grant is None:
            return _NOTHING
        if self.state is State.CANCELLING:
            return self._stopped("cancelled")
        return self.lost("the node stopped the attempt")

    def lost(self, reason: str, *, cancel: bool = False) -> Sequence[Command]:
        """The node is gone, silent, or has lost this attempt.

        ``cancel`` tells it to stop nevertheless, for the case that it is not gone.
        """
        if self.grant is None or self.state in TERMINAL or self.state is State.PLACING:
            return _NOTHING
        if self.state is State.CANCELLING:
            return self._stopped("lost")
        self.failures += 1
        details = {"node": self.grant.node, "delivered": self.delivered}
        self.error = NodeLost(f"{reason} (node {self.grant.node})", details=details)
        node, incarnation, attempt = self.grant.node, self.grant.incarnation, self.place.attempt
        commands = self._over("lost", soft=False, again=self._may_repeat())
        if cancel:
            farewell = ToNode(node, incarnation, Cancel(self.place.task, attempt))
            return (farewell, *commands)
        return commands

    # --- what the client and the clock say --------------------------------------------------

    def cancel(self) -> Sequence[Command]:
        """The client went away. It is told at once; the node has to confirm."""
        return self._stop(Event.CANCEL, CancelledError("the request was cancelled"))

    def expire(self) -> Sequence[Command]:
        """The task's deadline passed."""
        waiting = "waited for a device" if self.state is State.PLACING else "ran"
        return self._stop(
            Event.EXPIRE,
            DeadlineExceeded(f"the deadline passed while the task {waiting}"),
        )

    def consumed(self, size: int) -> Sequence[Command]:
        """The client took ``size`` bytes: grant the node more when enough has gathered."""
        self.taken += size
        grant = self.window.consume(min(size, max(0, self.taken - self.prior)))
        if not grant or self.state is not State.RUNNING or self.grant is None:
            return _NOTHING
        credit = Credit(self.place.task, self.place.attempt, grant)
        return (ToNode(self.grant.node, self.grant.incarnation, credit),)

    # --- decisions --------------------------------------------------------------------------

    def _move(self, event: Event) -> bool:
        target = TRANSITIONS[self.state].get(event)
        if target is None:
            return False
        self.state = target
        return True

    def _may_repeat(self) -> bool:
        """Whether another attempt could neither double nor lose what the client has."""
        if self.failures >= MAX_FAILURES:
            return False
        return not self.delivered or (self.resume is not None and self.resume() is not None)

    def _over(self, outcome: str, *, soft: bool, again: bool) -> Sequence[Command]:
        """End the current attempt, and begin the next one or fail."""
        assert self.grant is not None
        self.exclude[self.grant.node] = soft
        release = ToBroker(Release(self.place.task, self.place.attempt, outcome))
        if again:
            return self._again((release,))
        assert self.error is not None
        return self._fail(self.error, outcome)

    def _again(self, before: tuple[Command, ...]) -> Sequence[Command]:
        if not self._move(Event.RETRY):
            raise LocalProtocolError(f"no retry while {self.state.value}")
        self.grant = None
        if self.delivered:
            # whoever begins anew has asked before whether it can, and nothing came since
            assert self.resume is not None
            payload = self.resume()
            assert payload is not None
            self.payload = payload
        self.place = self.place._replace(attempt=self.place.attempt + 1, exclude=list(self.exclude))
        return (*before, ToBroker(self.place))

    def _fail(self, error: BlipError, outcome: str = "") -> Sequence[Command]:
        if not self._move(Event.GIVE_UP):
            return _NOTHING
        if not outcome:
            return (Finish(error),)
        release = Release(self.place.task, self.place.attempt, outcome)
        return (Finish(error), ToBroker(release))

    def _stop(self, event: Event, error: BlipError) -> Sequence[Command]:
        placing = self.state is State.PLACING
        if not self._move(event):
            return _NOTHING
        farewell = Cancel(self.place.task, self.place.attempt)
        if placing:
            return (Finish(error), ToBroker(farewell))
        assert self.grant is not None
        return (Finish(error), ToNode(self.grant.node, self.grant.incarnation, farewell))

    def _stopped(
        self, outcome: str, units: float = 0.0, run: float = 0.0, load: float = 0.0
    ) -> Sequence[Command]:
        self._move(Event.STOPPED)
        release = Release(self.place.task, self.place.attempt, outcome, units, run, load)
        return (ToBroker(release),)

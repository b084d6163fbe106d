"""One end of one link: who the peer is, whether it lives, and in which order it speaks.

ZeroMQ reconnects behind our back and loses what was in flight; a router accepts sends to a peer
that died and came back as someone else. So every link begins with HELLO and WELCOME, every
message has a sequence number, and silence has consequences:

    state       HELLO/WELCOME   any message   GOODBYE   silent   silent longer   connection gone
    CONNECTING  READY           dropped, *    CLOSED    -        -               -
    READY       READY (anew)    READY         CLOSED    SUSPECT  -               CONNECTING
    SUSPECT     READY (anew)    READY         CLOSED    -        LOST            CONNECTING
    LOST        READY           dropped, *    CLOSED    -        -               -
    CLOSED      READY, **       dropped, *    CLOSED    -        -               -

    *  the listening side answers GOODBYE(unknown_epoch), so that a dialler whose peer restarted
       registers again at once instead of waiting for a timeout.
    ** the listening side; a dialler that is closed stays so.

The dialling side sends HELLO, again and again while CONNECTING or LOST; the listening side answers
WELCOME. A dialler that receives GOODBYE(unknown_epoch) or finds a gap begins anew with HELLO; any
other GOODBYE, said or heard, closes the link and its owner decides. Both sides run this class.

To the owner it is simple: :class:`Ready` is a fresh start, :class:`Lost` voids whatever was in
flight, and they alternate. Who says goodbye knows without a :class:`Lost`.

Feed :meth:`Link.receive` and :meth:`Link.tick`, act on the events they return, and write what
:meth:`Link.flush` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from blip.errors import BlipError, LocalProtocolError, PayloadTooLarge
from blip.protocol import codec, versions
from blip.protocol.codec import Unknown
from blip.protocol.messages import (
    TASK_ID_BYTES,
    Fail,
    Goodbye,
    Hello,
    Message,
    Payload,
    Ping,
    Pong,
    Welcome,
)


class State(Enum):
    """Where a link stands."""

    CONNECTING = "connecting"
    READY = "ready"
    SUSPECT = "suspect"
    LOST = "lost"
    CLOSED = "closed"


class Event(Enum):
    """What can happen to a link."""

    GREETED = "greeted"  # HELLO or WELCOME arrived and was acceptable
    HEARD = "heard"  # any other message, in order
    GOODBYE = "goodbye"  # said or heard
    QUIET = "quiet"  # nothing for `suspect_after`
    SILENT = "silent"  # nothing for `lost_after`
    BROKEN = "broken"  # the connection went, a gap in the sequence, or an unknown epoch


#: Every legal transition. What is missing is illegal and leaves the state as it is.
TRANSITIONS: dict[State, dict[Event, State]] = {
    State.CONNECTING: {
        Event.GREETED: State.READY,
        Event.GOODBYE: State.CLOSED,
    },
    State.READY: {
        Event.GREETED: State.READY,
        Event.HEARD: State.READY,
        Event.GOODBYE: State.CLOSED,
        Event.QUIET: State.SUSPECT,
        Event.BROKEN: State.CONNECTING,
    },
    State.SUSPECT: {
        Event.GREETED: State.READY,
        Event.HEARD: State.READY,
        Event.GOODBYE: State.CLOSED,
        Event.SILENT: State.LOST,
        Event.BROKEN: State.CONNECTING,
    },
    State.LOST: {
        Event.GREETED: State.READY,
        Event.GOODBYE: State.CLOSED,
    },
    State.CLOSED: {
        Event.GREETED: State.READY,
        Event.GOODBYE: State.CLOSED,
    },
}

#: GOODBYE code for "I do not know you (any more)": the dialler greets again.
UNKNOWN_EPOCH = "unknown_epoch"
#: GOODBYE code for "messages between us were lost": the dialler greets again.
SEQUENCE_GAP = "sequence_gap"
#: GOODBYE code of the answer to a GOODBYE.
PARTED = "parted"
_GREET_AGAIN = (UNKNOWN_EPOCH, SEQUENCE_GAP)

#: A time before any clock's start.
NEVER = float("-inf")

#: Owners tick every half second; a gap of more than two ticks means that this process slept.
STALL_AFTER = 1.0

#: Characters of a peer's own name that are repeated to it.
_NAME = 80


@dataclass(frozen=True, slots=True)
class Liveness:
    """How long silence may last, in seconds. The listening side's values rule the link.

    1 s and 3 s are what Locust and the ZeroMQ guide arrived at; 10 s is long enough for a machine
    that swaps or a kernel that retransmits.
    """

    heartbeat: float = 1.0
    suspect_after: float = 3.0
    lost_after: float = 10.0


class Ready(NamedTuple):
    """The peer is known; this is a fresh start."""

    peer: Hello | Welcome


class Suspect(NamedTuple):
    """Nothing heard for a while: give the peer nothing new."""


class Healed(NamedTuple):
    """A suspect peer spoke again."""


class Lost(NamedTuple):
    """Whatever was in flight with this peer is gone; ``reason`` says how we know."""

    reason: str


class Closed(NamedTuple):
    """The peer said goodbye for good."""

    code: str
    text: str


LinkEvent = Ready | Suspect | Healed | Lost | Closed


class Counters:
    """What a link dropped, and why. Plain numbers: read them, never write them."""

    __slots__ = ("duplicate", "gaps", "malformed", "unexpected", "unknown")

    def __init__(self) -> None:
        self.malformed = 0  # undecodable ZeroMQ messages
        self.unknown = 0  # message types from the future
        self.duplicate = 0  # sequence numbers seen before
        self.gaps = 0  # sequence numbers skipped
        self.unexpected = 0  # before HELLO, or after LOST or GOODBYE


class Link:
    """One end of one link.

    ``hello`` makes it the dialling end: it is called for each greeting, since what a HELLO says
    changes. ``welcome`` makes it the listening end. ``limit`` is the most bytes of one message.
    ``stall_after``, in seconds: ticks come more often than this, or this process was stalled.
    """

    def __init__(
        self,
        *,
        now: float,
        hello: Callable[[], Hello] | None = None,
        welcome: Welcome | None = None,
        limit: int = codec.CONTROL_LIMIT,
        stall_after: float = STALL_AFTER,
    ) -> None:
        if (hello is None) == (welcome is None):
            raise LocalProtocolError("a link either dials (hello) or listens (welcome)")
        self.hello = hello
        self.welcome = welcome
        self.limit = limit
        self.stall_after = stall_after
        self.state = State.CONNECTING
        self.peer: Hello | Welcome | None = None
        self.dropped = Counters()
        #: Whether the peer has said goodbye, or answered ours.
        self.parted = False
        self.liveness = (
            Liveness(welcome.heartbeat, welcome.suspect_after, welcome.lost_after)
            if welcome
            else Liveness()
        )
        self._out: list[codec.Packed] = []
        self._next_out = 0
        self._next_in = 0
        #: Greetings sent (dialling) or the last one received (listening), and the last one that
        #: made the link READY: a greeting does that once.
        self._greetings = 0
        self._answered = 0
        self._challenged = False
        self._heard = now
        self._pinged = now
        self._greeted = NEVER
        self._ticked = now
        self._nonce = 0

    @property
    def ready(self) -> bool:
        """Whether messages may be sent: the peer is known and not given up."""
        return self.state is State.READY or self.state is State.SUSPECT

    @property
    def version(self) -> int:
        """The negotiated protocol version; 0 before READY."""
        if isinstance(self.peer, Welcome):
            return self.peer.version
        return self.welcome.version if self.welcome and self.peer else 0

    # --- out --------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message for the next :meth:`flush`.

        Raises :class:`~blip.errors.LocalProtocolError` while the link is not ready and
        :class:`~blip.errors.PayloadTooLarge` for a message over ``limit``; nothing is queued then.
        """
        if self.state is not State.READY and self.state is not State.SUSPECT:
            raise LocalProtocolError(f"the link is {self.state.value}")
        self._queue(message)

    def goodbye(self, code: str, text: str) -> None:
        """Queue a GOODBYE behind what is queued already; allowed in every state.

        The link is CLOSED then. With :data:`UNKNOWN_EPOCH` the peer greets again.
        """
        self._queue(Goodbye(code, text))
        self._move(Event.GOODBYE)

    def flush(self) -> list[list[Payload]]:
        """Return what is queued, as ZeroMQ messages, and forget it."""
        if not self._out:
            return []
        batch, self._out = self._out, []
        self._challenged = False
        return codec.join(batch, self.limit)

    @property
    def pending(self) -> bool:
        """Whether :meth:`flush` would return anything."""
        return bool(self._out)

    def _queue(self, message: Message) -> None:
        self._out.append(codec.pack(self._next_out, message, self.limit))
        self._next_out += 1

    def _forget(self) -> None:
        self._out.clear()
        self._challenged = False

    def _greet(self, now: float) -> None:
        # A greeting starts the sequence of its direction again; the peer resets on it.
        self._forget()
        self._next_out = 0
        if self.hello:
            self._greetings += 1
            hello = self.hello()._replace(greeting=self._greetings)
            try:
                self._queue(hello)
            except PayloadTooLarge:
                # ten thousand leases: the broker learns from adverts what its nodes are busy with
                self._queue(hello._replace(leases=[]))
        elif self.welcome:
            self._queue(self.welcome._replace(greeting=self._greetings))
        self._greeted = now

    # --- in ---------------------------------------------------------------------------------

    def receive(self, frames: Sequence[Payload], now: float) -> list[LinkEvent | Message]:
        """Take one ZeroMQ message; return events and application messages, in order.

        Never raises on what a peer sent: it is counted, answered where the protocol says so, and
        dropped.
        """
        try:
            batch = codec.decode(frames)
        except BlipError:
            self.dropped.malformed += 1
            if not self.ready:
                self._challenge()
            return []
        out: list[LinkEvent | Message] = []
        for item in batch:
            if isinstance(item, Unknown):
                self._one(item.seq, item, now, out)
            else:
                self._one(item.seq, item.message, now, out)
        return out

    def _one(
        self, seq: int, message: Message | Unknown, now: float, out: list[LinkEvent | Message]
    ) -> None:
        kind = type(message)
        if kind is Hello or kind is Welcome:
            self._introduced(seq, message, now, out)  # type: ignore[arg-type]
            return
        if kind is Goodbye:
            self._farewell(message, now, out)  # type: ignore[arg-type]
            return
        if self.state is not State.READY and self.state is not State.SUSPECT:
            self.dropped.unexpected += 1
            self._challenge()
            return
        if seq != self._next_in:
            if seq < self._next_in:
                self.dropped.duplicate += 1
                return
            self.dropped.gaps += 1
            self._broken(SEQUENCE_GAP, now, out)
            if not self.hello:
                self._challenge(SEQUENCE_GAP, "messages on this link were lost; greet again")
            return
        self._next_in = seq + 1
        self._heard = now
        if self.state is State.SUSPECT:
            self._move(Event.HEARD)
            out.append(Healed())
        if kind is Ping:
            self._queue(Pong(message.nonce))  # type: ignore[union-attr]
        elif kind is Unknown:
            self._unsupported(message)  # type: ignore[arg-type]
        elif kind is not Pong:
            out.append(message)  # type: ignore[arg-type]

    def _introduced(
        self, seq: int, message: Hello | Welcome, now: float, out: list[LinkEvent | Message]
    ) -> None:
        expected = Welcome if self.hello else Hello
        if type(message) is not expected or (self.hello and self.state is State.CLOSED):
            self.dropped.unexpected += 1
            return
        if isinstance(message, Hello):
            assert self.welcome is not None
            if 0 < message.greeting <= self._answered:
                self.dropped.duplicate += 1
                return
            try:
                version = versions.negotiate(
                    message.low,
                    message.high,
                    own=self.welcome.id[:_NAME] or "the listening side",
                    peer=f"{message.role} {message.name or message.id}"[:_NAME],
                )
            except BlipError as error:
                if self.ready:
                    out.append(Lost("protocol_version"))
                self.goodbye("protocol_version", error.message)
                return
            self.welcome = self.welcome._replace(version=version)
        else:
            if message.greeting != self._greetings or message.greeting == self._answered:
                self.dropped.duplicate += 1  # answers an earlier HELLO; ours is on its way
                return
            bounds = (message.heartbeat, message.suspect_after, message.lost_after)
            if not 0 < bounds[0] <= bounds[1] <= bounds[2]:
                self.dropped.malformed += 1
                return
            self.liveness = Liveness(*bounds)
        if self.ready:
            out.append(Lost("greeted_again"))
        self.peer = message
        self._next_in = seq + 1
        self._heard = now
        self._answered = message.greeting
        self._move(Event.GREETED)
        if isinstance(message, Hello):
            self._greetings = message.greeting
            self._greet(now)
        out.append(Ready(message))

    def _farewell(self, message: Goodbye, now: float, out: list[LinkEvent | Message]) -> None:
        if message.code in _GREET_AGAIN:
            # a dialler that is greeting already need not be told
            if self.hello and self.ready:
                self._broken(message.code, now, out)
            return
        self.parted = True
        if self.ready:
            out.append(Lost("goodbye"))
            # libzmq drops what was not read when a connection ends: the peer waits for this word,
            # which says that everything before its own was
            self._queue(Goodbye(PARTED, "goodbye"))
        if self.state is not State.CLOSED:
            out.append(Closed(message.code, message.text))
        self._move(Event.GOODBYE)

    def _unsupported(self, message: Unknown) -> None:
        self.dropped.unknown += 1
        if len(message.task) == TASK_ID_BYTES:
            text = f"message type {message.type} is not known here"
            self._queue(Fail(message.task, message.attempt, "unsupported", text))

    def _challenge(
        self, code: str = UNKNOWN_EPOCH, text: str = "greet first: this side does not know you"
    ) -> None:
        # once a flush: a burst from a stranger is one question
        if self.welcome and not self._challenged:
            self._challenged = True
            self._queue(Goodbye(code, text))

    # --- time -------------------------------------------------------------------------------

    def tick(self, now: float) -> list[LinkEvent | Message]:
        """Let time pass: greet, ping, and judge silence. Call it about every half heartbeat.

        If this process itself was stalled (the ticks stopped), nobody is blamed for the silence:
        the deadlines move by the stall.
        """
        out: list[LinkEvent | Message] = []
        stall = now - self._ticked - self.stall_after
        self._ticked = now
        if stall > 0:
            self._heard = min(now, self._heard + stall)
        if self.state is State.CONNECTING or self.state is State.LOST:
            if self.hello and now - self._greeted >= self.liveness.heartbeat:
                self._greet(now)
            return out
        if self.state is State.CLOSED:
            return out
        silence = now - self._heard
        if self.state is State.SUSPECT and silence >= self.liveness.lost_after:
            self._move(Event.SILENT)
            self._forget()
            out.append(Lost("silent"))
            return out
        if self.state is State.READY and silence >= self.liveness.suspect_after:
            self._move(Event.QUIET)
            out.append(Suspect())
        if silence >= self.liveness.heartbeat and now - self._pinged >= self.liveness.heartbeat:
            self._pinged = now
            self._nonce += 1
            self._queue(Ping(self._nonce))
        return out

    def connected(self, now: float) -> None:
        """The transport says that the peer can be reached: greet without waiting for a tick."""
        if self.hello and self.state in (State.CONNECTING, State.LOST):
            self._greet(now)

    def disconnected(self, now: float) -> list[LinkEvent | Message]:
        """The transport says that the connection is gone; what was in flight went with it."""
        out: list[LinkEvent | Message] = []
        if self.ready:
            self._move(Event.BROKEN)
            self._forget()
            self._greeted = NEVER  # greet as soon as the peer can be reached again
            out.append(Lost("disconnected"))
        return out

    def _broken(self, reason: str, now: float, out: list[LinkEvent | Message]) -> None:
        """The connection stands, but what went over it does not: begin anew at once."""
        self._move(Event.BROKEN)
        self._forget()
        out.append(Lost(reason))
        if self.hello:
            self._greet(now)

    def _move(self, event: Event) -> None:
        target = TRANSITIONS[self.state].get(event)
        if target is None:
            raise LocalProtocolError(f"{event.value} cannot happen while {self.state.value}")
        self.state = target

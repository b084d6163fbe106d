"""One task under way, between the route that reads it and the dispatcher that feeds it."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from blip.errors import BlipError
from blip.gateway.mesh import Answer, Timing
from blip.gateway.operations import LiveOrder
from blip.kinds import Kind, TaskInput, input_to_wire
from blip.kinds.text import TextInput, delta_from_wire
from blip.protocol.attempt import Command, Task
from blip.protocol.messages import Done, Message, NodeEntry, Payload
from blip.transport.links import Dialer


class Owner(Protocol):
    """What a call needs of its dispatcher."""

    def now(self) -> float:
        """Read the loop's clock."""
        ...

    def execute(self, call: LiveCall, commands: Sequence[Command]) -> None:
        """Carry out what the task decided."""
        ...

    def cancel(self, call: LiveCall) -> None:
        """Stop the task."""
        ...


class LiveCall:
    """One task under way, as its route sees it; see :class:`blip.gateway.mesh.Call`."""

    __slots__ = (
        "_outcome",
        "_owner",
        "_parts",
        "_waiter",
        "began",
        "due",
        "expires",
        "id",
        "kind",
        "last",
        "link",
        "node",
        "record",
        "task",
        "timing",
        "value",
    )

    def __init__(
        self, owner: Owner, id: bytes, kind: Kind, value: TaskInput, expires: float
    ) -> None:
        self._owner = owner
        self._parts: collections.deque[Payload] = collections.deque()
        self._waiter: asyncio.Future[None] | None = None
        self._outcome: Done | BlipError | None = None
        self.id = id
        self.kind = kind
        self.value = value
        #: The link that the current attempt depends on, and the node's display name.
        self.link: NodeLink | None = None
        self.node = ""
        self.timing = Timing()
        self.began = owner.now()
        #: When the task must have ended, on the loop's clock; and the client's own deadline.
        self.expires = expires
        self.due: float | None = None
        #: What was delivered, kept only where it lets another node continue.
        by_record = kind.resumable and kind.resume is None
        self.record: list[Payload] | None = [] if by_record else None
        #: The last part that was delivered, where that is enough.
        self.last: Payload = b""
        self.task: Task

    @property
    def task_id(self) -> str:
        """The task's id, 32 hex digits."""
        return self.id.hex()

    async def parts(self) -> AsyncIterator[list[Payload]]:
        """Yield what is pending until the end; see :meth:`blip.gateway.mesh.Call.parts`."""
        while True:
            if self._parts:
                batch = list(self._parts)
                self._parts.clear()
                self._owner.execute(self, self.task.consumed(sum(map(len, batch))))
                yield batch
            elif self._outcome is not None:
                if isinstance(self._outcome, BlipError):
                    raise self._outcome
                return
            else:
                await self._wait()

    async def answer(self) -> Answer:
        """Wait for the end; see :meth:`blip.gateway.mesh.Call.answer`."""
        while self._outcome is None:
            await self._wait()
        if isinstance(self._outcome, BlipError):
            raise self._outcome
        return Answer(self._outcome.payload, self._outcome.usage, self._outcome.units)

    async def started(self) -> None:
        """Wait for the first part or the end; see :meth:`blip.gateway.mesh.Call.started`."""
        while self._outcome is None and not self._parts:
            await self._wait()
        if isinstance(self._outcome, BlipError) and not self._parts:
            raise self._outcome

    def cancel(self) -> None:
        """Stop the task; see :meth:`blip.gateway.mesh.Call.cancel`."""
        if self._outcome is None:
            self._owner.cancel(self)

    def resume(self) -> Payload | None:
        """Encode an input that continues after what was delivered.

        None if nobody could: an engine that a node passes on tells no token ids, and whoever
        continued after its text would not know where that ends.
        """
        if self.kind.resume is not None:
            rest = self.kind.resume(self.value, self.last)
            return None if rest is None else input_to_wire(rest)
        assert isinstance(self.value, TextInput)
        assert self.record is not None
        deltas = [delta_from_wire(part) for part in self.record]
        if any((delta.text or delta.calls) and not delta.ids for delta in deltas):
            return None
        ids = [each for delta in deltas for each in delta.ids]
        return input_to_wire(
            self.value.model_copy(update={"generated": [*self.value.generated, *ids]})
        )

    # --- the owner's side --------------------------------------------------------------

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        # the reader may be gone: a client that disconnected must never raise into a link
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def deliver(self, payload: Payload) -> None:
        """Take a part of the result."""
        if self.timing.first is None:
            self.timing.first = self._owner.now() - self.began
        if self.record is not None:
            self.record.append(payload)
        elif self.kind.resume is not None:
            self.last = payload
        self._parts.append(payload)
        self._wake()

    def finish(self, outcome: Done | BlipError) -> None:
        """Take the end of the task."""
        timing = self.timing
        timing.total = self._owner.now() - self.began
        if isinstance(outcome, Done):
            timing.queue += outcome.queue
            timing.load = outcome.load
            if timing.first is None:
                timing.first = timing.total
        self._outcome = outcome
        self._wake()

    @property
    def outcome(self) -> Done | BlipError | None:
        """How it ended; None while it has not."""
        return self._outcome


class NodeLink:
    """The link to one incarnation of a node, and the calls and orders that depend on it."""

    __slots__ = ("calls", "dialer", "entry", "orders", "waiting")

    def __init__(self, entry: NodeEntry) -> None:
        self.entry = entry
        self.dialer: Dialer | None = None
        self.calls: dict[bytes, LiveCall] = {}
        self.orders: dict[int, LiveOrder] = {}
        #: Submissions and orders that wait for the link to be made.
        self.waiting: list[Message] = []

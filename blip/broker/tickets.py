"""Tickets: attempts that wait in the broker because every device they want is busy.

They wait here and not on a node, so that they go to whichever device is free first, and so that
cancelling one, losing a node or loading a model elsewhere costs nothing.

Their order is a number that never changes, :func:`rank`: tickets age at the same pace, so who is
before whom does not depend on when one looks.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from blip.broker.ledger import Key
from blip.broker.settings import Settings
from blip.broker.sites import DeviceRecord, Lane, Site
from blip.protocol.messages import Place

HIGHEST, DEFAULT_PRIORITY, LOWEST = 1, 5, 10


@dataclass(slots=True, eq=False)
class Ticket:
    """A PLACE that waits. Times are the broker's, in seconds.

    Where it is expected to run is a plan, not a promise: ``site`` with the ``seconds`` it would
    take there, at a ``cost`` that was right at ``planned_at``.
    """

    place: Place
    gateway: str
    enqueued: float
    deadline: float
    rank: float
    exclude: frozenset[str]
    units: float
    site: Site | None = None
    seconds: float = 0.0
    cost: float = math.inf
    planned_at: float = 0.0
    #: The device that takes nothing else until this ticket's model fits on it.
    claim: DeviceRecord | None = None
    number: int = field(default=0)

    @property
    def key(self) -> Key:
        """Task and attempt."""
        return self.place.task, self.place.attempt

    @property
    def lane(self) -> Lane:
        """What it waits for: kind and model."""
        return self.place.kind, self.place.model

    @property
    def tenant(self) -> str:
        """Who asks; where weighted fairness will hook into :func:`rank`."""
        return self.place.tenant


def rank(priority: int, enqueued: float, deadline: float, settings: Settings) -> float:
    """Place in the queue, lower first.

    Within a class whoever is due first: a deadline counts if it is near, all others are due after
    ``patience``, which is first come, first served. A class is worth ``ageing`` seconds.
    """
    due = min(deadline, enqueued + settings.patience)
    return due + settings.ageing * min(max(priority, HIGHEST), LOWEST)


_Entry = tuple[float, int, Ticket]


class Tickets:
    """The queue: in order over all, and in order for each (kind, model)."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.queue_limit
        self._open_limit = int(settings.queue_limit * (1 - settings.queue_reserve))
        self._tickets: dict[Key, Ticket] = {}
        self._order: list[_Entry] = []
        self._lanes: dict[Lane, list[_Entry]] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for _, _, ticket in self._order)

    def get(self, task: bytes, attempt: int) -> Ticket | None:
        """Return the ticket, or None."""
        return self._tickets.get((task, attempt))

    def full(self, priority: int) -> bool:
        """Whether one more of that priority has no room; the last part is kept for 1 to 5."""
        limit = self._limit if priority <= DEFAULT_PRIORITY else self._open_limit
        return len(self._tickets) >= limit

    def add(self, ticket: Ticket) -> None:
        """Enqueue; the caller has asked :meth:`full`."""
        self._count += 1
        ticket.number = self._count
        entry = (ticket.rank, ticket.number, ticket)
        self._tickets[ticket.key] = ticket
        insort(self._order, entry)
        insort(self._lanes.setdefault(ticket.lane, []), entry)
        if ticket.deadline < math.inf:
            heapq.heappush(self._deadlines, (ticket.deadline, ticket.number, ticket))

    def remove(self, ticket: Ticket) -> None:
        """Dequeue. Its plan is the scheduler's to undo."""
        del self._tickets[ticket.key]
        entry = (ticket.rank, ticket.number, ticket)
        del self._order[bisect_left(self._order, entry)]
        lane = self._lanes[ticket.lane]
        del lane[bisect_left(lane, entry)]
        if not lane:
            del self._lanes[ticket.lane]
        # Those served long before their deadline would pile up in the heap.
        if len(self._deadlines) > 2 * len(self._tickets) + 64:
            self._deadlines = [e for e in self._deadlines if self._tickets.get(e[2].key) is e[2]]
            heapq.heapify(self._deadlines)

    def first(self, count: int) -> list[Ticket]:
        """Return the first tickets over all."""
        return [ticket for _, _, ticket in self._order[:count]]

    def first_of(self, lanes: Iterable[Lane], count: int) -> list[Ticket]:
        """Return the first tickets among those lanes."""
        waiting = [self._lanes[lane] for lane in lanes if lane in self._lanes]
        entries = waiting[0] if len(waiting) == 1 else heapq.merge(*waiting)
        return [ticket for _, _, ticket in islice(entries, count)]

    def lanes(self) -> list[Lane]:
        """Return every (kind, model) that something waits for."""
        return list(self._lanes)

    def expired(self, now: float) -> list[Ticket]:
        """Return tickets whose deadline has passed; they stay until removed."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, ticket = heapq.heappop(self._deadlines)
            if self._tickets.get(ticket.key) is ticket:
                expired.append(ticket)
        return expired

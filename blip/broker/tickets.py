"""Tickets: attempts that wait in the broker because every device they want is busy.

They wait here and not on a node, so that they go to whichever device is free first, and so that
cancelling one, losing a node or loading a model elsewhere costs nothing.

Among the tickets of one tenant the order is a number that never changes, :func:`rank`: tickets age
at the same pace, so who is before whom does not depend on when one looks. Between tenants it is
whose turn it is, :mod:`blip.broker.shares`.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from blip.broker.demand import Demand
from blip.broker.ledger import Key
from blip.broker.settings import Settings
from blip.broker.shares import Shares
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
    demand: Demand
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
        return self.demand.lane

    @property
    def tenant(self) -> str:
        """Who asks."""
        return self.place.tenant


def bounded(priority: int) -> int:
    """Return a priority on the scale; what is beyond counts as its end."""
    return min(max(priority, HIGHEST), LOWEST)


def rank(priority: int, enqueued: float, deadline: float, settings: Settings) -> float:
    """Place among the tickets of one tenant, lower first.

    Within a class whoever is due first: a deadline counts if it is near, all others are due after
    ``patience``, which is first come, first served. A class is worth ``ageing`` seconds.
    """
    due = min(deadline, enqueued + settings.patience)
    return due + settings.ageing * bounded(priority)


_Entry = tuple[float, int, Ticket]


class Tickets:
    """The queue: of each tenant in order of rank, for each (kind, model) and over all."""

    def __init__(self, settings: Settings, shares: Shares | None = None) -> None:
        self._limit = settings.queue_limit
        self._open_limit = int(settings.queue_limit * (1 - settings.queue_reserve))
        self._ageing = settings.ageing
        self._shares = Shares(settings.tenants) if shares is None else shares
        self._tickets: dict[Key, Ticket] = {}
        self._tenants: dict[str, list[_Entry]] = {}
        self._lanes: dict[Lane, dict[str, list[_Entry]]] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for _, _, ticket in heapq.merge(*self._tenants.values()))

    @property
    def tenants(self) -> Collection[str]:
        """Who has tickets."""
        return self._tenants.keys()

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
        lane = self._lanes.setdefault(ticket.lane, {})
        for group in (self._tenants, lane):
            insort(group.setdefault(ticket.tenant, []), entry)
        if ticket.deadline < math.inf:
            heapq.heappush(self._deadlines, (ticket.deadline, ticket.number, ticket))

    def remove(self, ticket: Ticket) -> None:
        """Dequeue. Its plan is the scheduler's to undo."""
        del self._tickets[ticket.key]
        entry = (ticket.rank, ticket.number, ticket)
        lane = self._lanes[ticket.lane]
        for group in (self._tenants, lane):
            queue = group[ticket.tenant]
            del queue[bisect_left(queue, entry)]
            if not queue:
                del group[ticket.tenant]
        if not lane:
            del self._lanes[ticket.lane]
        # Those served long before their deadline would pile up in the heap.
        if len(self._deadlines) > 2 * len(self._tickets) + 64:
            self._deadlines = [e for e in self._deadlines if self._tickets.get(e[2].key) is e[2]]
            heapq.heapify(self._deadlines)

    def first(self, count: int, width: int = 1) -> list[Ticket]:
        """Return the first tickets over all; see :meth:`first_of`."""
        return self._turns({t: [queue] for t, queue in self._tenants.items()}, count, width)

    def first_of(self, lanes: Iterable[Lane], count: int, width: int = 1) -> list[Ticket]:
        """Return the first tickets among those lanes: tenants in turn, by what each is owed.

        ``width`` is how many attempts the mesh runs side by side: the pace of virtual clocks.
        """
        queues: dict[str, list[list[_Entry]]] = {}
        for lane in lanes:
            for tenant, queue in self._lanes.get(lane, {}).items():
                queues.setdefault(tenant, []).append(queue)
        return self._turns(queues, count, width)

    def ahead(self, rank: float) -> dict[Site, float]:
        """Return the seconds of tickets that go before one of that rank, by where they plan."""
        seconds: dict[Site, float] = {}
        for at, _, ticket in heapq.merge(*self._tenants.values()):
            if at > rank:
                break
            if ticket.site is not None:
                seconds[ticket.site] = seconds.get(ticket.site, 0.0) + ticket.seconds
        return seconds

    def delay(self, seconds: float) -> None:
        """Move every deadline: the broker itself was stalled."""
        for ticket in self._tickets.values():
            ticket.deadline += seconds
        self._deadlines = [(at + seconds, n, ticket) for at, n, ticket in self._deadlines]

    def _turns(
        self, queues: Mapping[str, list[list[_Entry]]], count: int, width: int
    ) -> list[Ticket]:
        if len(queues) < 2:
            for waiting in queues.values():
                entries = waiting[0] if len(waiting) == 1 else heapq.merge(*waiting)
                return [ticket for _, _, ticket in islice(entries, count)]
            return []
        # A class is worth as much virtual time as the mesh hands out while it ages by one.
        step = self._ageing * max(1, width)
        heads: list[tuple[float, float, int, float, Iterator[_Entry], Ticket]] = []

        def push(clock: float, rest: Iterator[_Entry]) -> None:
            for at, number, ticket in rest:
                turn = clock + step * bounded(ticket.place.priority)
                heapq.heappush(heads, (turn, at, number, clock, rest, ticket))
                return

        for tenant, waiting in queues.items():
            push(self._shares.clock(tenant), iter(heapq.merge(*waiting)))
        out: list[Ticket] = []
        while heads and len(out) < count:
            *_, clock, rest, ticket = heapq.heappop(heads)
            out.append(ticket)
            push(clock + ticket.seconds / self._shares.weight(ticket.tenant), rest)
        return out

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

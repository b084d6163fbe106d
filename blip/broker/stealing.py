"""Taking back attempts that wait on a busy device while another idles. Pure.

The broker binds late, but not perfectly: an attempt that was bound one ahead waits behind a run
that takes longer than predicted, and gateways that placed by themselves queue at their nodes. When
a device idles that would finish such an attempt sooner, loading included, its gateway is asked to
move it. The gateway recalls the attempt; the node gives it back only if no worker has begun with
it; and the next attempt has a higher number. So whatever message is lost or late, no two attempts
of a task run.
"""

from __future__ import annotations

from typing import NamedTuple

from blip.broker.demand import Demand, demand_of
from blip.broker.index import Index
from blip.broker.ledger import Lease
from blip.broker.quotes import Quote, Quotes, until
from blip.broker.rates import Rates
from blip.broker.sites import DeviceRecord, Group, Site, State
from blip.errors import InvalidRequest

#: Seconds in which a lease is asked back once: a recall takes milliseconds, or is lost.
PATIENCE = 2.0

#: Attempts moved in one tick, four times a second: the gain is worked out anew each time.
AT_ONCE = 32


class Theft(NamedTuple):
    """Ask for this lease back: it would be better off where the quote says."""

    lease: Lease
    quote: Quote


def find(
    waiting: list[Lease],
    index: Index,
    quotes: Quotes,
    rates: Rates,
    now: float,
    cost: float,
) -> list[Theft]:
    """Choose leases to move, those that gain most first; ``waiting`` have not begun.

    A move must gain more than ``cost`` seconds. Each idle device takes one at a time.
    """
    thefts: list[Theft] = []
    taken: set[DeviceRecord] = set()
    worst: list[tuple[float, int, Lease, Demand]] = []
    for number, lease in enumerate(waiting):
        site = index.find(lease.account)
        group = None if lease.place is None else index.groups.get((lease.kind, lease.account.model))
        if site is None or group is None or lease.moved_until > now:
            continue
        assert lease.place is not None
        try:
            demand = demand_of(lease.place, rates)
        except InvalidRequest:  # pragma: no cover - it was placed, so it could be read
            continue
        worst.append((_left(lease, site, now), -number, lease, demand))
    for left, _, lease, demand in sorted(worst, key=lambda each: each[:2], reverse=True):
        group = index.groups[demand.lane]
        best = _best(lease, demand, group, quotes, now, taken)
        if best is not None and best.finish + best.others + cost < left:
            taken.add(best.candidate.site.device)
            lease.moved_until = now + PATIENCE
            thefts.append(Theft(lease, best))
            if len(thefts) == AT_ONCE:
                break
    return thefts


def _left(lease: Lease, site: Site, now: float) -> float:
    """Seconds until a lease is done where it is: those before it, what loads, and itself."""
    account, own = site.account, site.slots - site.account.external
    position = account.ends.index(lease.end)
    ahead = 0.0
    if own >= 1 and position >= own:
        ahead = until(account.ends[position - own], now)
    elif site.free_at:
        ahead = until(site.free_at, now)
    return max(ahead, site.ready_at - now) + lease.service


def _best(
    lease: Lease,
    demand: Demand,
    group: Group,
    quotes: Quotes,
    now: float,
    taken: set[DeviceRecord],
) -> Quote | None:
    """Return the least cost among devices that are idle."""
    best: Quote | None = None
    for shelf in (group.open, group.cold):
        for _, _, candidate in shelf:
            site = candidate.site
            device = site.device
            idle = site.account.load < site.slots and device.busy - site.busy == 0
            if not idle or device in taken or site.account is lease.account:
                continue
            if site.state is State.LOADING or site.tickets or demand.bars(device):
                continue
            quote = quotes.quote(candidate, demand.units, now)
            if quote is not None and quote.room and (best is None or quote.cost < best.cost):
                best = quote
    return best

"""Keeping as many replicas of a model loaded as its owner wants: ``min_replicas``."""

from __future__ import annotations

from blip.broker.index import Index
from blip.broker.quotes import Quote, Quotes
from blip.broker.sites import Fleet
from blip.protocol.messages import Order

#: A load that was ordered shows up in its node's next advert, 150 ms later; when it does not, the
#: node refused or the order was lost, and another device may have its turn after this long.
PATIENCE = 10.0

#: Work by which devices are compared for a replica that nobody asks for yet, in units: what it
#: takes to load matters, and of equals the faster.
TYPICAL_UNITS = 100.0


def missing(index: Index, quotes: Quotes, now: float, numbers: int) -> list[tuple[str, Order]]:
    """Return orders to load what there should be more of, at most one a model.

    Only idle replicas make room for it. ``numbers`` is the first order's number.
    """
    orders: list[tuple[str, Order]] = []
    for fleet in index.fleets.values():
        if fleet.warm >= fleet.least or now < fleet.ordered_until:
            continue
        best = _best(index, quotes, fleet, now)
        # If there is no room for it now there may be later: asking again costs nothing.
        fleet.ordered_until = now + PATIENCE
        if best is not None:
            device = best.candidate.site.device
            # It is to stay: with its own keep_alive it would go and be loaded again in turns.
            stay = {"keep_alive": None}
            order = Order(numbers + len(orders), "load", device.info.id, fleet.model, stay)
            orders.append((device.node.id, order))
    return orders


def _best(index: Index, quotes: Quotes, fleet: Fleet, now: float) -> Quote | None:
    found = (
        quotes.quote(candidate, TYPICAL_UNITS, now)
        for (_, model), group in index.groups.items()
        if model == fleet.model
        for _, _, candidate in group.cold
    )
    free = [quote for quote in found if quote is not None and quote.room]
    return min(free, key=lambda quote: quote.cost, default=None)

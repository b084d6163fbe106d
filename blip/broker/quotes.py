"""What an attempt would cost, in seconds, and where it costs least.

Nothing here changes anything. All of it reads what :mod:`blip.broker.index` keeps up to date.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from blip.broker.demand import Demand
from blip.broker.ledger import Key
from blip.broker.settings import Settings
from blip.broker.sites import Candidate, DeviceRecord, Group, Site, State
from blip.protocol.reloads import regret

#: Seconds until memory is what adverts say, after something was loaded or unloaded: an advert.
SETTLING = 1.0


class Quote(NamedTuple):
    """What one attempt would cost at one candidate, in seconds.

    ``others`` is what it costs everybody else: the device does nothing else while it loads, what
    is evicted must be loaded again, and an attempt slows its neighbours as much as they slow it.
    Without it a burst would load the same model everywhere to spare each task a little crowding.
    """

    candidate: Candidate
    wait: float
    service: float
    load: float
    others: float
    #: How many times slower than alone it would run.
    slowdown: float
    #: Whether it may go there now; else it would have to wait in the broker.
    room: bool
    #: Whether replicas that are at work must become idle and go first.
    drain: bool = False
    #: Replicas that would be evicted.
    victims: tuple[Site, ...] = ()

    @property
    def cost(self) -> float:
        """The sum; the least wins."""
        return self.wait + self.service + self.load + self.others

    @property
    def finish(self) -> float:
        """Seconds until the attempt is done."""
        return self.wait + self.service + self.load


class _Eviction(NamedTuple):
    """Replicas that must go, the seconds until all of them are idle, whether any is at work."""

    victims: tuple[Site, ...] = ()
    wait: float = 0.0
    drain: bool = False


_NOTHING = _Eviction()


class Quotes:
    """Quotes for candidates, under given settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def best(
        self,
        group: Group,
        demand: Demand,
        now: float,
        seen: list[Candidate],
        barred: list[Candidate],
    ) -> Quote | None:
        """Return the least cost, or None if no candidate could ever take it as things stand.

        For the record ``seen`` collects the candidates that came into question, and ``barred``
        those that would have, but for what the attempt requires or the room there is.
        """
        units, picky = demand.units, demand.picky
        congestion = self._settings.congestion
        least = math.inf
        chosen: Candidate | None = None
        for key, _, candidate in group.open:
            cost = units * key
            if cost >= least:
                break
            site = candidate.site
            device = site.device
            if picky and demand.bars(device):
                barred.append(candidate)
                continue
            if site.neighbours != device.busy - site.busy:
                cost = units * _weighed(candidate, candidate.step)
            if site.ready_at > now:
                cost += site.ready_at - now
            if site.tickets:
                cost += (1 + congestion) * site.queue
            seen.append(candidate)
            if cost < least:
                least, chosen = cost, candidate
        bound = units * group.fastest
        for key, _, candidate in group.full:
            if key - now + bound >= least:
                break
            site = candidate.site
            if picky and demand.bars(site.device):
                barred.append(candidate)
                continue
            start = max(until(site.free_at, now) + site.queue, site.ready_at - now)
            cost = start + units * _weighed(candidate, candidate.rate) + congestion * site.queue
            seen.append(candidate)
            if cost < least:
                least, chosen = cost, candidate
        best = None
        for key, _, candidate in () if group.fleet.full else group.cold:
            if key + bound >= least:
                break
            if key + units * candidate.weight >= least:
                continue
            quote = None
            if not (picky and demand.bars(candidate.site.device)):
                quote = self.quote(candidate, units, now)
            if quote is None:
                barred.append(candidate)
                continue
            seen.append(candidate)
            if quote.cost < least:
                least, best = quote.cost, quote
        if best is None and chosen is not None:
            best = self.quote(chosen, units, now)
        return best

    def vacant(self, group: Group, demand: Demand, now: float) -> Quote | None:
        """Return the fastest candidate that could begin at once, whatever else may be better."""
        for _, _, candidate in group.open:
            if not candidate.site.tickets and not demand.bars(candidate.site.device):
                quote = self.quote(candidate, demand.units, now)
                if quote is not None and quote.room:
                    return quote
        return None

    def quickest(
        self, group: Group, demand: Demand, now: float, ahead: Mapping[Site, float]
    ) -> Quote | None:
        """Return the quote that finishes first, whatever it costs others. Weighs everyone.

        ``ahead`` are the seconds of tickets planned at a site that would be served before.
        """
        quotes = [
            quote
            for shelf in group.shelves
            for _, _, candidate in shelf
            if not demand.bars(candidate.site.device)
            and (quote := self.quote(candidate, demand.units, now, ahead=ahead)) is not None
        ]
        return min(quotes, key=lambda quote: quote.finish, default=None)

    def quote(
        self,
        candidate: Candidate,
        units: float,
        now: float,
        claimant: Key | None = None,
        ahead: Mapping[Site, float] | None = None,
    ) -> Quote | None:
        """Predict one attempt at one candidate; None if the model cannot be loaded there now.

        A device that a ticket has claimed has no room for anyone but the ``claimant``. Unless
        ``ahead`` says better, every ticket planned there is taken to be served before.
        """
        site = candidate.site
        device = site.device
        attempts = site.account.load
        limit = site.slots
        claimed = device.claim is not None and device.claim != claimant
        room = site.barred_until <= now and not claimed
        wait = load = others = 0.0
        eviction = _NOTHING
        if site.state is State.COLD:
            found = None if site.fleet.full else self._evict(site, now)
            if found is None:
                return None
            eviction = found
            wait = eviction.wait
            room = room and not eviction.drain
            load = site.load
            others = load + sum(victim.load for victim in eviction.victims)
        elif site.state is State.READY:
            limit += self._settings.prefetch
        if attempts >= site.slots and site.free_at and room:
            # What is bound cannot be bound better later: not before a slot is nearly free.
            room = until(site.free_at, now) <= self._settings.prefetch_within
        queue = 0.0
        if site.tickets:
            queue = site.queue if ahead is None else ahead.get(site, 0.0) / site.slots
        if attempts >= site.slots or not room:
            wait = max(wait, until(site.free_at, now) if site.free_at else 0.0) + queue
        elif queue:
            wait = max(wait, queue)
        if site.state is State.LOADING:
            load = max(0.0, site.ready_at - now - wait)
        slowdown = 1.0 if eviction.drain else site.slowdown(self._settings.crowding)
        alone = units * candidate.rate
        service = alone * slowdown
        # What an attempt suffers from its neighbours it also does to them. And an ailing device
        # may fail half-way: at health 0.5 expect to do the same again elsewhere.
        risk = service * (1 / device.soundness - 1)
        return Quote(
            candidate,
            wait,
            service,
            load,
            others + service - alone + risk + self._settings.congestion * queue,
            slowdown,
            room and attempts < limit,
            eviction.drain,
            eviction.victims,
        )

    def fits(self, site: Site) -> bool:
        """Whether the model is on the device, or could be once others are done."""
        return site.state is not State.COLD or self._need(site) <= self.obtainable(site.device)

    def obtainable(self, device: DeviceRecord) -> float:
        """Bytes that a model could have if all of ours on that device went.

        On the high side while something is being loaded or unloaded: nobody should be turned
        away for good because of a state that lasts a second.
        """
        if device.info.memory_total <= 0:
            return math.inf  # it does not tell its size: the load itself decides
        ours = sum(s.memory for s in device.warm.values() if not s.stays) + device.leaving
        there = min(device.info.memory_total, device.info.memory_free + ours)
        return max(0, there - self._settings.headroom)

    def most(self, device: DeviceRecord) -> float:
        """Bytes that a model could have if nothing else at all were on that device."""
        total = device.info.memory_total
        return math.inf if total <= 0 else max(0, total - self._settings.headroom)

    @staticmethod
    def _need(site: Site) -> int:
        return max(0, site.model.memory)

    def _evict(self, site: Site, now: float) -> _Eviction | None:
        """Find what would have to go for a cold site to be loaded; None if that is not enough."""
        device = site.device
        need = self._need(site)
        short = need + self._settings.headroom - device.free
        if short <= 0 or need == 0 or device.info.memory_total <= 0:
            return _NOTHING
        if need > self.obtainable(device):
            return None
        # Idle ones first, the least regretted before the others, as nodes choose. Then those at
        # work, the one that is done first before the others.
        order = []
        for other in device.warm.values():
            if other.stays:
                continue
            # Tickets planned there would want it loaded; a claim goes before plans.
            wanted = other.account.load or (other.tickets and device.claim is None)
            idle = other.state is State.READY and not wanted
            delay = 0.0 if idle else max(_busy_for(other, now), 1e-3)
            order.append((delay, regret(other.load, now - other.last_used), other))
        order.sort(key=lambda item: item[:2])
        victims: list[Site] = []
        wait = 0.0
        for delay, _, other in order:
            if short <= 0:
                break
            if other.memory > 0:
                victims.append(other)
                short -= other.memory
                wait = delay
        if short > 0:
            # Something is on its way out or in; the next advert will tell.
            wait = max(wait, SETTLING)
        return _Eviction(tuple(victims), wait, wait > 0)


def until(at: float, now: float) -> float:
    """Seconds until something predicted for ``at``.

    What is overdue takes, as far as anyone can know, as long again as it is late: just past its
    time it is about to end, long past its time it is probably stuck.
    """
    return abs(at - now)


def _weighed(candidate: Candidate, rate: float) -> float:
    """Correct a candidate's weight for neighbours that came since it was sorted."""
    site = candidate.site
    more = (1 + site.device.busy - site.busy) / (1 + site.neighbours)
    return (candidate.weight + rate) * more - rate


def _busy_for(site: Site, now: float) -> float:
    """Seconds until a replica has done what it was given and is loaded."""
    ends = site.account.ends
    last = until(ends[-1], now) if ends else 0.0
    if site.account.external:
        last = max(last, site.typical)
    return max(last, site.ready_at - now)

"""Where each attempt runs.

Events come in as calls, commands go out as return values: nothing here waits or sends. For every
attempt the candidate with the least ``wait + service + load`` (and cost to others) in seconds
wins, see :mod:`blip.broker.quotes`. If the best one has no room, the attempt becomes a ticket and
waits for it here, see :mod:`blip.broker.tickets`.

A ticket remembers where it would run if everything went as predicted, its plan, and the plan
counts as work ahead of whoever comes later. When a device is freed, the first ticket in rank that
gains by it takes it, whether or not that was the plan; every tick makes the plans anew.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import islice
from typing import Any

from blip.broker import refusals, replication, stealing
from blip.broker.decisions import NOTHING, Decision, Decisions, Search, search
from blip.broker.demand import Demand, believed, demand_of
from blip.broker.index import Index
from blip.broker.learning import learn
from blip.broker.ledger import Lease, Ledger
from blip.broker.quotes import Quote, Quotes
from blip.broker.rates import Rates
from blip.broker.registry import Admission, Change, Hearing, Registry, Status
from blip.broker.settings import Settings
from blip.broker.shares import Shares
from blip.broker.sites import Candidate, DeviceRecord, Group, Lane, State
from blip.broker.tickets import Ticket, Tickets, rank
from blip.errors import BlipError, InvalidRequest, Unavailable
from blip.protocol import messages
from blip.protocol.messages import Advert, Deny, Grant, Move, Order, Place, Release

#: A message and whom it goes to: an ORDER to a node, everything else to a gateway.
Command = tuple[str, Grant | Deny | Move | Order]

#: Alternatives to the chosen candidate whose costs are kept with a decision. Quoting them is most
#: of what remembering costs, and the runners-up are what one asks about.
RUNNERS_UP = 2

#: Seconds between two times that the first tickets are planned anew although nothing happened:
#: predictions go wrong no faster than that.
REPLAN = 1.0

#: How a gateway's CANCEL ends a lease that was granted a moment before.
WITHDRAWN = "withdrawn"


class Scheduler:
    """Decides. The registry, ledger and rates it is given are its own to write from then on.

    Until ``settled_at`` what cannot be placed waits instead of being denied: after a broker's
    start, gateways ask before all nodes are back.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        ledger: Ledger,
        rates: Rates,
        settled_at: float = -math.inf,
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.ledger = ledger
        self.rates = rates
        self.index = Index(settings, ledger, rates)
        self.shares = Shares(settings.tenants)
        self.tickets = Tickets(settings, self.shares)
        self._quotes = Quotes(settings)
        self._decisions = Decisions(settings.decisions)
        self._settled_at = settled_at
        #: Devices on which more may be possible than before; offered at the end of an event.
        self._freed: dict[DeviceRecord, None] = {}
        self._replanned_at = -math.inf
        self._orders = 0

    # --- nodes ------------------------------------------------------------------------------

    def node_hello(
        self,
        node_id: str,
        incarnation: int,
        name: str,
        host: str,
        endpoints: list[str],
        now: float,
    ) -> Admission:
        """Admit a node. A newer incarnation voids what the older one held.

        Tickets that wait for it keep waiting: it is about to advertise.
        """
        admission = self.registry.hello(node_id, incarnation, name, host, endpoints, now)
        if admission is Admission.REJECTED:
            return admission
        if admission is Admission.SUPERSEDED:
            self._vacate(self.ledger.revoke_node(node_id), now)
        node = self.registry.get(node_id)
        if node is not None and node.placeable:
            self.index.sync(node, now)
        else:
            self.index.suspend(node_id)
        return admission

    def advert(self, node_id: str, advert: Advert, now: float) -> list[Command] | None:
        """Take a node's advert; None if it is a stranger's: answer GOODBYE(unknown_epoch)."""
        hearing = self.registry.advert(node_id, advert, now)
        node = self.registry.get(node_id)
        if node is None:
            return None
        if hearing is Hearing.STALE:
            return []
        lost, changed = self.ledger.reconcile(node_id, advert)
        worse, better = self.index.sync(node, now, changed)
        self._freed.update(dict.fromkeys(better))
        self._vacate(lost, now)
        commands = self._replan(self._stranded(), now) if worse else []
        return commands + self._serve(now)

    def node_heard(self, node_id: str, now: float) -> list[Command]:
        """Note any other sign of life of a node."""
        return self._follow(self.registry.heard(node_id, now), now)

    def node_unreachable(self, node_id: str, now: float) -> list[Command]:
        """The transport cannot reach a node: its leases are revoked at once."""
        return self._follow(self.registry.unreachable(node_id, now), now)

    def node_goodbye(self, node_id: str, now: float) -> list[Command]:
        """A node leaves in good order."""
        return self._follow(self.registry.goodbye(node_id, now), now)

    # --- gateways ---------------------------------------------------------------------------

    def gateway_hello(
        self, gateway: str, leases: Iterable[messages.Lease], now: float
    ) -> list[Command]:
        """Bring the ledger in line with what a gateway says that it holds.

        Leases that it does not list are over. Its tickets keep their place, in case that it asks
        again; a PLACE for an attempt that waits already changes nothing.
        """
        reports = {(report.task, report.attempt): report for report in leases}
        over = [lease for lease in self.ledger.of_gateway(gateway) if lease.key not in reports]
        for lease in over:
            self.ledger.release(*lease.key, gateway, now)
        self._vacate(over, now)
        for report in reports.values():
            self._adopt(gateway, report, now)
        # What looked like other people's work may be what was just adopted.
        for node_id in {report.node for report in reports.values()}:
            node = self.registry.get(node_id)
            if node is not None and node.advert is not None and node.status is Status.READY:
                _, changed = self.ledger.reconcile(node_id, node.advert, fresh=False)
                self.index.sync(node, now, changed)
        return self._serve(now)

    def gateway_lost(self, gateway: str, now: float) -> list[Command]:
        """A gateway is gone, or has started anew: nothing of what it held or asked is left."""
        for ticket in [ticket for ticket in self.tickets if ticket.gateway == gateway]:
            self._dequeue(ticket)
        self._vacate(self.ledger.revoke_gateway(gateway), now)
        return self._serve(now)

    # --- attempts ---------------------------------------------------------------------------

    def place(self, place: Place, gateway: str, now: float) -> Grant | Deny | None:
        """Decide where an attempt runs; None means that it waits as a ticket.

        Asking again for what is granted or waits already gives the same answer again.
        """
        lease = self.ledger.get(place.task, place.attempt)
        if lease is not None:
            if lease.gateway == gateway:
                return self._grant_of(lease)
            return self._deny(place, Unavailable("another gateway holds this attempt"), now)
        if self.tickets.get(place.task, place.attempt) is not None:
            return None
        try:
            demand = demand_of(place, self.rates)
        except InvalidRequest as wrong:
            return self._deny(place, wrong, now)
        left = place.deadline if place.deadline > 0 else math.inf
        rank_ = rank(place.priority, now, now + left, self.settings)
        quote, found = self._choose(demand, left, rank_, now)
        if quote is None:
            error = self._refusal(demand, now)
            if error is not None:
                return self._deny(place, error, now, found)
        else:
            earliest = self._earliest(demand.lane, quote)
            if earliest > left:
                return self._deny(place, refusals.late(earliest, left), now, found)
            # With tickets planned there it is not the newcomer's turn.
            if quote.room and not quote.candidate.site.tickets:
                return self._grant(place, gateway, demand, quote, now, found)
        if self.tickets.full(place.priority):
            # Waiting for the best is not to be had: what is free will do.
            vacant = self._vacant(demand, left, now)
            if vacant is not None:
                return self._grant(place, gateway, demand, vacant, now, found)
            patience = self.registry.liveness.lost_after
            error = refusals.overloaded(len(self.tickets), quote, patience)
            return self._deny(place, error, now, found)
        ticket = Ticket(place, gateway, now, now + left, rank_, demand)
        self.tickets.add(ticket)
        if quote is not None:
            self._plan(ticket, quote, now)
        self._decisions.add(now, place, "wait", found)
        return None

    def release(self, gateway: str, release: Release, now: float) -> list[Command]:
        """End a lease, learn from it, and let tickets have what it freed.

        Of a ticket that still waits it is a withdrawal; anything else unknown is ignored.
        """
        lease = self.ledger.release(release.task, release.attempt, gateway, now)
        if lease is None:
            ticket = self.tickets.get(release.task, release.attempt)
            if ticket is None or ticket.gateway != gateway:
                return []
            self._dequeue(ticket)
            return self._serve(now)
        if lease.place is not None:
            self._decisions.add(now, lease.place, "end", end=release)
        site = self.index.find(lease.account)
        if site is None:
            return []
        if release.outcome in ("done", "cancelled"):
            learn(lease, release, site, now, rates=self.rates, index=self.index)
        self._settle(lease, release, now)
        self._vacate([lease], now)
        if release.outcome == "refused" and self.settings.refusal_pause > 0:
            self.index.bar(site, now + self.settings.refusal_pause)
        return self._serve(now)

    def withdraw(self, gateway: str, task: bytes, attempt: int, now: float) -> list[Command]:
        """Forget an attempt, whether it waits or was granted a moment ago. Idempotent."""
        return self.release(gateway, Release(task, attempt, WITHDRAWN), now)

    def tick(self, now: float) -> list[Command]:
        """Draw the consequences of time: silence, expiry, deadlines, predictions gone wrong.

        Call it several times a second.
        """
        changes = self.registry.tick(now)
        if self.registry.stalled:
            # Nobody could have been heard or served meanwhile: it is nobody's lateness.
            self.ledger.delay(self.registry.stalled)
            self.tickets.delay(self.registry.stalled)
        commands = self._follow(changes, now)
        self._vacate(self.ledger.expire(now), now)
        self._freed.update(dict.fromkeys(self.index.unbar(now)))
        for ticket in self.tickets.expired(now):
            self._dequeue(ticket)
            error = refusals.expired(now - ticket.enqueued)
            commands.append((ticket.gateway, self._deny(ticket.place, error, now)))
        commands += self._replan(self._stranded(), now)
        if now - self._replanned_at >= REPLAN:
            self._replanned_at = now
            window = self.tickets.first(self.settings.lookahead, len(self.ledger))
            commands += self._replan(window, now)
        return commands + self._serve(now) + self._steal(now) + self._replicate(now)

    # --- asking -----------------------------------------------------------------------------

    def explain(self, task: bytes) -> list[Decision]:
        """Return the remembered decisions about a task, oldest first."""
        return self._decisions.of(task)

    def decisions(self, count: int = 50) -> list[Decision]:
        """Return the last decisions, newest first."""
        return self._decisions.last(count)

    def stats(self, now: float) -> dict[str, Any]:
        """Return counts for STATS and metrics; ``oldest_ticket`` is in seconds."""
        statuses = [node.status.value for node in self.registry.nodes()]
        return {
            "leases": len(self.ledger),
            "tickets": len(self.tickets),
            "oldest_ticket": max((now - t.enqueued for t in self.tickets), default=0.0),
            "nodes": {status: statuses.count(status) for status in dict.fromkeys(statuses)},
        }

    # --- choosing ---------------------------------------------------------------------------

    def _choose(
        self, demand: Demand, left: float, rank: float, now: float
    ) -> tuple[Quote | None, Search]:
        """Return the best quote, and what was looked at.

        If the best would miss the deadline, ``left`` seconds off, it is the quickest, given who
        else waits and would go before that ``rank``.
        """
        group = self.index.groups.get(demand.lane)
        if group is None:
            return None, NOTHING
        seen: list[Candidate] = []
        barred: list[Candidate] = []
        quote = self._quotes.best(group, demand, now, seen, barred)
        if quote is not None and left < math.inf and self._earliest(demand.lane, quote) > left:
            ahead = self.tickets.ahead(rank)
            quote = self._quotes.quickest(group, demand, now, ahead) or quote
        compared = () if quote is None else self._compare(group, quote, seen, demand, now)
        return quote, search(group, demand, compared, barred)

    def _vacant(self, demand: Demand, left: float, now: float) -> Quote | None:
        """Return what could begin at once and be done in time."""
        group = self.index.groups.get(demand.lane)
        quote = None if group is None else self._quotes.vacant(group, demand, now)
        if quote is None or self._earliest(demand.lane, quote) > left:
            return None
        return quote

    def _earliest(self, lane: Lane, quote: Quote) -> float:
        """Seconds until it is done, as far as known: nobody is refused on a first guess."""
        return quote.finish if self.rates.knows(*lane) else quote.wait

    def _compare(
        self, group: Group, chosen: Quote, seen: list[Candidate], demand: Demand, now: float
    ) -> tuple[Quote, ...]:
        """Return the chosen quote and the runners-up, for the record.

        The search stops where nobody can be better: then the next on the shelves come after.
        """
        runners = dict.fromkeys(seen[: RUNNERS_UP + 1])
        for shelf in group.shelves:
            if len(runners) > RUNNERS_UP:
                break
            runners.update((c, None) for _, _, c in shelf[: RUNNERS_UP + 1])
        runners.pop(chosen.candidate, None)
        quotes = (
            self._quotes.quote(candidate, demand.units, now)
            for candidate in islice(runners, RUNNERS_UP)
            if not (demand.picky and demand.bars(candidate.site.device))
        )
        return (chosen, *(quote for quote in quotes if quote is not None))

    def _refusal(self, demand: Demand, now: float) -> BlipError | None:
        """Say why nothing can ever take it as things stand; None if waiting may help."""
        if now < self._settled_at:
            return None
        group = self.index.groups.get(demand.lane)
        if group is None:
            return refusals.unknown(*demand.lane, self.index.groups, self.registry.nodes())
        return refusals.unplaceable(group, demand, self._quotes)

    # --- granting, waiting, denying ---------------------------------------------------------

    def _grant(
        self,
        place: Place,
        gateway: str,
        demand: Demand,
        quote: Quote,
        now: float,
        found: Search,
    ) -> Grant:
        site = quote.candidate.site
        lease = self.ledger.grant(
            task=place.task,
            attempt=place.attempt,
            gateway=gateway,
            kind=place.kind,
            units=demand.units,
            account=site.account,
            now=now,
            wait=quote.wait,
            service=quote.service,
            load=quote.load,
            slowdown=quote.slowdown,
            cold=site.state is State.COLD,
            place=place,
        )
        self.shares.charge(place.tenant, quote.service, self.tickets.tenants)
        self.index.occupy(quote, now)
        self._decisions.add(now, place, "grant", found)
        return self._grant_of(lease)

    def _grant_of(self, lease: Lease) -> Grant:
        account = lease.account
        node = self.registry.get(account.node)
        return Grant(
            lease.task,
            lease.attempt,
            account.node,
            0 if node is None else node.incarnation,
            account.device,
            lease.wait,
            lease.service,
            lease.load,
        )

    def _deny(self, place: Place, error: BlipError, now: float, found: Search = NOTHING) -> Deny:
        code, text, details = error.to_wire()
        self._decisions.add(now, place, "deny", found, code=code, text=text)
        return Deny(place.task, place.attempt, code, text, details)

    def _plan(self, ticket: Ticket, quote: Quote, now: float) -> None:
        """Expect the ticket to run there; let it claim the device if its time has come."""
        site = quote.candidate.site
        ticket.site, ticket.seconds = site, quote.service
        ticket.cost, ticket.planned_at = quote.cost, now
        self.index.plan(site, ticket.seconds)
        insort(site.device.plans, (ticket.rank, ticket.number, ticket))
        if quote.drain and site.device.claim is None and self._may_claim(ticket, quote, now):
            ticket.claim = site.device
            self.index.claim(site.device, ticket.key, now + quote.finish)
            # Replicas that were only kept for other tickets can go at once.
            self._freed[site.device] = None

    def _may_claim(self, ticket: Ticket, quote: Quote, now: float) -> bool:
        """Decide whether a device should drain to load the ticket's model.

        To rent or to buy: as long as waiting has cost less than swapping models would, others go
        on using what is loaded; so it costs at most twice what it would have cost had we known
        the future. And whoever waited already when the present model was loaded is served first:
        the longer the queues, the fewer the swaps, and no load below capacity is too much.
        """
        device = quote.candidate.site.device
        swap = quote.candidate.site.load + sum(victim.load for victim in quote.victims)
        if now - ticket.enqueued < swap:
            return False
        lanes = [(c.kind, c.group.model) for victim in quote.victims for c in victim.candidates]
        return not any(
            other.enqueued < device.loaded_at and not other.demand.bars(device)
            for other in self.tickets.first_of(lanes, self.settings.lookahead)
        )

    def _unplan(self, ticket: Ticket) -> None:
        if ticket.claim is not None:
            self.index.claim(ticket.claim, None)
            self._freed[ticket.claim] = None
            ticket.claim = None
        if ticket.site is not None:
            self.index.unplan(ticket.site, ticket.seconds)
            plans = ticket.site.device.plans
            del plans[bisect_left(plans, (ticket.rank, ticket.number, ticket))]
            ticket.site, ticket.cost = None, math.inf

    def _dequeue(self, ticket: Ticket) -> None:
        self._unplan(ticket)
        self.tickets.remove(ticket)

    # --- tickets ----------------------------------------------------------------------------

    def _serve(self, now: float) -> list[Command]:
        """Offer devices that were freed to the tickets that could use them, best rank first."""
        commands: list[Command] = []
        while self._freed and self.tickets:
            device, _ = self._freed.popitem()
            while True:
                served = self._fill(device, now)
                commands += served
                if not served:
                    break  # else those beyond the window have moved up
        self._freed.clear()
        return commands

    def _fill(self, device: DeviceRecord, now: float) -> list[Command]:
        """Offer one device to the first tickets for it, and to those that are planned there.

        A ticket whose plan is elsewhere may decline. If as many as are looked at do, others still
        wait for this device and no other: they are behind in rank, and nobody is before them here.
        """
        key = device.key
        candidates: dict[Lane, Candidate] = {}
        for lane in self.tickets.lanes():
            group = self.index.groups.get(lane)
            candidate = None if group is None else group.members.get(key)
            if candidate is not None and candidate.shelf is not None and self._takes(candidate):
                candidates[lane] = candidate
        if not candidates:
            return []
        lookahead = self.settings.lookahead
        window = self.tickets.first_of(candidates, lookahead, len(self.ledger))
        commands = self._offer_all(window, candidates, now)
        if not commands and device.plans:
            asked = set(window)  # they would decline again: nothing has changed since
            planned = [t for _, _, t in device.plans[:lookahead] if t not in asked]
            commands = self._offer_all(planned, candidates, now)
        return commands

    def _takes(self, candidate: Candidate) -> bool:
        """Whether one more attempt may be bound there at all."""
        site = candidate.site
        return site.account.load < site.slots + self.settings.prefetch

    def _offer_all(
        self, tickets: Iterable[Ticket], candidates: dict[Lane, Candidate], now: float
    ) -> list[Command]:
        """Offer candidates to tickets in turn, until all have been asked or nothing is left."""
        commands: list[Command] = []
        for ticket in tickets:
            candidate = candidates.get(ticket.lane)
            if candidate is None:
                continue
            grant = self._offer(candidate, ticket, now)
            if grant is not None:
                commands.append((ticket.gateway, grant))
                if not self._takes(candidate):
                    del candidates[ticket.lane]
                    if not candidates:
                        break
        return commands

    def _offer(self, candidate: Candidate, ticket: Ticket, now: float) -> Grant | None:
        """Grant a candidate to a ticket if it has room and the ticket gains by it."""
        site = candidate.site
        if ticket.demand.bars(site.device):
            return None
        elsewhere = math.inf
        if ticket.site is not site:
            # What is left of the cost there; a wait that should be over is over.
            elsewhere = max(ticket.cost - (now - ticket.planned_at), ticket.seconds)
            at_least = ticket.demand.units * candidate.weight
            if site.state is State.COLD:
                at_least += 2 * site.load
            if at_least >= elsewhere:
                return None
        quote = self._quotes.quote(candidate, ticket.demand.units, now, ticket.key)
        if quote is None or not quote.room or quote.cost >= elsewhere:
            return None
        return self._promote(ticket, quote, now)

    def _promote(
        self, ticket: Ticket, quote: Quote, now: float, found: Search | None = None
    ) -> Grant:
        """Turn a ticket into a lease.

        Others that plan to run there weighed when it was offered; it will not wait for them.
        """
        found = (
            search(quote.candidate.group, ticket.demand, (quote,), ()) if found is None else found
        )
        candidate, units = quote.candidate, ticket.demand.units
        if candidate.site.tickets:
            quote = self._quotes.quote(candidate, units, now, ticket.key, ahead={}) or quote
        self._dequeue(ticket)
        return self._grant(ticket.place, ticket.gateway, ticket.demand, quote, now, found)

    def _replan(self, order: list[Ticket], now: float) -> list[Command]:
        """Plan tickets anew, in this order; some are granted or denied by it."""
        commands: list[Command] = []
        for ticket in order:
            self._unplan(ticket)
        for ticket in order:
            left = ticket.deadline - now
            quote, found = self._choose(ticket.demand, left, ticket.rank, now)
            error = None
            if quote is None:
                error = self._refusal(ticket.demand, now)
            elif quote.room:
                commands.append((ticket.gateway, self._promote(ticket, quote, now, found)))
                continue
            elif quote.service > left and self.rates.knows(*ticket.lane):
                # Even the wait ending now would not save it.
                error = refusals.hopeless(quote.service, left)
            if error is not None:
                self._dequeue(ticket)
                commands.append((ticket.gateway, self._deny(ticket.place, error, now, found)))
            elif quote is not None:
                self._plan(ticket, quote, now)
        return commands

    def _stranded(self) -> list[Ticket]:
        """Return the tickets without a plan, or with one that cannot come true, in order."""
        return [t for t in self.tickets if t.site is None or not t.site.eligible]

    # --- the broker's own ideas -------------------------------------------------------------

    def _steal(self, now: float) -> list[Command]:
        """Ask back what waits on busy devices while others idle."""
        waiting = self.ledger.waiting()
        if not waiting:
            return []
        thefts = stealing.find(
            waiting,
            self.index,
            self._quotes,
            self.rates,
            now,
            self.settings.move_cost,
        )
        commands: list[Command] = []
        for lease, quote in thefts:
            assert lease.place is not None
            device = quote.candidate.site.device
            move = Move(lease.task, lease.attempt, device.node.id, device.info.id)
            self._decisions.add(now, lease.place, "move", Search((quote,)))
            commands.append((lease.gateway, move))
        return commands

    def _replicate(self, now: float) -> list[Command]:
        """Have loaded what should always be loaded."""
        if now < self._settled_at:
            return []
        orders = replication.missing(self.index, self._quotes, now, self._orders)
        self._orders += len(orders)
        return list(orders)

    # --- what events have in common ---------------------------------------------------------

    def _follow(self, changes: list[Change], now: float) -> list[Command]:
        """Act on changes of nodes' statuses."""
        if not changes:
            return []
        for node, _, after in changes:
            if after is Status.READY:
                self._freed.update(dict.fromkeys(self.index.sync(node, now).better))
            elif after is Status.SUSPECT:
                self.index.suspend(node.id)
            elif after is Status.LOST:
                self.ledger.revoke_node(node.id)
                self.index.drop(node.id)
            elif after is Status.GONE:
                self.ledger.forget_node(node.id)
                self.index.drop(node.id)
        return self._replan(self._stranded(), now) + self._serve(now)

    def _adopt(self, gateway: str, report: messages.Lease, now: float) -> None:
        device = (report.node, report.device)
        group = self.index.groups.get((report.kind, report.model))
        member = None if group is None else group.members.get(device)
        if member is None:
            rate = self.rates.seconds_per_unit(report.kind, report.model, device, 1.0)
        else:
            rate = member.rate
        units = self.rates.expected(report.kind, report.model, believed(report.units))
        known = self.ledger.get(report.task, report.attempt)
        lease = self.ledger.adopt(gateway, report._replace(units=units), units * rate, now)
        ticket = self.tickets.get(*lease.key)
        if ticket is not None:
            self._dequeue(ticket)
        site = self.index.find(lease.account)
        if known is None and site is not None:
            self.index.refresh(site)

    def _settle(self, lease: Lease, release: Release, now: float) -> None:
        """Charge a tenant what a run really took of the device, not what was predicted."""
        if lease.place is not None:
            took = release.run if release.run > 0 else 0.0
            took = min(took, max(0.0, now - lease.granted_at))
            self.shares.correct(lease.place.tenant, took - lease.service)

    def _vacate(self, leases: Iterable[Lease], now: float) -> None:
        """Take over that these leases were struck out."""
        for lease in leases:
            site = self.index.find(lease.account)
            if site is not None:
                self.index.vacate(site, now)
                self._freed[site.device] = None

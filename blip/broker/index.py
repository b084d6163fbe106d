"""The sites of the mesh, kept in step with adverts and leases, and sorted for choosing."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from blip.broker.ledger import Account, Key, Ledger
from blip.broker.priors import load_bandwidth, speed_of
from blip.broker.quotes import Quote
from blip.broker.rates import Rates
from blip.broker.registry import NodeRecord, Status
from blip.broker.settings import Settings
from blip.broker.sites import Candidate, DeviceRecord, Fleet, Group, Lane, Site, State
from blip.protocol.messages import Device, Model, Replica

#: Rates closer than this share are the same when candidates are sorted: measurements are noisier
#: than that, and equal devices should take turns.
RATE_STEP = 0.1

#: Where the shelves stand in :attr:`Group.shelves`.
_OPEN, _FULL, _COLD = range(3)


#: Less free memory than this gained by a device is no reason to look at the queue.
MEMORY_GAIN = 64 * 1024 * 1024


class Synced(NamedTuple):
    """What an advert changed: whether something can no longer be placed where it could before,
    and the devices on which more may be possible now.
    """

    worse: bool
    better: list[DeviceRecord]


@dataclass(slots=True, eq=False)
class _NodeSites:
    devices: dict[str, DeviceRecord] = field(default_factory=dict)
    models: list[Model] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    placeable: bool = False
    #: :attr:`Rates.version` when its candidates' rates were last looked up.
    rated: int = -1


class Index:
    """All sites, by node and by group. The scheduler calls; :mod:`blip.broker.quotes` reads."""

    def __init__(self, settings: Settings, ledger: Ledger, rates: Rates) -> None:
        self._settings = settings
        self.crowding = settings.crowding
        self._ledger = ledger
        self._rates = rates
        self._nodes: dict[str, _NodeSites] = {}
        self._barred: set[Site] = set()
        self._turn = 0
        self.groups: dict[Lane, Group] = {}
        self.fleets: dict[str, Fleet] = {}

    # --- looking up -------------------------------------------------------------------------

    def devices(self, node_id: str) -> list[DeviceRecord]:
        """Return a node's devices."""
        node = self._nodes.get(node_id)
        return [] if node is None else list(node.devices.values())

    def find(self, account: Account) -> Site | None:
        """Return the site that an account belongs to, if its node advertises it."""
        node = self._nodes.get(account.node)
        device = None if node is None else node.devices.get(account.device)
        return None if device is None else device.sites.get(account.model)

    # --- nodes ------------------------------------------------------------------------------

    def sync(self, record: NodeRecord, now: float, changed: Iterable[Account] = ()) -> Synced:
        """Take over what a node advertises, and its status.

        ``changed`` are accounts of this node whose sums changed meanwhile.
        """
        advert = record.advert
        if advert is None:
            return Synced(False, [])
        node = self._nodes.setdefault(record.id, _NodeSites())
        infos = {device.id: device for device in advert.devices}
        rebuild = node.placeable != record.placeable or node.models != advert.models
        worse = False
        free = {device_id: device.free for device_id, device in node.devices.items()}
        for device_id, device in list(node.devices.items()):
            if device_id not in infos or infos[device_id].kind != device.info.kind:
                self._drop_device(node.devices.pop(device_id))
                worse = True
        for device_id, info in infos.items():
            known = node.devices.get(device_id)
            if known is None:
                node.devices[device_id] = DeviceRecord(record, info)
                rebuild = True
            else:
                rebuild = rebuild or _differs(known.info, info)
                if known.verdicts and known.info[:4] != info[:4]:
                    known.verdicts.clear()  # what requirements look at
                known.info = info
        if node.labels != advert.labels:
            node.labels = advert.labels
            for device in node.devices.values():
                device.verdicts.clear()
        node.models, node.placeable = advert.models, record.placeable
        if node.rated != self._rates.version and not rebuild:
            for device in node.devices.values():
                for site in device.sites.values():
                    for candidate in site.candidates:
                        lane = candidate.kind, site.model.name
                        if self._rates.moved.get(lane, 0) > node.rated:
                            self.rerate(candidate)
        node.rated = self._rates.version
        if rebuild:
            models = {model.name: model for model in advert.models}
            for device in node.devices.values():
                worse |= self._stock(device, models)
        replicas = {(replica.device, replica.model): replica for replica in advert.replicas}
        touched: dict[Site, None] = {}
        for device_id, device in node.devices.items():
            touched.update(
                dict.fromkeys(device.sites.values() if rebuild else device.warm.values())
            )
            for site in device.warm.values():
                if site.pending and (device_id, site.model.name) in replicas:
                    self._settle(site)
        for device_id, name in replicas:
            if device_id in node.devices and name in node.devices[device_id].sites:
                touched[node.devices[device_id].sites[name]] = None
        better: dict[DeviceRecord, None] = {}
        for account in changed:
            found = self.find(account)
            if found is not None:
                touched[found] = better[found.device] = None
        for site in touched:
            before = (site.state, site.slots)
            self._observe(site, replicas.get((site.device.info.id, site.model.name)), now)
            if before != (site.state, site.slots):
                better[site.device] = None
        for device_id, device in node.devices.items():
            _reserve(device)
            device.leaving = sum(
                max(0, replica.memory)
                for replica in advert.replicas
                if replica.device == device_id and replica.state == "stopping"
            )
            if device.free > free.get(device.info.id, 0) + MEMORY_GAIN:
                better[device] = None
        for site in touched:
            before_eligible = site.eligible
            site.eligible = record.placeable and _usable(site)
            if site.eligible != before_eligible:
                worse |= before_eligible
                better[site.device] = None
            self.refresh(site)
        return Synced(worse, list(better))

    def suspend(self, node_id: str) -> None:
        """Take a node's candidates off the shelves: it is quiet, or starting anew."""
        node = self._nodes.get(node_id)
        if node is None:
            return
        node.placeable = False
        for device in node.devices.values():
            for site in device.sites.values():
                site.eligible = False
                self.refresh(site)

    def drop(self, node_id: str) -> None:
        """Forget a node's sites."""
        node = self._nodes.pop(node_id, None)
        if node is not None:
            for device in node.devices.values():
                self._drop_device(device)

    # --- leases and tickets -----------------------------------------------------------------

    def occupy(self, quote: Quote, now: float) -> None:
        """A lease was granted as quoted: what it loads counts as loading from now on."""
        site = quote.candidate.site
        site.last_used = now
        site.typical += (quote.service - site.typical) / 5
        if site.state is State.COLD:
            _become(site, State.LOADING)
            site.pending = True
            site.ready_at = now + quote.wait + quote.load
            site.victims = quote.victims
            site.device.loaded_at = now
            for victim in quote.victims:
                victim.doomed = True
                _become(victim, State.COLD)
                self.refresh(victim)
            _reserve(site.device)
        self.refresh(site, rotate=True)

    def vacate(self, site: Site, now: float) -> None:
        """Leases on a site are over; a load that only they would have caused does not happen."""
        site.last_used = now
        if site.pending and not site.account.ends:
            self._settle(site)
            _become(site, State.COLD)
            site.ready_at = 0.0
            _reserve(site.device)
        self.refresh(site, rotate=True)

    def plan(self, site: Site, seconds: float) -> None:
        """A ticket is planned here and would take that long."""
        site.tickets += 1
        site.planned += seconds
        self._shelve(site)

    def unplan(self, site: Site, seconds: float) -> None:
        """A ticket is no longer planned here."""
        site.tickets -= 1
        # Back to exactly nothing: sums of floats do not cancel.
        site.planned = max(0.0, site.planned - seconds) if site.tickets else 0.0
        self._shelve(site)

    def claim(self, device: DeviceRecord, ticket: Key | None, ends: float = 0.0) -> None:
        """Keep a device for one ticket, expected to be done by ``ends``, or open it again."""
        device.claim, device.claim_ends = ticket, ends
        for site in device.sites.values():
            self._shelve(site)

    def bar(self, site: Site, until: float) -> None:
        """Place nothing there for a moment: its node has just refused."""
        site.barred_until = until
        self._barred.add(site)
        self._shelve(site)

    def unbar(self, now: float) -> list[DeviceRecord]:
        """Open what was barred long enough; returns the devices."""
        over = [site for site in self._barred if site.barred_until <= now]
        for site in over:
            self._barred.discard(site)
            site.barred_until = 0.0
            self._shelve(site)
        return [site.device for site in over]

    def refresh(self, site: Site, *, rotate: bool = False) -> None:
        """Sort a site anew after its account changed, and its neighbours if they gain by it.

        Neighbours that lose by it keep their place: it is only too good, and whoever chooses
        looks twice. With ``rotate`` the site goes behind its equals even if nothing changed.
        """
        busy = site.account.load > 0 and not site.gone
        if busy != site.busy:
            device = site.device
            site.busy = busy
            device.busy += 1 if busy else -1
            if not busy:
                for other in device.sites.values():
                    if other.neighbours > device.busy - other.busy:
                        self._shelve(other)
        self._shelve(site, rotate=rotate)

    def rerate(self, candidate: Candidate) -> None:
        """Take over a new rate for a candidate."""
        if self._rate(candidate):
            self._shelve(candidate.site)

    # --- inside: taking over adverts --------------------------------------------------------

    def _stock(self, device: DeviceRecord, models: dict[str, Model]) -> bool:
        """Bring a device's sites in line with its node's models; returns whether any went."""
        dropped = [name for name in device.sites if name not in models]
        for name in dropped:
            self._drop_site(device.sites.pop(name))
        for name, model in models.items():
            site = device.sites.get(name)
            if site is None:
                account = self._ledger.account(*device.key, name)
                site = Site(device, model, account, self._fleet(name))
                device.sites[name] = site
            site.model = model
            site.fleet.least, site.fleet.most = model.min_replicas, model.max_replicas
            site.load = self._rates.load_seconds(
                device.key,
                model.load_bytes,
                device.info.load_bandwidth,
                load_bandwidth(device.info.benchmark),
            )
            kinds = list(dict.fromkeys(model.kinds))
            if kinds != [candidate.kind for candidate in site.candidates]:
                for candidate in site.candidates:
                    self._drop_candidate(candidate)
                site.candidates = [self._candidate(site, kind) for kind in kinds]
            for candidate in site.candidates:
                self._rate(candidate)
        return bool(dropped)

    def _fleet(self, model: str) -> Fleet:
        fleet = self.fleets.get(model)
        if fleet is None:
            fleet = self.fleets[model] = Fleet(model)
        return fleet

    def _candidate(self, site: Site, kind: str) -> Candidate:
        key = (kind, site.model.name)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(*key, site.fleet)
        devices = self._settings.device_kinds.get(kind)
        allowed = devices is None or site.device.info.kind in devices
        candidate = Candidate(site, kind, group, allowed)
        group.members[site.device.key] = candidate
        return candidate

    def _rate(self, candidate: Candidate) -> bool:
        """Look up a candidate's rate; returns whether it changed."""
        device = candidate.site.device
        rate = self._rates.seconds_per_unit(
            candidate.kind,
            candidate.group.model,
            device.key,
            speed_of(device.info, candidate.kind),
        )
        if rate == candidate.rate:
            return False
        candidate.group.changed_rate(candidate.rate, rate)
        candidate.rate = rate
        candidate.step = math.exp(round(math.log(rate) / RATE_STEP) * RATE_STEP)
        return True

    def _observe(self, site: Site, replica: Replica | None, now: float) -> None:
        """Take over what the node says of a site."""
        site.observed_at = now
        if replica is None or replica.state not in ("ready", "loading"):
            if site.pending and site.account.ends:
                return  # the node has not got round to it yet
            self._settle(site)
            state = State.COLD
            site.ready_at = 0.0
            site.memory = max(0, site.model.memory)
            site.slots = max(1, site.model.slots)
            site.pinned = False
        else:
            site.pinned = replica.pinned
            site.memory = max(0, replica.memory or site.model.memory)
            site.slots = max(1, replica.slots)
            if replica.state == "ready":
                state = State.READY
                site.ready_at = 0.0
            else:
                state = State.LOADING
                done = min(max(replica.progress, 0.0), 1.0)
                # The first hundredths say little. A load past its time takes as long again as it
                # is late, like everything that is overdue here.
                total = replica.load_seconds / done if done > 0.05 else site.load
                site.ready_at = now + abs(total - replica.load_seconds)
            if site.doomed:
                state = State.COLD
        _become(site, state)

    @staticmethod
    def _settle(site: Site) -> None:
        """A pending load has shown up or will not come: its victims are what adverts say."""
        site.pending = False
        for victim in site.victims:
            victim.doomed = False
        site.victims = ()

    # --- inside: shelves --------------------------------------------------------------------

    def _shelve(self, site: Site, *, rotate: bool = False) -> None:
        """Put each candidate of a site on the shelf where it belongs."""
        free_at = 0.0
        if site.state is State.COLD:
            # To itself and to others: see Quote.others.
            where, key = _COLD, 2 * site.load
        elif site.account.load < site.slots:
            where, key = _OPEN, 0.0
        else:
            where, key = _FULL, 0.0
        if where == _FULL or site.barred_until or site.device.claim is not None:
            free_at = _free_at(site)
            if where == _OPEN:
                where = _FULL
        site.free_at = free_at
        if where == _FULL:
            key = free_at + site.queue
        slowdown = site.slowdown(self.crowding)
        site.neighbours = site.device.busy - site.busy
        # As in a quote: itself, what it does to others, and the risk that it fails half-way.
        factor = slowdown * (1 + 1 / site.device.soundness) - 1
        for candidate in site.candidates:
            if where == _OPEN:
                candidate.weight = key = candidate.step * factor
            else:
                candidate.weight = candidate.rate * factor
            shelf = None
            if site.eligible and candidate.allowed:
                shelf = candidate.group.shelves[where]
            entry = candidate.entry
            if shelf is None:
                candidate.barrier = _barrier(candidate)
                candidate.group.off[candidate] = None
            elif candidate.barrier:
                candidate.barrier = ""
                candidate.group.off.pop(candidate, None)
            if candidate.shelf is shelf and (entry is None or (entry[0] == key and not rotate)):
                continue
            _unshelve(candidate)
            if shelf is not None:
                self._turn += 1
                candidate.shelf, candidate.entry = shelf, (key, self._turn, candidate)
                insort(shelf, candidate.entry)

    # --- inside: leaving --------------------------------------------------------------------

    def _drop_device(self, device: DeviceRecord) -> None:
        for site in device.sites.values():
            self._drop_site(site)
        device.sites.clear()

    def _drop_site(self, site: Site) -> None:
        site.gone, site.eligible = True, False
        self._settle(site)
        for candidate in site.candidates:
            self._drop_candidate(candidate)
        site.candidates = []
        self._barred.discard(site)
        _become(site, State.COLD)
        self.refresh(site)

    def _drop_candidate(self, candidate: Candidate) -> None:
        _unshelve(candidate)
        group = candidate.group
        group.off.pop(candidate, None)
        del group.members[candidate.site.device.key]
        group.changed_rate(candidate.rate, math.inf)
        if not group.members:
            del self.groups[group.kind, group.model]
            if not any(model == group.model for _, model in self.groups):
                self.fleets.pop(group.model, None)


def _become(site: Site, state: State) -> None:
    """Change a site's state, and whatever counts warm ones."""
    was, site.state = site.state, state
    if (was is State.COLD) is (state is State.COLD):
        return
    if state is State.COLD:
        site.device.warm.pop(site.model.name, None)
        site.fleet.warm -= 1
    else:
        site.device.warm[site.model.name] = site
        site.fleet.warm += 1


def _barrier(candidate: Candidate) -> str:
    """Say why nothing may be placed there, whatever the attempt asks for."""
    site = candidate.site
    device, node = site.device.info, site.device.node
    if not candidate.allowed:
        return f"the broker's settings keep '{candidate.kind}' off {device.kind} devices"
    if node.status is not Status.READY or node.advert is None:
        return f"the node is {node.status.value}"
    if node.advert.draining:
        return "the node is draining"
    if device.state != "ready" or device.health <= 0:
        state = device.state if device.state != "ready" else "unhealthy"
        why = f": {device.reason}" if device.reason else ""
        return f"the device is {state}{why}"
    if site.model.error:
        return f"the model cannot be loaded: {site.model.error}"
    return "the device is not there any more"


def _unshelve(candidate: Candidate) -> None:
    if candidate.shelf is not None and candidate.entry is not None:
        del candidate.shelf[bisect_left(candidate.shelf, candidate.entry)]
    candidate.shelf = candidate.entry = None


def _free_at(site: Site) -> float:
    """Predict when an attempt that joins the others could start; 0 for now."""
    account = site.account
    at = site.barred_until
    if site.device.claim is not None:
        at = max(at, site.device.claim_ends)
    if account.load < site.slots:
        return at
    own = site.slots - account.external
    if own >= 1:
        # It starts when one attempt fewer than there are slots is left of those before it.
        return max(at, account.ends[len(account.ends) - own])
    # Others fill every slot and do not tell for how long: take ours as typical for theirs.
    turns = (account.external - site.slots + 1) / site.slots
    at = max(at, site.observed_at + turns * site.typical)
    return max(at, account.ends[-1]) if account.ends else at


def _reserve(device: DeviceRecord) -> None:
    """Sum up what is promised to loads under way, less what goes to make room for them.

    A load counts in full until it is done, although some of it may be allocated: so do nodes.
    """
    device.reserved = sum(
        site.memory - sum(victim.memory for victim in site.victims)
        for site in device.warm.values()
        if site.state is State.LOADING
    )


def _usable(site: Site) -> bool:
    """Whether the node itself says that this site can work."""
    model = site.model
    info = site.device.info
    return (info.health > 0 and info.state == "ready") and (
        site.state is not State.COLD or not model.error or model.retry_in <= 0
    )


def _differs(old: Device, new: Device) -> bool:
    """Whether what follows from a device's figures must be computed anew."""
    return (
        (old.health, old.state) != (new.health, new.state)
        or old.benchmark != new.benchmark
        or old.speed != new.speed
        or not 0.9 <= (new.load_bandwidth or 1.0) / (old.load_bandwidth or 1.0) <= 1.1
    )

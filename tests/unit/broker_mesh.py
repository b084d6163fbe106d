"""A mesh in virtual time: real scheduler, simulated nodes. Shared by the broker's tests."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from blip.broker.ledger import Ledger
from blip.broker.rates import Rates
from blip.broker.registry import Liveness, Registry
from blip.broker.scheduler import Command, Scheduler
from blip.broker.settings import Settings
from blip.protocol.messages import (
    Advert,
    Deny,
    Device,
    Grant,
    Model,
    Place,
    Release,
    Replica,
    Running,
)

GIB = 1024**3


def device(
    id: str = "gpu0",
    *,
    total: float = 24,
    free: float | None = None,
    speed: float = 1.0,
    kind: str = "cuda",
    health: float = 1.0,
    bandwidth: float | None = None,
) -> Device:
    """A device; memory in GiB."""
    return Device(
        id,
        kind,
        "Test Card",
        int(total * GIB),
        int((total if free is None else free) * GIB),
        speed=speed,
        health=health,
        load_bandwidth=bandwidth,
    )


def model(
    name: str = "m",
    *kinds: str,
    memory: float = 4,
    load: float = 4,
    slots: int = 1,
    error: str = "",
    retry_in: float = 0.0,
    **more: Any,
) -> Model:
    """A model; memory and bytes to load in GiB."""
    return Model(
        name,
        list(kinds or ("chat",)),
        int(memory * GIB),
        int(load * GIB),
        slots,
        error=error,
        retry_in=retry_in,
        **more,
    )


def ready(
    name: str = "m",
    device_id: str = "gpu0",
    *,
    slots: int = 1,
    active: int = 0,
    queued: int = 0,
    memory: float = 4,
) -> Replica:
    """A loaded replica."""
    return Replica(name, device_id, "ready", slots, active, queued, int(memory * GIB))


_numbers = itertools.count(1)


def advert(
    devices: list[Device] | None = None,
    models: list[Model] | None = None,
    replicas: list[Replica] | None = None,
    running: list[Running] | None = None,
    *,
    draining: bool = False,
    number: int | None = None,
    labels: dict[str, str] | None = None,
) -> Advert:
    """An advert, newer than all before."""
    return Advert(
        next(_numbers) if number is None else number,
        draining,
        [device()] if devices is None else devices,
        [model()] if models is None else models,
        replicas or [],
        running or [],
        labels or {},
    )


_tasks = itertools.count(1)


def place(
    model: str = "m",
    kind: str = "chat",
    units: float = 100.0,
    *,
    task: bytes | None = None,
    attempt: int = 1,
    priority: int = 5,
    deadline: float = 0.0,
    exclude: list[str] | None = None,
    tenant: str = "",
    require: dict[str, Any] | None = None,
) -> Place:
    """A PLACE for a new task."""
    task = next(_tasks).to_bytes(16, "big") if task is None else task
    return Place(
        task, attempt, kind, model, units, priority, deadline, tenant, exclude or [], require or {}
    )


def scheduler(settings: Settings | None = None, settled_at: float = 0.0) -> Scheduler:
    """A scheduler of its own, with nothing in it."""
    # Tests jump in time; that is no stall of theirs.
    registry = Registry(Liveness(stall_after=1e9))
    return Scheduler(settings or Settings(), registry, Ledger(3.0), Rates(), settled_at)


def join(
    broker: Scheduler, node_id: str, statement: Advert, now: float = 0.0, incarnation: int = 1
) -> list[Command]:
    """Let a node say HELLO and advertise."""
    broker.node_hello(node_id, incarnation, node_id, "host", [f"tcp://{node_id}"], now)
    commands = broker.advert(node_id, statement, now)
    assert commands is not None
    return commands


def check(broker: Scheduler) -> None:
    """Recount everything that is kept as a running sum, and compare."""
    ledger, index = broker.ledger, broker.index
    ends: dict[int, list[float]] = {}
    for lease in ledger.leases():
        ends.setdefault(id(lease.account), []).append(lease.end)
    for account in ledger.accounts():
        assert account.ends == sorted(ends.pop(id(account), [])), account
        assert account.external >= 0
    assert not ends, "a lease on an account that the ledger does not have"
    assert {lease.key for node in broker.registry.nodes() for lease in ledger.of_node(node.id)} <= {
        lease.key for lease in ledger.leases()
    }
    planned: dict[int, list[float]] = {}
    claims = {}
    for ticket in broker.tickets:
        if ticket.site is not None:
            planned.setdefault(id(ticket.site), []).append(ticket.seconds)
        if ticket.claim is not None:
            claims[id(ticket.claim)] = ticket.key
    shelved: dict[int, int] = {}
    for lane, group in index.groups.items():
        assert lane == (group.kind, group.model)
        assert group.members
        for name in ("open", "full", "cold"):
            shelf = getattr(group, name)
            assert [entry[:2] for entry in shelf] == sorted(entry[:2] for entry in shelf)
            for entry in shelf:
                candidate, site = entry[2], entry[2].site
                assert candidate.shelf is shelf
                assert candidate.entry is entry
                shelved[id(candidate)] = shelved.get(id(candidate), 0) + 1
                # What is sorted by may be too good, never too bad, or the best would be missed.
                slowdown = site.slowdown(broker.settings.crowding)
                rate = candidate.step if name == "open" else candidate.rate
                weight = rate * (slowdown * (1 + 1 / site.device.soundness) - 1)
                assert candidate.weight <= weight * (1 + 1e-9)
                if name == "open":
                    assert entry[0] == candidate.weight
        assert group.fastest == min(c.rate for c in group.members.values())
    warm: dict[str, int] = {}
    for node in broker.registry.nodes():
        for record in index.devices(node.id):
            assert record.claim == claims.pop(id(record), None)
            assert record.busy == sum(site.account.load > 0 for site in record.sites.values())
            assert record.warm == {
                name: site for name, site in record.sites.items() if site.state.value != "cold"
            }
            for site in record.sites.values():
                warm[site.model.name] = warm.get(site.model.name, 0) + (site.state.value != "cold")
                assert site.account is ledger.account(*record.key, site.model.name)
                mine = planned.pop(id(site), [])
                assert site.tickets == len(mine)
                assert abs(site.planned - sum(mine)) < 1e-6 * (1 + sum(mine))
                assert site.eligible <= node.placeable
                for candidate in site.candidates:
                    open_to_all = site.eligible and candidate.allowed
                    assert shelved.pop(id(candidate), 0) == open_to_all
                    assert (candidate in candidate.group.off) is not open_to_all
                    assert bool(candidate.barrier) is not open_to_all
                assert site.doomed == any(site in other.victims for other in record.sites.values())
    assert not shelved
    assert not claims
    assert {name: fleet.warm for name, fleet in index.fleets.items()} == warm
    assert not planned, "a ticket is planned where no node is"
    assert len(broker.tickets) <= broker.settings.queue_limit


@dataclass(eq=False)
class Job:
    """A task in the simulation: what it asks for and what it truly is."""

    arrives: float
    model: str = "m"
    kind: str = "chat"
    #: Estimated and true units.
    units: float = 1.0
    size: float = 1.0
    place: Place | None = None
    #: What is left of ``size``, when it began to wait for a load and to run.
    left: float = 0.0
    loading_at: float = -1.0
    started: float = -1.0
    finished: float = -1.0
    node: str = ""
    denied: str = ""


@dataclass(eq=False)
class SimReplica:
    """A model on a simulated device."""

    model: Model
    ready_at: float
    used_at: float
    running: list[Job] = field(default_factory=list)


@dataclass(eq=False)
class SimNode:
    """A machine with one device that does a unit a second per ``speed``.

    Replicas at work share the device equally; attempts of one replica slow each other by
    ``crowding``. A model that is not ``resident`` takes ``load`` seconds; idle replicas make room
    for it, the one unused for longest first, and if that is not enough it waits.
    """

    name: str
    speed: float
    told_speed: float = 1.0
    load: float = 0.0
    resident: list[str] = field(default_factory=list)
    memory: float = 24.0
    crowding: float = 0.125
    replicas: dict[str, SimReplica] = field(default_factory=dict)
    queue: list[Job] = field(default_factory=list)
    loads: int = 0
    #: When progress was last booked, and which plan for the next event is valid.
    booked: float = 0.0
    plan: int = 0

    @property
    def free(self) -> int:
        """Bytes of free device memory."""
        return int(self.memory * GIB) - sum(r.model.memory for r in self.replicas.values())

    def rate(self, replica: SimReplica) -> float:
        """Units a second of each attempt on a replica."""
        busy = sum(bool(r.running) for r in self.replicas.values())
        return self.speed / busy / (1 + self.crowding * (len(replica.running) - 1))


class Mesh:
    """Discrete events around a scheduler: arrivals, adverts, ticks, ends of loads and tasks."""

    def __init__(
        self,
        nodes: list[SimNode],
        models: list[Model],
        *,
        settings: Settings | None = None,
        heartbeat: float = 1.0,
    ) -> None:
        self.broker = scheduler(settings)
        self.nodes = {node.name: node for node in nodes}
        self.models = {model.name: model for model in models}
        self.heartbeat = heartbeat
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._jobs: dict[bytes, Job] = {}
        self._open = 0

    def run(self, jobs: list[Job]) -> None:
        """Run all jobs to their end."""
        for index, node in enumerate(self.nodes.values()):
            node.replicas = {
                name: SimReplica(self.models[name], 0.0, 0.0) for name in node.resident
            }
            self.broker.node_hello(node.name, 1, node.name, "", [], 0.0)
            self._advertise(node)
            # Spread over the heartbeat, as real ones are.
            self._at(self.heartbeat * (index + 1) / len(self.nodes), partial(self._beat, node))
        for job in jobs:
            self._at(job.arrives, partial(self._arrive, job))
        self._at(0.0, self._tick)
        self._open = len(jobs)
        while self._open:
            self.now, _, event = heapq.heappop(self._events)
            event()

    # --- the broker's side ------------------------------------------------------------------

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def _tick(self) -> None:
        self._obey(self.broker.tick(self.now))
        self._at(self.now + 0.25, self._tick)

    def _beat(self, node: SimNode) -> None:
        self._advertise(node)
        self._at(self.now + self.heartbeat, partial(self._beat, node))

    def _advertise(self, node: SimNode) -> None:
        card = device(total=node.memory, speed=node.told_speed)._replace(memory_free=node.free)
        replicas = []
        listed = list(node.queue)
        for name, replica in node.replicas.items():
            listed += replica.running
            queued = sum(job.model == name for job in node.queue)
            state = "ready" if replica.ready_at <= self.now else "loading"
            taken = node.load - max(0.0, replica.ready_at - self.now)
            replicas.append(
                Replica(
                    name,
                    "gpu0",
                    state,
                    replica.model.slots,
                    len(replica.running),
                    queued,
                    replica.model.memory,
                    1.0 if state == "ready" else taken / node.load,
                    taken,
                )
            )
        running = [Running(job.place.task, 1) for job in listed if job.place is not None]
        statement = advert([card], list(self.models.values()), replicas, running)
        commands = self.broker.advert(node.name, statement, self.now)
        assert commands is not None
        self._obey(commands)

    def _arrive(self, job: Job) -> None:
        job.place = place(job.model, job.kind, job.units)
        self._jobs[job.place.task] = job
        answer = self.broker.place(job.place, "gateway", self.now)
        if answer is not None:
            self._obey([("gateway", answer)])

    def _obey(self, commands: list[Command]) -> None:
        for _, message in commands:
            assert isinstance(message, Grant | Deny), message
            job = self._jobs[message.task]
            if isinstance(message, Deny):
                job.denied = message.code
                self._open -= 1
            else:
                self._submit(job, message)

    # --- the nodes' side --------------------------------------------------------------------

    def _submit(self, job: Job, grant: Grant) -> None:
        node = self.nodes[grant.node]
        job.node, job.left = node.name, job.size
        node.queue.append(job)
        self._work(node)

    def _work(self, node: SimNode) -> None:
        """Book what was done since, start what can be started, and plan the next event."""
        for replica in node.replicas.values():
            for job in replica.running:
                job.left -= (self.now - node.booked) * node.rate(replica)
        node.booked = self.now
        over = [
            (replica, job)
            for replica in node.replicas.values()
            for job in replica.running
            if job.left <= 1e-9
        ]
        for replica, job in over:
            replica.running.remove(job)
            replica.used_at = job.finished = self.now
        for job in list(node.queue):
            there = node.replicas.get(job.model) or self._load(node, job)
            if there is None or there.ready_at > self.now:
                continue
            if len(there.running) < there.model.slots:
                node.queue.remove(job)
                there.running.append(job)
                there.used_at = job.started = self.now
        node.plan += 1
        times = [r.ready_at for r in node.replicas.values() if r.ready_at > self.now]
        times += [
            self.now + job.left / node.rate(replica)
            for replica in node.replicas.values()
            for job in replica.running
        ]
        if times:
            self._at(min(times), partial(self._wake, node, node.plan))
        for _, job in over:
            self._open -= 1
            assert job.place is not None
            run = job.finished - job.started
            load = max(0.0, node.load) if job.loading_at >= 0 else 0.0
            release = Release(job.place.task, 1, "done", job.size, run, load)
            self._obey(self.broker.release("gateway", release, self.now))

    def _wake(self, node: SimNode, plan: int) -> None:
        if plan == node.plan:
            self._work(node)

    def _load(self, node: SimNode, job: Job) -> SimReplica | None:
        """Begin to load a model, or not yet."""
        model = self.models[job.model]
        wanted = [queued.model for queued in node.queue]
        idle = [
            name
            for name, replica in sorted(node.replicas.items(), key=lambda item: item[1].used_at)
            if not replica.running and name not in wanted and replica.ready_at <= self.now
        ]
        while node.free < model.memory and idle:
            del node.replicas[idle.pop(0)]
        if node.free < model.memory:
            return None
        node.loads += 1
        job.loading_at = self.now
        node.replicas[job.model] = SimReplica(model, self.now + node.load, self.now)
        return node.replicas[job.model]


def percentile(values: list[float], share: float) -> float:
    """Return the value below which that share lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

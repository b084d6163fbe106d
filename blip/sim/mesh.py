"""A mesh in virtual time: users, one gateway, links and nodes around a policy that places."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from blip.protocol.attempt import Refusal
from blip.protocol.messages import Order
from blip.sim import node as machines
from blip.sim.arrivals import Task, tasks
from blip.sim.clock import Clock
from blip.sim.machine import Device, Job, Key
from blip.sim.node import Node
from blip.sim.policy import Ended, Policy, Request, World
from blip.sim.scenario import Scenario

#: Seconds after which a node advertises again at the earliest when something changed.
ADVERT_GAP = 0.15

#: Seconds until a broken connection is noticed, and until a gateway gives up on a node that does
#: not say ACCEPT.
CRASH_NOTICED, ACCEPT_LIMIT = 0.1, 2.0

#: Attempts of a task; then it has failed. Recalls do not count: they are no failures.
ATTEMPTS = 5


@dataclass(eq=False)
class Record:
    """A task, and what became of it."""

    task: Task
    attempt: int = 0
    failures: int = 0
    exclude: tuple[str, ...] = ()
    #: Where the present attempt is, if it was granted.
    node: str = ""
    device: str = ""
    finished: float = -1.0
    #: Why it failed.
    code: str = ""

    @property
    def key(self) -> Key:
        """Task and present attempt."""
        return self.task.number, self.attempt

    @property
    def closed(self) -> bool:
        """Whether it is over, well or not."""
        return self.finished >= 0 or bool(self.code)

    @property
    def latency(self) -> float:
        """Seconds from arrival to answer."""
        return self.finished - self.task.arrives


@dataclass(eq=False)
class Outcome:
    """All that happened under one policy."""

    policy: str
    scenario: Scenario
    records: list[Record]
    nodes: list[Node]
    #: When the last thing happened that counts.
    end: float
    #: Wall-clock seconds of decisions.
    decisions: list[float] = field(default_factory=list)
    #: Attempts that were recalled, refused, and lost with their nodes.
    counts: dict[str, int] = field(default_factory=dict)


class Mesh:
    """Runs one scenario under one policy, to the end. Everything is drawn from the seed."""

    def __init__(self, scenario: Scenario, policy: Callable[[World], Policy]) -> None:
        self.scenario = scenario
        # Each thing has a generator of its own, so that all policies meet the same tasks, the
        # same nodes and the same failures.
        seeds = random.Random(scenario.seed)
        streams = [random.Random(seeds.getrandbits(64)) for _ in range(4)]
        self.tasks = tasks(scenario, streams[0])
        self.nodes = {node.id: node for node in machines.build(scenario, streams[1])}
        self._beats, self._fate = streams[2], streams[3]
        self.clock = Clock()
        self.records = [Record(task) for task in self.tasks]
        self.policy = policy(self)
        self._hop = 0.0 if self.policy.instant else scenario.links.hop
        self._open = len(self.records)
        self._plans: dict[Device, int] = {}
        self._adverts: dict[str, float] = {}
        self._counts = {"recalled": 0, "refused": 0, "lost": 0}

    def run(self, name: str = "") -> Outcome:
        """Run every task to its end, or up to the scenario's limit."""
        interval = self.scenario.links.advert_interval
        for node in self.nodes.values():
            node.boot(0.0, node.resident)
            self.policy.joined(node, 0.0)
            self.policy.advert(node, node.advert(0.0), 0.0)
            self.clock.at(self._beats.random() * interval, partial(self._beat, node))
        self._plan_churn()
        for record in self.records:
            self.clock.at(record.task.arrives, partial(self._arrive, record))
        if self.policy.every:
            self.clock.at(0.0, self._tick)
        last = self.tasks[-1].arrives
        self.clock.run(last + self.scenario.limit)
        now = self.clock.now
        for node in self.nodes.values():
            for device in node.devices.values():
                if node.up:
                    device.run_to(now)
        return Outcome(
            name,
            self.scenario,
            self.records,
            list(self.nodes.values()),
            now,
            self.policy.decisions,
            self._counts,
        )

    # --- what a policy does -----------------------------------------------------------------

    def grant(self, key: Key, node: str, device: str) -> None:
        """The gateway hears of it, and submits the attempt to the node."""
        self._after(2, partial(self._submit, key, node, device))

    def deny(self, key: Key, code: str) -> None:
        """The gateway hears of it, and the task has failed."""
        self._after(1, partial(self._denied, key, code))

    def recall(self, key: Key) -> None:
        """Through the gateway to the node, and back the same way if it has not begun."""
        self._after(2, partial(self._recall, key))

    def order(self, node: str, order: Order) -> None:
        """The node does it, or cannot; its next advert shows what became of it."""
        self._after(1, partial(self._ordered, node, order))

    # --- the gateway ------------------------------------------------------------------------

    def _after(self, hops: int, what: Callable[[], None]) -> None:
        if self._hop:
            self.clock.after(hops * self._hop, what)
        else:
            what()

    def _arrive(self, record: Record) -> None:
        if record.task.deadline and self.policy.stops_late:
            self.clock.after(record.task.deadline, partial(self._overdue, record))
        self._place(record)

    def _place(self, record: Record) -> None:
        record.attempt += 1
        record.node = record.device = ""
        task = record.task
        left = 0.0
        if task.deadline:
            left = max(1e-3, task.arrives + task.deadline - self.clock.now)
        request = Request(task, record.attempt, record.exclude, left)
        self._after(1, lambda: self.policy.place(request, self.clock.now))

    def _denied(self, key: Key, code: str) -> None:
        record = self.records[key[0]]
        if record.key == key and not record.closed:
            self._close(record, code)

    def _overdue(self, record: Record) -> None:
        """Nobody waits for it any longer."""
        node = self.nodes.get(record.node)
        device = None if node is None or not node.up else node.devices.get(record.device)
        if node is not None and device is not None:
            self._sync(node, device)
        if record.closed:
            return
        if node is not None and device is not None:
            device.take_back(record.key, begun=True)
            self._changed(node, device)
        self._tell(record, "cancelled")
        self._close(record, "deadline_exceeded")

    def _close(self, record: Record, code: str = "") -> None:
        if code:
            record.code = code
        else:
            record.finished = self.clock.now
        self._open -= 1
        if not self._open:
            # The last release is still under way.
            self._after(2, self.clock.stop)

    def _tell(self, record: Record, outcome: str, job: Job | None = None) -> None:
        """Let the policy know that an attempt is over."""
        request = Request(record.task, record.attempt, record.exclude)
        ended = Ended(request, outcome)
        if job is not None:
            ended = Ended(request, outcome, job.size, job.ended - job.began, job.load)
        self._after(1, lambda: self.policy.ended(ended, self.clock.now))

    def _again(self, key: Key, outcome: str) -> None:
        """An attempt came to nothing: place the next."""
        record = self.records[key[0]]
        if record.key != key or record.closed:
            return
        self._counts[outcome] += 1
        if outcome != "recalled":
            record.failures += 1
            record.exclude = (*record.exclude, record.node)
        self._tell(record, outcome)
        if record.failures >= ATTEMPTS:
            self._close(record, outcome)
        else:
            self._place(record)

    # --- nodes ------------------------------------------------------------------------------

    def _submit(self, key: Key, node_id: str, device_id: str) -> None:
        record = self.records[key[0]]
        if record.key != key:
            return
        if record.closed:
            self._tell(record, "cancelled")  # it was given up while the grant was under way
            return
        record.node, record.device = node_id, device_id
        node = self.nodes[node_id]
        device = node.devices.get(device_id)
        if not node.up or device is None:
            self.clock.after(ACCEPT_LIMIT, partial(self._again, key, "lost"))
            return
        self._sync(node, device)
        size = record.task.size
        refusal: Refusal | None = Refusal.DRAINING
        if not node.draining:
            job = Job(key, record.task.model, size, size)
            refusal = device.submit(job, patient=self.policy.patient)
        if refusal is not None:
            self._after(1, partial(self._again, key, "refused"))
        self._changed(node, device)

    def _recall(self, key: Key) -> None:
        record = self.records[key[0]]
        if record.key != key or record.closed or not record.node:
            return
        node = self.nodes[record.node]
        device = node.devices.get(record.device)
        if node.up and device is not None:
            self._sync(node, device)
            if device.take_back(key, begun=False):
                self._after(1, partial(self._again, key, "recalled"))
            self._changed(node, device)

    def _ordered(self, node_id: str, order: Order) -> None:
        node = self.nodes[node_id]
        if not node.up:
            return
        chosen = [order.device] if order.device else list(node.devices)
        for device_id in chosen:
            device = node.devices.get(device_id)
            if device is None:
                continue
            self._sync(node, device)
            if order.verb == "load":
                done = device.load(order.model)
            else:
                done = order.verb == "unload" and device.unload(order.model)
            self._changed(node, device)
            if done and order.verb == "load":
                return

    def _sync(self, node: Node, device: Device) -> None:
        """Let a device catch up with the clock."""
        for job in device.run_to(self.clock.now):
            node.changed = True
            self._after(1, partial(self._done, job))

    def _done(self, job: Job) -> None:
        record = self.records[job.key[0]]
        if record.key == job.key and not record.closed:
            self._tell(record, "done", job)
            self._close(record)

    def _changed(self, node: Node, device: Device) -> None:
        """Something was done to a device: see what it does next, and let it be known."""
        node.changed = True
        self._plan(node, device)

    def _plan(self, node: Node, device: Device) -> None:
        number = self._plans[device] = self._plans.get(device, 0) + 1
        self.clock.at(device.next_at(), partial(self._wake, node, device, number))

    def _wake(self, node: Node, device: Device, number: int) -> None:
        if self._plans.get(device) != number or not node.up:
            return
        replicas = {name: replica.ready for name, replica in device.replicas.items()}
        self._sync(node, device)
        self._plan(node, device)
        node.changed = True
        if replicas != {name: replica.ready for name, replica in device.replicas.items()}:
            self._advertise_soon(node)
        if node.draining and not any(each.jobs() for each in node.devices.values()):
            self._leave(node)

    # --- adverts ----------------------------------------------------------------------------

    def _beat(self, node: Node) -> None:
        self.clock.after(self.scenario.links.advert_interval, partial(self._beat, node))
        self._advertise(node)

    def _advertise_soon(self, node: Node) -> None:
        if self.scenario.links.on_change:
            last = self._adverts.get(node.id, -ADVERT_GAP)
            self.clock.at(last + ADVERT_GAP, partial(self._advertise_once, node, last))

    def _advertise_once(self, node: Node, last: float) -> None:
        if self._adverts.get(node.id, -ADVERT_GAP) == last:
            self._advertise(node)

    def _advertise(self, node: Node) -> None:
        if not node.up or self.policy.instant:
            return
        now = self.clock.now
        for device in node.devices.values():
            if device.queue or device.loading or any(r.running for r in device.replicas.values()):
                self._sync(node, device)
                self._plan(node, device)
            else:
                device.run_to(now)
        self._adverts[node.id] = now
        advert, incarnation = node.advert(now), node.incarnation

        def arrive() -> None:
            if node.up and node.incarnation == incarnation:
                self.policy.advert(node, advert, self.clock.now)

        self.clock.after(self.scenario.links.advert_delay + self._hop, arrive)

    def _tick(self) -> None:
        self.policy.tick(self.clock.now)
        self.clock.after(self.policy.every, self._tick)

    # --- churn ------------------------------------------------------------------------------

    def _plan_churn(self) -> None:
        churn = self.scenario.churn
        if not churn.share:
            return
        last = self.tasks[-1].arrives
        for node in self.nodes.values():
            if self._fate.random() >= churn.share:
                continue
            now = self._fate.expovariate(1 / churn.up)
            while now < last:
                how = self._fate.choice(churn.how)
                back = now + self._fate.expovariate(1 / churn.down)
                self.clock.at(now, partial(self._go, node, how))
                self.clock.at(back, partial(self._return, node))
                now = back + self._fate.expovariate(1 / churn.up)

    def _go(self, node: Node, how: str) -> None:
        if not node.up or node.draining:
            return
        now = self.clock.now
        if how == "goodbye":
            node.draining = node.changed = True
            self._advertise(node)
            if not any(device.jobs() for device in node.devices.values()):
                self._leave(node)
            return
        for device in node.devices.values():
            self._sync(node, device)
        noticed = CRASH_NOTICED if how == "crash" else self.scenario.broker.lost_after
        for device in node.devices.values():
            for job in device.jobs():
                self.clock.after(noticed, partial(self._again, job.key, "lost"))
        node.halt(now)
        if how == "crash":
            incarnation = node.incarnation
            self.clock.after(CRASH_NOTICED, partial(self._gone, node, incarnation))

    def _gone(self, node: Node, incarnation: int) -> None:
        if node.incarnation == incarnation:
            self.policy.left(node, "unreachable", self.clock.now)

    def _leave(self, node: Node) -> None:
        node.halt(self.clock.now)
        self._after(1, lambda: self.policy.left(node, "goodbye", self.clock.now))

    def _return(self, node: Node) -> None:
        if node.up:
            return  # it drains still
        node.boot(self.clock.now)
        self._after(1, lambda: self.policy.joined(node, self.clock.now))
        self._advertise(node)

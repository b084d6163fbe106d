"""The policy under test: the broker's own scheduler, driven by the messages of the wire."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Callable, Iterable
from typing import ClassVar

from blip.broker.ledger import Ledger
from blip.broker.rates import Rates
from blip.broker.registry import Liveness, Registry
from blip.broker.scheduler import Scheduler
from blip.broker.settings import Settings
from blip.protocol import codec
from blip.protocol.messages import Advert, Deny, Grant, Message, Move, Order, Place, Release
from blip.sim import node as machines
from blip.sim.node import Node, task_id
from blip.sim.policy import Ended, Policy, Request, World
from blip.sim.scenario import Scenario

#: The one gateway.
GATEWAY = "gateway"

#: Bytes of a message: what control links carry.
WIRE_LIMIT = 1024 * 1024

#: Nodes that join to see how much memory each needs: enough for tables to grow evenly.
MEASURED_NODES = 1000


class Brokered(Policy):
    """The scheduler, unchanged, between a simulated gateway and simulated nodes."""

    patient: ClassVar[bool] = False
    every: ClassVar[float] = 0.25

    def __init__(self, world: World, stopwatch: Callable[[], float]) -> None:
        super().__init__(world)
        self.scheduler = scheduler(world.scenario)
        self._stopwatch = stopwatch
        self._told: set[str] = set()
        self._rng = random.Random(world.scenario.seed)

    def joined(self, node: Node, now: float) -> None:
        """HELLO; at the first one the rates may know the node already."""
        if node.id not in self._told:
            self._told.add(node.id)
            self._teach(node)
        self.scheduler.node_hello(node.id, node.incarnation, node.id, "", [], now)

    def left(self, node: Node, how: str, now: float) -> None:
        """GOODBYE, or a connection that breaks."""
        if how == "goodbye":
            self.obey(self.scheduler.node_goodbye(node.id, now))
        else:
            self.obey(self.scheduler.node_unreachable(node.id, now))

    def advert(self, node: Node, advert: Advert, now: float) -> None:
        """ADVERT; a node that the broker forgot greets again, as it is told to."""
        commands = self.scheduler.advert(node.id, advert, now)
        if commands is None:
            self.joined(node, now)
            commands = self.scheduler.advert(node.id, advert, now)
        self.obey(commands or [])

    def place(self, request: Request, now: float) -> None:
        """PLACE."""
        task = request.task
        place = Place(
            task_id(task.number),
            request.attempt,
            self.world.scenario.models.kind,
            task.model,
            task.units,
            task.priority,
            request.left,
            task.tenant,
            list(request.exclude),
        )
        began = self._stopwatch()
        answer = self.scheduler.place(place, GATEWAY, now)
        self.decisions.append(self._stopwatch() - began)
        if answer is not None:
            self.obey([(GATEWAY, answer)])

    def ended(self, ended: Ended, now: float) -> None:
        """RELEASE, also of a ticket that is given up."""
        learn = self.world.scenario.broker.learn
        release = Release(
            task_id(ended.request.task.number),
            ended.request.attempt,
            ended.outcome,
            ended.units if learn else 0.0,
            ended.run if learn else 0.0,
            ended.load,
        )
        self.obey(self.scheduler.release(GATEWAY, release, now))

    def tick(self, now: float) -> None:
        """Let the scheduler draw the consequences of time."""
        self.obey(self.scheduler.tick(now))

    def obey(self, commands: Iterable[tuple[str, Message]]) -> None:
        """Carry out what the scheduler says: to the gateway, or (ORDER) to a node."""
        for to, message in commands:
            match message:
                case Grant():
                    self.world.grant(_key(message), message.node, message.device)
                case Deny():
                    self.world.deny(_key(message), message.code)
                case Move():
                    self.world.recall(_key(message))
                case Order():
                    self.world.order(to, message)
                case _:
                    pass  # what else a broker says is for people

    def _teach(self, node: Node) -> None:
        """Let the rates have learned how fast a node is, more or less."""
        of, make = self.world.scenario.broker, node.make
        if of.rates == "none":
            return
        kind = self.world.scenario.models.kind
        told = make.told_speed or make.speed
        for device in node.devices:
            for model in node.models:
                off = math.exp(self._rng.gauss(0.0, of.rate_error)) if of.rate_error else 1.0
                rates = self.scheduler.rates
                rates.observe(kind, model.name, (node.id, device), told, 1.0, off / make.speed)


def scheduler(scenario: Scenario) -> Scheduler:
    """Make a scheduler as a broker would, with a scenario's settings."""
    of = scenario.broker
    settings = Settings(queue_limit=of.queue_limit, prefetch=of.prefetch, lookahead=of.lookahead)
    liveness = Liveness(of.suspect_after, of.lost_after, max(60.0, of.lost_after))
    return Scheduler(settings, Registry(liveness), Ledger(3 * of.heartbeat), Rates())


def memory_per_node(scenario: Scenario) -> float:
    """Measure the bytes that the scheduler holds for each node that has joined and advertised."""
    nodes = machines.build(scenario, random.Random(scenario.seed))[:MEASURED_NODES]
    for node in nodes:
        node.boot(0.0, node.resident)
    # Off the wire, as a broker gets them: simulated nodes share the records of their models.
    sent = [codec.encode([(0, node.advert(0.0))], WIRE_LIMIT) for node in nodes]
    tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        broker = scheduler(scenario)
        for node, batches in zip(nodes, sent, strict=True):
            broker.node_hello(node.id, node.incarnation, node.id, "", [], 0.0)
            for batch in batches:
                for received in codec.decode(batch):
                    assert isinstance(received, codec.Sequenced)
                    assert isinstance(received.message, Advert)
                    broker.advert(node.id, received.message, 0.0)
        return (tracemalloc.get_traced_memory()[0] - before) / len(nodes)
    finally:
        if not tracing:
            tracemalloc.stop()


def _key(message: Grant | Deny | Move) -> tuple[int, int]:
    return int.from_bytes(message.task, "big"), message.attempt

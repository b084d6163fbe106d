"""What others do: the policies that the broker is compared with.

All know which node offers what, and who is quiet. What a policy knows beyond that its class says.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from blip.protocol.messages import Advert
from blip.protocol.reloads import LOAD_START
from blip.sim.machine import Key
from blip.sim.node import Node
from blip.sim.policy import Ended, Policy, Request, World


class Place(NamedTuple):
    """A device of a node."""

    node: str
    device: str


@dataclass(slots=True)
class _Seen:
    """A node as last heard of."""

    advert: Advert
    at: float
    speed: float


class Baseline(Policy):
    """Chooses a device as soon as a task comes, by what it has seen and counted so far."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.rng = random.Random(world.scenario.seed + 1)
        self.seen: dict[str, _Seen] = {}
        #: Its own attempts that have not ended, by device.
        self.mine: dict[Place, int] = {}
        self._held: dict[Key, Place] = {}
        self._offering: dict[str, list[Place]] = {}
        for node in world.nodes.values():
            for model in node.models:
                places = [Place(node.id, f"gpu{n}") for n in range(node.make.devices)]
                self._offering.setdefault(model.name, []).extend(places)

    def left(self, node: Node, how: str, now: float) -> None:
        """Forget a node that is gone."""
        self.seen.pop(node.id, None)

    def advert(self, node: Node, advert: Advert, now: float) -> None:
        """Remember what it says."""
        self.seen[node.id] = _Seen(advert, now, node.make.told_speed or node.make.speed)

    def place(self, request: Request, now: float) -> None:
        """Choose among the devices that offer the model, or say that there is none."""
        quiet = now - self.world.scenario.broker.suspect_after
        options = [
            place
            for place in self._offering.get(request.task.model, ())
            if (seen := self.seen.get(place.node)) is not None
            and seen.at > quiet
            and not seen.advert.draining
            and place.node not in request.exclude
        ]
        if not options:
            self.world.deny(request.key, "unavailable")
            return
        self.send(request, self.choose(options, request))

    def send(self, request: Request, place: Place) -> None:
        """Send an attempt to a device, and count it."""
        self.mine[place] = self.mine.get(place, 0) + 1
        self._held[request.key] = place
        self.world.grant(request.key, place.node, place.device)

    def ended(self, ended: Ended, now: float) -> None:
        """Count it no longer."""
        place = self._held.pop(ended.request.key, None)
        if place is not None:
            self.mine[place] -= 1

    def choose(self, options: Sequence[Place], request: Request) -> Place:
        """Return one of at least one option."""
        raise NotImplementedError

    def least(self, options: Sequence[Place], cost: Callable[[Place], float]) -> Place:
        """Return the cheapest; one of them at random if there are several."""
        return min(options, key=lambda place: (cost(place), self.rng.random()))

    def queued(self, place: Place) -> int:
        """Attempts on a device, by its node's last advert."""
        replicas = self.seen[place.node].advert.replicas
        return sum(r.active + r.queued for r in replicas if r.device == place.device)

    def speed(self, place: Place) -> float:
        """A device's speed as advertised."""
        return self.seen[place.node].speed

    def warm(self, place: Place, model: str) -> bool:
        """Whether a model is on a device, by its node's last advert."""
        replicas = self.seen[place.node].advert.replicas
        return any(r.device == place.device and r.model == model for r in replicas)


class RoundRobin(Baseline):
    """Each in turn."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._turns: dict[str, int] = {}

    def choose(self, options: Sequence[Place], request: Request) -> Place:
        """Return the next."""
        turn = self._turns.get(request.task.model, -1) + 1
        self._turns[request.task.model] = turn
        return options[turn % len(options)]


class Random(Baseline):
    """Any."""

    def choose(self, options: Sequence[Place], request: Request) -> Place:
        """Return any."""
        return self.rng.choice(options)


class LeastQueue(Baseline):
    """The shortest queue, by the last adverts; ties at random."""

    def choose(self, options: Sequence[Place], request: Request) -> Place:
        """Return it."""
        return self.least(options, self.queued)


class PowerOfTwo(Baseline):
    """The better of two drawn evenly, by the last adverts: who is sooner done with its queue."""

    def choose(self, options: Sequence[Place], request: Request) -> Place:
        """Return it."""
        drawn = self.rng.sample(options, min(2, len(options)))
        return self.least(drawn, lambda place: (self.queued(place) + 1) / self.speed(place))


class AffinityBlind(Baseline):
    """The least of its own attempts by speed, never stale; it does not ask what is loaded."""

    def choose(self, options: Sequence[Place], request: Request) -> Place:
        """Return it."""
        return self.least(options, lambda place: (self.mine.get(place, 0) + 1) / self.speed(place))


class MemoryBlind(Baseline):
    """Waiting, running and loading in seconds, as the broker does; but it does not ask what fits.

    A load looks as cheap on a full device as on an empty one, and what must go for it, and be
    loaded again, costs nothing.
    """

    def choose(self, options: Sequence[Place], request: Request) -> Place:
        """Return it."""
        model = request.task.model
        of = self.world.scenario

        def cost(place: Place) -> float:
            work = self.mine.get(place, 0) * of.sizes.mean + request.task.units
            load = 0.0
            if not self.warm(place, model):
                bandwidth = self.world.nodes[place.node].make.bandwidth
                load = LOAD_START + of.models.load * 1024**3 / bandwidth
            return work / self.speed(place) + load

        return self.least(options, cost)


class Fifo(Baseline):
    """One queue for all, first come, first served; the fastest idle device takes the first.

    It knows no deadlines: what is late is done all the same.
    """

    stops_late: ClassVar[bool] = False

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._queue: deque[Request] = deque()

    def place(self, request: Request, now: float) -> None:
        """Join the queue."""
        self._queue.append(request)
        self._serve(now)

    def ended(self, ended: Ended, now: float) -> None:
        """Somebody has had its turn, or does not want it any longer."""
        super().ended(ended, now)
        if ended.outcome == "cancelled":
            key = ended.request.key
            self._queue = deque(request for request in self._queue if request.key != key)
        self._serve(now)

    def advert(self, node: Node, advert: Advert, now: float) -> None:
        """A node may be there that was not."""
        super().advert(node, advert, now)
        self._serve(now)

    def _serve(self, now: float) -> None:
        slots = self.world.scenario.models.slots
        while self._queue:
            request = self._queue[0]
            idle = [
                place
                for place in self._offering.get(request.task.model, ())
                if place.node in self.seen
                and not self.seen[place.node].advert.draining
                and self.mine.get(place, 0) < slots
                and place.node not in request.exclude
            ]
            if not idle:
                return
            self._queue.popleft()
            model = request.task.model
            self.send(
                request,
                max(idle, key=lambda place: (self.warm(place, model), self.speed(place))),
            )


class FifoDrop(Fifo):
    """The same, and what is late is stopped: no deadline orders anything, none is wasted on."""

    stops_late: ClassVar[bool] = True


BASELINES: dict[str, type[Baseline]] = {
    "round_robin": RoundRobin,
    "random": Random,
    "least_queue": LeastQueue,
    "power_of_two": PowerOfTwo,
    "affinity_blind": AffinityBlind,
    "memory_blind": MemoryBlind,
    "fifo": Fifo,
    "fifo_drop": FifoDrop,
}

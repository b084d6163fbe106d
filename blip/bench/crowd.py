"""A crowd of made-up nodes around a real scheduler, in virtual time.

The nodes do what real ones would as far as a broker can see it: they advertise once a second what
they hold and run, through the real codec, load what they are granted and evict what is idle, and
attempts take about as long as predicted. What the scheduler needs for each call is measured with
the real clock.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from blip.broker.ledger import Key, Ledger
from blip.broker.rates import DEFAULTS, Rates
from blip.broker.registry import Registry
from blip.broker.scheduler import Command, Scheduler
from blip.broker.settings import Settings
from blip.errors import RuntimeFailed
from blip.protocol import codec
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

#: Memory of every device.
MEMORY = 24 * GIB

#: Slots of every replica, what text models have by default.
SLOTS = 4

#: What cards differ by in the wild: most are slow, few are fast.
SPEEDS = (1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0, 8.0)

#: Output tokens of an attempt; on a device of speed 1 that nobody else uses it takes 2.5 s.
UNITS = 100.0

#: What a replica with a full batch does, as a multiple of one attempt alone.
BATCH = SLOTS / (1 + Settings().crowding * (SLOTS - 1))

#: Standard deviation of the logarithm of what an attempt takes over what was predicted.
NOISE = 0.3

#: How popular models are: the n-th is asked for, and offered by nodes, in proportion to 1 / n.
ZIPF = 1.0

#: Seconds between a node's adverts, and between ticks of a broker in which nothing waits.
HEARTBEAT, TICK = 1.0, 0.25

_GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Shape:
    """A mesh: each node offers ``offered`` of ``models``, ``loaded`` at most fit on a device.

    ``load`` is the work that arrives, as a share of what all devices could do with full batches.
    With ``tickets`` that many are kept waiting.
    """

    nodes: int
    devices: int
    models: int
    offered: int
    loaded: int
    load: float = 0.0
    tickets: int = 0


class Timed(NamedTuple):
    """Seconds that each call took: those measured, in order."""

    place: list[float]
    release: list[float]
    decode: list[float]
    advert: list[float]
    tick: list[float]


@dataclass(slots=True, eq=False)
class _Held:
    """A replica; it is loading until ``ready_at``."""

    model: Model
    since: float
    ready_at: float
    used_at: float
    active: int = 0
    #: Granted beyond the slots.
    queue: deque[Grant] = field(default_factory=deque)

    @property
    def attempts(self) -> int:
        """Attempts on it, waiting ones included."""
        return self.active + len(self.queue)


@dataclass(slots=True, eq=False)
class _Node:
    id: str
    devices: list[Device]
    models: dict[str, Model]
    held: dict[tuple[str, str], _Held] = field(default_factory=dict)
    running: dict[Key, tuple[str, str]] = field(default_factory=dict)
    number: int = 0

    @property
    def speeds(self) -> dict[str, float]:
        """How fast its devices are."""
        return {device.id: device.speed for device in self.devices}


class Crowd:
    """The nodes, the gateway and the clock around one :class:`Scheduler`; all from ``seed``."""

    def __init__(self, shape: Shape, seed: int = 1) -> None:
        self.shape = shape
        self.scheduler = Scheduler(Settings(), Registry(), Ledger(3 * HEARTBEAT), Rates())
        self.now = 0.0
        self.timed = Timed([], [], [], [], [])
        #: Attempts that found the queue full.
        self.refused = 0
        self._rng = random.Random(seed)
        size = int(MEMORY * 0.85 / shape.loaded)
        self._models = [
            Model(f"someone/some-model-{number:04d}-instruct", ["chat"], size, size, SLOTS, 8192)
            for number in range(shape.models)
        ]
        self._popularity = {
            model.name: 1 / rank**ZIPF for rank, model in enumerate(self._models, start=1)
        }
        self._odds = list(itertools.accumulate(self._popularity.values()))
        self._nodes: list[_Node] = []
        self._by_id: dict[str, _Node] = {}
        self._asked: dict[bytes, str] = {}
        self._numbers = itertools.count(1)
        #: When attempts end, with their grants.
        self._ends: list[tuple[float, bytes, Grant, float]] = []
        #: Attempts a second, and when the next one comes, the next advert, the next tick.
        self._rate = 0.0
        self._arrival = 0.0
        self._beats = 0.0
        self._ticks = 0.0

    @property
    def running(self) -> int:
        """Attempts that run."""
        return len(self._ends)

    @property
    def held(self) -> set[Key]:
        """Attempts that nodes have, waiting for a slot or running."""
        return {key for node in self._nodes for key in node.running}

    # --- what is measured -------------------------------------------------------------------

    def prepare(self) -> None:
        """Make up the nodes, which is none of the scheduler's work."""
        for _ in range(len(self._nodes), self.shape.nodes):
            node = self._node()
            self._nodes.append(node)
            self._by_id[node.id] = node

    def grow(self) -> None:
        """Let all nodes join and advertise twice: two adverts of each is what a broker keeps."""
        self.prepare()
        for node in self._nodes:
            self.scheduler.node_hello(node.id, 1, node.id[:8], "", ["tcp://10.0.0.1:9"], self.now)
            self._advertise(node)
        self.now += HEARTBEAT
        for node in self._nodes:
            self._advertise(node)
        self._arrival = self._beats = self._ticks = self.now
        speed = sum(device.speed for node in self._nodes for device in node.devices)
        self._rate = self.shape.load * speed * BATCH / (UNITS * DEFAULTS["chat"])

    def fill(self, seconds: float = 5.0) -> None:
        """Bring the mesh to work: for that long, and until as many wait as the shape says."""
        end = self.now + seconds
        while self.now < end:
            self.step()
        # Beyond what fits by far: a shape whose queue never comes to be is a mistake.
        for _ in range(self.shape.tickets + 64 * SLOTS * len(self._nodes) * self.shape.devices):
            if len(self.scheduler.tickets) >= self.shape.tickets:
                return
            self._place()
        raise RuntimeFailed(f"no queue comes to be: {self.running} run")

    def step(self) -> None:
        """Let time pass until the next attempt arrives, and ask for it.

        With a queue to be kept up, arrivals are the ends of others.
        """
        if self.shape.tickets and len(self.scheduler.tickets) >= self.shape.tickets:
            self._end()
            while len(self.scheduler.tickets) < self.shape.tickets:
                self._place()
            return
        self._arrival += self._rng.expovariate(self._rate)
        while self._ends and self._ends[0][0] <= self._arrival:
            self._end()
        self._pass(self._arrival)
        self._place()

    def _end(self) -> None:
        """Let the attempt that is due first end."""
        end, task, grant, run = heapq.heappop(self._ends)
        self._pass(max(self.now, end))
        node = self._by_id[grant.node]
        where = node.running.pop((task, grant.attempt))
        held = node.held[where]
        held.active -= 1
        held.used_at = self.now
        if held.queue:
            self._start(node, held, held.queue.popleft())
        release = Release(task, grant.attempt, "done", UNITS, run, grant.load)
        del self._asked[task]
        began = time.perf_counter()
        commands = self.scheduler.release(_GATEWAY, release, self.now)
        self.timed.release.append(time.perf_counter() - began)
        self._obey(commands)

    def forget(self) -> None:
        """Measure from here on."""
        for times in self.timed:
            times.clear()

    # --- the gateway ------------------------------------------------------------------------

    def _place(self) -> None:
        task = next(self._numbers).to_bytes(16, "big")
        (model,) = self._rng.choices(self._models, cum_weights=self._odds)
        place = Place(task, 1, "chat", model.name, UNITS, tenant="someone")
        self._asked[task] = model.name
        began = time.perf_counter()
        answer = self.scheduler.place(place, _GATEWAY, self.now)
        self.timed.place.append(time.perf_counter() - began)
        if answer is not None:
            self._obey([(_GATEWAY, answer)])

    def _obey(self, commands: list[Command]) -> None:
        for _, message in commands:
            if isinstance(message, Deny):
                if message.code == "overloaded":
                    self.refused += 1
                    del self._asked[message.task]
                    continue
                raise RuntimeFailed(f"an attempt was denied: {message.code}: {message.text}")
            if isinstance(message, Grant):
                self._submit(message)

    def _submit(self, grant: Grant) -> None:
        node = self._by_id[grant.node]
        model = self._asked[grant.task]
        where = (grant.device, model)
        held = node.held.get(where) or self._load(node, grant, model)
        node.running[grant.task, grant.attempt] = where
        if held.active < SLOTS:
            self._start(node, held, grant)
        else:
            held.queue.append(grant)

    def _start(self, node: _Node, held: _Held, grant: Grant) -> None:
        """Run an attempt for as long as it takes in the company that it meets."""
        busy = sum(1 for key, other in node.held.items() if key[0] == grant.device and other.active)
        busy += not held.active
        alone = UNITS * DEFAULTS["chat"] / node.speeds[grant.device]
        run = alone * busy * (1 + Settings().crowding * held.active)
        run *= self._rng.lognormvariate(0.0, NOISE)
        held.active += 1
        end = max(self.now, held.ready_at) + run
        heapq.heappush(self._ends, (end, grant.task, grant, run))

    # --- the nodes --------------------------------------------------------------------------

    def _node(self) -> _Node:
        rng = self._rng
        names = self._choose(self.shape.offered, self._models)
        devices = [
            Device(
                f"GPU-{rng.getrandbits(128):032x}",
                "nvidia",
                "NVIDIA GeForce RTX 3060",
                MEMORY,
                MEMORY,
                0.5,
                61.0,
                143.2,
                rng.choice(SPEEDS),
                5e8,
                metrics={"power_limit": 170.0, "clock": 1837.0, "pcie_gen": 4, "pcie_width": 16},
                benchmark={"h2d": 1.2e10, "fp16": 2.5e13, "bf16": 2.5e13, "decode": 3.3e11},
            )
            for _ in range(self.shape.devices)
        ]
        node = _Node(f"{rng.getrandbits(128):032x}", devices, {each.name: each for each in names})
        for device in devices:
            fit = min(self.shape.loaded, len(names))
            # Up to two fit: some devices have room for one more, most have not.
            count = rng.randint(max(1, fit - 1), fit)
            for model in self._choose(count, names):
                node.held[device.id, model.name] = _Held(model, 0.0, 0.0, 0.0)
        return node

    def _choose(self, count: int, among: list[Model]) -> list[Model]:
        """Draw different models, popular ones more often; in order of popularity."""
        found: dict[str, Model] = {}
        odds = list(itertools.accumulate(self._popularity[model.name] for model in among))
        while len(found) < min(count, len(among)):
            (model,) = self._rng.choices(among, cum_weights=odds)
            found[model.name] = model
        return sorted(found.values(), key=lambda model: -self._popularity[model.name])

    def _load(self, node: _Node, grant: Grant, name: str) -> _Held:
        model = node.models[name]
        here = {key: held for key, held in node.held.items() if key[0] == grant.device}
        idle = sorted((h.used_at, key) for key, h in here.items() if not h.attempts)
        excess = sum(held.model.memory for held in here.values()) + model.memory - MEMORY
        for _, key in idle:
            if excess <= 0:
                break
            excess -= node.held.pop(key).model.memory
        held = _Held(model, self.now, self.now + grant.wait + grant.load, self.now)
        node.held[grant.device, name] = held
        return held

    def _advertise(self, node: _Node) -> None:
        node.number += 1
        used = dict.fromkeys((device.id for device in node.devices), 0)
        replicas = []
        for (device, name), held in node.held.items():
            used[device] += held.model.memory
            ready = held.ready_at <= self.now
            took = (held.ready_at if ready else self.now) - held.since
            replicas.append(
                Replica(
                    name,
                    device,
                    "ready" if ready else "loading",
                    SLOTS,
                    held.active,
                    len(held.queue),
                    held.model.memory,
                    1.0 if ready else took / (held.ready_at - held.since),
                    took,
                )
            )
        advert = Advert(
            node.number,
            False,
            [
                # A reading is never quite the one before.
                device._replace(
                    memory_free=max(0, MEMORY - used[device.id]),
                    temperature=60 + 5 * self._rng.random(),
                    age=self._rng.random(),
                )
                for device in node.devices
            ],
            list(node.models.values()),
            replicas,
            [Running(*key) for key in node.running],
            {"zone": "cellar"},
        )
        (frames,) = codec.encode([(node.number, advert)], codec.CONTROL_LIMIT)
        frames = [bytes(frame) for frame in frames]
        began = time.perf_counter()
        (found,) = codec.decode(frames)
        decoded = time.perf_counter()
        assert isinstance(found, codec.Sequenced)
        assert isinstance(found.message, Advert)
        commands = self.scheduler.advert(node.id, found.message, self.now)
        taken = time.perf_counter()
        self.timed.decode.append(decoded - began)
        self.timed.advert.append(taken - decoded)
        self._obey(commands or [])

    def _pass(self, until: float) -> None:
        """Let time pass: every node advertises once a heartbeat, spread over it."""
        pause = HEARTBEAT / len(self._nodes)
        while min(self._beats, self._ticks) <= until:
            if self._ticks <= self._beats:
                self.now = max(self.now, self._ticks)
                began = time.perf_counter()
                commands = self.scheduler.tick(self.now)
                self.timed.tick.append(time.perf_counter() - began)
                self._obey(commands)
                self._ticks += TICK
            else:
                self.now = max(self.now, self._beats)
                self._advertise(self._nodes[round(self._beats / pause) % len(self._nodes)])
                self._beats += pause
        self.now = until

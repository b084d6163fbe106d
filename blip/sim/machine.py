"""A device and what it does over time, exactly: loads, batches, throttling, foreign memory.

Work flows: between two events every attempt goes on at a constant rate, so a device computes when
the next one is, and never looks at what lies between. Replicas at work share the device equally,
attempts of one replica slow each other by ``crowding``, and a load takes its share of the device
while it lasts; loads of one device go one after the other.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from blip.protocol.attempt import Refusal
from blip.protocol.messages import Model
from blip.protocol.reloads import LOAD_START
from blip.sim.scenario import Nodes, Steps

GIB = 1024**3

#: Memory that nodes leave alone, as real ones do.
HEADROOM = 256 * 1024 * 1024

#: Attempts that may wait at a replica in multiples of its slots before a node says BUSY.
QUEUE_FACTOR = 2

#: So much of a unit or of a second is nothing: floats do not come out at exactly 0.
_NOTHING = 1e-7

#: A task's number and that of its attempt.
Key = tuple[int, int]


@dataclass(slots=True, eq=False)
class Job:
    """An attempt on a device. ``left`` is in units; ``began`` is -1 until a slot has it."""

    key: Key
    model: str
    size: float
    left: float
    began: float = -1.0
    ended: float = -1.0
    #: Seconds of the load that it caused.
    load: float = 0.0


@dataclass(slots=True, eq=False)
class Replica:
    """A model on a device: ``left`` of the ``seconds`` of its load, and when it last had work."""

    model: Model
    left: float
    seconds: float
    used: float
    running: list[Job] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether it is loaded."""
        return self.left <= 0

    @property
    def memory(self) -> int:
        """Bytes that it has taken so far: a load fills up."""
        part = 0.0 if self.ready else self.left / self.seconds
        return int(self.model.memory * (1 - part))


class Device:
    """A device and its queue: first come, first served, as far as memory allows."""

    def __init__(self, make: Nodes, models: Mapping[str, Model], crowding: float) -> None:
        self.make = make
        self.models = models
        self.crowding = crowding
        self.memory = int(make.memory * GIB)
        self.replicas: dict[str, Replica] = {}
        self.loading: list[Replica] = []
        self.queue: list[Job] = []
        self.now = 0.0
        #: When loads began; seconds with anything to do; units done.
        self.loads: list[float] = []
        self.busy = 0.0
        self.done = 0.0
        #: Bytes a second of the last load.
        self.measured: float | None = None

    def copy(self) -> Device:
        """Return one that goes on from here by itself: to look ahead."""
        twin = Device(self.make, self.models, self.crowding)
        twin.now = self.now
        for name, old in self.replicas.items():
            new = Replica(old.model, old.left, old.seconds, old.used)
            new.running = [_copy(job) for job in old.running]
            twin.replicas[name] = new
        twin.loading = [twin.replicas[replica.model.name] for replica in self.loading]
        twin.queue = [_copy(job) for job in self.queue]
        return twin

    # --- what it is like --------------------------------------------------------------------

    def factor(self, now: float) -> float:
        """The share of its speed that throttling leaves."""
        return _at(self.make.throttle, now, 1.0)

    def foreign(self, now: float) -> int:
        """Bytes that other programs hold."""
        return int(_at(self.make.foreign, now, 0.0) * GIB)

    def free(self, now: float) -> int:
        """Bytes that nobody has taken."""
        ours = sum(replica.memory for replica in self.replicas.values())
        return max(0, self.memory - self.foreign(now) - ours)

    def load_seconds(self, model: Model) -> float:
        """Seconds that loading a model takes once it is its turn."""
        return LOAD_START + model.load_bytes / self.make.bandwidth

    def jobs(self) -> list[Job]:
        """Return everything that it has, at work or waiting."""
        return [job for replica in self.replicas.values() for job in replica.running] + self.queue

    def next_at(self) -> float:
        """When something happens by itself; infinite if nothing will."""
        soonest = self.loading[0].left if self.loading else math.inf
        rate = self._rate()
        at_work = False
        for replica in self.replicas.values():
            if replica.running:
                at_work = True
                each = rate / self._crowd(replica)
                if each > 0:
                    soonest = min(soonest, min(job.left for job in replica.running) / each)
        at = self.now + max(0.0, soonest)
        if at_work:
            at = min(at, _after(self.make.throttle, self.now))
        if self.queue:
            at = min(at, _after(self.make.foreign, self.now))
        return at

    # --- what happens to it -----------------------------------------------------------------

    def install(self, names: Iterable[str]) -> None:
        """Have these models loaded, as far as there is room: how things are at the start."""
        for name in names:
            model = self.models[name]
            if model.memory + HEADROOM <= self.free(self.now):
                self.replicas[name] = Replica(model, 0.0, 0.0, self.now)

    def run_to(self, now: float) -> list[Job]:
        """Let time pass; return the attempts that ended, in order."""
        ended: list[Job] = []
        while (at := self.next_at()) <= now:
            self._flow(at)
            ended += self._settle()
        self._flow(now)
        return ended

    def submit(self, job: Job, *, patient: bool = False) -> Refusal | None:
        """Take an attempt, or say why not. It is as late as :meth:`run_to` made it.

        With ``patient`` nothing that could ever run here is refused: it waits.
        """
        model = self.models.get(job.model)
        if model is None:
            return Refusal.UNKNOWN_MODEL
        replica = self.replicas.get(job.model)
        if patient:
            if replica is None and model.memory + HEADROOM > self.memory - self.foreign(self.now):
                return Refusal.NO_MEMORY
        elif replica is None:
            if not self._make_room(model, ()):
                return Refusal.NO_MEMORY
            self._load(model, job)
        else:
            waiting = sum(other.model == job.model for other in self.queue)
            if waiting + len(replica.running) >= model.slots * (1 + QUEUE_FACTOR):
                return Refusal.BUSY
        self.queue.append(job)
        self._start()
        return None

    def take_back(self, key: Key, *, begun: bool) -> bool:
        """Give an attempt up, one that has begun only if ``begun``; returns whether it is gone."""
        places = [self.queue]
        if begun:
            places += [replica.running for replica in self.replicas.values()]
        for place in places:
            for job in place:
                if job.key == key:
                    place.remove(job)
                    self._start()
                    return True
        return False

    def load(self, name: str) -> bool:
        """Load a model because someone says so; returns whether it is there or on its way."""
        model = self.models.get(name)
        if model is None:
            return False
        if name not in self.replicas:
            if not self._make_room(model, ()):
                return False
            self._load(model, None)
        return True

    def unload(self, name: str) -> bool:
        """Unload a model unless it is in use; returns whether it is gone."""
        replica = self.replicas.get(name)
        if replica is None:
            return True
        if replica.running or not replica.ready or any(job.model == name for job in self.queue):
            return False
        del self.replicas[name]
        self._start()
        return True

    # --- inside -----------------------------------------------------------------------------

    def _rate(self) -> float:
        """Units a second of a lone attempt, at this moment."""
        working = sum(bool(replica.running) for replica in self.replicas.values())
        share = 1 - self.make.load_share if self.loading else 1.0
        return self.make.speed * self.factor(self.now) * share / max(1, working)

    def _crowd(self, replica: Replica) -> float:
        return 1 + self.crowding * (len(replica.running) - 1)

    def _flow(self, at: float) -> None:
        """Book what happens from now to then; nothing else may change in between."""
        passed = at - self.now
        if passed > 0:
            rate = self._rate()
            at_work = bool(self.loading)
            for replica in self.replicas.values():
                if replica.running:
                    at_work = True
                    each = passed * rate / self._crowd(replica)
                    for job in replica.running:
                        job.left -= each
                    self.done += each * len(replica.running)
            if self.loading:
                self.loading[0].left -= passed
            self.busy += passed if at_work else 0.0
        self.now = at

    def _settle(self) -> list[Job]:
        """Take note of what is over, and begin what can begin."""
        ended = []
        if self.loading and self.loading[0].left <= _NOTHING:
            replica = self.loading.pop(0)
            replica.left, replica.used = 0.0, self.now
            moving = replica.seconds - LOAD_START
            if moving > 0:
                self.measured = replica.model.load_bytes / moving
        for replica in self.replicas.values():
            over = [job for job in replica.running if job.left <= _NOTHING]
            for job in over:
                replica.running.remove(job)
                replica.used = job.ended = self.now
            ended += over
        self._start()
        return ended

    def _start(self) -> None:
        """Begin what can begin, in order. Nobody overtakes for whose model there is no room yet."""
        wanted: dict[str, None] = {}
        held: set[str] = set()
        for job in list(self.queue):
            replica = self.replicas.get(job.model)
            if replica is None:
                model = self.models[job.model]
                if not held and self._make_room(model, wanted):
                    self._load(model, job)
                else:
                    # Those at work that come after this in the queue must drain.
                    held |= self.replicas.keys() - wanted.keys()
            elif (
                replica.ready
                and job.model not in held
                and len(replica.running) < replica.model.slots
            ):
                self.queue.remove(job)
                replica.running.append(job)
                job.began = replica.used = self.now
            wanted[job.model] = None

    def _make_room(self, model: Model, wanted: Iterable[str]) -> bool:
        """Evict idle replicas, the one unused for longest first, if that is enough."""
        if not model.memory:
            return True
        promised = sum(r.model.memory - r.memory for r in self.loading)
        free = self.free(self.now) - promised - HEADROOM
        idle = sorted(
            (
                replica
                for name, replica in self.replicas.items()
                if replica.ready and not replica.running and name not in wanted
            ),
            key=lambda replica: replica.used,
        )
        victims = []
        for replica in idle:
            if free >= model.memory:
                break
            victims.append(replica)
            free += replica.model.memory
        if free < model.memory:
            return False
        for replica in victims:
            del self.replicas[replica.model.name]
        return True

    def _load(self, model: Model, job: Job | None) -> None:
        seconds = self.load_seconds(model)
        replica = self.replicas[model.name] = Replica(model, seconds, seconds, self.now)
        self.loading.append(replica)
        self.loads.append(self.now)
        if job is not None:
            job.load = seconds


def _copy(job: Job) -> Job:
    return Job(job.key, job.model, job.size, job.left, job.began, job.ended, job.load)


def _at(steps: Steps, now: float, otherwise: float) -> float:
    index = bisect_right(steps, (now, math.inf))
    return steps[index - 1][1] if index else otherwise


def _after(steps: Steps, now: float) -> float:
    index = bisect_right(steps, (now, math.inf))
    return steps[index][0] if index < len(steps) else math.inf

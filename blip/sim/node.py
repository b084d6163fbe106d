"""A simulated machine: its devices, and what it says of them."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

from blip.protocol import messages
from blip.protocol.messages import Advert, Model, Running
from blip.sim.arrivals import model_names, popularity
from blip.sim.machine import GIB, Device
from blip.sim.scenario import Nodes, Scenario


class Node:
    """A machine of a make. It is ``up`` or not; ``draining`` it takes nothing new."""

    def __init__(
        self,
        id: str,
        make: Nodes,
        models: Sequence[Model],
        crowding: float,
        resident: Sequence[str] = (),
    ) -> None:
        self.id = id
        #: What is loaded when it comes up for the first time.
        self.resident = resident
        self.make = make
        self.models = list(models)
        self._catalogue = {model.name: model for model in models}
        self._crowding = crowding
        self.incarnation = 0
        self.up = False
        self.draining = False
        #: Whether anything happened since its last advert.
        self.changed = True
        #: When it came up, and how long it was up before.
        self.up_since = 0.0
        self.up_seconds = 0.0
        #: Devices by id; those of former lives are in ``past``.
        self.devices: dict[str, Device] = {}
        self.past: list[Device] = []
        self._number = 0
        self._advert: Advert | None = None

    def boot(self, now: float, resident: Sequence[str] = ()) -> None:
        """Come up, with these models loaded on every device that has room for them."""
        self.past += self.devices.values()
        self.incarnation += 1
        self.up, self.draining, self.changed, self.up_since = True, False, True, now
        self._number = 0
        self.devices = {}
        for number in range(self.make.devices):
            device = Device(self.make, self._catalogue, self._crowding)
            device.now = now
            device.install(resident)
            self.devices[f"gpu{number}"] = device

    def halt(self, now: float) -> None:
        """Go down, with everything that runs."""
        self.up = False
        self.up_seconds += now - self.up_since

    def uptime(self, now: float) -> float:
        """Seconds that it has been up by now."""
        return self.up_seconds + (now - self.up_since if self.up else 0.0)

    def advert(self, now: float) -> Advert:
        """State its capacity. Its devices must be as late as ``now``."""
        self._number += 1
        old = self._advert
        moving = any(device.loading for device in self.devices.values())
        steps = self.make.throttle or self.make.foreign
        if old is not None and not (self.changed or moving or steps):
            return old._replace(number=self._number)
        self.changed = False
        replicas, running = [], []
        for name, device in self.devices.items():
            waiting: dict[str, int] = {}
            for job in device.queue:
                waiting[job.model] = waiting.get(job.model, 0) + 1
                running.append(Running(task_id(job.key[0]), job.key[1], False))
            for replica in device.replicas.values():
                running += [
                    Running(task_id(job.key[0]), job.key[1], True) for job in replica.running
                ]
                replicas.append(
                    messages.Replica(
                        replica.model.name,
                        name,
                        "ready" if replica.ready else "loading",
                        replica.model.slots,
                        len(replica.running),
                        waiting.get(replica.model.name, 0),
                        replica.model.memory,
                        1 - max(0.0, replica.left) / replica.seconds if replica.seconds else 1.0,
                        replica.seconds - max(0.0, replica.left),
                    )
                )
        devices = [self._device(name, device, now) for name, device in self.devices.items()]
        self._advert = Advert(self._number, self.draining, devices, self.models, replicas, running)
        return self._advert

    def _device(self, name: str, device: Device, now: float) -> messages.Device:
        make = self.make
        return messages.Device(
            name,
            "sim",
            make.name,
            device.memory,
            device.free(now),
            speed=make.told_speed or make.speed,
            load_bandwidth=device.measured,
            health=device.factor(now) if make.tells_health else 1.0,
            foreign=device.foreign(now),
        )


def build(scenario: Scenario, rng: random.Random) -> list[Node]:
    """Make a scenario's nodes, all down; who offers what is drawn by popularity."""
    of = scenario.models
    models = [
        Model(name, [of.kind], int(of.memory * GIB), int(of.load * GIB), of.slots, parameters=0)
        for name in model_names(scenario)
    ]
    sums = list(accumulate(popularity(scenario)))
    nodes = []
    for make in scenario.nodes:
        for number in range(make.count):
            offered = models
            if 0 < make.offers < len(models):
                chosen: set[int] = set()
                while len(chosen) < make.offers:
                    chosen.add(min(bisect(sums, rng.random()), len(models) - 1))
                offered = [models[index] for index in sorted(chosen)]
            id = make.name if make.count == 1 else f"{make.name}-{number}"
            drawn = rng.sample(offered, min(make.resident, len(offered)))
            resident = [model.name for model in drawn]
            nodes.append(Node(id, make, offered, of.crowding, resident))
    return nodes


def task_id(number: int) -> bytes:
    """Return the id of a task by its number."""
    return number.to_bytes(messages.TASK_ID_BYTES, "big")

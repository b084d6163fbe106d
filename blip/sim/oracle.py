"""The oracle: what a placer could do that knew everything that is true, but not the future.

It is online and greedy. The moment a task arrives, without any latency, it knows the task's true
size and each device's true state: speed, what is queued and how much of it is left, what is
loaded. It sends the task where it ends soonest, counting a load if one is needed, and never
changes its mind. It does not weigh what a task costs others, so it is not the best there can be.
"""

from __future__ import annotations

import math
from typing import ClassVar

from blip.protocol.reloads import LOAD_START
from blip.sim.machine import Device, Job
from blip.sim.node import Node
from blip.sim.policy import Policy, Request, World


class Oracle(Policy):
    """Sends every task where it truly ends first."""

    instant: ClassVar[bool] = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._offering: dict[str, list[Node]] = {}
        for node in world.nodes.values():
            for model in node.models:
                self._offering.setdefault(model.name, []).append(node)

    def place(self, request: Request, now: float) -> None:
        """Look at every device, the one that looks best first."""
        task = request.task
        order = sorted(
            (
                (at_best(device, task.model, task.size, now), number, node.id, name, device)
                for number, node in enumerate(self._offering.get(task.model, ()))
                if node.up and not node.draining and node.id not in request.exclude
                for name, device in node.devices.items()
            ),
            key=lambda option: option[:2],
        )
        least, chosen = math.inf, None
        for bound, _, node_id, name, device in order:
            if bound >= least:
                break
            at = finish(device, task.model, task.size, now)
            if at < least:
                least, chosen = at, (node_id, name)
        if chosen is None:
            self.world.deny(request.key, "no_capacity")
        else:
            self.world.grant(request.key, *chosen)


def at_best(device: Device, model: str, size: float, now: float) -> float:
    """Return a time before which that cannot be done there; cheap."""
    at = now + size / device.make.speed
    replica = device.replicas.get(model)
    if replica is None:
        return at + LOAD_START
    # All that is left of this replica's own work must be done before, but for its other slots.
    if replica.model.slots == 1:
        ahead = sum(job.left for job in replica.running)
        ahead += sum(job.left for job in device.queue if job.model == model)
        passed = (now - device.now) * device.make.speed
        at += max(0.0, ahead - passed) / device.make.speed
    return at


def finish(device: Device, model: str, size: float, now: float) -> float:
    """Return when that would be done there: a copy of the device is run up to it."""
    twin = device.copy()
    twin.run_to(now)
    job = Job((-1, 0), model, size, size)
    if twin.submit(job, patient=True) is not None:
        return math.inf
    while job.ended < 0:
        at = twin.next_at()
        if at == math.inf:
            return math.inf
        twin.run_to(at)
    return job.ended

"""The memory of this node's devices: who holds it, what it is promised to, what can be had.

Device memory is a claim, not a reading: a reading lags behind loads and unloads, and a device that
the configuration declares tells nothing. Decides, and changes no replica but its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from blip.errors import NoCapacity
from blip_node.admission import Fit, fit, ran_out, victims
from blip_node.capacity import Reading
from blip_node.catalogue import Entry
from blip_node.replica import LOADING, Replica, State


def held(device: str, replicas: Iterable[Replica]) -> int:
    """Bytes on a device that replicas take now: loaded, or with a worker that has yet to end."""
    return sum(
        each.memory
        for each in replicas
        if each.device == device
        and (each.state is State.READY or (each.state not in LOADING and each.worker is not None))
    )


def reserved(device: str, replicas: Iterable[Replica]) -> int:
    """Bytes on a device that are promised to replicas which are not loaded yet."""
    return sum(each.memory for each in replicas if each.device == device and each.state in LOADING)


def free_memory(reading: Reading, replicas: Iterable[Replica]) -> int | None:
    """Bytes free on a device as it tells; else what was declared, minus what replicas take.

    None where neither is known.
    """
    if reading.sample is not None and reading.sample.memory_free is not None:
        return reading.sample.memory_free
    if reading.info.memory_total is None:
        return None
    return max(0, reading.info.memory_total - held(reading.info.id, replicas))


class Memory:
    """Answers for the replicas of one node. ``replicas`` and ``readings`` say what is so now."""

    def __init__(
        self,
        replicas: Callable[[], Iterable[Replica]],
        readings: Callable[[str], Reading | None],
        now: Callable[[], float],
    ) -> None:
        self._replicas = replicas
        self._readings = readings
        self._now = now
        #: Measured while loading, in bytes a second, by device.
        self.bandwidth: dict[str, float] = {}

    def room(self, entry: Entry, reading: Reading) -> Fit:
        """Whether a model that is not on a device fits there, and what would have to go."""
        device = reading.info.id
        return fit(
            entry.memory(gpu=reading.info.gpu),
            free_memory(reading, self._replicas()),
            reserved(device, self._replicas()),
            self._others(device, entry.spec.name),
            self._now(),
            self.bandwidth.get(device),
        )

    def free(self, replica: Replica) -> int | None:
        """Bytes that are free on a replica's device at the moment, if that is known."""
        reading = self._readings(replica.device)
        return None if reading is None else free_memory(reading, self._replicas())

    def loaded(self, replica: Replica, seconds: float) -> None:
        """A load took so long: the device reads that fast."""
        if replica.load_bytes and seconds > 0:
            self.bandwidth[replica.device] = replica.load_bytes / seconds

    def measured(self, replica: Replica, entry: Entry, size: int, *, gpu: bool) -> None:
        """The worker says what its model takes, which is what the next load will need."""
        if entry.weightless:
            return
        replica.peak = max(replica.peak, size)
        entry.measured(size, gpu=gpu)
        # Where the device tells what is free, what others may have is seen there. A declared one
        # is kept account of: what the model took before it may take again.
        replica.memory = entry.memory(gpu=gpu) if self._declared(replica.device) else size

    def beyond(self, replica: Replica) -> tuple[tuple[Replica, ...], NoCapacity | None]:
        """What must go because a replica grew over the limit of a declared device.

        The error if that is not enough.
        """
        total = self._declared(replica.device)
        others = self._others(replica.device, replica.model)
        over = 0 if total is None else held(replica.device, others) + replica.memory - total
        if over <= 0:
            return (), None
        bandwidth = self.bandwidth.get(replica.device)
        chosen, freed = victims(over, others, self._now(), bandwidth)
        if freed >= over:
            return chosen, None
        return chosen, self._ran_out(replica, replica.memory, "that much was declared")

    def outgrown(self, replica: Replica, entry: Entry, text: str, *, gpu: bool) -> NoCapacity:
        """A load ran out of memory, says ``text``: expect more from now on.

        Returns the error with the numbers.
        """
        need = entry.outgrown(replica.had or 0, gpu=gpu)
        return self._ran_out(replica, need, text)

    def exhausted(self, replica: Replica, text: str) -> NoCapacity:
        """A run ran out of memory, says ``text``; returns the error with the numbers."""
        replica.had = self.free(replica)
        return self._ran_out(replica, replica.memory, text)

    def idle_beside(self, replica: Replica) -> tuple[Replica, ...]:
        """Every other replica on its device whose memory may be taken."""
        others = self._others(replica.device, replica.model)
        return tuple(each for each in others if each.evictable)

    def _ran_out(self, replica: Replica, need: int, text: str) -> NoCapacity:
        reading = self._readings(replica.device)
        total = None if reading is None else reading.info.memory_total
        return ran_out(replica.model, replica.device, need, replica.had, total, text)

    def _declared(self, device: str) -> int | None:
        """The memory of a device that does not tell what is free; None if it does."""
        reading = self._readings(device)
        return None if reading is None or _tells(reading) else reading.info.memory_total

    def _on(self, device: str) -> list[Replica]:
        return [each for each in self._replicas() if each.device == device]

    def _others(self, device: str, model: str) -> list[Replica]:
        return [each for each in self._on(device) if each.model != model]


def _tells(reading: Reading) -> bool:
    return reading.sample is not None and reading.sample.memory_free is not None

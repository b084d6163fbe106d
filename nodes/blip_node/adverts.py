"""Puts a node's capacity into an :class:`~blip.protocol.messages.Advert`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from blip.protocol import messages, ranking
from blip_node.capacity import Capacity, Reading
from blip_node.capacity.metrics import metrics
from blip_node.catalogue import Catalogue
from blip_node.executions import Executions
from blip_node.replica import Replica
from blip_node.standing import Standing


def advert(
    number: int,
    *,
    now: float,
    draining: bool,
    capacity: Capacity,
    catalogue: Catalogue,
    replicas: Iterable[Replica],
    executions: Executions,
    speed: float,
    bandwidth: Mapping[str, float],
    standings: Mapping[str, Standing],
    benchmarks: Mapping[str, Mapping[str, float]],
    held: Callable[[str], int],
    reserved: Callable[[str], int],
) -> messages.Advert:
    """State everything a broker plans with.

    ``bandwidth`` is measured bytes a second by device; ``standings`` has every device;
    ``benchmarks`` is what :mod:`blip_node.measurements` found; ``held`` and ``reserved`` are the
    bytes that replicas take on a device, and will take.
    """
    gpu = any(reading.info.gpu for reading in capacity.readings)
    return messages.Advert(
        number,
        draining,
        [
            _device(
                reading,
                speed,
                bandwidth,
                standing=standings[reading.info.id],
                benchmark=benchmarks.get(reading.info.id, {}),
                held=held(reading.info.id),
                reserved=reserved(reading.info.id),
            )
            for reading in capacity.readings
        ],
        catalogue.adverts(now, gpu=gpu),
        [replica.advert(now) for replica in replicas],
        executions.running(),
        kinds=catalogue.kinds,
    )


def _device(
    reading: Reading,
    speed: float,
    bandwidth: Mapping[str, float],
    *,
    standing: Standing,
    benchmark: Mapping[str, float],
    held: int,
    reserved: int,
) -> messages.Device:
    info, sample = reading.info, reading.sample
    total = info.memory_total or 0
    free = sample.memory_free if sample is not None else None
    return messages.Device(
        info.id,
        info.vendor,
        info.name,
        total,
        # a device that does not tell (a configured one) is kept account of
        max(0, total - held) if free is None else free,
        sample.utilization if sample is not None else None,
        sample.temperature if sample is not None else None,
        sample.power if sample is not None else None,
        _speed(info.speed, speed, benchmark),
        bandwidth.get(info.id),
        ours=held if free is None else sample.own_memory if sample is not None else None,
        foreign=sample.foreign_memory if sample is not None else None,
        metrics=metrics(reading),
        health=standing.health,
        age=reading.age or 0.0,
        state=standing.word,
        reason=standing.reason,
        benchmark=dict(benchmark),
        reserved=reserved,
    )


def _speed(of_device: float | None, of_node: float, benchmark: Mapping[str, float]) -> float:
    """Return a device's speed: what its owner says, else what was measured, else 1."""
    if of_device is not None:
        return of_device
    return of_node if of_node != 1.0 else ranking.speed(benchmark) or 1.0

"""What is known of a device beyond the numbers that placement uses, for people to read. Pure.

It travels as ``Device.metrics`` in every advert, so it is kept to about 1 KiB a device: texts are
cut, lists are short, and what is not known is left out. docs/capacity.md lists the names.
"""

from __future__ import annotations

import math
from typing import Any

from blip_node.capacity.device import DeviceEvent, DeviceInfo, DeviceSample, Reading

#: Characters of a word from the driver (an address, a version, a UUID), and of a sentence. The
#: longest real ones, a MIG instance's UUID and an error with its function's name, fit.
WORD, SENTENCE = 48, 160

#: Latest Xids shown, and throttle reasons; a healthy card has none, a broken one repeats itself.
XIDS, REASONS = 3, 8


def metrics(reading: Reading) -> dict[str, Any]:
    """Return what is known, by name: only JSON's types, only finite numbers, nothing unknown."""
    told = _fixed(reading.info)
    if reading.sample is not None:
        told |= _measured(reading.sample)
    told["pcie"] = _pcie(reading)
    told["xids"] = [_xid(event, reading) for event in reading.events[-XIDS:]] or None
    return {name: value for name, value in told.items() if value is not None}


def _fixed(info: DeviceInfo) -> dict[str, Any]:
    capability = info.compute_capability
    return {
        "clock_max": _number(info.clock_max),
        "memory_clock_max": _number(info.memory_clock_max),
        "driver": _cut(info.driver, WORD),
        "compute_capability": None if capability is None else ".".join(map(str, capability)),
        "arch": _cut(info.arch, WORD),
        "pci": _cut(info.pci_bus_id, WORD),
        "parent": _cut(info.parent, WORD),
        "display": info.display,
        "cores": info.cores,
    }


def _measured(sample: DeviceSample) -> dict[str, Any]:
    rows = sample.remapped_rows
    return {
        "foreign_utilization": _number(sample.foreign_utilization),
        "memory_temperature": _number(sample.memory_temperature),
        "power_limit": _number(sample.power_limit),
        "energy": _number(sample.energy),
        "fan": _number(sample.fan),
        "clock": _number(sample.clock),
        "memory_clock": _number(sample.memory_clock),
        "throttle": None if sample.throttle is None else sorted(sample.throttle)[:REASONS],
        "ecc_corrected": sample.ecc_corrected,
        "ecc_uncorrected": sample.ecc_uncorrected,
        "remapped_rows": None
        if rows is None
        else {
            "correctable": rows.correctable,
            "uncorrectable": rows.uncorrectable,
            "pending": rows.pending,
            "failed": rows.failed,
        },
        "processes": None if sample.processes is None else len(sample.processes),
        "lost": sample.lost or None,
        "error": _cut(sample.error, SENTENCE),
    }


def _pcie(reading: Reading) -> dict[str, int] | None:
    """Put the link as it is beside the best that card and slot can do."""
    sample, info = reading.sample, reading.info
    link = {
        "gen": None if sample is None else sample.pcie_gen_now,
        "width": None if sample is None else sample.pcie_width_now,
        "gen_max": info.pcie_gen,
        "width_max": info.pcie_width,
    }
    return {name: value for name, value in link.items() if value is not None} or None


def _xid(event: DeviceEvent, reading: Reading) -> dict[str, Any]:
    told: dict[str, Any] = {
        "code": event.code,
        "text": _cut(event.text, WORD),
        "fatal": event.fatal,
    }
    if reading.sample is not None and reading.age is not None:
        told["age"] = round(max(0.0, reading.sample.at + reading.age - event.at), 1)
    return told


def _number(value: float | None) -> float | None:
    """Round to what a person reads; what is no number is not known."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else round(value, 3)


def _cut(text: str | None, size: int) -> str | None:
    if text is None or len(text) <= size:
        return text
    return text[: size - 1] + "…"

"""How a node knows what its devices can do: one provider a vendor, one monitor over them all.

monitor = Monitor(providers(), changed=advertise, loop=asyncio.get_running_loop())
monitor.start()
for reading in monitor.capacity().readings: ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from blip_node.capacity.amd import AmdProvider
from blip_node.capacity.cpu import CpuProvider
from blip_node.capacity.device import (
    DeviceEvent,
    DeviceInfo,
    DeviceSample,
    Process,
    Provider,
    Reading,
    RemappedRows,
)
from blip_node.capacity.monitor import Capacity, Monitor
from blip_node.capacity.nvml import NvmlProvider
from blip_node.capacity.static import StaticDevice, StaticProvider

__all__ = [
    "AmdProvider",
    "Capacity",
    "CpuProvider",
    "DeviceEvent",
    "DeviceInfo",
    "DeviceSample",
    "Monitor",
    "NvmlProvider",
    "Process",
    "Provider",
    "Reading",
    "RemappedRows",
    "StaticDevice",
    "StaticProvider",
    "providers",
]


def providers(
    *,
    nvml: bool = True,
    amd: bool = True,
    cpu: bool | Literal["auto"] = "auto",
    static: Sequence[StaticDevice] = (),
) -> list[Provider]:
    """Return the providers a node's settings ask for.

    ``cpu="auto"`` offers the processor only where no other provider has a device.
    """
    chosen: list[Provider] = []
    if nvml:
        chosen.append(NvmlProvider())
    if amd:
        chosen.append(AmdProvider())
    if static:
        chosen.append(StaticProvider(static))
    if cpu:
        chosen.append(CpuProvider(fallback=cpu == "auto"))
    return chosen

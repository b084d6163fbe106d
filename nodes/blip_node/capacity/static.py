"""Devices that the configuration declares, for hardware that no provider can see.

They are what their owner says: blip measures nothing about them, so every metric stays None.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from blip.errors import ConfigError
from blip_node.capacity.device import DeviceEvent, DeviceInfo, DeviceSample


@dataclass(frozen=True, slots=True)
class StaticDevice:
    """A declared device: ``memory`` in bytes, ``speed`` relative to others (2 is twice as fast).

    Raises :class:`ConfigError` for values that no device has.
    """

    id: str
    name: str
    memory: int | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        if not self.id or not self.name:
            raise ConfigError("A static device needs both an id and a name.")
        if self.memory is not None and self.memory <= 0:
            raise ConfigError(f"Static device {self.id!r}: memory must be above 0 bytes.")
        if self.speed is not None and not (self.speed > 0 and math.isfinite(self.speed)):
            raise ConfigError(f"Static device {self.id!r}: speed must be a number above 0.")


class StaticProvider:
    """The declared devices. Raises :class:`ConfigError` if two share an id."""

    name = "static"
    fallback = False
    reason: str | None = None

    def __init__(
        self, devices: Iterable[StaticDevice], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._devices = tuple(devices)
        self._clock = clock
        seen: set[str] = set()
        for device in self._devices:
            if device.id in seen:
                raise ConfigError(
                    f"Static device {device.id!r} is declared twice; ids must differ."
                )
            seen.add(device.id)

    def probe(self) -> list[DeviceInfo]:
        """Return the devices as declared."""
        return [
            DeviceInfo(
                id=device.id,
                index=index,
                vendor="static",
                name=device.name,
                memory_total=device.memory,
                speed=device.speed,
            )
            for index, device in enumerate(self._devices)
        ]

    def sample(self, own_pids: Collection[int]) -> list[DeviceSample]:
        """Say that they are still declared; nothing is measured."""
        at = self._clock()
        return [DeviceSample(device.id, at) for device in self._devices]

    def watch(self, report: Callable[[DeviceEvent], None]) -> None:
        """Do nothing: there is no driver to report anything."""

    def close(self) -> None:
        """Do nothing: nothing is held."""

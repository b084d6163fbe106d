"""NVIDIA GPUs, through the driver's own library (NVML) and NVIDIA's binding for it (``pynvml``).

Boards and drivers differ in what they can tell, so each metric is asked for by itself. What is
not supported is None; what fails otherwise is None and named in the sample's ``error``; a card
that is gone is ``lost``, alone. NVML is initialised once and never again: with a lost card a new
initialisation fails, or hangs, for all the others too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from blip_node.capacity import nvml_metrics as ask
from blip_node.capacity.device import (
    DeviceEvent,
    DeviceInfo,
    DeviceSample,
    foreign_memory,
    own_memory,
)
from blip_node.capacity.nvml_metrics import (
    DRIVER_NOT_LOADED,
    LIB_RM_VERSION_MISMATCH,
    LIBRARY_NOT_FOUND,
    LOST,
    NO_PERMISSION,
    Calls,
    Lost,
)
from blip_node.capacity.xid import Target, XidWatcher

#: Why there is no NVML at all, in words that say what to do.
UNAVAILABLE: dict[int, str] = {
    LIBRARY_NOT_FOUND: "No NVIDIA driver is installed (libnvidia-ml.so.1 was not found).",
    DRIVER_NOT_LOADED: "The NVIDIA driver is installed but not loaded; see `nvidia-smi` and dmesg.",
    NO_PERMISSION: "No permission to use the NVIDIA driver; check the rights of /dev/nvidia*.",
    LIB_RM_VERSION_MISMATCH: "The NVIDIA driver was updated and not reloaded; reboot this machine.",
}


@dataclass(frozen=True, slots=True)
class _Device:
    """A device and its NVML handles: its own, and the whole card's (the same without MIG).

    ``own`` is None for a card that was lost already when we looked for it.
    """

    info: DeviceInfo
    own: Any
    card: Any
    instance: tuple[int, int] | None = None


class NvmlProvider:
    """The GPUs, or their MIG instances, that NVML lists on this machine."""

    name = "nvml"
    fallback = False

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.reason: str | None = None
        self._clock = clock
        self._wall = wall  # the driver dates what processes did by the machine's clock
        self._nvml: Any = None
        self._devices: list[_Device] = []
        self._watcher: XidWatcher | None = None

    # ---- finding devices ----

    def probe(self) -> list[DeviceInfo]:
        """Initialise NVML and list the devices; without a driver, say why there are none."""
        import pynvml  # 8,000 lines that only this thread should wait for

        try:
            pynvml.nvmlInit()
            self._nvml = pynvml
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self.reason = UNAVAILABLE.get(error.value, f"NVML did not start: {error}.")
            self.close()
            return []
        driver = Calls(pynvml)("nvmlSystemGetDriverVersion")
        for index in range(count):
            self._devices += self._find(index, driver)
        if count == 0:
            self.reason = "The NVIDIA driver is running but lists no GPU."
        return [device.info for device in self._devices]

    def _find(self, index: int, driver: str | None) -> list[_Device]:
        calls = Calls(self._nvml)
        try:
            card = calls("nvmlDeviceGetHandleByIndex", index)
            if card is None:
                why = "; ".join(calls.wrong) or "no permission"
                self.reason = f"GPU {index} cannot be opened: {why}."
                return []
            info = self._describe(calls, card, index, driver)
            mode = calls("nvmlDeviceGetMigMode", card)
            if mode is None or mode[0] == 0:
                return [_Device(info, card, card)]
            return self._find_instances(calls, card, info)
        except Lost:
            # Its UUID cannot be asked for any more. It is listed so that its loss is seen.
            lost = DeviceInfo(f"nvml-{index}", index, "nvidia", "lost GPU", driver=driver)
            return [_Device(lost, None, None)]

    def _find_instances(self, calls: Calls, card: Any, info: DeviceInfo) -> list[_Device]:
        """List the MIG instances of a card. In MIG mode the card itself can run nothing."""
        found = []
        for place in range(calls("nvmlDeviceGetMaxMigDeviceCount", card) or 0):
            try:
                own = self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, place)
            except self._nvml.NVMLError as error:
                if error.value in LOST:
                    raise Lost(str(error)) from None
                continue  # a place without an instance
            instance = (
                calls("nvmlDeviceGetGpuInstanceId", own),
                calls("nvmlDeviceGetComputeInstanceId", own),
            )
            part = self._describe(calls, own, info.index, info.driver, parent=info, place=place)
            found.append(_Device(part, own, card, None if None in instance else instance))
        if not found:
            self.reason = (
                f"GPU {info.index} is in MIG mode and has no instances; "
                "create some with `nvidia-smi mig`, or turn MIG off."
            )
        return found

    def _describe(
        self,
        calls: Calls,
        handle: Any,
        index: int,
        driver: str | None,
        parent: DeviceInfo | None = None,
        place: int = 0,
    ) -> DeviceInfo:
        memory = ask.memory_info(calls, handle)
        capability = calls("nvmlDeviceGetCudaComputeCapability", handle)
        name = calls("nvmlDeviceGetName", handle) or "NVIDIA GPU"
        total = None if memory is None else int(memory.total)
        if parent is not None:  # what an instance does not know of itself is its card's
            return DeviceInfo(
                id=calls("nvmlDeviceGetUUID", handle) or f"{parent.id}/mig{place}",
                index=index,
                vendor="nvidia",
                name=name,
                memory_total=total,
                compute_capability=tuple(capability or ()) or parent.compute_capability,
                driver=driver,
                pci_bus_id=parent.pci_bus_id,
                pcie_gen=parent.pcie_gen,
                pcie_width=parent.pcie_width,
                clock_max=parent.clock_max,
                memory_clock_max=parent.memory_clock_max,
                display=parent.display,
                parent=parent.id,
            )
        bus = _text(getattr(calls("nvmlDeviceGetPciInfo", handle), "busId", None))
        return DeviceInfo(
            id=calls("nvmlDeviceGetUUID", handle) or bus or f"nvml-{index}",
            index=index,
            vendor="nvidia",
            name=name,
            memory_total=total,
            compute_capability=tuple(capability) if capability else None,
            driver=driver,
            pci_bus_id=bus,
            pcie_gen=calls("nvmlDeviceGetMaxPcieLinkGeneration", handle),
            pcie_width=calls("nvmlDeviceGetMaxPcieLinkWidth", handle),
            clock_max=calls("nvmlDeviceGetMaxClockInfo", handle, ask.CLOCK_SM),
            memory_clock_max=calls("nvmlDeviceGetMaxClockInfo", handle, ask.CLOCK_MEMORY),
            display=ask.display(calls, handle),
        )

    # ---- measuring them ----

    def sample(self, own_pids: Collection[int]) -> list[DeviceSample]:
        """Measure each device, one after the other."""
        return [self._sample(device, own_pids) for device in self._devices]

    def _sample(self, device: _Device, own_pids: Collection[int]) -> DeviceSample:
        at = self._clock()
        try:
            return self._measure(device, own_pids, at)
        except Lost as lost:
            return DeviceSample(device.info.id, at, lost=True, error=f"{lost}.")

    def _measure(self, device: _Device, own_pids: Collection[int], at: float) -> DeviceSample:
        if device.own is None:
            raise Lost("GPU is lost")
        calls = Calls(self._nvml)
        memory = ask.memory_info(calls, device.own)
        used = None if memory is None else int(memory.used)
        processes = ask.processes(calls, device.own, own_pids)
        # MIG instances have no utilisation or power of their own. Heat, clocks, errors and the
        # link are the card's, and all its instances suffer them alike.
        card, whole = device.card, device.own is device.card
        busy = calls("nvmlDeviceGetUtilizationRates", card) if whole else None
        power = calls("nvmlDeviceGetPowerUsage", card) if whole else None
        limit = calls("nvmlDeviceGetEnforcedPowerLimit", card) if whole else None
        energy = calls("nvmlDeviceGetTotalEnergyConsumption", card) if whole else None
        fan = calls("nvmlDeviceGetFanSpeed", card)
        foreign = None
        if whole:
            foreign = ask.foreign_utilization(calls, card, own_pids, self._wall())
        return DeviceSample(
            id=device.info.id,
            at=at,
            memory_free=None if memory is None else int(memory.free),
            memory_used=used,
            own_memory=own_memory(processes, own_pids),
            foreign_memory=foreign_memory(used, processes, own_pids),
            utilization=None if busy is None else busy.gpu / 100,
            foreign_utilization=foreign,
            temperature=ask.temperature(calls, card),
            memory_temperature=ask.memory_temperature(calls, card),
            power=None if power is None else power / 1000,
            power_limit=None if limit is None else limit / 1000,
            energy=None if energy is None else energy / 1000,
            fan=None if fan is None else fan / 100,
            clock=calls("nvmlDeviceGetClockInfo", card, ask.CLOCK_SM),
            memory_clock=calls("nvmlDeviceGetClockInfo", card, ask.CLOCK_MEMORY),
            throttle=ask.throttle(calls, card),
            pcie_gen_now=calls("nvmlDeviceGetCurrPcieLinkGeneration", card),
            pcie_width_now=calls("nvmlDeviceGetCurrPcieLinkWidth", card),
            ecc_corrected=ask.ecc(calls, card, ask.ECC_CORRECTED),
            ecc_uncorrected=ask.ecc(calls, card, ask.ECC_UNCORRECTED),
            remapped_rows=ask.remapped_rows(calls, card),
            processes=processes,
            error="; ".join(calls.wrong) + "." if calls.wrong else None,
        )

    # ---- events, end ----

    def watch(self, report: Callable[[DeviceEvent], None]) -> None:
        """Report Xids, from a thread of their own."""
        targets = [
            Target(device.info.id, device.card, device.instance)
            for device in self._devices
            if device.card is not None
        ]
        if targets:
            self._watcher = XidWatcher(self._nvml, targets, report, self._clock)

    def close(self) -> None:
        """End the Xid thread and shut NVML down; again is harmless."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        if self._nvml is not None:
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                pass  # it is of no use to us any more, whatever it says
            self._nvml = None


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value

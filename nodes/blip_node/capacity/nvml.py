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

from blip_node.capacity.device import (
    DeviceEvent,
    DeviceInfo,
    DeviceSample,
    Process,
    foreign_memory,
)
from blip_node.capacity.xid import Target, XidWatcher

# nvmlReturn_t, by number: older bindings lack names for newer codes.
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 3, 4, 6
DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND = 9, 12, 13
GPU_IS_LOST, RESET_REQUIRED, LIB_RM_VERSION_MISMATCH = 15, 16, 18
NO_DATA, ARGUMENT_VERSION_MISMATCH, DEPRECATED, GPU_NOT_FOUND = 21, 25, 26, 28

#: Answers that mean "this board, driver or user cannot know that", which is no error.
ABSENT = frozenset(
    {
        NOT_SUPPORTED,
        NO_PERMISSION,
        FUNCTION_NOT_FOUND,
        NO_DATA,
        ARGUMENT_VERSION_MISMATCH,
        DEPRECATED,
    }
)

#: Answers after which the card cannot be used until it is reset.
LOST = frozenset({GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND})

#: Why there is no NVML at all, in words that say what to do.
UNAVAILABLE: dict[int, str] = {
    LIBRARY_NOT_FOUND: "No NVIDIA driver is installed (libnvidia-ml.so.1 was not found).",
    DRIVER_NOT_LOADED: "The NVIDIA driver is installed but not loaded; see `nvidia-smi` and dmesg.",
    NO_PERMISSION: "No permission to use the NVIDIA driver; check the rights of /dev/nvidia*.",
    LIB_RM_VERSION_MISMATCH: "The NVIDIA driver was updated and not reloaded; reboot this machine.",
}

#: The bits of NVML's clocks event reasons, as words. GpuIdle (0x1) is left out: it holds nothing
#: down.
THROTTLE: dict[int, str] = {
    0x2: "applications_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}
_IDLE = 0x1

# Arguments that NVML wants as numbers.
_SENSOR_GPU = 0
_CLOCK_SM = 1
_ECC_UNCORRECTED, _ECC_SINCE_DRIVER_LOAD = 1, 0


def throttle_reasons(bits: int) -> frozenset[str]:
    """Name each set bit; one that a future driver adds is called ``bit_0x...``."""
    names = {name for bit, name in THROTTLE.items() if bits & bit}
    unknown = bits & ~(_IDLE | sum(THROTTLE))
    while unknown:
        lowest = unknown & -unknown
        names.add(f"bit_{lowest:#x}")
        unknown ^= lowest
    return frozenset(names)


class _Lost(Exception):
    """The card answered that it is gone."""


class _Calls:
    """NVML calls about one device at one moment. ``wrong`` collects what should have worked."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self.wrong: list[str] = []

    def first(self, *calls: tuple[Any, ...]) -> Any:
        """Return the answer of the first ``(function, *arguments)`` that is known here, or None."""
        for name, *arguments in calls:
            function = getattr(self._nvml, name, None)  # an older binding may lack it
            if function is None:
                continue
            try:
                return function(*arguments)
            except self._nvml.NVMLError as error:
                if error.value in LOST:
                    raise _Lost(str(error)) from None
                if error.value not in ABSENT:
                    self.wrong.append(f"{name}: {error}")
                    return None
        return None

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Return the answer of one function, or None."""
        return self.first((name, *arguments))


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

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.reason: str | None = None
        self._clock = clock
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
        driver = _Calls(pynvml)("nvmlSystemGetDriverVersion")
        for index in range(count):
            self._devices += self._find(index, driver)
        if count == 0:
            self.reason = "The NVIDIA driver is running but lists no GPU."
        return [device.info for device in self._devices]

    def _find(self, index: int, driver: str | None) -> list[_Device]:
        calls = _Calls(self._nvml)
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
        except _Lost:
            # Its UUID cannot be asked for any more. It is listed so that its loss is seen.
            lost = DeviceInfo(f"nvml-{index}", index, "nvidia", "lost GPU", driver=driver)
            return [_Device(lost, None, None)]

    def _find_instances(self, calls: _Calls, card: Any, info: DeviceInfo) -> list[_Device]:
        """List the MIG instances of a card. In MIG mode the card itself can run nothing."""
        found = []
        for place in range(calls("nvmlDeviceGetMaxMigDeviceCount", card) or 0):
            try:
                own = self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, place)
            except self._nvml.NVMLError as error:
                if error.value in LOST:
                    raise _Lost(str(error)) from None
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
        calls: _Calls,
        handle: Any,
        index: int,
        driver: str | None,
        parent: DeviceInfo | None = None,
        place: int = 0,
    ) -> DeviceInfo:
        memory = _memory(calls, self._nvml, handle)
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
        )

    # ---- measuring them ----

    def sample(self, own_pids: Collection[int]) -> list[DeviceSample]:
        """Measure each device, one after the other."""
        return [self._sample(device, own_pids) for device in self._devices]

    def _sample(self, device: _Device, own_pids: Collection[int]) -> DeviceSample:
        at = self._clock()
        try:
            return self._measure(device, own_pids, at)
        except _Lost as lost:
            return DeviceSample(device.info.id, at, lost=True, error=f"{lost}.")

    def _measure(self, device: _Device, own_pids: Collection[int], at: float) -> DeviceSample:
        if device.own is None:
            raise _Lost("GPU is lost")
        calls = _Calls(self._nvml)
        memory = _memory(calls, self._nvml, device.own)
        used = None if memory is None else int(memory.used)
        processes = _processes(calls, device.own, own_pids)
        # MIG instances have no utilisation or power of their own. Heat, clock and errors are the
        # card's, and all its instances suffer them alike.
        whole = device.own is device.card
        card = device.card
        busy = calls("nvmlDeviceGetUtilizationRates", card) if whole else None
        power = calls("nvmlDeviceGetPowerUsage", card) if whole else None
        limit = calls("nvmlDeviceGetEnforcedPowerLimit", card) if whole else None
        throttle = calls.first(
            ("nvmlDeviceGetCurrentClocksEventReasons", card),
            ("nvmlDeviceGetCurrentClocksThrottleReasons", card),  # drivers before 535
        )
        return DeviceSample(
            id=device.info.id,
            at=at,
            memory_free=None if memory is None else int(memory.free),
            memory_used=used,
            foreign_memory=foreign_memory(used, processes, own_pids),
            utilization=None if busy is None else busy.gpu / 100,
            temperature=calls.first(
                ("nvmlDeviceGetTemperatureV", card, _SENSOR_GPU),
                ("nvmlDeviceGetTemperature", card, _SENSOR_GPU),  # drivers before 570
            ),
            power=None if power is None else power / 1000,
            power_limit=None if limit is None else limit / 1000,
            clock=calls("nvmlDeviceGetClockInfo", card, _CLOCK_SM),
            throttle=None if throttle is None else throttle_reasons(throttle),
            ecc_uncorrected=calls(
                "nvmlDeviceGetTotalEccErrors", card, _ECC_UNCORRECTED, _ECC_SINCE_DRIVER_LOAD
            ),
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


def _memory(calls: _Calls, nvml: Any, handle: Any) -> Any:
    """Ask for memory: version 2 keeps apart what the driver reserves, version 1 calls it used."""
    return calls.first(
        ("nvmlDeviceGetMemoryInfo", handle, nvml.nvmlMemory_v2),
        ("nvmlDeviceGetMemoryInfo", handle),
    )


def _processes(calls: _Calls, handle: Any, own_pids: Collection[int]) -> tuple[Process, ...] | None:
    """List processes that compute or draw; one that does both is listed by NVML twice."""
    listed = calls.first(
        ("nvmlDeviceGetComputeRunningProcesses_v3", handle),
        ("nvmlDeviceGetComputeRunningProcesses_v2", handle),  # drivers before 510
    )
    if listed is None:
        return None
    listed = [*listed, *(calls("nvmlDeviceGetGraphicsRunningProcesses_v3", handle) or ())]
    memory: dict[int, int | None] = {}
    for process in listed:
        if memory.get(process.pid) is None:
            memory[process.pid] = process.usedGpuMemory
    return tuple(Process(pid, memory[pid], pid in own_pids) for pid in sorted(memory))

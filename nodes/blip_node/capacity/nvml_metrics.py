"""Single metrics of NVIDIA's devices, each asked for by itself: NVML's calls and their verdicts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from blip_node.capacity.device import Process, RemappedRows

# nvmlReturn_t, by number: older bindings lack names for newer codes.
SUCCESS, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, INSUFFICIENT_SIZE = 0, 3, 4, 6, 7
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
CLOCK_SM, CLOCK_MEMORY = 1, 2
ECC_CORRECTED, ECC_UNCORRECTED = 0, 1
_SENSOR_GPU = 0
_SINCE_DRIVER_LOAD = 0
_FIELD_MEMORY_TEMPERATURE = 82

#: How far back to ask what processes did, in seconds. The driver writes down a busy process every
#: second or faster, so none is missed; older entries tell of programs that have stopped since.
USE_WINDOW_S = 2.0


def throttle_reasons(bits: int) -> frozenset[str]:
    """Name each set bit; one that a future driver adds is called ``bit_0x...``."""
    names = {name for bit, name in THROTTLE.items() if bits & bit}
    unknown = bits & ~(_IDLE | sum(THROTTLE))
    while unknown:
        lowest = unknown & -unknown
        names.add(f"bit_{lowest:#x}")
        unknown ^= lowest
    return frozenset(names)


class Lost(Exception):
    """The card answered that it is gone."""


class Calls:
    """NVML calls about one device at one moment. ``wrong`` collects what should have worked."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.wrong: list[str] = []

    def first(self, *calls: tuple[Any, ...]) -> Any:
        """Return the answer of the first ``(function, *arguments)`` that is known here, or None."""
        for name, *arguments in calls:
            function = getattr(self.nvml, name, None)  # an older binding may lack it
            if function is None:
                continue
            try:
                return function(*arguments)
            except self.nvml.NVMLError as error:
                if not self.absent(name, error):
                    return None
        return None

    def absent(self, name: str, error: Any) -> bool:
        """Judge an error: True if ``name`` is only unsupported; else it is noted as wrong.

        Raises :class:`Lost` if the card is gone.
        """
        if error.value in LOST:
            raise Lost(str(error)) from None
        if error.value in ABSENT:
            return True
        said = f"{name}: {error}"
        if said not in self.wrong:  # some functions tell two metrics
            self.wrong.append(said)
        return False

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Return the answer of one function, or None."""
        return self.first((name, *arguments))


def memory_info(calls: Calls, handle: Any) -> Any:
    """Ask for memory: version 2 keeps apart what the driver reserves, version 1 calls it used."""
    return calls.first(
        ("nvmlDeviceGetMemoryInfo", handle, calls.nvml.nvmlMemory_v2),
        ("nvmlDeviceGetMemoryInfo", handle),
    )


def temperature(calls: Calls, card: Any) -> float | None:
    """Return the heat of the chip, in degrees Celsius."""
    known: float | None = calls.first(
        ("nvmlDeviceGetTemperatureV", card, _SENSOR_GPU),
        ("nvmlDeviceGetTemperature", card, _SENSOR_GPU),  # drivers before 570
    )
    return known


def memory_temperature(calls: Calls, card: Any) -> float | None:
    """Return the heat of the memory. It has no function; a field brings its own verdict."""
    values = calls("nvmlDeviceGetFieldValues", card, [_FIELD_MEMORY_TEMPERATURE])
    if not values:
        return None
    if values[0].nvmlReturn != SUCCESS:
        calls.absent("memory temperature", calls.nvml.NVMLError(values[0].nvmlReturn))
        return None
    return int(values[0].value.uiVal)


def throttle(calls: Calls, card: Any) -> frozenset[str] | None:
    """Return why the clock is held down."""
    bits = calls.first(
        ("nvmlDeviceGetCurrentClocksEventReasons", card),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", card),  # drivers before 535
    )
    return None if bits is None else throttle_reasons(bits)


def ecc(calls: Calls, card: Any, kind: int) -> int | None:
    """Return memory errors since the driver was loaded, ``ECC_CORRECTED`` or not."""
    known: int | None = calls("nvmlDeviceGetTotalEccErrors", card, kind, _SINCE_DRIVER_LOAD)
    return known


def remapped_rows(calls: Calls, card: Any) -> RemappedRows | None:
    """Return what became of bad rows of memory."""
    rows = calls("nvmlDeviceGetRemappedRows", card)
    return None if rows is None else RemappedRows(rows[0], rows[1], bool(rows[2]), bool(rows[3]))


def display(calls: Calls, card: Any) -> bool | None:
    """Tell whether a screen uses the card.

    What counts is a display server that has it open ("active"): data-centre cards without any
    connector answer that display mode is enabled. Where only the mode is told, a "no" is a no.
    """
    active = calls("nvmlDeviceGetDisplayActive", card)
    if active is not None:
        return bool(active)
    return False if calls("nvmlDeviceGetDisplayMode", card) == 0 else None


def processes(calls: Calls, handle: Any, own_pids: Collection[int]) -> tuple[Process, ...] | None:
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


def foreign_utilization(
    calls: Calls, card: Any, own_pids: Collection[int], wall: float
) -> float | None:
    """Add up what processes that are not ours did in the last seconds, 0 to 1.

    ``wall`` is the machine's time of day in seconds, by which the driver dates its entries. Only
    processes that were busy have one.
    """
    since = int((wall - USE_WINDOW_S) * 1e6)
    name = "nvmlDeviceGetProcessUtilization"
    try:
        listed = getattr(calls.nvml, name)(card, since)
    except calls.nvml.NVMLError as error:
        # Nobody was busy; the binding makes an error of an empty list as well.
        if error.value in (SUCCESS, NOT_FOUND):
            return 0.0
        # One process more between the binding's two calls: the next sample will tell.
        if error.value != INSUFFICIENT_SIZE:
            calls.absent(name, error)
        return None
    except AttributeError:  # an older binding
        return None
    latest: dict[int, tuple[int, int]] = {}
    for entry in listed:
        # Drivers hand out old entries, and empty ones of pid 0, whatever they were asked for.
        if entry.pid and entry.timeStamp > since:
            newest = latest.get(entry.pid, (0, 0))
            latest[entry.pid] = max(newest, (int(entry.timeStamp), min(int(entry.smUtil), 100)))
    busy = sum(percent for pid, (_, percent) in latest.items() if pid not in own_pids)
    return min(busy, 100) / 100

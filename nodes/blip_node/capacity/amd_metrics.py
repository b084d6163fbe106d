"""Single metrics of AMD's devices, each asked for by itself: amdsmi's calls and their answers."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from blip_node.capacity.device import Process

# amdsmi_status_t, by number: the names are only in the library that may be missing.
NOT_SUPPORTED, NOT_YET_IMPLEMENTED, NO_PERM, DRIVER_NOT_LOADED = 2, 3, 10, 34
NO_DATA, FILE_NOT_FOUND, SETTING_UNAVAILABLE = 40, 52, 55

#: Answers that mean "this board, driver or user cannot know that", which is no error.
ABSENT = frozenset(
    {
        NOT_SUPPORTED,
        NOT_YET_IMPLEMENTED,
        NO_PERM,
        NO_DATA,
        FILE_NOT_FOUND,
        SETTING_UNAVAILABLE,
    }
)

#: The bits of ``indep_throttle_status`` (amdgpu_smu.h of the Linux driver) by ranges, in the words
#: that NVML has for the same causes. Bits of no range are shown as they are.
THROTTLE: tuple[tuple[range, str], ...] = (
    (range(8), "sw_power_cap"),
    (range(16, 24), "current_limit"),
    (range(32, 44), "sw_thermal"),
    (range(44, 48), "hw_thermal"),
)

#: The same where a card tells only its violations (MI300 and later).
VIOLATIONS: dict[str, str] = {
    "active_ppt_pwr": "sw_power_cap",
    "active_socket_thrm": "sw_thermal",
    "active_hbm_thrm": "sw_thermal",
    "active_vr_thrm": "hw_thermal",
    "active_prochot_thrm": "hw_thermal",
}

#: Megatransfers a second and lane of each PCIe generation.
PCIE_SPEED = {2500: 1, 5000: 2, 8000: 3, 16000: 4, 32000: 5, 64000: 6}

#: What amdsmi calls full fan speed.
FULL_FAN = 255

_MIB = 1 << 20
_MICRO = 1_000_000
#: What fields hold where the hardware has no value for them and amdsmi did not notice.
_NO_VALUE = frozenset({0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF})


def throttle_reasons(bits: int) -> frozenset[str]:
    """Name each bit of ``indep_throttle_status``; an unknown one is called ``bit_0x...``."""
    names = set()
    for bit in range(64):
        if bits >> bit & 1:
            known = (name for place, name in THROTTLE if bit in place)
            names.add(next(known, f"bit_{1 << bit:#x}"))
    return frozenset(names)


def number(value: Any) -> float | None:
    """Return a number that amdsmi gave, None for "N/A" and the other words it has for none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if value in _NO_VALUE or not math.isfinite(value) else value


def word(value: Any) -> str | None:
    """Return a text that amdsmi gave, None for an empty one and "N/A"."""
    return value if isinstance(value, str) and value.strip() not in ("", "N/A") else None


class Calls:
    """Calls about one card at one moment. ``wrong`` collects what should have worked."""

    def __init__(self, smi: Any) -> None:
        self._smi = smi
        self.wrong: list[str] = []

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Return the answer of a function, None if it has none."""
        return self.first((name, *arguments))

    def first(self, *calls: tuple[Any, ...]) -> Any:
        """Return the first answer among these ``(function, *arguments)``, None if there is none.

        What failed before an answer came was no loss, and is not noted.
        """
        wrong = []
        for name, *arguments in calls:
            function = getattr(self._smi, name, None)
            if function is None:  # an older amdsmi
                continue
            try:
                return function(*arguments)
            except Exception as error:  # parsing what the driver said raises anything
                if code_of(error) not in ABSENT:
                    wrong.append(f"{name}: {sentence(error)}")
        self.wrong += [each for each in dict.fromkeys(wrong) if each not in self.wrong]
        return None

    def fields(self, name: str, *arguments: Any) -> dict[str, Any]:
        """Return the answer of a function that answers with fields, none if it has no answer."""
        answer = self(name, *arguments)
        return answer if isinstance(answer, dict) else {}

    def choice(self, kind: str, member: str) -> Any:
        """Return a member of an enumeration, None if this amdsmi lacks it."""
        return getattr(getattr(self._smi, kind, None), member, None)


def code_of(error: Exception) -> int | None:
    """Return the status that an error of amdsmi carries."""
    code = getattr(error, "err_code", None)
    return code if isinstance(code, int) else None


def sentence(error: Exception) -> str:
    """Return what an error says in one line; amdsmi's own span two and repeat the number."""
    said = getattr(error, "err_info", None) or f"{type(error).__name__}: {error}"
    return " ".join(str(said).split())


def whole(value: Any) -> int | None:
    """Return a number that amdsmi gave, as an int."""
    known = number(value)
    return None if known is None else int(known)


def rocr_name(rank: dict[str, Any], index: int, *, unique: bool) -> str:
    """Return what ROCR_VISIBLE_DEVICES calls a card: its UUID, which no other card's removal moves.

    Where it has none, or shares it, its number among HIP's devices, else in amdsmi's list.
    """
    uuid = word(rank.get("hip_uuid"))
    digits = set((uuid or "").removeprefix("GPU-").lower())
    if uuid and unique and uuid.startswith("GPU-") and digits not in ({"0"}, {"f"}, {"x"}, set()):
        return uuid
    place = whole(rank.get("hip_id"))
    return str(index if place is None else place)


def memory(calls: Calls, handle: Any, what: str) -> int | None:
    """Return bytes of device memory, ``total`` or in ``usage``; where need be from mebibytes."""
    exact = f"amdsmi_get_gpu_memory_{what}"
    kind = calls.choice("AmdSmiMemoryType", "VRAM")
    known = calls.first((exact, handle, kind), ("amdsmi_get_gpu_vram_usage", handle))
    if isinstance(known, dict):
        rough = whole(known.get("vram_total" if what == "total" else "vram_used"))
        return None if rough is None else rough * _MIB
    return whole(known)


def processes(calls: Calls, handle: Any, own_pids: Collection[int]) -> tuple[Process, ...] | None:
    """List the processes that amdsmi sees: without root's rights only those of our user."""
    listed = calls("amdsmi_get_gpu_process_list", handle)
    if not isinstance(listed, list):
        return None
    used: dict[int, int | None] = {}
    for each in listed:
        if isinstance(each, dict) and isinstance(each.get("pid"), int):
            usage = each.get("memory_usage")
            used[each["pid"]] = whole(usage.get("vram_mem") if isinstance(usage, dict) else None)
    return tuple(Process(pid, used[pid], pid in own_pids) for pid in sorted(used))


def foreign_utilization(
    utilization: float | None,
    processes: tuple[Process, ...] | None,
    own_pids: Collection[int],
) -> float | None:
    """Return what others use: everything, as long as no worker of ours is on the card.

    With one on it nobody can tell: the driver does not divide compute time among processes.
    """
    if processes is None:
        return None if own_pids else utilization
    return None if any(process.own for process in processes) else utilization


def temperature(calls: Calls, handle: Any, *sensors: str) -> float | None:
    """Return degrees Celsius at the first of these sensors that the card has.

    amdsmi's documentation says millidegrees; its library divides by a thousand.
    """
    current = calls.choice("AmdSmiTemperatureMetric", "CURRENT")
    kinds = [calls.choice("AmdSmiTemperatureType", sensor) for sensor in sensors]
    asked = [
        ("amdsmi_get_temp_metric", handle, kind, current) for kind in kinds if kind is not None
    ]
    return number(calls.first(*asked))


def clock(calls: Calls, handle: Any, domain: str) -> dict[str, Any]:
    """Return the fields of a clock, in MHz: ``clk`` now and ``max_clk``."""
    kind = calls.choice("AmdSmiClkType", domain)
    return {} if kind is None else calls.fields("amdsmi_get_clock_info", handle, kind)


def power(calls: Calls, handle: Any) -> float | None:
    """Return watts, under the first of the names that releases and boards fill."""
    told = calls.fields("amdsmi_get_power_info", handle)
    names = ("socket_power", "current_socket_power", "average_socket_power")
    known = (number(told.get(name)) for name in names)
    return next((watts for watts in known if watts is not None), None)


def power_limit(calls: Calls, handle: Any) -> float | None:
    """Return the cap in watts; amdsmi counts microwatts, and says 0 where there is none."""
    cap = number(calls.fields("amdsmi_get_power_cap_info", handle).get("power_cap"))
    return cap / _MICRO if cap else None


def energy(calls: Calls, handle: Any) -> float | None:
    """Return joules: a counter, times what one step of it is worth."""
    counted = calls.fields("amdsmi_get_energy_count", handle)
    steps = number(counted.get("energy_accumulator"))
    microjoules = number(counted.get("counter_resolution"))
    return None if steps is None or microjoules is None else steps * microjoules / _MICRO


def fan(calls: Calls, handle: Any) -> float | None:
    """Return the fan's speed, 0 to 1."""
    speed = number(calls("amdsmi_get_gpu_fan_speed", handle, 0))
    return None if speed is None else speed / FULL_FAN


def pcie_generation(speed: Any) -> int | None:
    """Return the PCIe generation of a speed, which releases tell in GT/s or in MT/s."""
    known = number(speed)
    if known is None:
        return None
    return PCIE_SPEED.get(int(known * 1000 if known < 1000 else known))


def throttle(calls: Calls, handle: Any) -> frozenset[str] | None:
    """Return why the clock is held down.

    Violations are asked for only where the bits are unknown: that call measures for 0.1 s.
    """
    bits = whole(calls.fields("amdsmi_get_gpu_metrics_info", handle).get("indep_throttle_status"))
    if bits is not None:
        return throttle_reasons(bits)
    violations = calls.fields("amdsmi_get_violation_status", handle)
    known = [name for name in VIOLATIONS if isinstance(violations.get(name), bool)]
    return frozenset(VIOLATIONS[name] for name in known if violations[name]) if known else None

"""A stand-in for ROCm's ``amdsmi`` module, in the shapes of its sources (6.4 to 7.2).

Each card is a map from function (without "amdsmi_get_") to what it answers: a value, an exception
to raise, or a callable of the other arguments. What a card does not have is not supported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

NOT_SUPPORTED, IO, NOT_FOUND, DRIVER_NOT_LOADED = 2, 12, 31, 34
GIB = 1 << 30

#: amdsmi's functions that the provider calls, all about one card.
FUNCTIONS = (
    "gpu_device_uuid",
    "gpu_enumeration_info",
    "gpu_asic_info",
    "gpu_board_info",
    "gpu_driver_info",
    "gpu_device_bdf",
    "gpu_memory_total",
    "gpu_memory_usage",
    "gpu_vram_usage",
    "gpu_activity",
    "gpu_process_list",
    "gpu_metrics_info",
    "violation_status",
    "temp_metric",
    "power_info",
    "power_cap_info",
    "energy_count",
    "clock_info",
    "gpu_fan_speed",
    "pcie_info",
    "gpu_total_ecc_count",
)


class AmdSmiException(Exception):
    """The base of amdsmi's errors."""


class AmdSmiLibraryException(AmdSmiException):
    """What a call of the library raises; it prints itself on two lines."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.err_code = code
        self.err_info = f"AMDSMI_STATUS_{code} - Something"

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | {self.err_info}"


class AmdSmiMemoryType:
    VRAM = "vram"


class AmdSmiTemperatureType:
    EDGE, HOTSPOT, JUNCTION, VRAM = "edge", "hotspot", "junction", "memory"


class AmdSmiTemperatureMetric:
    CURRENT = "current"


class AmdSmiClkType:
    GFX, MEM = "gfx", "mem"


def by(**answers: Any) -> Callable[..., Any]:
    """Answer by the first argument after the card; what is absent is not supported."""

    def answer(kind: str, *rest: Any) -> Any:
        if kind not in answers:
            raise AmdSmiLibraryException(NOT_SUPPORTED)
        return answers[kind]

    return answer


def radeon(place: int = 0) -> dict[str, Any]:
    """A gaming card: sensors at the edge, a fan, throttling as bits; no ECC."""
    return {
        "gpu_device_uuid": f"12ff744c-0000-1000-80e5-00000000000{place}",
        "gpu_enumeration_info": {
            "drm_render": 128 + place,
            "drm_card": place,
            "hsa_id": 1 + place,
            "hip_id": place,
            "hip_uuid": f"GPU-e5000000000000{place:02x}",
        },
        "gpu_asic_info": {
            "market_name": "AMD Radeon RX 7900 XTX",
            "vendor_id": "0x1002",
            "num_compute_units": 96,
            "target_graphics_version": "gfx1100",
        },
        "gpu_board_info": {"product_name": "N/A"},
        "gpu_driver_info": {"driver_name": "amdgpu", "driver_version": "6.12.12"},
        "gpu_device_bdf": f"0000:{3 + place:02x}:00.0",
        "gpu_memory_total": by(vram=24 * GIB),
        "gpu_memory_usage": by(vram=3 * GIB),
        "gpu_vram_usage": {"vram_total": 24 * 1024, "vram_used": 3 * 1024},
        "gpu_activity": {"gfx_activity": 37, "umc_activity": 5, "mm_activity": "N/A"},
        "gpu_process_list": [],
        "gpu_metrics_info": {"throttle_status": 0, "indep_throttle_status": 0},
        "temp_metric": by(edge=52, hotspot=67, memory=70),
        "power_info": {
            "socket_power": 41,
            "current_socket_power": "N/A",
            "average_socket_power": 40,
            "power_limit": 339000000,
        },
        "power_cap_info": {"power_cap": 339000000, "max_power_cap": 408000000, "dpm_cap": 1},
        "clock_info": by(
            gfx={"clk": 2304, "min_clk": 500, "max_clk": 2526, "clk_deep_sleep": "N/A"},
            mem={"clk": 1249, "min_clk": 96, "max_clk": 1249, "clk_deep_sleep": "N/A"},
        ),
        "gpu_fan_speed": lambda sensor: 51,
        "pcie_info": {
            "pcie_static": {
                "max_pcie_width": 16,
                "max_pcie_speed": 16000,
                "pcie_interface_version": 4,
                "slot_type": "PCIE",
            },
            "pcie_metric": {"pcie_width": 1, "pcie_speed": 2500, "pcie_bandwidth": "N/A"},
        },
    }


def instinct(place: int = 0) -> dict[str, Any]:
    """A data-centre card: no sensor at the edge, ECC, violations instead of throttle bits."""
    return {
        **radeon(place),
        "gpu_asic_info": {"market_name": "N/A", "target_graphics_version": "gfx942"},
        "gpu_board_info": {"product_name": "AMD Instinct MI300X OAM"},
        "gpu_memory_total": by(vram=192 * GIB),
        "gpu_memory_usage": by(vram=1 * GIB),
        "gpu_metrics_info": {"throttle_status": "N/A", "indep_throttle_status": "N/A"},
        "violation_status": {
            "acc_counter": 5,
            "per_ppt_pwr": 20,
            "active_ppt_pwr": True,
            "active_socket_thrm": True,
            "active_vr_thrm": "N/A",
            "active_hbm_thrm": False,
            "active_prochot_thrm": False,
        },
        "temp_metric": by(hotspot=67, memory=49),
        "power_info": {"current_socket_power": 287, "average_socket_power": "N/A"},
        "gpu_fan_speed": AmdSmiLibraryException(NOT_SUPPORTED),
        "energy_count": {
            "energy_accumulator": 41_797_534_008,
            "counter_resolution": 15.3,
            "timestamp": 1,
        },
        "pcie_info": {
            "pcie_static": {"max_pcie_width": 16, "pcie_interface_version": 5},
            "pcie_metric": {"pcie_width": 16, "pcie_speed": 32},
        },
        "gpu_total_ecc_count": {
            "correctable_count": 7,
            "uncorrectable_count": 2,
            "deferred_count": 0,
        },
    }


def lose(card: dict[str, Any], code: int = IO) -> None:
    """Let a card fall off its bus: whatever asks the hardware fails, lists of processes do not."""
    for function in FUNCTIONS:
        if function in card and function != "gpu_process_list":
            card[function] = AmdSmiLibraryException(code)


class FakeAmdSmi(ModuleType):
    """The module. ``cards`` may change while it is in use."""

    def __init__(self, cards: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__("amdsmi")
        self.cards = list(cards)
        self.running = 0
        self.init_error: Exception | None = None
        self.AmdSmiException = AmdSmiException
        self.AmdSmiLibraryException = AmdSmiLibraryException
        self.AmdSmiMemoryType = AmdSmiMemoryType
        self.AmdSmiTemperatureType = AmdSmiTemperatureType
        self.AmdSmiTemperatureMetric = AmdSmiTemperatureMetric
        self.AmdSmiClkType = AmdSmiClkType
        for name in FUNCTIONS:
            setattr(self, f"amdsmi_get_{name}", self._function(name))

    def _function(self, name: str) -> Callable[..., Any]:
        def call(handle: int, *arguments: Any) -> Any:
            assert self.running, "a call before amdsmi_init or after amdsmi_shut_down"
            answer = self.cards[handle].get(name, AmdSmiLibraryException(NOT_SUPPORTED))
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return call

    def amdsmi_init(self) -> None:
        """Start the library."""
        if self.init_error is not None:
            raise self.init_error
        self.running += 1

    def amdsmi_shut_down(self) -> None:
        """Stop it."""
        if not self.running:
            raise AmdSmiLibraryException(32)
        self.running -= 1

    def amdsmi_get_processor_handles(self) -> list[int]:
        """List the cards."""
        return list(range(len(self.cards)))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Be what ``import amdsmi`` finds."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "amdsmi", self)
            yield

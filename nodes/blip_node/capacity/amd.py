"""AMD GPUs, through ROCm's ``amdsmi``.

Written after amdsmi's sources and documentation (6.4 to 7.2) and tested against a stand-in that
answers in their shapes; it has not run on a real card yet.

amdsmi is imported by :meth:`AmdProvider.probe` only. Where ROCm is missing its import raises
KeyError or OSError rather than ImportError, and its functions raise more than their own errors, so
each call is guarded by itself: what is unsupported is None, what fails is named in ``error``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from blip_node.capacity import amd_metrics as ask
from blip_node.capacity.amd_metrics import DRIVER_NOT_LOADED, NO_PERM, Calls
from blip_node.capacity.device import (
    DeviceEvent,
    DeviceInfo,
    DeviceSample,
    foreign_memory,
    own_memory,
)

#: Why amdsmi does not start, in words that say what to do.
UNAVAILABLE: dict[int, str] = {
    DRIVER_NOT_LOADED: "The amdgpu driver is not loaded; see `amd-smi list` and dmesg.",
    NO_PERM: "No permission to use AMD's driver; join the groups render and video.",
}


@dataclass(frozen=True, slots=True)
class _Card:
    info: DeviceInfo
    handle: Any


class AmdProvider:
    """The GPUs that amdsmi lists on this machine."""

    name = "amd"
    fallback = False

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.reason: str | None = None
        self._clock = clock
        self._smi: Any = None
        self._cards: list[_Card] = []

    # ---- finding devices ----

    def probe(self) -> list[DeviceInfo]:
        """Import and start amdsmi and list the cards; without them, say why there are none."""
        try:
            import amdsmi
        except ModuleNotFoundError as error:
            if error.name == "amdsmi":
                self.reason = "amdsmi is not installed; AMD GPUs need ROCm and blip-mesh[amd]."
            else:
                self.reason = f"amdsmi cannot be imported: {error}."
            return []
        except Exception as error:
            self.reason = (
                "amdsmi is installed but cannot load ROCm's libamd_smi.so "
                f"({type(error).__name__}: {error})."
            )
            return []
        try:
            amdsmi.amdsmi_init()
            self._smi = amdsmi
            handles = list(amdsmi.amdsmi_get_processor_handles())
        except Exception as error:
            said = UNAVAILABLE.get(ask.code_of(error) or 0)
            self.reason = said or f"amdsmi did not start: {ask.sentence(error)}."
            self.close()
            return []
        if not handles:
            self.reason = "AMD's driver is running but lists no GPU."
            self.close()
            return []
        calls = Calls(amdsmi)
        ids = [ask.word(calls("amdsmi_get_gpu_device_uuid", handle)) for handle in handles]
        ranks = [calls.fields("amdsmi_get_gpu_enumeration_info", handle) for handle in handles]
        # Cards without a serial number, and parts of one card, can share a UUID: it is no name.
        often = Counter(ids) + Counter(ask.word(rank.get("hip_uuid")) for rank in ranks)
        for index, (handle, uuid, rank) in enumerate(zip(handles, ids, ranks, strict=True)):
            info = self._describe(
                handle,
                index,
                uuid if often[uuid] == 1 else None,
                ask.rocr_name(rank, index, unique=often[ask.word(rank.get("hip_uuid"))] == 1),
            )
            self._cards.append(_Card(info, handle))
        return [card.info for card in self._cards]

    def _describe(self, handle: Any, index: int, uuid: str | None, rocr: str) -> DeviceInfo:
        calls = Calls(self._smi)
        asic = calls.fields("amdsmi_get_gpu_asic_info", handle)
        board = calls.fields("amdsmi_get_gpu_board_info", handle)
        driver = calls.fields("amdsmi_get_gpu_driver_info", handle)
        bus = ask.word(calls("amdsmi_get_gpu_device_bdf", handle))
        link = calls.fields("amdsmi_get_pcie_info", handle).get("pcie_static") or {}
        name = ask.word(asic.get("market_name")) or ask.word(board.get("product_name"))
        return DeviceInfo(
            id=uuid or bus or f"amd-{index}",
            index=index,
            vendor="amd",
            name=name or "AMD GPU",
            memory_total=ask.memory(calls, handle, "total"),
            arch=ask.word(asic.get("target_graphics_version")),
            driver=ask.word(driver.get("driver_version")),
            pci_bus_id=bus,
            pcie_gen=ask.whole(link.get("pcie_interface_version")) or None,
            pcie_width=ask.whole(link.get("max_pcie_width")),
            clock_max=ask.whole(ask.clock(calls, handle, "GFX").get("max_clk")),
            memory_clock_max=ask.whole(ask.clock(calls, handle, "MEM").get("max_clk")),
            rocr=rocr,
        )

    # ---- measuring them ----

    def sample(self, own_pids: Collection[int]) -> list[DeviceSample]:
        """Measure each card, one after the other."""
        return [self._measure(card, own_pids) for card in self._cards]

    def _measure(self, card: _Card, own_pids: Collection[int]) -> DeviceSample:
        at, handle, calls = self._clock(), card.handle, Calls(self._smi)
        total, used = card.info.memory_total, ask.memory(calls, handle, "usage")
        broken = bool(calls.wrong)  # every card has memory, so this should have worked
        processes = ask.processes(calls, handle, own_pids)
        busy = ask.number(calls.fields("amdsmi_get_gpu_activity", handle).get("gfx_activity"))
        utilization = None if busy is None else min(busy, 100) / 100
        link = calls.fields("amdsmi_get_pcie_info", handle).get("pcie_metric") or {}
        ecc = calls.fields("amdsmi_get_gpu_total_ecc_count", handle)
        utilization = None if busy is None else min(busy, 100) / 100
        sample = DeviceSample(
            id=card.info.id,
            at=at,
            memory_free=None if used is None or total is None else max(0, total - used),
            memory_used=used,
            own_memory=own_memory(processes, own_pids),
            foreign_memory=foreign_memory(used, processes, own_pids),
            utilization=utilization,
            foreign_utilization=ask.foreign_utilization(utilization, processes, own_pids),
            # Instinct cards have no sensor at the edge of the chip.
            temperature=ask.temperature(calls, handle, "EDGE", "HOTSPOT", "JUNCTION"),
            memory_temperature=ask.temperature(calls, handle, "VRAM"),
            power=ask.power(calls, handle),
            power_limit=ask.power_limit(calls, handle),
            energy=ask.energy(calls, handle),
            fan=ask.fan(calls, handle),
            clock=ask.whole(ask.clock(calls, handle, "GFX").get("clk")),
            memory_clock=ask.whole(ask.clock(calls, handle, "MEM").get("clk")),
            throttle=ask.throttle(calls, handle),
            pcie_gen_now=ask.pcie_generation(link.get("pcie_speed")),
            pcie_width_now=ask.whole(link.get("pcie_width")),
            ecc_corrected=ask.whole(ecc.get("correctable_count")),
            ecc_uncorrected=ask.whole(ecc.get("uncorrectable_count")),
            processes=processes,
        )
        error = f"{'; '.join(calls.wrong)}." if calls.wrong else None
        # amdsmi has no word for a lost card. One whose memory cannot be asked for, and of which
        # nothing else that only the hardware knows can be read either, is one.
        alive = (sample.utilization, sample.temperature, sample.power, sample.clock)
        if broken and all(each is None for each in alive):
            return DeviceSample(card.info.id, at, lost=True, error=error)
        return replace(sample, error=error)

    # ---- events, end ----

    def watch(self, report: Callable[[DeviceEvent], None]) -> None:
        """Do nothing: AMD's counterpart of Xids is in the kernel's log only."""

    def close(self) -> None:
        """Shut amdsmi down; again is harmless."""
        if self._smi is not None:
            try:
                self._smi.amdsmi_shut_down()
            except Exception:
                pass  # it is of no use to us any more, whatever it says
            self._smi = None

"""NVIDIA's Xid errors: which of them end a GPU's service, and a thread that listens for them.

The numbers are from NVIDIA's Xid catalog (docs.nvidia.com/deploy/xid-errors, "Analyzing Xid Errors
with the Xid Catalog").
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from blip_node.capacity.device import DeviceEvent

log = logging.getLogger(__name__)

#: Xids after which the catalog wants the GPU reset or the machine rebooted. Left out although it
#: says so too: 109 (context switch timeout), which a long kernel of an application can cause and
#: which NVIDIA's own Kubernetes device plugin ignores, and 155 (link taken down on purpose).
FATAL: dict[int, str] = {
    46: "GPU stopped processing",
    48: "double bit ECC error",
    62: "internal micro-controller halt",
    64: "GPU memory remapping failure",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    95: "uncontained memory error",
    110: "security fault",
    119: "GSP RPC timeout",
    120: "GSP error",
    136: "link training failed",
    140: "unrecovered ECC error",
    143: "GPU initialization error",
    156: "resource retirement event",
    158: "GPU fatal timeout",
}

#: Common ones that end a program and leave the GPU healthy; 63 and 92 are only news.
HARMLESS: dict[int, str] = {
    13: "graphics engine exception, usually a fault of the program",
    31: "GPU memory page fault, usually a fault of the program",
    32: "invalid or corrupted push buffer stream",
    43: "GPU stopped processing for one program",
    45: "cleanup after a program was ended",
    63: "GPU memory remapped",
    92: "high single-bit ECC error rate",
    94: "contained memory error",
    109: "context switch timeout",
}

#: How long one blocking wait in the driver lasts. It bounds the time ``close`` takes; four wakes
#: a second are not measurable.
SLICE_MS = 250

#: Pause after a wait that failed instead of timing out, in seconds: with a lost GPU it fails at
#: once, each time.
RETRY_S = 5.0


def describe(code: int) -> str:
    """Return the sentence to show for an Xid."""
    text = FATAL.get(code) or HARMLESS.get(code)
    return f"Xid {code}: {text}." if text else f"Xid {code}."


@dataclass(frozen=True, slots=True)
class Target:
    """A device whose Xids are wanted: its card's handle, and for MIG its (GPU, compute) ids."""

    device: str
    card: Any
    instance: tuple[int, int] | None = None


def _address(handle: Any) -> int | None:
    """Return what identifies an NVML handle: two Python objects may hold the same pointer."""
    return ctypes.cast(handle, ctypes.c_void_p).value


class XidWatcher:
    """A thread that waits for Xids of ``targets`` and hands each to ``report``.

    The thread is no daemon: :meth:`close` ends it, within one slice. Where no card can report
    Xids (virtual GPUs, missing rights) there is no thread.
    """

    def __init__(
        self,
        nvml: Any,
        targets: Iterable[Target],
        report: Callable[[DeviceEvent], None],
        clock: Callable[[], float],
    ) -> None:
        self._nvml = nvml
        self._report = report
        self._clock = clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._events: Any = None
        self._targets: dict[int | None, list[Target]] = {}
        for target in targets:
            self._targets.setdefault(_address(target.card), []).append(target)
        if self._register():
            self._thread = threading.Thread(target=self._run, name="blip-xid")
            self._thread.start()

    def _register(self) -> bool:
        nvml = self._nvml
        try:
            self._events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError as error:
            log.info("no Xid events: %s", error)
            return False
        watched = 0
        for group in self._targets.values():
            card = group[0].card
            try:
                if nvml.nvmlDeviceGetSupportedEventTypes(card) & nvml.nvmlEventTypeXidCriticalError:
                    nvml.nvmlDeviceRegisterEvents(
                        card, nvml.nvmlEventTypeXidCriticalError, self._events
                    )
                    watched += 1
            except nvml.NVMLError as error:
                log.info("no Xid events for %s: %s", group[0].device, error)
        if watched == 0:
            self._free()
        return watched > 0

    def _free(self) -> None:
        try:
            self._nvml.nvmlEventSetFree(self._events)
        except self._nvml.NVMLError as error:
            log.info("freeing the Xid event set failed: %s", error)

    def _run(self) -> None:
        nvml = self._nvml
        failing = False
        while not self._stopping.is_set():
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, SLICE_MS)
            except nvml.NVMLError as error:
                if error.value == nvml.NVML_ERROR_TIMEOUT:
                    failing = False
                    continue
                if not failing:
                    log.warning("waiting for Xid events failed: %s", error)
                failing = True
                self._stopping.wait(RETRY_S)
                continue
            if event.eventType == nvml.nvmlEventTypeXidCriticalError:
                self._deliver(event)

    def _deliver(self, event: Any) -> None:
        code = int(event.eventData)
        group = self._targets.get(_address(event.device), [])
        # The driver names the MIG instance where it knows it; otherwise the whole card is meant.
        where = (event.gpuInstanceId, event.computeInstanceId)
        hit = [target for target in group if target.instance == where] or group
        for target in hit:
            self._report(
                DeviceEvent(target.device, self._clock(), code, describe(code), code in FATAL)
            )

    def close(self) -> None:
        """End the thread and free what the driver holds for it."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._free()

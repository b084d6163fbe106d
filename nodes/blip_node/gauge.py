"""How much device memory the model of this process takes. Used by workers."""

from __future__ import annotations

import os

import psutil

#: Bytes that a CUDA context with its libraries takes, where it cannot be measured. Contexts were
#: reported from 0.3 to 1 GB, by card and driver.
CONTEXT_BYTES = 512 * 1024 * 1024

#: The most that is believed to be a context: the device-level reading counts what other processes
#: allocated meanwhile, too.
CONTEXT_MOST = 1536 * 1024 * 1024


class Gauge:
    """Measures from the moment it is made, which is before the model is loaded.

    On a GPU: the most that torch's allocator reserved, and the context, which is what the device
    has less of beyond that. On a CPU: the growth of the resident memory, for the pages that the
    process was forked with belong to all workers. It is sampled and not taken from the kernel's
    high-water mark: while a file is read, that counts its pages beside the weights made of them.
    Without an ``allocator`` of torch's, a GPU's reading is what the device has less of.
    """

    def __init__(self, device: str, *, allocator: bool = True) -> None:
        self._allocator = allocator
        self._cpu = device.startswith("cpu")
        self._device = device
        self._process = psutil.Process()
        self._before = self._resident() if self._cpu else _device_used()
        self._context: int | None = None
        self._peak = 0

    def read(self) -> int:
        """Return the peak so far, in bytes; the first call comes when the model is loaded."""
        self._peak = max(self._peak, self._grown() if self._cpu else self._reserved())
        return self._peak

    def _grown(self) -> int:
        assert self._before is not None
        return self._resident() - self._before

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)

    def _reserved(self) -> int:
        if not self._allocator:
            now = _device_used()
            return 0 if now is None or self._before is None else max(0, now - self._before)
        import torch

        if self._context is None:
            now = _device_used()
            self._context = context(self._before, now, torch.cuda.memory_reserved(self._device))
        return int(torch.cuda.max_memory_reserved(self._device)) + self._context


def context(before: int | None, now: int | None, reserved: int) -> int:
    """Return the bytes that a process took on a device beside what its allocator ``reserved``.

    ``before`` and ``now`` are what all processes used there; None where the driver does not tell.
    """
    if before is None or now is None:
        return CONTEXT_BYTES
    return min(max(0, now - before - reserved), CONTEXT_MOST)


def _device_used() -> int | None:
    """Bytes in use on the only GPU that this worker sees, or None. Makes no CUDA context."""
    # what the bindings raise without a driver is as varied as in the NVML provider, and the
    # answer to all of it is the same: not known
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
            return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        finally:
            pynvml.nvmlShutdown()
    except Exception:
        return None

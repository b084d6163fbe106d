"""Measures one device, in a process of its own: ``python -m blip_node.benchmark --device cuda:0``.

Prints one line of JSON: ``{"figures": {...}, "left_out": {...}}`` or ``{"error": "..."}``. The
figures are those of :data:`blip.protocol.ranking.KEYS`. One that the device has not, or that would
take longer than its share of the time, is left out with a reason.

Every figure is the best of several runs, and of several sizes: other programs and a clock that has
yet to rise only ever make a device look slower than it is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blip import lifecycle
from blip.protocol import ranking
from blip_node.runtimes.environment import WORKER_ENV

if TYPE_CHECKING:
    import torch

#: Seconds of measuring, after imports. Half a second for each rate lets a GPU's clock rise, which
#: takes some tens of milliseconds, and leaves the best of many runs.
BUDGET = 2.0

#: How the budget is divided.
SHARES = {
    ranking.H2D: 0.15,
    ranking.D2H: 0.1,
    ranking.FP16: 0.2,
    ranking.BF16: 0.15,
    ranking.FP32: 0.15,
    ranking.DECODE: 0.25,
}

#: Runs that make a best of: with fewer, the first one's warm-up or one interruption decides.
RUNS = 3

#: Seconds that one run should last, so that the clock's resolution, a launch (10 µs) and waiting
#: for a GPU (30 µs) do not matter.
RUN = 2e-3

#: Edges of the matrices. Small ones leave a large GPU idle, large ones take a small CPU seconds.
EDGES = (256, 512, 1024, 2048, 4096, 8192)

#: Bytes of the buffers that are copied: a driver splits copies, and its first page costs most.
COPIES = (4 << 20, 32 << 20, 128 << 20)

#: Bytes of weights that one pass reads: several times the largest caches (96 MiB on gaming cards,
#: 50 MiB on data-centre ones; processors with more are read at their caches' speed in part). The
#: smaller ones are for devices that cannot spare as much, and for slow ones.
WEIGHTS = (512 << 20, 256 << 20, 64 << 20)
#: Of the device's free memory, the part that may be used: others may want some meanwhile.
PART = 0.25
#: Edge of the square matrices of a pass: the projections of a model of seven billion weights.
EDGE = 4096

#: A half-precision type that is slower than single precision by this factor is emulated, number by
#: number, and no runtime would use it.
EMULATED = 4.0

#: Below CPU-bound work of others: measuring must not get into anybody's way.
NICE = 10


class _TooSlow(Exception):
    """Not even the smallest run fits into its share of the time."""


def measure(device: str, budget: float = BUDGET) -> dict[str, Any]:
    """Measure a device, ``cpu`` or torch's name of a GPU, for about ``budget`` seconds.

    Returns what :func:`main` prints. Raises whatever torch does if the device cannot be used.
    """
    import torch

    began = time.perf_counter()
    figures: dict[str, float] = {}
    left_out: dict[str, str] = {}
    meter = _Meter(torch.device(device))
    measures: dict[str, Callable[[float], float]] = {
        ranking.FP16: lambda share: meter.rate(torch.float16, share),
        ranking.BF16: lambda share: meter.rate(torch.bfloat16, share),
        ranking.FP32: lambda share: meter.rate(torch.float32, share),
        ranking.DECODE: meter.decode,
    }
    if meter.gpu:  # a processor's memory is where the weights are
        measures |= {ranking.H2D: meter.to_device, ranking.D2H: meter.from_device}
    with torch.inference_mode():
        meter.warm_up()
        for key, run in measures.items():
            try:
                figures[key] = run(budget * SHARES[key])
            except (_TooSlow, RuntimeError, NotImplementedError) as error:
                # out of memory, a type that this device has not: all of torch's are RuntimeErrors
                left_out[key] = str(error).partition("\n")[0]
            meter.forget()
    single = figures.get(ranking.FP32, 0.0)
    for key in (ranking.FP16, ranking.BF16):
        if key in figures and figures[key] * EMULATED < single:
            slower = single / figures.pop(key)
            left_out[key] = f"emulated: {slower:.0f} times slower than single precision"
    if not figures:
        return {"error": "; ".join(f"{key}: {reason}" for key, reason in left_out.items())}
    figures[ranking.SECONDS] = time.perf_counter() - began
    return {"figures": figures, "left_out": left_out}


class _Meter:
    """Times runs on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.gpu = device.type != "cpu"

    def warm_up(self) -> None:
        """Make the context, load the libraries and start the threads."""
        import torch

        some = torch.ones(64, 64, device=self._device)
        for _ in range(RUNS):
            some = some @ some / 64
        self._wait()

    def forget(self) -> None:
        """Give memory back between measures."""
        import torch

        if self.gpu:
            torch.cuda.empty_cache()

    def rate(self, dtype: torch.dtype, share: float) -> float:
        """Return operations a second in products of two square matrices."""
        import torch

        best = 0.0
        end = time.perf_counter() + share
        seconds_an_operation = 0.0
        for edge in EDGES:
            operations = 2.0 * edge**3
            left = end - time.perf_counter()
            # Four: one to warm up, then the runs. Beyond that an edge is for faster devices.
            if best and (1 + RUNS) * operations * seconds_an_operation > left:
                break
            # Two factors and a product, and what the random numbers were made in.
            if (3 * dtype.itemsize + 4) * edge**2 > self._room():
                break
            a = torch.randn(edge, edge, device=self._device).to(dtype)
            b = torch.randn(edge, edge, device=self._device).to(dtype)
            out = torch.empty_like(a)

            def run(a: Any = a, b: Any = b, out: Any = out) -> None:
                torch.mm(a, b, out=out)

            seconds_an_operation = self._best(run, left / 4, left) / operations
            best = max(best, 1 / seconds_an_operation)
        return best

    def decode(self, share: float) -> float:
        """Return bytes of half-precision weights read a second, a vector at a time.

        In the type in which that is quickest: where half precision is emulated, a runtime widens
        the weights once. Counted are two bytes a weight all the same, for what matters is how many
        weights go into a token.
        """
        import torch

        dtypes = (torch.float16, torch.bfloat16) if self.gpu else (torch.bfloat16, torch.float32)
        best = 0.0
        reason: Exception | None = None
        for dtype in dtypes:
            try:
                best = max(best, 2 * self._weights(dtype, share / len(dtypes)))
            except (_TooSlow, RuntimeError) as error:
                reason = error
        if not best and reason is not None:
            raise reason
        return best

    def _weights(self, dtype: torch.dtype, share: float) -> float:
        """Return weights read a second."""
        import torch

        end = time.perf_counter() + share
        one = torch.randn(EDGE, EDGE, device=self._device).to(dtype)
        vector = torch.randn(EDGE, 1, device=self._device).to(dtype)
        each = self._best(lambda: torch.mm(one, vector), 0.0, share)
        room = self._room()
        size = next((size for size in WEIGHTS if size <= room), WEIGHTS[-1])
        count = max(1, size // (EDGE * EDGE * dtype.itemsize))
        if (1 + RUNS) * count * each > end - time.perf_counter():
            # Slow even out of its caches: fewer matrices show the same.
            count = max(1, int((end - time.perf_counter()) / (1 + RUNS) / each))
        matrices = [one, *(one.clone() for _ in range(count - 1))]

        def run() -> None:
            for matrix in matrices:
                torch.mm(matrix, vector)

        left = end - time.perf_counter()
        seconds = self._best(run, left, max(left, share))
        return len(matrices) * EDGE * EDGE / seconds

    def to_device(self, share: float) -> float:
        """Return bytes a second from pinned memory of the machine to the device."""
        return self._copy(share, inwards=True)

    def from_device(self, share: float) -> float:
        """Return bytes a second the other way."""
        return self._copy(share, inwards=False)

    def _copy(self, share: float, *, inwards: bool) -> float:
        import torch

        best = 0.0
        end = time.perf_counter() + share
        for size in COPIES:
            left = end - time.perf_counter()
            if best and (1 + RUNS) * size / best > left:
                break  # a riser: the small copy has told
            if size > self._room():
                break
            here = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            there = torch.empty(size, dtype=torch.uint8, device=self._device)
            source, target = (here, there) if inwards else (there, here)

            def run(source: Any = source, target: Any = target) -> None:
                target.copy_(source, non_blocking=True)

            best = max(best, size / self._best(run, left / 2, max(left, share)))
        return best

    def _best(self, run: Callable[[], None], share: float, limit: float) -> float:
        """Return the least seconds that ``run`` took, in ``share`` seconds or ``RUNS`` runs.

        Raises ``_TooSlow`` if a single one takes longer than ``limit``.
        """
        end = time.perf_counter() + share
        took = self._time(run, 1)  # caches, kernels that are chosen at first use
        if took > limit:
            raise _TooSlow(f"a single run took {took:.3g} s, more than its share of the time")
        times = max(1, round(RUN / max(took, 1e-9))) if took < RUN else 1
        times = min(times, 1000)
        best = took
        done = 0
        while done < RUNS or time.perf_counter() < end:
            best = min(best, self._time(run, times) / times)
            done += 1
        return best

    def _time(self, run: Callable[[], None], times: int) -> float:
        self._wait()
        began = time.perf_counter()
        for _ in range(times):
            run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        import torch

        if self.gpu:
            torch.cuda.synchronize(self._device)

    def _room(self) -> float:
        """Bytes that may be used on the device."""
        import psutil
        import torch

        if self.gpu:
            free: float = torch.cuda.mem_get_info(self._device)[0]
        else:
            free = psutil.virtual_memory().available
        return PART * free


def main(argv: list[str]) -> int:
    """Measure what the command line names; return 1 if nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m blip_node.benchmark", description=__doc__)
    parser.add_argument("--device", required=True, help="cpu or cuda:0")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: as torch decides")
    parser.add_argument("--parent", type=int, default=0, help="end when that process does")
    asked = parser.parse_args(argv)
    if asked.parent:
        lifecycle.die_with_parent(asked.parent, signal.SIGKILL)
    for name, text in WORKER_ENV.items():
        os.environ.setdefault(name, text)
    if asked.device == "cpu":
        os.nice(NICE)
    try:
        import torch

        if asked.threads > 0:
            torch.set_num_threads(asked.threads)
        found = measure(asked.device, asked.budget)
    except Exception as error:  # whatever it is, it is the reason
        found = {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    print(json.dumps(found), flush=True)
    return 1 if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

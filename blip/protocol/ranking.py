"""What a device's benchmark says about its speed. Nodes advertise by it, brokers plan by it.

Names say little: the same chip comes with a locked tensor core, half its memory bus or a quarter
of its power. Two measurements decide how fast models run: how fast weights can be read, and how
fast half-precision numbers can be multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

#: What :attr:`blip.protocol.messages.Device.benchmark` may hold. Bytes a second: from the machine's
#: memory to the device and back, and of half-precision weights read in a product of a matrix with
#: one vector, which is what making one token is. Operations a second: of a product of two
#: matrices. And the seconds that measuring took. What is absent was not measured.
H2D, D2H, DECODE = "h2d", "d2h", "decode"
FP16, BF16, FP32 = "fp16", "bf16", "fp32"
SECONDS = "seconds"
KEYS = (H2D, D2H, FP16, BF16, FP32, DECODE, SECONDS)

#: A device of speed 1: about what an NVIDIA RTX 3060 with 12 GB should reach, nine tenths of the
#: 360 GB/s and nearly all of the 25.5 TFLOP/s that its data sheet says (tensor cores that sum up in
#: single precision). That is the mid-range card of some years ago that the broker's first guesses
#: for kinds mean. It only sets the unit: a mesh compares its devices with each other.
REFERENCE_BANDWIDTH = 3.2e11
REFERENCE_RATE = 2.5e13

#: Speeds that are believed: nothing real is a thousand times slower or faster than that card.
SLOWEST, FASTEST = 1e-3, 1e3


def speed(benchmark: Mapping[str, float], bandwidth: float = 0.5) -> float | None:
    """Return how many times faster than the reference a device is; None if nothing is known.

    It is the geometric mean of two ratios, ``bandwidth`` (0 to 1) being the weight of reading
    weights and the rest that of multiplying. So it is the same whichever card is the reference,
    and a card that is twice as good at one and half as good at the other is as fast. Where only
    one was measured, that one counts.
    """
    read = _ratio(benchmark, (DECODE,), REFERENCE_BANDWIDTH)
    # A runtime takes the fastest of these that its model allows; single precision stands in where
    # half precision is emulated or missing.
    multiplied = _ratio(benchmark, (FP16, BF16, FP32), REFERENCE_RATE)
    if read is None or multiplied is None:
        found = multiplied if read is None else read
    else:
        found = read**bandwidth * multiplied ** (1 - bandwidth)
    return None if found is None else min(FASTEST, max(SLOWEST, found))


def describe(benchmark: Mapping[str, float]) -> str:
    """Write a benchmark for people: ``speed 1.3, weights 330 GB/s, fp16 25.1 TFLOP/s, ...``."""
    parts = []
    found = speed(benchmark)
    if found is not None:
        parts.append(f"speed {found:.3g}")
    for key, word in (
        (DECODE, "weights"),
        (H2D, "to the device"),
        (D2H, "from it"),
    ):
        if key in benchmark:
            parts.append(f"{word} {benchmark[key] / 1e9:.3g} GB/s")
    for key in (FP16, BF16, FP32):
        if key in benchmark:
            parts.append(f"{key} {benchmark[key] / 1e12:.3g} TFLOP/s")
    return ", ".join(parts)


def _ratio(benchmark: Mapping[str, float], keys: tuple[str, ...], reference: float) -> float | None:
    values = [value for key in keys if 0 < (value := benchmark.get(key, 0.0)) < math.inf]
    return max(values) / reference if values else None

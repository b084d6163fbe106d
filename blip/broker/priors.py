"""What a device's benchmark tells before it has run anything of a kind.

A first guess, like the defaults of :mod:`blip.broker.rates`: it decides where the first task of a
model goes, and how what one device took is carried over to others. What runs take replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from blip.protocol import ranking
from blip.protocol.messages import Device

#: The weight of reading weights against multiplying, 0 to 1, for each kind; see
#: :func:`blip.protocol.ranking.speed`.
#:
#: Making a token reads every weight for two operations each, while a card can do a hundred in the
#: time that it takes to read one: bound by memory, but for the prompt, and as batches grow.
_TOKENS = 0.8
#: One pass over a few hundred tokens, texts or patches at once uses each weight as often: bound by
#: multiplying. A fifth remains for what reads and writes more than it computes, such as norms.
_PASS = 0.2
#: An encoder or vocoder that multiplies and a decoder that reads, about as long each; also what is
#: assumed of kinds that only a plugin knows.
_BOTH = 0.5

BANDWIDTH: dict[str, float] = {
    "chat": _TOKENS,
    "completion": _TOKENS,
    "caption": _TOKENS,
    "embedding": _PASS,
    "rerank": _PASS,
    "text-classification": _PASS,
    "zero-shot-classification": _PASS,
    "token-classification": _PASS,
    "fill-mask": _PASS,
    "feature-extraction": _PASS,
    "question-answering": _PASS,
    "text2text-generation": _TOKENS,
    "classification": _PASS,
    "moderation": _PASS,
    "image": _PASS,
    "detection": _PASS,
    "image-classification": _PASS,
    "depth": _PASS,
    "segmentation": _PASS,
    "image-feature-extraction": _PASS,
    "audio-classification": _PASS,
    "zero-shot-audio-classification": _PASS,
    "video": _PASS,
    "upscale": _PASS,
    "speech": _BOTH,
    "transcription": _BOTH,
    "translation": _BOTH,
}

#: Kinds that take as long as they are asked to, whatever the device.
PACED = frozenset({"echo"})


def kind_speed(benchmark: Mapping[str, float], kind: str) -> float | None:
    """Return how many times faster than the reference a device runs a kind, as far as measured.

    None where nothing was: then what the device advertises as its speed has to do.
    """
    if kind in PACED:
        return 1.0
    return ranking.speed(benchmark, BANDWIDTH.get(kind, _BOTH))


def speed_of(device: Device, kind: str) -> float:
    """Return the speed to assume of a device for a kind before it has run any.

    What its owner says goes before what was measured: an advertised speed that is not what the
    benchmark amounts to is the owner's.
    """
    measured = ranking.speed(device.benchmark)
    if measured is None or not math.isclose(measured, device.speed, rel_tol=1e-6):
        return device.speed
    return kind_speed(device.benchmark, kind) or device.speed


def load_bandwidth(benchmark: Mapping[str, float]) -> float | None:
    """Return the most bytes a second that a load can bring to a device; None if not measured.

    Not what it will: files come from a disk that may be slower. A riser with one lane of PCIe 1
    carries 0.25 GB/s, half of what is assumed of a disk, and then this is what a load takes.
    """
    value = benchmark.get(ranking.H2D, 0.0)
    return value if 0 < value < math.inf else None

"""The means by which a model is made to fit a device, and the choice among them. Pure.

What is ``auto`` is settled for each node: the first of :data:`LADDER` that fits its largest
device, by what the model was measured to take, or by an estimate before it was. Means that cost
nothing come first, those that change answers only where the configuration allows them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

#: What each setting may be; the order is that of the documentation.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "quantization": ("none", "auto", "int8", "int4"),
    "offload": ("auto", "none", "model", "group"),
    "vae_tiling": ("auto", "on", "off"),
    "attention_slicing": ("auto", "on", "off"),
}

#: What ``auto`` is until something does not fit.
PLAIN: Mapping[str, str] = {
    "quantization": "none",
    "offload": "none",
    "vae_tiling": "off",
    "attention_slicing": "off",
}

#: Settings that only pipelines of diffusers know.
OF_PIPELINES = ("offload", "vae_tiling", "attention_slicing")

#: Libraries that can quantise, by format, best first. torchao's four bits want kernels that few
#: cards have; bitsandbytes' NF4 runs on all of NVIDIA's since 2016.
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "int8": ("torchao", "bitsandbytes"),
    "int4": ("bitsandbytes",),
}

#: Formats that no library computes with on a CPU.
GPU_FORMATS = ("int4",)

#: Bits that a weight takes once quantised: those of the format, and one for what stays as it was
#: (embeddings, norms) and the scales. An estimate, until the first load is measured.
BITS: Mapping[str, int] = {"int8": 9, "int4": 5}

#: Of the largest component, what is on the device at a time when its blocks come in groups: the
#: large models have 20 to 60 blocks, and the next one is fetched while one computes.
GROUP_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Means:
    """How a model is made to fit. ``compile`` makes it faster rather than smaller."""

    quantization: str = "none"
    offload: str = "auto"
    vae_tiling: str = "auto"
    attention_slicing: str = "auto"
    compile: bool = False

    @property
    def open(self) -> bool:
        """Whether something is left to be settled."""
        return any(getattr(self, name) == "auto" for name in CHOICES)

    def plain(self) -> Means:
        """Return these means with nothing done that is not asked for."""
        return self.having({})

    def having(self, step: Mapping[str, str]) -> Means:
        """Return these means with what is ``auto`` as ``step`` says, else not done."""

        def settled(name: str) -> str:
            given = str(getattr(self, name))
            return step.get(name, PLAIN[name]) if given == "auto" else given

        return Means(
            settled("quantization"),
            settled("offload"),
            settled("vae_tiling"),
            settled("attention_slicing"),
            self.compile,
        )


#: What is not configured, and what that is where everything fits.
AUTO = Means()
SETTLED = AUTO.plain()

_LEAN = {"vae_tiling": "on", "attention_slicing": "on"}

#: What is tried, first to last. Quantised weights compute as fast as others or nearly so; a
#: component that is fetched for each picture costs seconds, groups of blocks cost some each step.
LADDER: tuple[Mapping[str, str], ...] = (
    {},
    _LEAN,
    {**_LEAN, "quantization": "int8"},
    {**_LEAN, "quantization": "int4"},
    {**_LEAN, "offload": "model"},
    {**_LEAN, "offload": "model", "quantization": "int8"},
    {**_LEAN, "offload": "model", "quantization": "int4"},
    {**_LEAN, "offload": "group"},
    {**_LEAN, "offload": "group", "quantization": "int8"},
)


class Ground(NamedTuple):
    """Where a model is to fit: bytes of the largest device (None if unknown), and what is there."""

    room: int | None
    gpu: bool
    #: Libraries of :data:`LIBRARIES` that are installed.
    libraries: frozenset[str] = frozenset()

    def offers(self, means: Means, *, pipeline: bool) -> bool:
        """Return whether such means can be used here."""
        if means.quantization != "none":
            there = self.libraries.intersection(LIBRARIES[means.quantization])
            if not there or (means.quantization in GPU_FORMATS and not self.gpu):
                return False
        lean = "on" in (means.vae_tiling, means.attention_slicing)
        return (pipeline or not lean) and (
            means.offload == "none" or (pipeline and self.gpu)  # a CPU's memory is where it goes to
        )


def settle(means: Means, ground: Ground, need: Callable[[Means], int], *, pipeline: bool) -> Means:
    """Return means without an ``auto``: the first that fit, else those that need least.

    ``need`` says how many bytes a model takes with means that are settled.
    """
    plain = means.plain()
    if not means.open or ground.room is None:
        return plain
    tried: list[Means] = [plain]
    for step in LADDER:
        known = {name: step[name] for name in step if pipeline or name not in OF_PIPELINES}
        candidate = means.having(known)
        if candidate in tried or not ground.offers(candidate, pipeline=pipeline):
            continue
        tried.append(candidate)
    for candidate in tried:
        if need(candidate) < ground.room:
            return candidate
    return min(tried, key=need)


def library_for(quantization: str, installed: Collection[str]) -> str | None:
    """Return the best library for a format; None if none of them is installed."""
    return next((name for name in LIBRARIES[quantization] if name in installed), None)

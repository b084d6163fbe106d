"""How voices draw chance: the same for a sentence, whatever was said before it."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

#: Torch takes more; this many fit a signed integer of the wire.
_SEEDS = 1 << 63


def seeder(seed: int | None) -> Callable[[int], None]:
    """Return what seeds torch for a text's sentence, by its number; without a seed one is drawn."""
    drawn = random.getrandbits(63) if seed is None else seed

    def sow(number: int) -> None:
        torch.manual_seed((drawn + number) % _SEEDS)

    return sow

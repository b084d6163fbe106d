"""What networks that speak share: how chance is drawn, and how one is stopped."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch

#: Torch takes more; this many fit a signed integer of the wire.
_SEEDS = 1 << 63


def seeder(seed: int | None) -> Callable[[int], None]:
    """Return what seeds torch for a text's sentence, by its number; without a seed one is drawn."""
    drawn = random.getrandbits(63) if seed is None else seed

    def sow(number: int) -> None:
        torch.manual_seed((drawn + number) % _SEEDS)

    return sow


class Watched:
    """Has somebody look whenever one of some modules is about to compute.

    Raising from there is how a network is stopped that has no callback of its own.
    """

    def __init__(self, modules: Iterable[Any]) -> None:
        self.look: Callable[[], None] | None = None
        for module in modules:
            module.register_forward_pre_hook(self._before)

    def _before(self, module: Any, arguments: Any) -> None:
        if self.look is not None:
            self.look()

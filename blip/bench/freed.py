"""What was measured of slots that were left. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A kind on a model. Times are seconds."""

    kind: str
    model: str
    #: What a step is, and how long one takes.
    step: str
    seconds: float
    #: The short request by itself.
    alone: Sequence[float]
    #: What it took from the closing of the long one's connection, less its median by itself.
    freed: Sequence[float]
    #: Long requests that were over before their connection was closed.
    missed: int = 0

    @property
    def noise(self) -> float:
        """How far short requests by themselves are apart."""
        return max(self.alone) - min(self.alone)

    @property
    def within(self) -> int:
        """How many slots were free within a step and the noise."""
        return sum(freed <= self.seconds + self.noise for freed in self.freed)

"""Cutting a picture into tiles that overlap, and blending what became of them. Pure.

Memory of a model that looks at every pixel's surroundings grows with the picture; with tiles it
does not. Where two overlap, one fades into the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy

#: Side of a tile in pixels of the source. A Swin transformer of 12 million parameters takes about
#: half a GB for one, and larger tiles make it no faster.
TILE = 256

#: How far neighbours overlap: models look some 30 pixels around each.
OVERLAP = 32


class Span(NamedTuple):
    """Where a tile begins and ends along one side, in pixels of the source."""

    start: int
    stop: int


def spans(length: int, tile: int = TILE, overlap: int = OVERLAP) -> list[Span]:
    """Return tiles that cover a side, all of one length, each overlapping the next by enough."""
    if length <= tile:
        return [Span(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = (round((length - tile) * number / (count - 1)) for number in range(count))
    return [Span(start, start + tile) for start in starts]


def ramp(span: Span, length: int, scale: int, overlap: int = OVERLAP) -> Any:
    """Return how much each enlarged pixel of a tile counts along one side: less at its ends.

    At the picture's own edges there is no neighbour to fade into.
    """
    size = (span.stop - span.start) * scale
    edge = overlap * scale
    rising = numpy.arange(1, size + 1, dtype="float32") / edge
    weights = numpy.ones(size, dtype="float32")
    if span.start > 0:
        weights = numpy.minimum(weights, rising)
    if span.stop < length:
        weights = numpy.minimum(weights, rising[::-1])
    return weights


class Canvas:
    """Collects the enlarged tiles of a picture of ``height`` x ``width`` pixels."""

    def __init__(
        self, height: int, width: int, scale: int, tile: int = TILE, overlap: int = OVERLAP
    ) -> None:
        self._scale = scale
        self._rows = [
            (span, ramp(span, height, scale, overlap)) for span in spans(height, tile, overlap)
        ]
        self._columns = [
            (span, ramp(span, width, scale, overlap)) for span in spans(width, tile, overlap)
        ]
        self._sum = numpy.zeros((height * scale, width * scale, 3), dtype="float32")

    def __len__(self) -> int:
        return len(self._rows) * len(self._columns)

    def fill(self, source: Any, enlarge: Callable[[Any], Any]) -> Iterator[int]:
        """Enlarge tile by tile; yield how many are done. Arrays are float [height, width, 3]."""
        done, scale = 0, self._scale
        for row, down in self._rows:
            for column, right in self._columns:
                part = enlarge(source[row.start : row.stop, column.start : column.stop])
                part = part * down[:, None, None] * right[None, :, None]
                self._sum[
                    row.start * scale : row.stop * scale,
                    column.start * scale : column.stop * scale,
                ] += part
                done += 1
                yield done

    def result(self) -> Any:
        """Return the whole. A tile's weights are products, so their sums are, too."""
        height, width = self._sum.shape[:2]
        down, right = numpy.zeros(height, "float32"), numpy.zeros(width, "float32")
        for total, side in ((down, self._rows), (right, self._columns)):
            for span, weights in side:
                total[span.start * self._scale : span.stop * self._scale] += weights
        self._sum /= down[:, None, None]
        self._sum /= right[None, :, None]
        return self._sum

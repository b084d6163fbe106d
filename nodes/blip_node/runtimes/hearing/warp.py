"""Dynamic time warping: which token of a text is spoken in which frame of a sound. Numpy only."""

from __future__ import annotations

from typing import Any

import numpy


def first_frames(costs: Any) -> list[int]:
    """Return the frame in which each token begins, on the cheapest monotonous path.

    ``costs`` is float [tokens, frames]; the path goes from the first of both to the last, a token,
    a frame or both at a time. Computed a diagonal at a time: cells of one depend on those of the
    two before only (transformers' own goes cell by cell, a hundred times slower).
    """
    rows, columns = costs.shape
    total = numpy.full((rows + 1, columns + 1), numpy.inf)
    total[0, 0] = 0
    for diagonal in range(2, rows + columns + 1):
        row = numpy.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        column = diagonal - row
        best = numpy.minimum(total[row - 1, column - 1], total[row - 1, column])
        total[row, column] = costs[row - 1, column - 1] + numpy.minimum(
            best, total[row, column - 1]
        )
    starts = [0] * rows
    row, column = rows, columns
    while row > 0:
        starts[row - 1] = max(0, column - 1)
        both, token = total[row - 1, column - 1], total[row - 1, column]
        if total[row, column - 1] <= min(both, token):
            column -= 1
        else:
            row -= 1
            column -= both <= token
    return starts

"""The keys and values of rows: regions of a few sizes, those of one size in one tensor a layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_node.runtimes.decoding.capacity import size_for


@dataclass(slots=True, eq=False)
class Row:
    """Where the cache of one sequence is: region ``index`` of ``pool``."""

    pool: Pool
    index: int


class Pool:
    """Regions of one size. Those in use are the first ones, without gaps, so that attention over
    neighbours reads them where they are, as one tensor [regions, heads, tokens, dimensions].

    What is not in use is zero: masked values still take part in sums, multiplied by zero, and
    what a broken model left there (NaN) would not vanish under that.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: list[Row] = []
        #: By layer, made when a layer first writes: only then are its shape and dtype known.
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._regions = 0

    def add(self) -> Row:
        """Take a region into use."""
        if len(self.rows) == self._regions:
            # a quarter more: copying costs about as much as a step's attention, and is rarer so
            self._resize(self._regions + 1 + self._regions // 4)
        row = Row(self, len(self.rows))
        self.rows.append(row)
        return row

    def remove(self, row: Row) -> None:
        """Give a region back; the last one in use takes its place."""
        last = self.rows.pop()
        for tensor in self._tensors():
            if last is not row:
                tensor[row.index] = tensor[last.index]
            tensor[last.index].zero_()
        if last is not row:
            self.rows[row.index] = last
            last.index = row.index
        used = len(self.rows)
        if self._regions > used + 2 * (1 + used // 4):
            # giving memory back needs some first; if there is none, another time will do
            with contextlib.suppress(RuntimeError, MemoryError):
                self._resize(used + used // 4)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's tensors to write to; keys and values [.., heads, .., dimensions] are
        looked at for their shape only.
        """
        if layer not in self.keys:
            self.keys[layer] = self._zeros(self._regions, keys)
            self.values[layer] = self._zeros(self._regions, values)
        return self.keys[layer], self.values[layer]

    def _zeros(self, regions: int, like: Tensor) -> Tensor:
        return like.new_zeros((regions, like.shape[1], self.size, like.shape[3]))

    def _tensors(self) -> list[Tensor]:
        return [*self.keys.values(), *self.values.values()]

    def _resize(self, regions: int) -> None:
        used = len(self.rows)
        # what fails half way must leave no tensor with fewer regions than are counted on
        self._regions = min(self._regions, regions)
        # layer by layer, so that only one of them is there twice
        for tensors in (self.keys, self.values):
            for layer, old in tensors.items():
                new = self._zeros(regions, old)
                new[:used] = old[:used]
                tensors[layer] = new
        self._regions = regions


#: Keys and values of the first tokens of a row, by layer: [heads, tokens, dimensions] each.
Stored = dict[int, tuple[Tensor, Tensor]]


class Pools:
    """All regions, by size. ``reserved`` is the sum of the sizes of those in use, in tokens."""

    def __init__(self) -> None:
        self._pools: dict[int, Pool] = {}
        self.reserved = 0

    def grow(self, row: Row | None, tokens: int, computed: int) -> Row:
        """Return a row that has room for ``tokens``, with the first ``computed`` of the old one.

        If memory runs out, the old row is as it was.
        """
        size = size_for(tokens)
        if row is not None and row.pool.size >= size:
            return row
        pool = self._pools.setdefault(size, Pool(size))
        try:
            new = pool.add()
        except Exception:
            self._drop_if_empty(pool)
            raise
        self.reserved += size
        if row is not None:
            try:
                load(new, save(row, computed, lambda part: part))
            except Exception:
                self.release(new)
                raise
            self.release(row)
        return new

    def release(self, row: Row) -> None:
        """Give a row's region back."""
        row.pool.remove(row)
        self.reserved -= row.pool.size
        self._drop_if_empty(row.pool)

    def _drop_if_empty(self, pool: Pool) -> None:
        if not pool.rows:
            self._pools.pop(pool.size, None)


def save(row: Row, tokens: int, keep: Callable[[Tensor], Tensor] = torch.clone) -> Stored:
    """Return the first tokens' keys and values."""
    pool, index = row.pool, row.index
    return {
        layer: (
            keep(pool.keys[layer][index, :, :tokens]),
            keep(pool.values[layer][index, :, :tokens]),
        )
        for layer in pool.keys
    }


def load(row: Row, stored: Stored, tokens: int | None = None) -> None:
    """Write stored keys and values (or the first ``tokens`` of them) to the beginning of a row."""
    for layer, (keys, values) in stored.items():
        to = row.pool.write(layer, keys[None], values[None])
        for tensor, part in zip(to, (keys, values), strict=True):
            part = part[:, :tokens]
            tensor[row.index, :, : part.shape[1]] = part

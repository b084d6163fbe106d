"""Attention of many rows of different lengths in one forward pass.

The tokens of all rows stand one behind the other in a batch of one, so every matrix is multiplied
once, with all of them. Attention alone knows the rows. It is hooked into the model where
transformers lets one: as an attention implementation of its own, which is called by each layer
with queries, keys and values, and finds the rows in the keyword argument ``ragged``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from blip_node.runtimes.decoding.pool import Pool, Row

#: The name under which transformers knows :func:`attention`.
NAME = "blip_ragged"

#: Keys of a run are read up to a multiple of this: fast kernels want aligned masks.
ALIGNMENT = 16


@dataclass(slots=True)
class _Run:
    """Neighbours in a pool that compute one token each: queries ``begin`` to ``end`` of the pass
    belong to the regions from ``first`` on.
    """

    begin: int
    end: int
    first: int
    longest: int
    #: By window: which keys each row sees, [rows, 1, 1, keys]; None for all.
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)


@dataclass(slots=True)
class _Singles:
    """The rows of a pool that compute one token each."""

    pool: Pool
    begin: int
    end: int
    #: Where each writes: region and position.
    index: Tensor
    position: Tensor
    runs: list[_Run]


@dataclass(slots=True)
class _Chunk:
    """A row that computes several tokens; ``past`` are in its region already."""

    row: Row
    begin: int
    end: int
    past: int
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)


class Pass:
    """The rows of one forward pass.

    ``work`` says of each row how many tokens are computed and how many were before. ``order`` are
    its indices in the order in which their tokens must be put into the pass; ``ends`` says, in the
    order of ``work``, behind which place of the pass each row's tokens end.
    """

    def __init__(self, work: Sequence[tuple[Row, int, int]], device: str) -> None:
        self._device = device
        #: The window that each layer asked for, for whoever wants to check.
        self.windows: dict[int, int | None] = {}

        def place(number: int) -> tuple[bool, int, int]:
            row, count, _ = work[number]
            return count > 1, row.pool.size, row.index

        self.order = sorted(range(len(work)), key=place)
        self.ends = [0] * len(work)
        self._chunks: list[_Chunk] = []
        singles: list[list[tuple[Row, int]]] = []
        at = 0
        for number in self.order:
            row, count, past = work[number]
            if count > 1:
                self._chunks.append(_Chunk(row, at, at + count, past))
            elif singles and singles[-1][-1][0].pool is row.pool:
                singles[-1].append((row, past))
            else:
                singles.append([(row, past)])
            at += count
            self.ends[number] = at
        self._singles: list[_Singles] = []
        at = 0
        for members in singles:
            self._singles.append(self._of_pool(members, at))
            at += len(members)

    def _of_pool(self, members: list[tuple[Row, int]], begin: int) -> _Singles:
        pool = members[0][0].pool
        runs: list[_Run] = []
        for at, (row, past) in enumerate(members, begin):
            run = runs[-1] if runs else None
            if run is None or row.index != run.first + run.end - run.begin:
                runs.append(_Run(at, at + 1, row.index, past + 1))
            else:
                run.end = at + 1
                run.longest = max(run.longest, past + 1)
        index, position = torch.tensor(
            [[row.index for row, _ in members], [past for _, past in members]],
            device=self._device,
        )
        return _Singles(pool, begin, begin + len(members), index, position, runs)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float | None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Store keys and values [1, heads, tokens, dimensions] in their rows' regions, and return
        what the queries find there: [1, tokens, heads, dimensions].

        ``window`` is how many keys a query sees at most, its own among them. ``softcap`` and
        ``sinks`` (a logit a head that takes part in the softmax, with no value) are as in
        Gemma 2 and gpt-oss.
        """
        self.windows[layer] = window
        heads, groups = key.shape[1], query.shape[1] // key.shape[1]
        found = query.new_empty((query.shape[2], query.shape[1], value.shape[3]))
        extra = _Extra(scale, softcap, sinks)
        for part in self._singles:
            keys, values = part.pool.write(layer, key, value)
            here = slice(part.begin, part.end)
            keys[part.index, :, part.position] = key[0, :, here].transpose(0, 1)
            values[part.index, :, part.position] = value[0, :, here].transpose(0, 1)
            for run in part.runs:
                rows = run.end - run.begin
                length = min(-(-run.longest // ALIGNMENT) * ALIGNMENT, part.pool.size)
                seen = slice(run.first, run.first + rows)
                if window not in run.masks:
                    place = part.position[run.begin - part.begin : run.end - part.begin]
                    run.masks[window] = _mask(place[:, None], length, window)[:, None]
                # the heads of a group stand where several queries would: none is copied
                asked = query[0, :, run.begin : run.end].transpose(0, 1)
                result = _attention(
                    asked.reshape(rows, heads, groups, asked.shape[2]),
                    keys[seen, :, :length],
                    values[seen, :, :length],
                    run.masks[window],
                    extra,
                )
                found[run.begin : run.end] = result.reshape(rows, heads * groups, -1)
        for chunk in self._chunks:
            keys, values = chunk.row.pool.write(layer, key, value)
            end = chunk.past + chunk.end - chunk.begin
            here, index = slice(chunk.begin, chunk.end), chunk.row.index
            keys[index, :, chunk.past : end] = key[0, :, here]
            values[index, :, chunk.past : end] = value[0, :, here]
            if window not in chunk.masks:
                place = torch.arange(chunk.past, end, device=self._device)
                # the queries of one head after the other
                chunk.masks[window] = _mask(place.repeat(groups)[None], end, window)[:, None]
            asked = query[0, :, here]
            count = asked.shape[1]
            result = _attention(
                asked.reshape(1, heads, groups * count, asked.shape[2]),
                keys[index : index + 1, :, :end],
                values[index : index + 1, :, :end],
                chunk.masks[window],
                extra,
            )
            result = result.view(heads * groups, count, -1)
            found[here] = result.transpose(0, 1)
        return found[None]


def _mask(positions: Tensor, length: int, window: int | None) -> Tensor:
    """Return which of ``length`` keys the queries at ``positions`` [rows, queries] see."""
    keys = torch.arange(length, device=positions.device)
    seen = keys <= positions[..., None]
    if window is not None:
        seen &= keys > positions[..., None] - window
    return seen


@dataclass(frozen=True, slots=True)
class _Extra:
    """What attention may do besides softmax(Q K) V."""

    scale: float | None
    softcap: float | None
    sinks: Tensor | None


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, extra: _Extra) -> Tensor:
    """Return the attention of [rows, key heads, queries, dimensions]; several heads of queries
    that share keys follow one another as queries.
    """
    if extra.softcap is None and extra.sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=extra.scale)
    scale = query.shape[3] ** -0.5 if extra.scale is None else extra.scale
    scores = query @ key.transpose(2, 3) * scale
    if extra.softcap is not None:
        scores = torch.tanh(scores / extra.softcap) * extra.softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if extra.sinks is not None:
        heads = key.shape[1]
        sinks = extra.sinks.reshape(1, heads, -1, 1)
        sinks = sinks.repeat_interleave(query.shape[2] // sinks.shape[2], dim=2)
        scores = torch.cat([scores, sinks.expand(scores.shape[0], -1, -1, 1).to(scores)], dim=3)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return weights[..., : key.shape[2]] @ value


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    ragged: Pass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as the rows of ``ragged`` are cut: an attention function of transformers.

    Raises ``ValueError`` for what it does not compute, which makes the model one that is decoded
    row by row.
    """
    if ragged is None or position_bias is not None or attention_mask is not None:
        raise ValueError("this model's attention cannot be cut into rows")
    found = ragged.attend(
        module.layer_idx,
        query,
        key,
        value,
        scale=scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return found, None


AttentionInterface.register(NAME, attention)

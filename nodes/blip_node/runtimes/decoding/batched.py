"""One forward pass for all sequences that have something to compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from blip_node.runtimes.decoding import ragged, share
from blip_node.runtimes.decoding.capacity import HEADSTART, Capacity, size_for
from blip_node.runtimes.decoding.pool import Pools, Row, load, save
from blip_node.runtimes.decoding.prefixes import Prefixes
from blip_node.runtimes.decoding.sequence import Sequence
from blip_node.runtimes.decoding.stepper import CHECK_TOLERANCE, Stepped
from blip_node.runtimes.loading import is_fatal, is_out_of_memory

#: Ways to stretch rotary positions whose frequencies depend on the longest position of a pass.
_UNSTEADY = frozenset({"dynamic", "longrope"})


class Unfit(Exception):
    """The model cannot be batched; says why. It is decoded one sequence after the other then."""


class Batched:
    """Steps all sequences in one forward pass: a token of each that decodes, and pieces of the
    prompts of those that have just come.

    Sequences have their keys and values in a region each, of ``capacity`` tokens in all. One
    alone may have more: it is bounded by the context.
    """

    def __init__(self, model: Any, device: str, slots: int, capacity: Capacity) -> None:
        self.slots = slots
        self._model = model
        self._device = device
        self._capacity = capacity
        self._pools = Pools()
        self._prefixes = Prefixes(capacity.prefixes)
        self._keeps = model._supports_logits_to_keep()

    def provide(self, wanted: list[Sequence], idle: list[Sequence]) -> list[Sequence]:
        """Find a region for each: see :class:`~blip_node.runtimes.decoding.stepper.Stepper`.

        The oldest always gets one. For it, and for each that follows, idle ones and then those
        that came after give theirs up; whoever comes last and finds no room waits.
        """
        out: list[Sequence] = []
        donors = [*wanted, *(each for each in idle if each.cache is not None)]
        held = self._pools.reserved
        for sequence in wanted:
            if sequence in out:
                continue
            more = size_for(_tokens(sequence)) - _held(sequence)
            # one that is alone may have more than there is to share
            while more > 0 and held + more > self._capacity.rows and len(donors) > 1:
                donor = donors.pop()
                held -= _held(donor)
                out.append(donor)
                self._evict(donor)
                if donor is sequence:
                    break  # nobody is left to take from: it waits itself
            else:
                held += max(0, more)
        return out

    def _evict(self, sequence: Sequence) -> None:
        self.release(sequence)
        sequence.computed = 0

    def release(self, sequence: Sequence) -> None:
        """Give a sequence's region back: see the protocol."""
        if sequence.cache is not None:
            self._pools.release(sequence.cache)
            sequence.cache = None

    def step(self, sequences: list[Sequence]) -> Stepped:
        """Compute a token of each, or a piece of its prompt: see the protocol.

        If the pass fails, each sequence is tried by itself: so the one that is to blame fails
        alone, and one that is too large for the memory lets the others go on.
        """
        failed: list[tuple[Sequence, Exception]] = []
        work: list[tuple[Sequence, int]] = []
        for sequence in sequences:
            try:
                self._place(sequence)
            except Exception as error:
                failed.append((sequence, error))
            else:
                work.append((sequence, _lacking(sequence)))
        work = self._deal(work)
        if not work:
            return Stepped([], None, failed)
        try:
            ready, logits = self._pass(work)
        except Exception as error:
            if is_fatal(error) or len(work) == 1:
                return Stepped([], None, [*failed, (work[0][0], error)])
            if is_out_of_memory(error):
                self._prefixes.clear()
            return self._one_by_one(work, failed)
        return Stepped(ready, logits, failed)

    def _one_by_one(
        self, work: list[tuple[Sequence, int]], failed: list[tuple[Sequence, Exception]]
    ) -> Stepped:
        ready: list[Sequence] = []
        rows: list[Tensor] = []
        for sequence, count in work:
            try:
                its, logits = self._pass([(sequence, count)])
            except Exception as error:
                failed.append((sequence, error))
                if is_fatal(error):
                    break
            else:
                ready += its
                rows += [logits] if its else []
        return Stepped(ready, torch.cat(rows) if rows else None, failed)

    def _place(self, sequence: Sequence) -> None:
        """Give a sequence the region it needs, with what is known of its prompt."""
        fresh = sequence.cache is None
        sequence.cache = self._pools.grow(sequence.cache, _tokens(sequence), sequence.computed)
        if fresh and (known := self._prefixes.find(sequence.prompt)):
            stored, length = known
            load(sequence.cache, stored, length)
            sequence.computed = length

    def _deal(self, work: list[tuple[Sequence, int]]) -> list[tuple[Sequence, int]]:
        """Return how many tokens of each are computed now: one, or a piece of those that lack."""
        long = [(sequence, lacking) for sequence, lacking in work if lacking > 1]
        budget = share.budget(self._device, decoding=len(long) < len(work))
        dealt = share.deal([lacking for _, lacking in long], budget)
        pieces = dict(zip([sequence for sequence, _ in long], dealt, strict=True))
        return [
            (sequence, count)
            for sequence, lacking in work
            if (count := pieces.get(sequence, lacking))
        ]

    def _pass(self, work: list[tuple[Sequence, int]]) -> tuple[list[Sequence], Tensor]:
        """Compute; return who may choose a token, and the logits for that."""
        tokens = [sequence.due(count) for sequence, count in work]
        rows = [
            (sequence.cache, len(due), sequence.computed)
            for (sequence, _), due in zip(work, tokens, strict=True)
        ]
        cut = ragged.Pass(rows, self._device)
        ids = [token for number in cut.order for token in tokens[number]]
        positions = [
            place
            for number in cut.order
            for place in range(rows[number][2], rows[number][2] + rows[number][1])
        ]
        ends = [
            (sequence, end - 1)
            for (sequence, count), end in zip(work, cut.ends, strict=True)
            if count == _lacking(sequence)
        ]
        logits = self.forward(ids, positions, [place for _, place in ends], cut)
        for sequence, count in work:
            sequence.computed += count
        for sequence, _ in ends:
            self._remember(sequence)
        return [sequence for sequence, _ in ends], logits

    def forward(
        self, ids: list[int], positions: list[int], ends: list[int], cut: ragged.Pass
    ) -> Tensor:
        """Run the model over a pass; return the logits [ends, vocabulary] at those places."""
        device = self._device
        places = torch.tensor(ends, dtype=torch.long, device=device)
        output = self._model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            ragged=cut,
            **({"logits_to_keep": places} if self._keeps else {}),
        )
        logits: Tensor = output.logits[0]
        return logits if self._keeps else logits[places]

    def _remember(self, sequence: Sequence) -> None:
        """Keep a prompt for the next that begins like it, once, when it has just been computed."""
        if sequence.computed != len(sequence.prompt) or sequence.generated:
            return
        if length := self._prefixes.wants(sequence.prompt):
            try:
                stored = save(sequence.cache, length)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._prefixes.clear()  # it is only there to save time
            else:
                self._prefixes.keep(sequence.prompt[:length], stored)

    # --- whether it can ---------------------------------------------------------------------

    def check(self) -> None:
        """Compute three rows of different lengths in pieces together, and each by itself as
        transformers does it; from then on the model is set up for batches.

        Raises :class:`Unfit` when the architecture does not allow it, or the results differ.
        """
        windows = self._expected_windows()
        rows = [
            [(3 + 7 * at + 31 * row) % self._vocabulary() for at in range(length)]
            for row, length in enumerate((21, 6, 35))
        ]
        own = self._model.config._attn_implementation
        try:
            with torch.inference_mode():
                expected = [self._whole(row) for row in rows]
                self._model.set_attn_implementation(ragged.NAME)
                if self._model.config._attn_implementation != ragged.NAME:
                    raise Unfit("its attention cannot be replaced")
                found, seen = self._together(rows)
            for mine, its in zip(found, expected, strict=True):
                _compare(mine, its)
            if seen != windows:
                raise Unfit(f"its layers attend {seen}, its cache would keep {windows}")
        except Exception as error:
            self._model.set_attn_implementation(own)
            if isinstance(error, Unfit) or is_out_of_memory(error):
                raise
            raise Unfit(f"{type(error).__name__}: {error}") from error
        finally:
            self._pools = Pools()

    def _vocabulary(self) -> int:
        return int(self._model.get_input_embeddings().num_embeddings)

    def _expected_windows(self) -> dict[int, int | None]:
        """Return the window of each layer, as transformers' own cache knows it."""
        config = self._model.config.get_text_config(decoder=True)
        if unsteady := _UNSTEADY & set(_rope_types(config)):
            raise Unfit(f"its positions ({min(unsteady)}) depend on the longest row of a pass")
        windows: dict[int, int | None] = {}
        for number, layer in enumerate(DynamicCache(config=config).layers):
            if type(layer) is DynamicSlidingWindowLayer:
                windows[number] = layer.sliding_window
            elif type(layer) is DynamicLayer:
                windows[number] = None
            else:
                raise Unfit(f"a layer keeps its state in a {type(layer).__name__}")
        return windows

    def _whole(self, row: list[int]) -> Tensor:
        ids = torch.tensor([row], device=self._device)
        logits: Tensor = self._model(input_ids=ids, use_cache=False).logits[0, -3:].float()
        return logits

    def _together(self, rows: list[list[int]]) -> tuple[list[Tensor], dict[int, int | None]]:
        """Return the logits of each row's last three tokens, computed in company and in pieces."""
        regions = [self._pools.grow(None, len(row), 0) for row in rows]
        found: list[list[Tensor]] = [[] for _ in rows]
        done = [0] * len(rows)
        # pieces of some; then the last three tokens of each, while others are still at theirs
        for counts in ((9, 0, 32), (9, 3, 1), (1, 1, 1), (1, 1, 1), (1, 1, 0)):
            taking = [number for number, count in enumerate(counts) if count]
            cut = ragged.Pass(
                [(regions[number], counts[number], done[number]) for number in taking], self._device
            )
            placed = [taking[place] for place in cut.order]
            logits = self.forward(
                [t for n in placed for t in rows[n][done[n] : done[n] + counts[n]]],
                [p for n in placed for p in range(done[n], done[n] + counts[n])],
                [end - 1 for end in cut.ends],
                cut,
            )
            for number, its in zip(taking, logits, strict=True):
                done[number] += counts[number]
                if done[number] > len(rows[number]) - 3:
                    found[number].append(its.float())
        return [torch.stack(each) for each in found], cut.windows


def _tokens(sequence: Sequence) -> int:
    """Return how many tokens a sequence needs room for; it asks for some ahead."""
    known = len(sequence.prompt) + len(sequence.generated)
    if sequence.cache is not None:
        return known
    return min(known + HEADSTART, len(sequence.prompt) + sequence.limit)


def _held(sequence: Sequence) -> int:
    """Return the size of a sequence's region."""
    row: Row | None = sequence.cache
    return row.pool.size if row is not None else 0


def _lacking(sequence: Sequence) -> int:
    return len(sequence.prompt) + len(sequence.generated) - sequence.computed


def _compare(mine: Tensor, its: Tensor) -> None:
    """Raise :class:`Unfit` unless logits [tokens, vocabulary] are the same, rounding aside."""
    room = CHECK_TOLERANCE * (its.max() - its.min())
    if not (mine - its).abs().max() <= room:
        raise Unfit("it computes other logits in company than alone")
    best, chosen = its.max(-1).values, its.gather(1, mine.argmax(-1, keepdim=True))[:, 0]
    if not (best - chosen <= room).all():
        raise Unfit("it chooses other tokens in company than alone")


def _rope_types(config: Any) -> Iterable[str]:
    """Yield how a configuration stretches rotary positions, wherever it says so."""
    pending: list[Any] = [getattr(config, "rope_parameters", None)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
            yield from (str(value[key]) for key in ("rope_type", "type") if key in value)

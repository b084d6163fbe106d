"""Which texts are encoded together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import TypeVar

T = TypeVar("T")

#: Texts chosen at a time, a few from every job: a job that arrives waits for no more than these,
#: however many another one still has.
ROUND_TEXTS = 128

#: Most texts in a forward pass; more gain nothing on a CPU and little on a GPU.
BATCH_TEXTS = 32

#: Most tokens in a forward pass, padding included; bounds the memory for activations.
BATCH_TOKENS = 16_384


def take_round(queues: Iterable[Iterable[T]], most: int = ROUND_TEXTS) -> list[T]:
    """Return up to ``most`` items from the queues in turn: first of each, second of each, ..."""
    nothing = object()
    turns = zip_longest(*queues, fillvalue=nothing)
    return list(islice((item for turn in turns for item in turn if item is not nothing), most))  # type: ignore[misc]


def batches(
    lengths: Sequence[int], most: int = BATCH_TEXTS, tokens: int = BATCH_TOKENS
) -> Iterator[list[int]]:
    """Yield groups of indices, longest texts first, so that little of a batch is padding.

    A text that is alone over the limit of tokens still gets a batch, its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) == most or (len(batch) + 1) * lengths[batch[0]] > tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch

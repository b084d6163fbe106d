"""The only place that calls the model, and the one that takes sequences one after the other.

:class:`~blip_node.runtimes.decoding.batched.Batched` is the other, for most models.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from blip.errors import ModelLoadFailed
from blip_node.runtimes.decoding import share
from blip_node.runtimes.decoding.sequence import Sequence
from blip_node.runtimes.loading import failure, is_fatal, is_out_of_memory

#: Of the range of the logits. Rounding in bfloat16 stays below a hundredth; models that forget
#: were seen at an eighth and more.
CHECK_TOLERANCE = 0.05

#: Sequences that are worth interleaving where each takes a pass of its own: more would slow each
#: of them, and finish none sooner.
SERIAL_SLOTS = 4


class Stepped(NamedTuple):
    """What came of a step.

    ``ready`` are the sequences whose next token may be chosen, from the row of ``logits``
    [sequences, vocabulary] at the same place; ``failed`` those whose computation raised, which
    harms no other.
    """

    ready: list[Sequence]
    logits: Tensor | None
    failed: list[tuple[Sequence, Exception]]


class Stepper(Protocol):
    """What computes. It belongs to the inference thread."""

    #: How many sequences are worth having in turns at once.
    slots: int

    def provide(self, wanted: list[Sequence], idle: list[Sequence]) -> list[Sequence]:
        """Make room for the next step of ``wanted``, which come in the order of their arrival;
        return those that must wait until others have ended.

        Room may be taken from ``idle`` sequences and from late ones; what they had computed is
        gone then, and will be computed again.
        """
        ...

    def step(self, sequences: list[Sequence]) -> Stepped:
        """Compute some of what is due: one token, or a piece of the prompt."""
        ...

    def release(self, sequence: Sequence) -> None:
        """Free the memory of a sequence."""
        ...


class Serial:
    """Steps sequences one after the other, each with a key-value cache of its own.

    It runs every model that transformers can decode with a cache, recurrent hybrids among them.
    """

    def __init__(self, model: Any, device: str, slots: int) -> None:
        self.slots = min(slots, SERIAL_SLOTS)
        self._model = model
        self._device = device
        self._config = model.config.get_text_config(decoder=True)
        self._keep = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}

    def provide(self, wanted: list[Sequence], idle: list[Sequence]) -> list[Sequence]:
        """Nothing is shared, so nobody waits: see :class:`Stepper`."""
        return []

    def step(self, sequences: list[Sequence]) -> Stepped:
        """Compute what is due of each sequence: see :class:`Stepper`."""
        ready, rows = [], []
        failed: list[tuple[Sequence, Exception]] = []
        for sequence in sequences:
            try:
                logits = self._advance(sequence)
            except Exception as error:
                failed.append((sequence, error))
                if is_fatal(error):
                    break
            else:
                if logits is not None:
                    ready.append(sequence)
                    rows.append(logits)
        return Stepped(ready, torch.stack(rows) if rows else None, failed)

    def release(self, sequence: Sequence) -> None:
        """Free the cache: see :class:`Stepper`."""
        sequence.cache = None

    def _advance(self, sequence: Sequence) -> Tensor | None:
        if sequence.cache is None:
            sequence.cache = DynamicCache(config=self._config)
        tokens = sequence.due(share.ALONE)
        output = self._model(
            input_ids=torch.tensor([tokens], device=self._device),
            past_key_values=sequence.cache,
            use_cache=True,
            **self._keep,
        )
        sequence.computed += len(tokens)
        return output.logits[0, -1] if sequence.ready else None

    def check(self) -> None:
        """Compute a few tokens in steps and at once, which also warms the kernels up.

        Raises :class:`~blip.errors.ModelLoadFailed` for an architecture that cannot be stepped
        through a cache: some recurrent models keep their state elsewhere, forget it without an
        error, and would answer as if there had been no prompt.
        """
        try:
            stepped, whole = self._both_ways(torch.arange(6, device=self._device)[None])
        except Exception as error:
            if is_out_of_memory(error):
                raise failure(error) from error
            raise ModelLoadFailed(f"{self._name} cannot be decoded in steps: {error}") from error
        if not (stepped - whole).abs().max() <= CHECK_TOLERANCE * (whole.max() - whole.min()):
            raise ModelLoadFailed(
                f"{self._name} computes other logits in steps than at once: it does not keep its "
                "state in transformers' cache"
            )

    @property
    def _name(self) -> str:
        return type(self._model).__name__

    def _both_ways(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        cache = DynamicCache(config=self._config)
        with torch.inference_mode():
            whole = self._model(input_ids=ids, use_cache=False)
            for begin, end in ((0, 3), (3, 5), (5, 6)):  # a chunk, another, a token
                stepped = self._model(
                    input_ids=ids[:, begin:end], past_key_values=cache, use_cache=True
                )
        return stepped.logits[0, -1].float(), whole.logits[0, -1].float()

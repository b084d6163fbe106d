"""The only place that calls the model: one step for each of several sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from blip.errors import ModelLoadFailed
from blip_node.runtimes.decoding.sequence import Sequence
from blip_node.runtimes.loading import failure, is_out_of_memory

#: Prompt tokens computed in one step: enough to use the arithmetic, few enough that the others
#: do not wait long for their next token.
PREFILL_CHUNK = 256

#: Of the range of the logits. Rounding in bfloat16 stays below a hundredth; models that forget
#: were seen at an eighth and more.
CHECK_TOLERANCE = 0.05


class Stepper:
    """Steps sequences one after the other, each with a key-value cache of its own.

    :meth:`step` is the whole interface: what comes to batch the sequences into one forward pass
    replaces this class and nothing else.
    """

    def __init__(self, model: Any, device: str) -> None:
        self._model = model
        self._device = device
        self._config = model.config.get_text_config(decoder=True)
        self._keep = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}

    def step(
        self, sequences: list[Sequence]
    ) -> Iterator[tuple[Sequence, Tensor | Exception | None]]:
        """Compute what is due of each sequence and yield it with the result.

        That is the logits [vocabulary] of its next token, or None if some of its prompt is still
        due, or the exception that its computation raised; the others go on regardless.
        """
        for sequence in sequences:
            result: Tensor | Exception | None
            try:
                result = self._advance(sequence)
            except Exception as error:
                result = error
            yield sequence, result

    def _advance(self, sequence: Sequence) -> Tensor | None:
        if sequence.cache is None:
            sequence.cache = DynamicCache(config=self._config)
        tokens = sequence.due(PREFILL_CHUNK)
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

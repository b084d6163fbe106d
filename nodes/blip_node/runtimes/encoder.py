"""A loaded text encoder: from jobs to batches to vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

from blip.errors import ConfigError, ContextTooLong, InvalidRequest, ModelLoadFailed
from blip.kinds.embedding import EmbeddingInput
from blip_node.models.files import read_object
from blip_node.models.snapshot import DEFAULT_CONTEXT, fit_context, sequence_limit
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.decoding.vocabulary import Vocabulary
from blip_node.runtimes.loading import failure, is_out_of_memory, read_config
from blip_node.runtimes.pooling import normalised, read_pooling
from blip_node.runtimes.rows import Rows


class Encoder(Rows):
    """Texts to vectors. ``loaded`` are the model without its head and the tokenizer."""

    def __init__(
        self,
        spec: LoadSpec,
        report: Callable[[float], None],
        loaded: tuple[Any, Any],
    ) -> None:
        super().__init__("blip-encode")
        self._model, tokenizer = loaded
        folder = Path(spec.path)
        self._device = spec.device
        self._pooling = read_pooling(folder)
        self._default_prompt = _default_prompt(folder)
        rows = self._model.get_input_embeddings().num_embeddings
        self._vocabulary = Vocabulary(tokenizer.backend_tokenizer, rows)
        try:
            own = sequence_limit(folder, read_config(folder))
            self._context = fit_context(spec.context, own, spec.model) or DEFAULT_CONTEXT
        except ConfigError as error:
            raise ModelLoadFailed(error.message) from None
        warm = self._thread.submit(self._encode, [[0]])
        try:
            self._dimensions = int(warm.result().shape[1])
        except Exception as error:
            self._thread.shutdown()
            if is_out_of_memory(error):
                raise failure(error) from error
            raise ModelLoadFailed(f"it cannot encode a text: {error}") from error
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Encode one job; see :meth:`blip_node.runtimes.embedding.EmbeddingRuntime.run`."""
        wishes: EmbeddingInput = job.input
        wanted = wishes.dimensions or self._dimensions
        if wanted > self._dimensions:
            raise InvalidRequest(
                f"'dimensions': the model has {self._dimensions}, {wanted} were asked for",
                param="dimensions",
            )
        texts = await asyncio.to_thread(self._tokenize, wishes)
        vectors = numpy.stack(await self.compute(job, texts)).astype("<f4", copy=False)
        tokens = sum(map(len, texts))
        return Outcome(
            _rows(vectors, wanted),
            usage={"prompt_tokens": tokens},
            units=len(texts) + tokens,
        )

    def _tokenize(self, wishes: EmbeddingInput) -> list[list[int]]:
        """Return each text's ids, those of token inputs as they are."""
        texts = []
        for index, text in enumerate(wishes.texts, wishes.first):
            where = f"texts.{index}"
            if isinstance(text, str):
                ids = self._vocabulary.encode(self._default_prompt + text, special=True)
            else:
                self._vocabulary.check(text, where)
                ids = list(text)
            if not ids:
                raise InvalidRequest(
                    f"input {index} has no token that the model knows", param=where
                )
            if len(ids) > self._context:
                raise ContextTooLong(
                    f"input {index} has {len(ids)} tokens; the model takes {self._context}",
                    hint="Split the text.",
                    param=where,
                    details={"prompt_tokens": len(ids), "limit": self._context, "input": index},
                )
            texts.append(ids)
        return texts

    def _encode(self, texts: list[list[int]]) -> Any:
        """Return float32 [texts, dimensions] as a numpy array."""
        longest = max(map(len, texts))
        ids = torch.zeros((len(texts), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            return self._pooling(states, mask).cpu().numpy()


def _rows(vectors: Any, dimensions: int) -> memoryview:
    """Return the payload; fewer dimensions than the model's are cut off and scaled to length 1."""
    if dimensions < vectors.shape[1]:
        vectors = normalised(torch.from_numpy(vectors)[:, :dimensions]).numpy().astype("<f4")
    payload: memoryview = numpy.ascontiguousarray(vectors).data
    return payload.cast("B")


def _default_prompt(folder: Path) -> str:
    """Return the text that sentence-transformers puts before every input of this model."""
    config = read_object(folder / "config_sentence_transformers.json", missing_ok=True)
    prompts, name = config.get("prompts"), config.get("default_prompt_name")
    return str(prompts.get(name) or "") if isinstance(prompts, dict) and name else ""

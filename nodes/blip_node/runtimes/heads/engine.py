"""A loaded model with a head: rows of all jobs go through it together, whatever their kind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from blip.errors import ConfigError, ModelLoadFailed
from blip_node.models.snapshot import DEFAULT_CONTEXT, fit_context, sequence_limit
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.heads.reader import Reader, Row
from blip_node.runtimes.loading import failure, is_out_of_memory, read_config
from blip_node.runtimes.rows import Rows


class Read(NamedTuple):
    """What a job's input is to a model; ``cut`` counts the texts that lost their end."""

    rows: list[Row]
    cut: int = 0


class Head(Protocol):
    """One kind, on one model."""

    def read(self, value: Any) -> Read:
        """Return the rows of an input. Raises :class:`~blip.errors.InvalidRequest` and its kin."""
        ...

    def pick(self, output: Any, at: int, row: Row) -> Any:
        """Return what of the model's output is row ``at``'s, as a tensor. Runs on the thread."""
        ...

    def write(self, value: Any, rows: list[Row], picked: list[Any]) -> bytes:
        """Return the DONE payload, from what was picked of each row as numpy arrays."""
        ...


class HeadEngine(Rows):
    """Runs the kinds of ``heads``."""

    def __init__(
        self, model: Any, tokenizer: Any, spec: LoadSpec, heads: Mapping[str, Head]
    ) -> None:
        super().__init__("blip-heads")
        self._model = model
        self._heads = heads
        self._device = spec.device
        self._pad = tokenizer.pad_token_id or 0
        # a tokenizer of no particular class offers them to models that know one type, or none
        known = getattr(model.config, "type_vocab_size", None) or 0
        self._types = "token_type_ids" in tokenizer.model_input_names and known > 1
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = self._pad  # decoders look for the last token before it

    def warm(self, row: Row) -> None:
        """Compute one row; the first is slow, and shows whether it works at all.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity``.
        """
        try:
            self._thread.submit(self._encode, [row]).result()
        except Exception as error:
            self._thread.shutdown()
            if is_out_of_memory(error):
                raise failure(error) from error
            raise ModelLoadFailed(f"it cannot read a text: {error}") from error

    async def run(self, job: Job) -> Outcome:
        """Run one job of any of the kinds."""
        head = self._heads[job.kind.name]
        rows, cut = await asyncio.to_thread(head.read, job.input)
        picked = await self.compute(job, rows)
        payload = await asyncio.to_thread(head.write, job.input, rows, picked)
        tokens = sum(map(len, rows))
        usage = {"prompt_tokens": tokens} | ({"truncated": cut} if cut else {})
        return Outcome(payload, usage=usage, units=len(rows) + tokens)

    def _encode(self, texts: list[Row]) -> list[Any]:
        longest = max(map(len, texts))
        shape = (len(texts), longest)
        ids = torch.full(shape, self._pad, dtype=torch.long)
        mask, types = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for at, row in enumerate(texts):
            ids[at, : len(row)] = torch.tensor(row.encoding.ids)
            types[at, : len(row)] = torch.tensor(row.encoding.type_ids)
            mask[at, : len(row)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._types:
            inputs["token_type_ids"] = types
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        with torch.inference_mode():
            output = self._model(**inputs)
            picked = [row.head.pick(output, at, row) for at, row in enumerate(texts)]
            return [tensor.float().cpu().numpy() for tensor in picked]


def reader_of(model: Any, tokenizer: Any, spec: LoadSpec) -> Reader:
    """Return the reader of a loaded model.

    Raises :class:`~blip.errors.ModelLoadFailed` where more context is configured than it has.
    """
    folder = Path(spec.path)
    try:
        own = sequence_limit(folder, read_config(folder))
        context = fit_context(spec.context, own, spec.model) or DEFAULT_CONTEXT
    except ConfigError as error:
        raise ModelLoadFailed(error.message) from None
    return Reader(tokenizer, model.get_input_embeddings().num_embeddings, context)

"""A loaded text encoder: from jobs to batches to vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from blip.errors import (
    BlipError,
    Cancelled,
    ConfigError,
    ContextTooLong,
    InvalidRequest,
    ModelLoadFailed,
    RuntimeFailed,
    WorkerCrashed,
)
from blip.kinds.embedding import EmbeddingInput
from blip_node.models.files import read_object
from blip_node.models.snapshot import DEFAULT_CONTEXT, fit_context, sequence_limit
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.batching import batches, take_round
from blip_node.runtimes.decoding.vocabulary import Vocabulary
from blip_node.runtimes.loading import failure, is_out_of_memory, load_pretrained, read_config
from blip_node.runtimes.pooling import normalised, read_pooling


@dataclass(slots=True, eq=False)
class _Task:
    """A job's texts as ids, its vectors so far, and whoever waits for them."""

    job: Job
    texts: list[list[int]]
    left: list[int]
    vectors: Any  # float32 [texts, dimensions]
    future: asyncio.Future[None]


_Row = tuple[_Task, int]


class Encoder:
    """Batches are put together on the event loop and computed on one thread, one at a time."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._model, tokenizer = load_pretrained(spec, "AutoModel", report)
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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="blip-encode")
        warm = self._thread.submit(self._encode, [[0]])
        try:
            self._dimensions = int(warm.result().shape[1])
        except Exception as error:
            self._thread.shutdown()
            if is_out_of_memory(error):
                raise failure(error) from error
            raise ModelLoadFailed(f"it cannot encode a text: {error}") from error
        self._tasks: list[_Task] = []
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
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
        if self._closed:
            raise WorkerCrashed("the model was unloaded during this task")
        task = _Task(
            job,
            texts,
            list(range(len(texts))),
            numpy.empty((len(texts), self._dimensions), dtype="<f4"),
            asyncio.get_running_loop().create_future(),
        )
        self._tasks.append(task)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        await task.future
        tokens = sum(map(len, texts))
        return Outcome(
            _rows(task.vectors, wanted),
            usage={"prompt_tokens": tokens},
            units=len(texts) + tokens,
        )

    def close(self) -> None:
        """Stop the inference thread after its current batch."""
        self._closed = True
        self._thread.shutdown(wait=True)

    def _tokenize(self, wishes: EmbeddingInput) -> list[list[int]]:
        """Return each text's ids, those of token inputs as they are."""
        texts = []
        for index, text in enumerate(wishes.texts):
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

    async def _work(self) -> None:
        """Encode until nothing is left to encode."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # jobs that arrive in the same tick share batches
        while self._tasks:
            rows = take_round([[(task, index) for index in task.left] for task in self._tasks])
            for batch in batches([len(task.texts[index]) for task, index in rows]):
                self._drop_cancelled()
                chosen = [rows[at] for at in batch if rows[at][0] in self._tasks]
                if not chosen:
                    continue
                try:
                    results = await loop.run_in_executor(self._thread, self._compute, chosen)
                except RuntimeError:  # the executor was shut down
                    results = [WorkerCrashed("the model was unloaded during this task")]
                    results *= len(chosen)
                for row, result in zip(chosen, results, strict=True):
                    self._deliver(row, result)

    def _drop_cancelled(self) -> None:
        for task in list(self._tasks):
            if task.job.cancelled or task.future.cancelled():
                self._finish(task, Cancelled("the client went away"))

    def _deliver(self, row: _Row, result: Any) -> None:
        task, index = row
        if task not in self._tasks:
            return
        if isinstance(result, BlipError):
            self._finish(task, result)
        else:
            task.vectors[index] = result
            task.left.remove(index)
            if not task.left:
                self._finish(task, None)

    def _finish(self, task: _Task, error: BlipError | None) -> None:
        self._tasks.remove(task)
        if task.future.done():
            return
        if error is None:
            task.future.set_result(None)
        else:
            task.future.set_exception(error)

    def _compute(self, rows: list[_Row]) -> list[Any]:
        """Return a vector or an error for each row. Runs on the thread.

        A batch that fails is halved until those that are to blame are alone: one client's text
        does not fail another's, and what does not fit together may fit apart.
        """
        try:
            vectors = self._encode([task.texts[index] for task, index in rows])
        except Exception as error:
            if len(rows) == 1:
                return [failure(error)]
            vectors = None  # the halves run outside, where the error no longer holds its tensors
        if vectors is None:
            half = len(rows) // 2
            return self._compute(rows[:half]) + self._compute(rows[half:])
        broken = RuntimeFailed("the model computed NaN or infinity instead of a vector")
        return [vector if numpy.isfinite(vector).all() else broken for vector in vectors]

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

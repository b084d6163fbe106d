"""Texts of concurrent jobs, computed in common batches: what all runtimes of one pass share."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy

from blip.errors import BlipError, Cancelled, RuntimeFailed, WorkerCrashed
from blip_node.runtimes.base import Job
from blip_node.runtimes.batching import batches, take_round
from blip_node.runtimes.loading import failure


@dataclass(slots=True, eq=False)
class _Task:
    """A job's texts, what was computed of them so far, and whoever waits for all of it."""

    job: Job
    texts: list[Any]
    left: set[int]
    values: list[Any]
    future: asyncio.Future[None]


_Row = tuple[_Task, int]


class Rows:
    """Batches are put together on the event loop and computed on one thread, one at a time.

    What a text is, a subclass knows: it has a length, and :meth:`_encode` computes some at once.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._tasks: list[_Task] = []
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    async def compute(self, job: Job, texts: list[Any]) -> list[Any]:
        """Return what :meth:`_encode` makes of a job's texts, in their order.

        Raises the :class:`~blip.errors.BlipError` of the first text that fails, ``Cancelled`` or
        ``WorkerCrashed``.
        """
        if self._closed:
            raise WorkerCrashed("the model was unloaded during this task")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = _Task(job, texts, set(range(len(texts))), [None] * len(texts), future)
        self._tasks.append(task)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        await future
        return task.values

    def close(self) -> None:
        """Stop the inference thread after its current batch."""
        self._closed = True
        self._thread.shutdown(wait=True)

    def _encode(self, texts: list[Any]) -> Any:
        """Return a numpy array for each text. Runs on the thread."""
        raise NotImplementedError

    async def _work(self) -> None:
        """Encode until nothing is left to encode."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # jobs that arrive in the same tick share batches
        while self._tasks:
            rows = take_round([[(task, at) for at in sorted(task.left)] for task in self._tasks])
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
            task.values[index] = result
            task.left.discard(index)
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
        """Return a result or an error for each row. Runs on the thread.

        A batch that fails is halved until those that are to blame are alone: one client's text
        does not fail another's, and what does not fit together may fit apart.
        """
        try:
            results = self._encode([task.texts[index] for task, index in rows])
        except Exception as error:
            if len(rows) == 1:
                return [failure(error)]
            results = None  # the halves run outside, where the error no longer holds its tensors
        if results is None:
            half = len(rows) // 2
            return self._compute(rows[:half]) + self._compute(rows[half:])
        broken = RuntimeFailed("the model computed NaN or infinity instead of numbers")
        return [result if numpy.isfinite(result).all() else broken for result in results]

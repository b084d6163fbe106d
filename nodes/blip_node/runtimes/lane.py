"""One thread for all that a model computes: jobs run on it one by one, in the order they came.

Some of what torch and its drivers keep is bound to a thread, and few of their objects may be used
by two at once. An event loop that waits for a lane stays free to take cancels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from blip.errors import Cancelled, WorkerCrashed
from blip_node.runtimes.base import Job
from blip_node.runtimes.loading import failure

T = TypeVar("T")


class Lane:
    """The thread of one loaded model. ``name`` is what it is called in stack dumps."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._closed = False

    def first(self, load: Callable[[], T]) -> T:
        """Return what ``load`` returns on the thread; if it raises, the lane is closed."""
        try:
            return self._thread.submit(load).result()
        except BaseException:
            self.close()
            raise

    async def run(self, job: Job, work: Callable[[Job], T]) -> T:
        """Return what ``work`` makes of a job; it should call :meth:`look` between its steps.

        A job that is cancelled while another one has the thread ends at once. Raises a
        :class:`~blip.errors.BlipError`: whatever else it raises is explained by
        :func:`~blip_node.runtimes.loading.failure`.
        """
        try:
            future = self._thread.submit(self._work, job, work)
        except RuntimeError:  # the executor was shut down
            raise self._unloaded() from None

        def wake() -> None:
            if job.cancelled:
                future.cancel()  # without effect once it runs: then it looks

        job.on_change(wake)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if job.cancelled and future.cancelled():
                raise self._gone() from None
            raise

    def look(self, job: Job) -> None:
        """Raise :class:`~blip.errors.Cancelled` or ``WorkerCrashed`` if a job need not go on."""
        if job.cancelled:
            raise self._gone()
        if self._closed:
            raise self._unloaded()

    def close(self) -> None:
        """Stop at the next look of what runs, and the thread with it."""
        self._closed = True
        self._thread.shutdown(wait=True)

    def _work(self, job: Job, work: Callable[[Job], T]) -> T:
        self.look(job)
        try:
            return work(job)
        except Exception as error:
            raise failure(error) from error

    @staticmethod
    def _gone() -> Cancelled:
        return Cancelled("the client went away")

    @staticmethod
    def _unloaded() -> WorkerCrashed:
        return WorkerCrashed("the model was unloaded during this task")

"""The inference thread of a text replica: who computes next, and who is told."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from dataclasses import dataclass

import torch

from blip.errors import BlipError, Cancelled, WorkerCrashed
from blip.kinds.text import Delta, Finish, TokenLogprob, delta_to_wire
from blip_node.runtimes.base import Job
from blip_node.runtimes.decoding.sampler import Choice, Sampler
from blip_node.runtimes.decoding.sequence import Sequence
from blip_node.runtimes.decoding.stepper import Stepper
from blip_node.runtimes.decoding.vocabulary import Vocabulary
from blip_node.runtimes.loading import failure, is_fatal

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Stream:
    """A sequence on its way, with the job it is for."""

    job: Job
    sequence: Sequence
    sampler: Sampler
    future: asyncio.Future[Finish]

    @property
    def gone(self) -> bool:
        """Whether nobody waits for this any more."""
        return self.job.cancelled or self.future.cancelled()


class Loop:
    """Interleaves up to ``slots`` sequences on one thread: in each turn every one of them that
    may write takes one step. Further ones wait in order and join between turns.
    """

    def __init__(self, stepper: Stepper, vocabulary: Vocabulary, slots: int) -> None:
        self._stepper = stepper
        self._vocabulary = vocabulary
        self._slots = slots
        #: The only way in; everything else belongs to the thread.
        self._inbox: queue.SimpleQueue[_Stream] = queue.SimpleQueue()
        self._waiting: deque[_Stream] = deque()
        self._active: list[_Stream] = []
        self._wake = threading.Event()
        self._broken: BlipError | None = None
        self._thread = threading.Thread(target=self._main, name="blip-decode", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def decode(self, job: Job, sequence: Sequence, sampler: Sampler) -> Finish:
        """Decode a sequence to its end, emitting a delta a token on the way.

        Raises ``Cancelled`` within a step of the job's cancel, ``NoCapacity`` when memory runs
        out, ``RuntimeFailed`` when the model fails on this sequence, and ``WorkerCrashed`` when
        the device is lost or the loop was stopped.
        """
        future: asyncio.Future[Finish] = asyncio.get_running_loop().create_future()
        job.on_change(self._wake.set)
        self._inbox.put(_Stream(job, sequence, sampler, future))
        self._wake.set()
        # After the put: the thread sets it before it looks into its inbox for the last time.
        if self._broken is not None:
            raise self._broken
        try:
            return await future
        finally:
            self._wake.set()  # if this task was cancelled, the thread should notice now

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread after its current step; what it was working on fails."""
        self._broken = self._broken or WorkerCrashed("the model was unloaded during this task")
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _main(self) -> None:
        try:
            with torch.inference_mode():
                while self._broken is None:
                    self._wake.clear()
                    if not self._turn():
                        self._wake.wait()
        except BaseException as error:
            logger.exception("the inference thread died")
            self._broken = WorkerCrashed(f"the inference thread died: {error!r}")
        self._admit()
        for stream in [*self._active, *self._waiting]:
            self._end(stream, self._broken)

    def _turn(self) -> bool:
        """Let every stream that may take a step take one; return whether any could."""
        self._admit()
        for stream in [*self._active, *self._waiting]:
            if stream.gone:
                self._end(stream, Cancelled("the client went away"))
        while self._waiting and len(self._active) < self._slots:
            self._active.append(self._waiting.popleft())
        streams = {s.sequence: s for s in self._active if s.job.writable}
        for sequence, result in self._stepper.step(list(streams)):
            stream = streams[sequence]
            try:
                if isinstance(result, Exception):
                    raise result
                if stream.gone:
                    raise Cancelled("the client went away")
                if result is not None:
                    self._extend(stream, stream.sampler.pick(result, sequence.generated))
            except Exception as error:
                self._end(stream, failure(error))
                if is_fatal(error):
                    self._broken = failure(error)
                    break
        return bool(streams)

    def _admit(self) -> None:
        while not self._inbox.empty():
            self._waiting.append(self._inbox.get())

    def _extend(self, stream: _Stream, choice: Choice) -> None:
        step = stream.sequence.accept(choice.token, self._logprob(choice))
        if isinstance(step, Delta):
            stream.job.emit(delta_to_wire(step))
        else:
            self._end(stream, step)

    def _logprob(self, choice: Choice) -> TokenLogprob | None:
        if choice.logprob is None:
            return None
        raw = self._vocabulary.raw
        top = [(_text(raw(token)), logprob, raw(token)) for token, logprob in choice.top]
        chosen = raw(choice.token)
        return TokenLogprob(_text(chosen), choice.logprob, chosen, top)

    def _end(self, stream: _Stream, result: Finish | BlipError) -> None:
        """Take a stream out, free its cache, and tell whoever waits for it."""
        (self._active if stream in self._active else self._waiting).remove(stream)
        stream.sequence.cache = None
        try:
            stream.future.get_loop().call_soon_threadsafe(_settle, stream.future, result)
        except RuntimeError:
            pass  # the event loop is closed: nobody is left to tell


def _settle(future: asyncio.Future[Finish], result: Finish | BlipError) -> None:
    if future.done():
        return
    if isinstance(result, BlipError):
        future.set_exception(result)
    else:
        future.set_result(result)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")

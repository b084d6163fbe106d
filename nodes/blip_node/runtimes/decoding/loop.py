"""The inference thread of a text replica: who computes next, and who is told.

It batches continuously: requests join and leave between steps, and one step serves all of them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from blip.errors import BlipError, Cancelled, WorkerCrashed
from blip.kinds.text import Delta, Finish, delta_to_wire
from blip_node.runtimes.base import Job
from blip_node.runtimes.decoding.sampler import Choice, Sampler, choose, told
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
    #: By order of arrival.
    number: int

    @property
    def gone(self) -> bool:
        """Whether nobody waits for this any more."""
        return self.job.cancelled or self.future.cancelled()


class Loop:
    """Steps up to ``stepper.slots`` sequences together: in each turn every one of them that may
    write takes one step. Further ones wait in order and join between turns.
    """

    def __init__(self, stepper: Stepper, vocabulary: Vocabulary) -> None:
        self._stepper = stepper
        self._vocabulary = vocabulary
        self._numbers = itertools.count()
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
        self._inbox.put(_Stream(job, sequence, sampler, future, next(self._numbers)))
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
        with torch.inference_mode():  # as everything that touches the cache
            for stream in [*self._active, *self._waiting]:
                self._end(stream, self._broken)

    def _turn(self) -> bool:
        """Let every stream that may take a step take one; return whether any could."""
        self._admit()
        for stream in [*self._active, *self._waiting]:
            if stream.gone:
                self._end(stream, Cancelled("the client went away"))
        while self._waiting and len(self._active) < self._stepper.slots:
            self._active.append(self._waiting.popleft())
        self._active.sort(key=lambda stream: stream.number)  # one that gave way comes back old
        streams = {stream.sequence: stream for stream in self._active}
        able = [s.sequence for s in self._active if s.job.writable]
        held_up = [s.sequence for s in self._active if s.sequence not in able]
        for sequence in self._stepper.provide(able, held_up):
            self._put_back(streams.pop(sequence))
        able = [sequence for sequence in able if sequence in streams]
        done = self._stepper.step(able)
        for sequence, error in done.failed:
            self._end(streams[sequence], failure(error))
            if is_fatal(error):
                self._broken = failure(error)
                return True
        self._extend_all([streams[sequence] for sequence in done.ready], done.logits)
        return bool(able)

    def _put_back(self, stream: _Stream) -> None:
        """Let a stream that gave its cache up wait, in its order."""
        self._active.remove(stream)
        place = sum(other.number < stream.number for other in self._waiting)
        self._waiting.insert(place, stream)

    def _extend_all(self, streams: list[_Stream], logits: Tensor | None) -> None:
        """Choose a token for each, and send it."""
        if logits is None:
            return
        for stream, chosen in zip(streams, _choose(streams, logits), strict=True):
            try:
                if isinstance(chosen, Exception):
                    raise chosen
                if stream.gone:
                    raise Cancelled("the client went away")
                self._extend(stream, chosen)
            except Exception as error:
                self._end(stream, failure(error))
                if is_fatal(error):
                    self._broken = failure(error)
                    return

    def _admit(self) -> None:
        while not self._inbox.empty():
            self._waiting.append(self._inbox.get())

    def _extend(self, stream: _Stream, choice: Choice) -> None:
        step = stream.sequence.accept(choice.token, told(choice, self._vocabulary))
        if isinstance(step, Delta):
            stream.job.emit(delta_to_wire(step))
        else:
            self._end(stream, step)

    def _end(self, stream: _Stream, result: Finish | BlipError) -> None:
        """Take a stream out, free its cache, and tell whoever waits for it."""
        (self._active if stream in self._active else self._waiting).remove(stream)
        try:
            self._stepper.release(stream.sequence)
        except Exception as error:
            # of a device that is lost not even memory can be freed; whoever waits is told anyway
            self._broken = self._broken or WorkerCrashed(f"the cache is broken: {error!r}")
        try:
            stream.future.get_loop().call_soon_threadsafe(_settle, stream.future, result)
        except RuntimeError:
            pass  # the event loop is closed: nobody is left to tell


def _choose(streams: list[_Stream], logits: Tensor) -> list[Choice | Exception]:
    """Choose a token for each, together; one by one if that fails, so that it fails for whom it
    must only.
    """
    samplers = [stream.sampler for stream in streams]
    generated = [stream.sequence.generated for stream in streams]
    try:
        return choose(samplers, logits, generated)
    except Exception as error:
        if is_fatal(error) or len(streams) == 1:
            return [error] * len(streams)
    return [_choose([stream], logits[[row]])[0] for row, stream in enumerate(streams)]


def _settle(future: asyncio.Future[Finish], result: Finish | BlipError) -> None:
    if future.done():
        return
    if isinstance(result, BlipError):
        future.set_exception(result)
    else:
        future.set_result(result)

"""A loaded model of speech: from jobs to transcripts, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy

from blip.errors import ModelLoadFailed
from blip.kinds.transcription import Transcript, TranscriptionInput, heard_to_wire
from blip_node.audio.decode import decode
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.hearing.ctc import CtcListener
from blip_node.runtimes.hearing.listener import Listener, Watch
from blip_node.runtimes.hearing.whisper import WhisperListener
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.loading import failure, is_out_of_memory, read_config


class Engine:
    """Listens on one thread: a window of sound keeps a device busy by itself."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._lane = Lane("blip-hear")
        self._listener = self._lane.first(lambda: _load(spec, report))
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Write one sound down; see :meth:`TranscriptionRuntime.run`."""
        return await self._lane.run(job, self._listen)

    def close(self) -> None:
        """Stop after the current step, and the thread with it."""
        self._lane.close()

    def _listen(self, job: Job) -> Outcome:
        wishes: TranscriptionInput = job.input
        kind = job.kind.name
        watch = Watch(job, self._lane)
        listener = self._listener
        listener.check(kind, wishes)
        samples = decode(wishes.file, listener.rate, "file", watch.look)
        found: Transcript = listener.listen(kind, wishes, samples, watch)
        watch.look()
        tokens = sum(len(segment.tokens) for segment in found.segments)
        return Outcome(
            heard_to_wire(found),
            # whole milliseconds: usage is counted in integers
            usage={"audio_ms": round(found.duration * 1000), "completion_tokens": tokens},
            units=found.duration,
        )


def _load(spec: LoadSpec, report: Callable[[float], None]) -> Listener:
    names = read_config(Path(spec.path)).get("architectures") or [""]
    listener: Listener
    if str(names[0]).endswith("ForCTC"):
        listener = CtcListener(spec, report)
    else:
        listener = WhisperListener(spec, report)
    try:
        _try(listener)
    except Exception as error:
        if is_out_of_memory(error):
            raise failure(error) from error
        raise ModelLoadFailed(f"model '{spec.model}': it cannot listen: {error}") from error
    return listener


class _Nobody(Watch):
    """Watches over a job that nobody asked for."""

    def __init__(self) -> None:
        pass

    def look(self) -> None:
        """Go on."""

    def tell(self, segments: object, done: float, duration: float) -> None:
        """Tell nobody."""


def _try(listener: Listener) -> None:
    """Listen to half a second of silence: what is wrong with a model shows before it serves."""
    silence = numpy.zeros(listener.rate // 2, dtype="float32")
    # not quite cold, and so once only: at zero Whisper would go through all its temperatures
    once = TranscriptionInput(file=b"", temperature=0.01, seed=0)
    listener.listen("transcription", once, silence, _Nobody())

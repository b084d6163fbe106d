"""A loaded voice: from jobs to audio files, sentence by sentence.

Sentences of several jobs take turns on one thread. Between them nothing is held: a client that
takes its audio slowly keeps nobody waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import soxr

from blip.errors import InvalidRequest, RuntimeFailed
from blip.kinds.speech import SPEECH, SpeechInput
from blip_node.audio.encode import Encoder, fit_rate
from blip_node.models.files import read_object
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.speaking.sentences import split
from blip_node.runtimes.speaking.synthesizer import Say, Spoken, Synthesizer, choose

#: Seconds of silence between two sentences at speed 1: voices end with their last sound, people
#: take a breath.
PAUSE = 0.25

#: Bytes of one part. A credit of a mebibyte then covers several, and no slow sentence of a fast
#: format is one message of many.
PART_BYTES = 128 * 1024


class Engine:
    """Speaks on one thread."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._lane = Lane("blip-speak")
        self._synthesizer = self._lane.first(lambda: _load(spec, report))
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Speak one job; see :meth:`blip_node.runtimes.speech.SpeechRuntime.run`."""
        wishes: SpeechInput = job.input
        sentences = split(wishes.text)
        if not sentences:
            raise InvalidRequest("'input' has nothing in it that could be said.", param="input")
        text = await self._lane.run(job, lambda job: self._begin(job, sentences))
        try:
            for _ in sentences:
                await self._send(job, await self._lane.run(job, text.part))
            return text.outcome(await self._lane.run(job, text.rest))
        finally:
            text.close()

    def close(self) -> None:
        """Stop after the current sentence, or sooner, and the thread with it."""
        self._lane.close()

    async def _send(self, job: Job, data: bytes) -> None:
        """Emit a piece of the file as fast as it is taken."""
        view = memoryview(data)
        for begin in range(0, len(view), PART_BYTES):
            if not job.writable:
                await job.drained()
            self._lane.look(job)
            job.emit(view[begin : begin + PART_BYTES])

    def _begin(self, job: Job, sentences: Sequence[str]) -> _Text:
        wishes: SpeechInput = job.input
        voice = choose(self._synthesizer.voices, wishes.voice)
        rate = fit_rate(wishes.format, wishes.sample_rate, self._synthesizer.rate)
        say = self._synthesizer.begin(wishes, voice, lambda: self._lane.look(job))
        return _Text(wishes, sentences, say, self._synthesizer.rate, rate)


class _Text:
    """One job's text while it is spoken. ``own`` and ``rate`` are the voice's and the file's.

    All but ``outcome`` and ``close`` is work for the lane.
    """

    def __init__(
        self, wishes: SpeechInput, sentences: Sequence[str], say: Say, own: int, rate: int
    ) -> None:
        self._wishes = wishes
        self._left = enumerate(sentences)
        self._say = say
        self._own = own
        self._rate = rate
        # one sentence is whole as soon as its first piece could be sent
        whole = wishes.whole or len(sentences) == 1
        self._encoder = Encoder(rate, wishes.format, whole=whole)
        self._tokens = 0
        self._samples = 0

    def part(self, job: Job) -> bytes:
        """Say the next sentence; return what of the file is ready by then."""
        samples = self._spoken()
        if not len(samples):
            return b""
        if self._samples:
            pause = numpy.zeros(round(PAUSE / self._wishes.speed * self._own), numpy.float32)
            samples = numpy.concatenate([pause, samples])
        return self._encoder.feed(self._resampled(samples))

    def rest(self, job: Job) -> bytes:
        """Return the end of the file."""
        if not self._samples:
            raise InvalidRequest(
                "'input' has nothing in it that this voice can say.", param="input"
            )
        return self._encoder.finish()

    def close(self) -> None:
        """Let go of the encoder."""
        self._encoder.close()

    def outcome(self, file: bytes) -> Outcome:
        """Return how the job ended; ``file`` is what is left to send of it."""
        usage = {
            "prompt_tokens": self._tokens,
            "characters": len(self._wishes.text),
            "samples": self._samples,
            "sample_rate": self._rate,
        }
        return Outcome(file, usage, SPEECH.units(self._wishes))

    def _spoken(self) -> Any:
        """Return the samples of the next sentence, at the voice's own rate."""
        spoken: Spoken = self._say(*next(self._left))
        if not numpy.isfinite(spoken.samples).all():
            raise RuntimeFailed("the voice made samples that are no numbers")
        self._tokens += spoken.tokens
        return spoken.samples

    def _resampled(self, samples: Any) -> Any:
        if self._rate != self._own:
            samples = soxr.resample(samples, self._own, self._rate)
        self._samples += len(samples)
        return samples


def _load(spec: LoadSpec, report: Callable[[float], None]) -> Synthesizer:
    """Load the voice at ``spec.path``, of whichever family it is."""
    path = Path(spec.path)
    if path.suffix == ".onnx":
        from blip_node.runtimes.speaking.piper import Piper

        return Piper(spec, report)
    if read_object(path / "config.json").get("model_type") == "speecht5":
        from blip_node.runtimes.speaking.speecht5 import SpeechT5

        return SpeechT5(spec, report)
    from blip_node.runtimes.speaking.vits import Vits

    return Vits(spec, report)

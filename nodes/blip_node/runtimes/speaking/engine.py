"""A loaded voice: from jobs to audio files, sentence by sentence.

Sentences of several jobs take turns on one thread. A client that takes its audio slowly keeps
nobody waiting: its next sentence is made when it wants it. A part is what a sentence adds to the
file, so that whoever goes on after it neither doubles nor loses any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import soxr

from blip.errors import InvalidRequest, RuntimeFailed
from blip.kinds.speech import SPEECH, Piece, SpeechInput, piece_to_wire
from blip_node.audio.encode import Encoder, fit_rate
from blip_node.models.files import read_object
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.speaking.sentences import split
from blip_node.runtimes.speaking.synthesizer import Say, Synthesizer, choose

#: Seconds of silence between two sentences at speed 1: voices end with their last sound, people
#: take a breath.
PAUSE = 0.25

#: Most bytes of a file that has to be held until it is whole (see ``SpeechInput.whole``; FLAC is
#: always). 25 minutes of WAV at 22 kHz: more than the longest text takes at speed 1.
MAX_WHOLE = 64 * 1024 * 1024


class Engine:
    """Speaks on one thread."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._lane = Lane("blip-speak")
        self._synthesizer = self._lane.first(lambda: _load(spec, report))
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Speak one job; see :meth:`blip_node.runtimes.speech.SpeechRuntime.run`."""
        text = await self._lane.run(job, self._begin)
        try:
            while text.said < text.sentences:
                if not job.writable:
                    await job.drained()
                data = await self._lane.run(job, text.part)
                if data:
                    job.emit(piece_to_wire(Piece(text.said, data)))
            return text.outcome(await self._lane.run(job, text.rest))
        finally:
            text.close()

    def close(self) -> None:
        """Stop after the current sentence, or sooner, and the thread with it."""
        self._lane.close()

    def _begin(self, job: Job) -> _Text:
        """Read all of a text, so that what is wrong with it is known before anything is said."""
        wishes: SpeechInput = job.input
        synthesizer = self._synthesizer
        voice = choose(synthesizer.voices, wishes.voice)
        rate = fit_rate(wishes.format, wishes.sample_rate, synthesizer.rate)
        sentences = []
        for piece in split(wishes.text):
            self._lane.look(job)  # a long text takes espeak a second or two
            sentence = synthesizer.read(piece, lenient=wishes.lenient)
            if sentence is not None:
                sentences.append(sentence)
        if not sentences:
            raise InvalidRequest(
                "'input' has nothing in it that this voice can say.", param="input"
            )
        say = synthesizer.begin(wishes, voice, lambda: self._lane.look(job))
        return _Text(wishes, sentences, say, synthesizer.rate, rate)


class _Text:
    """One job's text while it is spoken. ``own`` and ``rate`` are the voice's and the file's.

    ``part`` and ``rest`` are work for the lane.
    """

    def __init__(
        self, wishes: SpeechInput, sentences: Sequence[Any], say: Say, own: int, rate: int
    ) -> None:
        self._wishes = wishes
        self._texts = sentences
        self._say = say
        self._own = own
        self._rate = rate
        self.sentences = len(sentences)
        #: Sentences that were said, here or elsewhere before.
        self.said = min(wishes.skip, len(sentences))
        # one sentence is whole as soon as its first piece could be sent
        whole = wishes.whole or len(sentences) == 1
        self._encoder = Encoder(rate, wishes.format, whole=whole, begun=self.said > 0)
        self._tokens = 0
        self._samples = 0

    def part(self, job: Job) -> bytes:
        """Say the next sentence; return what of the file is ready by then."""
        spoken = self._say(self.said, self._texts[self.said])
        self.said += 1
        samples = spoken.samples
        if not numpy.isfinite(samples).all():
            raise RuntimeFailed("the voice made samples that are no numbers")
        self._tokens += spoken.tokens
        if self.said < self.sentences:
            pause = numpy.zeros(round(PAUSE / self._wishes.speed * self._own), numpy.float32)
            samples = numpy.concatenate([samples, pause])
        if self._rate != self._own:
            samples = soxr.resample(samples, self._own, self._rate)
        self._samples += len(samples)
        ready = self._encoder.feed(samples)
        if self._encoder.held > MAX_WHOLE:
            raise InvalidRequest(
                f"'input' is too long for a file that comes whole: it is over {MAX_WHOLE >> 20} MiB"
                " before its end.",
                hint="Say less at once, or ask for mp3, opus, wav or pcm, and take it as it comes.",
                param="input",
            )
        return ready

    def rest(self, job: Job) -> bytes:
        """Return the end of the file."""
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

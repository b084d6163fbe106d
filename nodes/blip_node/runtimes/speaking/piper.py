"""Voices of Piper, through piper-tts and onnxruntime.

Its engine is under the GPL. It is an optional extra, imported by no other module than this one,
and by this one only in a worker that loads such a voice.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from blip.errors import ModelLoadFailed
from blip.kinds.speech import SpeechInput
from blip_node.models.piper import config_of, read_voice
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.loading import load_failure
from blip_node.runtimes.speaking.synthesizer import DEFAULT, Say, Spoken

#: Seeds that onnxruntime takes.
_SEEDS = 1 << 31


class Piper:
    """Implements :class:`~blip_node.runtimes.speaking.synthesizer.Synthesizer`."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        try:
            from piper import PiperConfig, PiperVoice, SynthesisConfig  # isort: skip
            import onnxruntime  # one of its own dependencies
        except ImportError as error:
            raise ModelLoadFailed(
                f"model '{spec.model}' is a voice of Piper, and Piper is not installed here "
                f"({error})",
                hint="pip install 'blip-mesh[piper]'. Its engine is under the GPL.",
            ) from None
        report(0.1)
        file = Path(spec.path)
        described = read_voice(file)
        self._spec = spec
        self._ort = onnxruntime
        self._wishes = SynthesisConfig
        try:
            config = PiperConfig.from_dict(json.loads(config_of(file).read_text("utf-8")))
            self._voice = PiperVoice(config=config, session=self._session())
        except Exception as error:
            raise load_failure(spec, error) from error
        report(0.9)
        self.rate = described.sample_rate
        self._speakers = described.speakers
        first = config.default_speaker_id
        # the default one first, the others in the order of their ids
        self.voices = sorted(
            self._speakers, key=lambda name: (self._speakers[name] != first, self._speakers[name])
        ) or [DEFAULT]
        self._pace = float(config.length_scale)

    def read(self, sentence: str, *, lenient: bool) -> str | None:
        """Return the sentence if espeak finds a sound in it. It reads every letter somehow."""
        return sentence if any(self._voice.phonemize(sentence)) else None

    def begin(self, wishes: SpeechInput, voice: str, look: Callable[[], None]) -> Say:
        """Speak at the voice's own length of sounds divided by the speed.

        Its noise is drawn inside the model, by a generator that is seeded when a session is made:
        a text with a seed gets a session of its own.
        """
        speaks = self._voice
        if wishes.seed is not None:
            self._ort.set_seed(wishes.seed % _SEEDS)
            speaks = dataclasses.replace(self._voice, session=self._session())
        asked = self._wishes(
            speaker_id=self._speakers.get(voice),
            length_scale=self._pace / wishes.speed,
        )

        def say(number: int, sentence: str) -> Spoken:
            spoken, tokens = [], 0
            for chunk in speaks.synthesize(sentence, asked):
                spoken.append(chunk.audio_float_array)
                tokens += len(chunk.phoneme_ids)
                look()
            return Spoken(numpy.concatenate(spoken), tokens)

        return say

    def _session(self) -> Any:
        """Load the network; on a GPU where this onnxruntime knows it, else on the CPU."""
        options = self._ort.SessionOptions()
        if self._spec.threads is not None:
            options.intra_op_num_threads = self._spec.threads
        providers = ["CPUExecutionProvider"]
        cuda = "CUDAExecutionProvider"
        if self._spec.device.startswith("cuda") and cuda in self._ort.get_available_providers():
            providers.insert(0, cuda)
        return self._ort.InferenceSession(self._spec.path, options, providers=providers)

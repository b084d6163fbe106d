"""VITS through transformers: Meta's MMS voices, and others that read letters."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import torch
import transformers

from blip.errors import ModelLoadFailed
from blip.kinds.speech import SpeechInput
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.loading import load_model, load_part
from blip_node.runtimes.speaking.chance import seeder
from blip_node.runtimes.speaking.synthesizer import DEFAULT, Say, Spoken, unsayable
from blip_node.runtimes.watched import Watched

#: Languages, as tokenizers name them, whose numbers transformers can spell out.
_ENGLISH = frozenset({"eng", "en", "en-us", "en-gb", "english"})


class Vits:
    """Implements :class:`~blip_node.runtimes.speaking.synthesizer.Synthesizer`."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._tokenizer = _tokenizer(spec)
        report(0.1)
        self._network = load_model(spec, "VitsModel", report, unused=())
        config = self._network.config
        self.rate = int(config.sampling_rate)
        speakers = max(1, int(config.num_speakers))
        self.voices = [str(number) for number in range(speakers)] if speakers > 1 else [DEFAULT]
        self._pace = float(config.speaking_rate)
        network = self._network
        self._watched = Watched((network.text_encoder, network.flow, network.decoder))
        self._reader = _Reader(self._tokenizer)

    def read(self, sentence: str, *, lenient: bool) -> Any | None:
        """Return the ids of a sentence's characters."""
        text = self._reader.read(sentence, lenient=lenient)
        if not text.strip():
            return None
        ids = self._tokenizer(text, return_tensors="pt")["input_ids"]
        return ids if ids.shape[1] else None

    def begin(self, wishes: SpeechInput, voice: str, look: Callable[[], None]) -> Say:
        """Speak with seeded noise, at the model's own rate of speaking times the speed."""
        speaker = self.voices.index(voice) if len(self.voices) > 1 else None
        sow = seeder(wishes.seed)

        def say(number: int, ids: Any) -> Spoken:
            self._watched.look = look
            sow(number)
            with torch.inference_mode():
                output = self._network(
                    input_ids=ids.to(self._network.device),
                    speaker_id=speaker,
                    speaking_rate=self._pace * wishes.speed,
                )
            return Spoken(output.waveform[0].float().cpu().numpy(), int(ids.shape[1]))

        return say


class _Reader:
    """Prepares sentences for a tokenizer, which drops what it does not know without a word."""

    def __init__(self, tokenizer: Any) -> None:
        self._known = set(tokenizer.encoder)
        self._lower = bool(tokenizer.normalize)
        # then the tokenizer writes every script in Roman letters, or as sounds
        self._rewrites = bool(tokenizer.is_uroman or tokenizer.phonemize)
        self._numbers: Any = None
        digits = all(digit in self._known for digit in "0123456789")
        if not digits and str(tokenizer.language or "").lower() in _ENGLISH:
            from transformers.models.speecht5.number_normalizer import EnglishNumberNormalizer

            self._numbers = EnglishNumberNormalizer()

    def read(self, sentence: str, *, lenient: bool) -> str:
        """Return a sentence in characters that the voice has a sound for.

        Numbers become words in English, letters lose accents that the voice does not know. Raises
        :class:`~blip.errors.InvalidRequest` for letters and digits that are left, unless lenient.
        """
        if self._numbers is not None:
            sentence = self._numbers(sentence)
        if self._rewrites:
            return sentence
        read = "".join(map(self._sound, sentence))
        unknown = [char for char in read if char.isalnum() and not self._knows(char)]
        if unknown and not lenient:
            raise unsayable(
                unknown, "Write it with the letters of the voice's language, numbers as words."
            )
        return "".join(char for char in read if self._knows(char))

    def _knows(self, char: str) -> bool:
        return char in self._known or (self._lower and char.lower() in self._known)

    def _sound(self, char: str) -> str:
        if self._knows(char):
            return char
        base = unicodedata.normalize("NFKD", char)
        return "".join(each for each in base if self._knows(each)) or char


def _tokenizer(spec: LoadSpec) -> Any:
    tokenizer = load_part(spec, "VitsTokenizer")
    lacks = []
    if tokenizer.phonemize and not transformers.utils.is_phonemizer_available():
        lacks.append("phonemizer (which needs espeak-ng)")
    if tokenizer.is_uroman and not transformers.utils.is_uroman_available():
        lacks.append("uroman")
    if lacks:
        raise ModelLoadFailed(
            f"model '{spec.model}' reads what the Python package {lacks[0]} writes, and that is "
            "not installed here",
            hint="Install it beside blip, or choose a voice that reads letters, such as "
            "hf:facebook/mms-tts-eng, or one of Piper's (docs/speech.md).",
        )
    return tokenizer

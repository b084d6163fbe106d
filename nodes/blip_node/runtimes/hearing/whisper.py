"""The Whisper family: windows of 30 seconds, one after the other.

OpenAI's sequential algorithm (https://github.com/openai/whisper, whisper/transcribe.py): a window
begins where the last segment of the one before ended, and is told what was said before.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers.models.whisper import tokenization_whisper

from blip.errors import ContextTooLong, InvalidRequest, ModelLoadFailed, UnsupportedField
from blip.kinds.sounds import MIN_SECONDS
from blip.kinds.transcription import Segment, Transcript, TranscriptionInput, Word
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.hearing.alignment import align, words_of
from blip_node.runtimes.hearing.decoding import (
    LEAST_LOGPROB,
    SILENCE,
    TEMPERATURES,
    Decoded,
    Decoder,
)
from blip_node.runtimes.hearing.listener import Watch
from blip_node.runtimes.hearing.loading import load_speech
from blip_node.runtimes.hearing.segments import Piece, cut
from blip_node.runtimes.watched import Watched

#: Above this temperature what was said is no good beginning for what comes next. OpenAI's.
_COLD = 0.5

_TASKS = {"transcription": "transcribe", "translation": "translate"}


class _Opening(NamedTuple):
    """What the model says of a window before any word: the language, and whether nobody speaks."""

    language: str | None
    no_speech: float


class _Wished(NamedTuple):
    """What is wanted of every window."""

    kind: str
    language: str | None
    temperatures: tuple[float, ...]
    seed: int
    words: bool


class WhisperListener:
    """A loaded model; see :class:`~blip_node.runtimes.hearing.listener.Listener`."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._model, self._extractor, self._tokenizer = load_speech(
            spec, "AutoModelForSpeechSeq2Seq", report
        )
        self._name = spec.model
        own, config = self._model.generation_config, self._model.config
        if getattr(own, "no_timestamps_token_id", None) is None:
            raise ModelLoadFailed(
                f"model '{spec.model}': its generation_config.json names no timestamp tokens"
            )
        self.rate = int(self._extractor.sampling_rate)
        self._window = int(self._extractor.n_samples)
        #: Seconds of one of the encoder's frames, and of one timestamp.
        self._step = self._window / self.rate / config.max_source_positions
        #: Half of the decoder's window is for what was said before, half for what is.
        self._room = config.max_target_positions // 2
        self._decoder = Decoder(self._model, self._tokenizer, self._room)
        # a window takes the encoder of a large model on a CPU many seconds
        self._watched = Watched(self._model.get_encoder().layers)
        self._languages: dict[str, int] = {
            name.strip("<|>"): id for name, id in (getattr(own, "lang_to_id", None) or {}).items()
        }
        self._tasks: dict[str, int] = getattr(own, "task_to_id", None) or {}
        self._start = int(own.decoder_start_token_id)
        # the mark of silence has had two names; its place was always the same
        self._silence = int(own.no_timestamps_token_id) - 1

    # --- what is wished ---------------------------------------------------------------------

    def check(self, kind: str, wishes: TranscriptionInput) -> None:
        """Refuse what this model cannot do, and a prompt that it would not read to its end."""
        if kind == "translation" and _TASKS[kind] not in self._tasks:
            raise UnsupportedField(
                f"{self._name} knows English only and cannot translate.",
                hint="Choose a multilingual model.",
                param="model",
            )
        self._language(wishes.language)
        if wishes.words and not getattr(self._model.generation_config, "alignment_heads", None):
            raise UnsupportedField(
                f"'timestamp_granularities': {self._name} does not tell when a word was said: its "
                "generation_config.json names no alignment_heads.",
                hint="Ask for segments.",
                param="timestamp_granularities",
            )
        self._prompt(wishes.prompt)

    def _language(self, given: str | None) -> str | None:
        """Return the code of the language that was given."""
        if given is None:
            return None if self._languages else "en"
        word = given.strip().lower().replace("_", "-")
        known = self._languages or {"en": 0}
        codes = tokenization_whisper.TO_LANGUAGE_CODE
        for code in (word, codes.get(word, ""), word.partition("-")[0]):
            if code in known:
                return str(code)
        near = difflib.get_close_matches(word, [*known, *codes], n=3)
        names = ", ".join(sorted(known))
        raise InvalidRequest(
            f"'language': {self._name} does not know {given!r}.",
            hint=f"Did you mean {' or '.join(near)}?" if near else f"It knows {names}.",
            param="language",
        )

    def _prompt(self, text: str) -> list[int]:
        """Return the tokens of a prompt. Raises ``ContextTooLong`` if there are too many."""
        text = text.strip()
        if not text:
            return []
        tokens: list[int] = self._tokenizer.encode(f" {text}", add_special_tokens=False)
        limit = self._room - 1
        if len(tokens) > limit:
            raise ContextTooLong(
                f"'prompt' has {len(tokens)} tokens; the model reads {limit}.",
                hint="Shorten it: what is beyond would be ignored.",
                param="prompt",
                details={"prompt_tokens": len(tokens), "limit": limit},
            )
        return [token for token in tokens if token < self._decoder.end]

    # --- listening --------------------------------------------------------------------------

    def listen(
        self, kind: str, wishes: TranscriptionInput, samples: Any, watch: Watch
    ) -> Transcript:
        """Return what is said in the samples."""
        hot = wishes.temperature
        wished = _Wished(
            kind,
            self._language(wishes.language),
            (hot,) if hot > 0 else TEMPERATURES,
            (wishes.seed or 0) % 2**63,
            wishes.words,
        )
        duration = len(samples) / self.rate
        said = self._prompt(wishes.prompt)
        segments: list[Segment] = []
        at = 0
        while at < len(samples) and (len(samples) - at >= MIN_SECONDS * self.rate or at == 0):
            watch.look()
            window = samples[at : at + self._window]
            with self._watched.by(watch.look):
                encoded = self._encode(window)
            watch.look()
            opening = self._open(encoded)
            if wished.language is None:
                wished = wished._replace(language=opening.language)
            found, decoded, advance = self._hear(
                wished, encoded, said, at, len(window), opening, watch
            )
            segments += found
            said += [token for segment in found for token in segment.tokens]
            if decoded.temperature > _COLD:
                said = []
            at += max(1, round(advance * self.rate))
            watch.tell(found, at / self.rate, duration)
        language = "en" if kind == "translation" else wished.language
        named = tokenization_whisper.LANGUAGES.get(language or "", language)
        return Transcript(segments, duration, named)

    def _encode(self, window: Any) -> Any:
        features = self._extractor(
            window, sampling_rate=self.rate, return_tensors="pt"
        ).input_features
        features = features.to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            return self._model.get_encoder()(features)

    def _open(self, encoded: Any) -> _Opening:
        """Ask what comes after the very first mark: a language, or that nobody speaks."""
        ids = torch.tensor([[self._start]], device=self._model.device)
        with torch.inference_mode():
            logits = self._model(encoder_outputs=encoded, decoder_input_ids=ids).logits[0, -1]
        logits = logits.float()
        no_speech = float(logits.softmax(-1)[self._silence])
        if not self._languages:
            return _Opening(None, no_speech)
        codes = list(self._languages)
        best = int(logits[list(self._languages.values())].argmax())
        return _Opening(codes[best], no_speech)

    def _hear(
        self,
        wished: _Wished,
        encoded: Any,
        said: list[int],
        at: int,
        size: int,
        opening: _Opening,
        watch: Watch,
    ) -> tuple[list[Segment], Decoded, float]:
        """Return a window's segments, how they were decoded, and the seconds to go on by."""

        def silent(decoded: Decoded) -> bool:
            return opening.no_speech > SILENCE and decoded.avg_logprob < LEAST_LOGPROB

        mark = self._mark(wished)
        before = said[-(self._room - 1) :]
        previous = getattr(self._model.generation_config, "prev_sot_token_id", None)
        prefix = [int(previous), *before, *mark] if before and previous is not None else mark
        decoded = self._decoder.decode(
            encoded,
            prefix,
            wished.temperatures,
            (wished.seed + at) % 2**63,  # each window's own, the same wherever it runs
            silent,
            watch.look,
        )
        seconds = size / self.rate
        if silent(decoded):
            return [], decoded, seconds
        pieces, advance = cut(decoded.tokens, self._decoder.first_stamp, self._step, seconds)
        offset = at / self.rate
        words: list[list[Word]] | None = None
        if wished.words:
            words = self._words(wished, encoded, mark, pieces, seconds, offset)
            watch.look()
        found = []
        for number, piece in enumerate(pieces):
            found.append(
                Segment(
                    offset + piece.start,
                    offset + piece.end,
                    self._decoder.text(piece.tokens),
                    piece.tokens,
                    offset,
                    decoded.temperature,
                    decoded.avg_logprob,
                    decoded.compression,
                    opening.no_speech,
                    None if words is None else words[number],
                )
            )
        return found, decoded, advance

    def _mark(self, wished: _Wished) -> list[int]:
        """Return the marks that say what is to be done."""
        if not self._languages:
            return [self._start]
        assert wished.language is not None
        return [self._start, self._languages[wished.language], self._tasks[_TASKS[wished.kind]]]

    def _words(
        self,
        wished: _Wished,
        encoded: Any,
        mark: list[int],
        pieces: list[Piece],
        seconds: float,
        offset: float,
    ) -> list[list[Word]]:
        """Return the words of each piece, with their times."""
        tokens = [token for piece in pieces for token in piece.tokens if token < self._decoder.end]
        if not tokens:
            return [[] for _ in pieces]
        frames = max(1, min(self._model.config.max_source_positions, round(seconds / self._step)))
        prefix = [*mark, self._decoder.first_stamp - 1]
        with torch.inference_mode():
            starts = align(self._model, encoded, prefix, tokens, frames)
        language = "en" if wished.kind == "translation" else wished.language
        named = tokenization_whisper.LANGUAGES.get(language or "", language)
        places = words_of(self._tokenizer, tokens, starts, named, self._step, offset)
        found = []
        for piece in pieces:
            count = sum(token < self._decoder.end for token in piece.tokens)
            found.append([word for words in places[:count] for word in words])
            places = places[count:]
        return found

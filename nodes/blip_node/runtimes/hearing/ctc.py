"""Models with a CTC head (Wav2Vec2, HuBERT, WavLM, Parakeet, ...): a token, or none, a frame.

What a frame says is taken greedily, repeats count once and blanks not at all:
https://www.cs.toronto.edu/~graves/icml_2006.pdf, section 3.2. Its place in time is the token's.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from blip.errors import ModelLoadFailed, RuntimeFailed, UnsupportedField
from blip.kinds.transcription import Segment, Transcript, TranscriptionInput, Word
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.hearing.listener import Watch
from blip_node.runtimes.hearing.loading import load_speech, on_model

#: Seconds that are computed at once, and how many of them at each end are only there to be heard:
#: attention takes time by the square of its length, and a model wants to know what comes next.
_WINDOW, _MARGIN = 25.0, 2.5

#: Seconds without a word after which a segment ends: speakers pause so long between sentences.
_PAUSE = 0.6

#: Seconds after which a segment ends with the next word, pause or not: two lines of a subtitle.
_LONG = 8.0


class _Token(NamedTuple):
    """A token, its text, and the seconds where it begins and ends."""

    id: int
    text: str
    start: float
    end: float


class CtcListener:
    """A loaded model; see :class:`~blip_node.runtimes.hearing.listener.Listener`."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._model, self._extractor, self._tokenizer = load_speech(spec, "AutoModelForCTC", report)
        self._name = spec.model
        self.rate = int(self._extractor.sampling_rate)
        blank = self._model.config.pad_token_id
        if blank is None:
            raise ModelLoadFailed(f"model '{spec.model}': its config names no pad_token_id")
        self._blank = int(blank)
        self._delimiter = getattr(self._tokenizer, "word_delimiter_token", None)

    def check(self, kind: str, wishes: TranscriptionInput) -> None:
        """Refuse what only a model with a decoder can do."""
        refused = {
            "language": wishes.language is not None,
            "prompt": bool(wishes.prompt),
            "temperature": wishes.temperature > 0,
        }
        for field, asked in refused.items():
            if asked:
                raise UnsupportedField(
                    f"'{field}': {self._name} has a CTC head, which takes none.",
                    hint="Leave it out, or choose a Whisper model.",
                    param=field,
                )

    def listen(
        self, kind: str, wishes: TranscriptionInput, samples: Any, watch: Watch
    ) -> Transcript:
        """Return what is said in the samples."""
        duration = len(samples) / self.rate
        segments: list[Segment] = []
        open_tokens: list[_Token] = []
        last = self._blank
        for ids, start, step in self._windows(samples, watch):
            open_tokens += self._tokens(ids, start, step, last)
            last = ids[-1] if ids else last
            *whole, open_tokens = self._split(open_tokens)
            found = [self._segment(tokens, wishes) for tokens in whole]
            segments += found
            watch.tell(found, start + len(ids) * step, duration)
        if open_tokens:
            segments.append(self._segment(open_tokens, wishes))
        if segments:
            first = segments[0]
            segments[0] = first._replace(text=first.text.lstrip())
        return Transcript(segments, duration)

    def _windows(self, samples: Any, watch: Watch) -> Iterator[tuple[list[int], float, float]]:
        """Yield the likeliest ids of the frames, where the first begins, and a frame's seconds."""
        margin, core = int(_MARGIN * self.rate), int((_WINDOW - 2 * _MARGIN) * self.rate)
        if len(samples) <= _WINDOW * self.rate:
            core = len(samples)
        for begin in range(0, len(samples), core):
            watch.look()
            end = min(begin + core, len(samples))
            low, high = max(0, begin - margin), min(len(samples), end + margin)
            ids = self._frames(samples[low:high])
            step = (high - low) / max(1, len(ids))  # samples a frame
            first, stop = round((begin - low) / step), round((end - low) / step)
            yield ids[first:stop], begin / self.rate, step / self.rate

    def _frames(self, samples: Any) -> list[int]:
        inputs = self._extractor(samples, sampling_rate=self.rate, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**on_model(self._model, inputs)).logits[0]
            if not torch.isfinite(logits).all():
                raise RuntimeFailed("the model computed NaN or infinity instead of letters")
            ids: list[int] = logits.argmax(-1).tolist()
        return ids

    def _tokens(self, ids: list[int], start: float, step: float, last: int) -> Iterator[_Token]:
        """Collapse the frames of a window; ``last`` is the id of the frame before it."""
        begin = 0
        for at, (before, here, after) in enumerate(
            zip([last, *ids], ids, [*ids[1:], None], strict=False)
        ):
            if here != before:
                begin = at
            if here != after and here != self._blank and not (begin == 0 and ids[0] == last):
                yield _Token(here, self._text(here), start + begin * step, start + (at + 1) * step)

    def _text(self, id: int) -> str:
        token = self._tokenizer.convert_ids_to_tokens(id)
        if token == self._delimiter:
            return " "
        if token in self._tokenizer.all_special_tokens:
            return ""
        return str(token).replace("\u2581", " ")  # how SentencePiece writes the space before a word

    def _split(self, tokens: list[_Token]) -> list[list[_Token]]:
        """Cut tokens where nobody speaks; the last piece may go on in the next window."""
        pieces: list[list[_Token]] = [[]]
        for token in tokens:
            piece = pieces[-1]
            spoken = [each for each in piece if each.text.strip()]
            if spoken and token.text:
                pause = token.text.strip() and token.start - spoken[-1].end >= _PAUSE
                long = token.text[0] == " " and token.start - spoken[0].start >= _LONG
                if pause or long:
                    # a space belongs to the word behind it
                    keep = piece.index(spoken[-1]) + 1
                    pieces[-1], rest = piece[:keep], piece[keep:]
                    pieces.append(rest)
            pieces[-1].append(token)
        return pieces

    def _segment(self, tokens: list[_Token], wishes: TranscriptionInput) -> Segment:
        text = "".join(token.text for token in tokens)
        spoken = [token for token in tokens if token.text.strip()] or tokens
        raw = text.encode()
        return Segment(
            spoken[0].start,
            spoken[-1].end,
            text,
            [token.id for token in tokens],
            compression=len(raw) / len(zlib.compress(raw)) if raw else None,
            words=_words(tokens) if wishes.words else None,
        )


def _words(tokens: list[_Token]) -> list[Word]:
    """Join tokens to words: a space begins one, wherever it stands."""
    starts = [0, *(at for at, token in enumerate(tokens) if at and token.text[:1] == " ")]
    found = []
    for begin, end in pairwise([*starts, len(tokens)]):
        spoken = [token for token in tokens[begin:end] if token.text.strip()]
        if spoken:
            text = "".join(token.text for token in spoken).strip()
            found.append(Word(text, spoken[0].start, spoken[-1].end))
    return found

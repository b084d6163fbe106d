"""``transcription`` and ``translation``: a sound file in, what is said in it out, with times.

Both take the same input; a translation is always to English.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgpack
from pydantic import Field, StringConstraints

from blip.kinds.base import Kind, TaskInput
from blip.kinds.sounds import seconds_of

#: Longest prompt in characters. What is before a window of 30 seconds has room for some 220 tokens.
MAX_PROMPT = 8_000


class TranscriptionInput(TaskInput):
    """What to listen to. What is None is left to the model.

    ``file`` are the bytes of a sound file; ``language`` is what is spoken in it, as an ISO 639-1
    code or an English name; ``prompt`` is text that could stand before it. With ``words`` every
    word gets its time. With ``parts`` segments are sent as they are found.
    """

    file: bytes
    language: Annotated[str, StringConstraints(min_length=1, max_length=32)] | None = None
    prompt: Annotated[str, StringConstraints(max_length=MAX_PROMPT)] = ""
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    words: bool = False
    parts: bool = False


def _units(value: TranscriptionInput) -> float:
    """Seconds of sound, as its header has it."""
    return seconds_of(value.file)


TRANSCRIPTION = Kind("transcription", TranscriptionInput, _units)
TRANSLATION = Kind("translation", TranscriptionInput, _units)


class Word(NamedTuple):
    """A word with the punctuation that belongs to it; ``start`` and ``end`` are seconds."""

    text: str
    start: float
    end: float


class Segment(NamedTuple):
    """Some words that belong together; ``start`` and ``end`` are seconds of the whole sound.

    The texts of all segments, one behind the other, are the whole. ``tokens`` are the model's own
    ids, ``seek`` is where the window began that it was heard in, in seconds, ``temperature`` what
    that was decoded at in the end. ``avg_logprob``, the mean of the natural logarithms of
    the tokens' probabilities, ``compression`` (bytes of the window's text by bytes of it when
    compressed) and ``no_speech`` (the probability that nobody speaks) are of the whole window. What
    the model has not is None, as are words where none were asked for.
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    seek: float | None = None
    temperature: float | None = None
    avg_logprob: float | None = None
    compression: float | None = None
    no_speech: float | None = None
    words: list[Word] | None = None


class Heard(NamedTuple):
    """One DATA payload: the segments found since the last, and the seconds listened to so far."""

    segments: list[Segment]
    done: float
    duration: float


class Transcript(NamedTuple):
    """The DONE payload: all segments. ``language`` is an English name, None if it is not known."""

    segments: list[Segment]
    duration: float
    language: str | None = None

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(segment.text for segment in self.segments).strip()


def heard_to_wire(heard: Heard | Transcript) -> bytes:
    """Encode a payload as a msgpack array of arrays."""
    packed: bytes = msgpack.packb(heard)
    return packed


def heard_from_wire(payload: bytes | memoryview) -> Heard:
    """Decode a DATA payload. Raises ``ValueError`` or ``TypeError`` on anything else."""
    segments, done, duration = msgpack.unpackb(payload)
    return Heard(_segments(segments), float(done), float(duration))


def transcript_from_wire(payload: bytes | memoryview) -> Transcript:
    """Decode a DONE payload. Raises ``ValueError`` or ``TypeError`` on anything else."""
    segments, duration, language = msgpack.unpackb(payload)
    return Transcript(_segments(segments), float(duration), language)


def _segments(packed: list[list[object]]) -> list[Segment]:
    found = []
    for fields in packed:
        segment = Segment(*fields)  # type: ignore[arg-type]
        if segment.words is not None:
            segment = segment._replace(words=[Word(*word) for word in segment.words])
        found.append(segment)
    return found

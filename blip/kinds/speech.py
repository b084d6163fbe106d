"""``speech``: a text in, the bytes of an audio file out, sentence by sentence.

The parts are pieces of one file: put together, with the end of the task last, they are all of it.
A text of one sentence has no parts: its file comes whole, and its header says how long it is.

WAV and PCM go on elsewhere if a node fails: each of their parts is whole sentences, to the sample.
Encoders of the other formats hold back some of what they were given, and that is gone with them.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgpack
from pydantic import Field, StringConstraints

from blip.kinds.base import Kind, TaskInput

SpeechFormat = Literal["mp3", "opus", "flac", "wav", "pcm"]

#: Media types of the formats. Opus comes in Ogg (RFC 7845); pcm is what OpenAI calls so, and has
#: no registered name: signed 16-bit little-endian samples, one channel, no header.
MEDIA: dict[str, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg; codecs=opus",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}

#: Samples a second of OpenAI's pcm, which has no header that could say another rate.
PCM_RATE = 24_000

#: Four times OpenAI's limit: some 18 minutes of speech, which a machine that speaks twice as fast
#: as people do makes within the ten minutes that a request may take.
MAX_CHARACTERS = 16_384

#: As OpenAI has it.
SLOWEST, FASTEST = 0.25, 4.0

#: Samples a second that may be asked for: the telephone's, to more than anybody hears.
MIN_RATE, MAX_RATE = 8_000, 48_000


class SpeechInput(TaskInput):
    """What to say. ``voice`` is a name of the model's, None its first; ``speed`` 1 its own pace.

    ``sample_rate`` is in samples a second, None the model's own or the next that the format knows.
    The first ``skip`` sentences, and what begins the file, were sent already and are left out.
    With ``whole`` there are no parts, and the file's header says how long it is. With ``lenient``
    what the voice has no sound for is left out, as long as something remains.
    """

    text: Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS)]
    voice: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    speed: Annotated[float, Field(ge=SLOWEST, le=FASTEST)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    format: SpeechFormat = "wav"
    sample_rate: Annotated[int, Field(ge=MIN_RATE, le=MAX_RATE)] | None = None
    skip: Annotated[int, Field(ge=0, le=MAX_CHARACTERS)] = 0
    whole: bool = False
    lenient: bool = False


def _units(value: SpeechInput) -> float:
    """Characters, at the speed that they are spoken at: most of the work goes into samples."""
    return len(value.text) / value.speed


class Piece(NamedTuple):
    """One DATA payload of a speech task; the DONE payload is bytes of the file alone.

    ``data`` are the next bytes of the file; with them ``said`` sentences of the text were made.
    """

    said: int
    data: bytes


def piece_to_wire(piece: Piece) -> bytes:
    """Encode a piece as a msgpack array."""
    packed: bytes = msgpack.packb(piece)
    return packed


def piece_from_wire(payload: bytes | memoryview) -> Piece:
    """Decode a DATA payload. Raises ``ValueError`` or ``TypeError`` on anything else."""
    said, data = msgpack.unpackb(payload)
    return Piece(said, data)


def _resume(value: SpeechInput, last: bytes | memoryview) -> SpeechInput | None:
    """Return the input of what is left to say after a piece."""
    if value.format not in ("wav", "pcm"):
        return None
    return value.model_copy(update={"skip": piece_from_wire(last).said})


SPEECH = Kind("speech", SpeechInput, _units, resumable=True, resume=_resume)

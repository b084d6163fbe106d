"""What was heard, as plain objects. Pure: bodies in, objects or errors out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blip.client.answers import Origin
from blip.errors import InternalError
from blip.kinds import captions


@dataclass(frozen=True, slots=True)
class HeardWord:
    """A word and when it is said, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class HeardSegment:
    """Some words that belong together; what a model does not know of itself is None."""

    text: str
    start: float
    end: float
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class TranscriptAnswer:
    """What was said. ``language`` is an English name, "" if the model does not tell it.

    ``duration`` is in seconds; ``words`` are there if they were asked for.
    """

    text: str
    language: str
    duration: float
    segments: list[HeardSegment]
    words: list[HeardWord]
    origin: Origin

    @property
    def srt(self) -> str:
        """It as SubRip subtitles."""
        return captions.srt(self.segments)

    @property
    def vtt(self) -> str:
        """It as WebVTT subtitles."""
        return captions.vtt(self.segments)


def transcript_from(body: Any, origin: Origin) -> TranscriptAnswer:
    """Read a ``verbose_json`` body. Raises :class:`~blip.errors.InternalError`."""
    try:
        return TranscriptAnswer(
            str(body["text"]),
            str(body.get("language") or ""),
            float(body["duration"]),
            [
                HeardSegment(
                    str(each["text"]),
                    float(each["start"]),
                    float(each["end"]),
                    each.get("avg_logprob"),
                    each.get("no_speech_prob"),
                    each.get("compression_ratio"),
                )
                for each in body.get("segments") or ()
            ],
            [
                HeardWord(str(each["word"]), float(each["start"]), float(each["end"]))
                for each in body.get("words") or ()
            ],
            origin,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InternalError(f"the gateway's answer is no transcript: {error!r}") from None

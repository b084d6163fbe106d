"""``POST /v1/audio/transcriptions`` and ``/translations``: what is said, OpenAI's way."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import InternalError, InvalidRequest
from blip.gateway.api import Operation
from blip.gateway.events import send_events
from blip.gateway.exchange import Exchange, News
from blip.gateway.fields import Refused
from blip.gateway.form import Choices, File, FormRequest
from blip.gateway.mesh import Answer
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.text import safe
from blip.kinds import Kind, captions
from blip.kinds.sounds import check_sound
from blip.kinds.transcription import (
    MAX_PROMPT,
    TRANSCRIPTION,
    TRANSLATION,
    Segment,
    Transcript,
    TranscriptionInput,
    heard_from_wire,
    transcript_from_wire,
)

#: Media types of the answers that are not JSON, and how each is written.
_WRITERS: dict[str, tuple[str, Callable[[Transcript], str]]] = {
    "text": ("text/plain", lambda found: f"{found.text}\n"),
    "srt": ("application/x-subrip", lambda found: captions.srt(found.segments)),
    "vtt": ("text/vtt", lambda found: captions.vtt(found.segments)),
}

#: Formats that a stream's events can stand for: they have text, and no more.
_STREAMED = ("json", "text")

_SPEAKERS = "Models here do not tell speakers apart."


class _SoundRequest(FormRequest):
    """Fields that mean the same in both requests."""

    files: ClassVar[Mapping[str, File]] = {
        "file": File(
            "The sound: WAV, MP3, FLAC or Ogg (Vorbis, Opus), two hours at most.", required=True
        )
    }

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """A name from GET /v1/models."""
    language: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    """What is spoken: an ISO 639-1 code such as de, or a name such as german; heard by default."""
    prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None
    """Text that could stand before it: names, spelling, style."""
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] | None = None
    """What to answer with; json by default."""
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    """How much chance there is. With 0, the default, none, unless the text is bad: then higher
    ones are tried."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed gives the same text, chance or not. Ours, not OpenAI's."""
    stream: bool | None = None
    """Whether to send events as it is heard."""
    progress: bool | None = None
    """Whether a stream tells how far it is. Ours, not OpenAI's."""

    @property
    def format(self) -> str:
        """What to answer with."""
        return self.response_format or "json"

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        if self.stream and self.format not in _STREAMED:
            raise InvalidRequest(
                f"'response_format': a stream has events of its own, not {self.format}.",
                hint="Leave one of both out; its events carry the times of what they say.",
                param=at + "response_format",
            )
        if self.progress and not self.stream:
            raise InvalidRequest("'progress' needs 'stream': true.", param=at + "progress")
        check_sound(self.upload("file") or b"", "file")

    def task(self, *, words: bool = False) -> TranscriptionInput:
        """Return the task. Without a seed one is drawn here, so that every node hears the same."""
        return TranscriptionInput(
            file=self.upload("file") or b"",
            language=self.language,
            prompt=self.prompt or "",
            temperature=self.temperature or 0.0,
            seed=random.getrandbits(31) if self.seed is None else self.seed,
            words=words,
            parts=bool(self.stream),
        )


class TranscriptionRequest(_SoundRequest):
    """A sound to write down."""

    lists: ClassVar[Mapping[str, Choices]] = {
        "timestamp_granularities": Choices(
            "What to give times for in verbose_json; segments by default. Words take longer.",
            ("segment", "word"),
        )
    }

    include: Annotated[Any, Refused("Ask for verbose_json: it has avg_logprob.")] = None
    chunking_strategy: Annotated[Any, Refused("It is chosen here.", "auto")] = None
    known_speaker_names: Annotated[Any, Refused(_SPEAKERS)] = None
    known_speaker_references: Annotated[Any, Refused(_SPEAKERS)] = None
    keywords: Annotated[Any, Refused("Say them in the prompt.")] = None
    languages: Annotated[Any, Refused("Set 'language', or leave it to the model.")] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        if self.chosen("timestamp_granularities") and self.format != "verbose_json":
            raise InvalidRequest(
                "'timestamp_granularities' needs 'response_format': verbose_json.",
                param=at + "timestamp_granularities",
            )


class TranslationRequest(_SoundRequest):
    """A sound to write down in English."""


# --- the answer ------------------------------------------------------------------------------


class SoundUsage(BaseModel):
    """What was listened to."""

    type: Literal["duration"] = "duration"
    seconds: float


class TranscriptSegment(BaseModel):
    """Some words that belong together. What a model does not know of itself is not there.

    ``seek`` is where the window begins that it was heard in, in hundredths of a second.
    """

    id: int
    seek: int | None = None
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float | None = None
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None


class TranscriptWord(BaseModel):
    """A word and when it is said, in seconds."""

    word: str
    start: float
    end: float


class TranscriptText(BaseModel):
    """What was said. All but ``text`` and ``usage`` come with verbose_json only.

    ``language`` is an English name, and not there if the model does not tell it.
    """

    text: str
    usage: SoundUsage
    task: Literal["transcribe", "translate"] | None = None
    language: str | None = None
    duration: float | None = None
    segments: list[TranscriptSegment] | None = None
    words: list[TranscriptWord] | None = None


class TranscriptEvent(BaseModel):
    """An event of a stream. ``type`` says which fields are there.

    ``transcript.text.delta`` has ``delta``, ``start`` and ``end``; ``transcript.progress`` has
    ``seconds`` of ``duration`` and comes if asked for; ``transcript.text.done`` has ``text``,
    ``duration``, ``usage`` and, where it is known, ``language``.
    """

    type: Literal["transcript.text.delta", "transcript.progress", "transcript.text.done"]
    delta: str | None = None
    start: float | None = None
    end: float | None = None
    seconds: float | None = None
    duration: float | None = None
    text: str | None = None
    language: str | None = None
    usage: SoundUsage | None = None


def _read(answer: Answer) -> Transcript:
    try:
        return transcript_from_wire(answer.payload)
    except (ValueError, TypeError) as error:
        raise InternalError("the node's transcript cannot be read") from error


def _segments(found: Transcript) -> list[TranscriptSegment]:
    return [
        TranscriptSegment(
            id=number,
            seek=None if each.seek is None else round(each.seek * 100),
            start=_thousandths(each.start),
            end=_thousandths(each.end),
            text=each.text,
            tokens=each.tokens,
            temperature=each.temperature,
            avg_logprob=each.avg_logprob,
            compression_ratio=each.compression,
            no_speech_prob=each.no_speech,
        )
        for number, each in enumerate(found.segments)
    ]


def _words(found: Transcript) -> list[TranscriptWord]:
    return [
        TranscriptWord(word=word.text, start=_thousandths(word.start), end=_thousandths(word.end))
        for segment in found.segments
        for word in segment.words or ()
    ]


def _thousandths(seconds: float) -> float:
    return round(seconds, 3)


def _usage(found: Transcript) -> SoundUsage:
    return SoundUsage(seconds=_thousandths(found.duration))


async def _hear(
    exchange: Exchange, body: _SoundRequest, kind: Kind, granularities: list[str]
) -> web.StreamResponse:
    words = "word" in granularities
    exchange.start(kind, body.model, [body.task(words=words)])
    if body.stream:
        return await send_events(exchange, _Events(progress=bool(body.progress)).render)
    (result,) = await exchange.results()
    found = _read(result.answer)
    if body.format in _WRITERS:
        media, write = _WRITERS[body.format]
        return web.Response(text=write(found), content_type=media, charset="utf-8")
    answer = TranscriptText(text=found.text, usage=_usage(found))
    if body.format == "verbose_json":
        answer.task = "translate" if kind is TRANSLATION else "transcribe"
        answer.language, answer.duration = found.language, _thousandths(found.duration)
        if "segment" in granularities or not words:
            answer.segments = _segments(found)
        if words:
            answer.words = _words(found)
    return web.Response(
        text=answer.model_dump_json(exclude_none=True), content_type="application/json"
    )


class _Events:
    """Writes :class:`TranscriptEvent` events."""

    def __init__(self, *, progress: bool) -> None:
        self._progress = progress
        self._told = 0
        self._begun = False

    def render(self, news: News) -> str:
        """Return the events of one part, or of the end."""
        _, item = news
        if isinstance(item, Answer):
            found = _read(item)
            done = TranscriptEvent(
                type="transcript.text.done",
                text=found.text,
                duration=_thousandths(found.duration),
                language=found.language,
                usage=_usage(found),
            )
            # what a client was too slow for has not been told yet
            return self._deltas(found.segments[self._told :]) + self._event(done)
        heard = heard_from_wire(item)
        events = self._deltas(heard.segments)
        if self._progress:
            events += self._event(
                TranscriptEvent(
                    type="transcript.progress",
                    seconds=_thousandths(heard.done),
                    duration=_thousandths(heard.duration),
                )
            )
        return events

    def _deltas(self, segments: list[Segment]) -> str:
        events = ""
        for segment in segments:
            self._told += 1
            text = segment.text if self._begun else segment.text.lstrip()
            if text:
                self._begun = True
                events += self._event(
                    TranscriptEvent(
                        type="transcript.text.delta",
                        delta=text,
                        start=_thousandths(segment.start),
                        end=_thousandths(segment.end),
                    )
                )
        return events

    @staticmethod
    def _event(event: TranscriptEvent) -> str:
        data = safe(json.dumps(event.model_dump(exclude_none=True), ensure_ascii=False))
        return f"event: {event.type}\ndata: {data}\n\n"


async def transcribe(exchange: Exchange, body: TranscriptionRequest) -> web.StreamResponse:
    """Write down what is said in a sound.

    Long sounds are listened to window by window; with stream: true what is found in each comes at
    once. verbose_json has the language, segments with their times, and words if asked for.
    """
    return await _hear(exchange, body, TRANSCRIPTION, body.chosen("timestamp_granularities"))


async def translate(exchange: Exchange, body: TranslationRequest) -> web.StreamResponse:
    """Write down in English what is said in a sound, whatever its language."""
    return await _hear(exchange, body, TRANSLATION, [])


def _operation(name: str, handler: Any, summary: str, body: Any) -> Operation:
    return Operation(
        "POST",
        f"/v1/audio/{name}",
        handler,
        summary,
        "audio",
        body=body,
        answer=TranscriptText,
        media={
            "text/plain": "With text: what was said.",
            "application/x-subrip": "With srt: subtitles.",
            "text/vtt": "With vtt: subtitles.",
        },
        task=True,
        event=TranscriptEvent,
        errors=TEXT_FAILURES,
        example={"model": "whisper", "file": "@speech.wav"},
    )


OPERATIONS = (
    _operation("transcriptions", transcribe, "Write a sound down", TranscriptionRequest),
    _operation("translations", translate, "Write a sound down in English", TranslationRequest),
)

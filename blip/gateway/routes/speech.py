"""``POST /v1/audio/speech``: texts to audio, OpenAI's way."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from blip.errors import UnsupportedField
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Refused, Request
from blip.gateway.routes.failures import TASK_FAILURES
from blip.gateway.sampling import ModelName, Seed
from blip.gateway.speaking import SpeechEvent, Speed, Text, VoiceName, speak, task_of
from blip.kinds.speech import MAX_RATE, MEDIA, MIN_RATE, PCM_RATE, SpeechFormat, SpeechInput


class Voice(Request):
    """A voice, as OpenAI writes those that are one's own."""

    id: VoiceName
    """Its name."""


class SpeechRequest(Request):
    """A text to say."""

    model: ModelName
    """A name from GET /v1/models."""
    input: Text
    """What to say."""
    voice: VoiceName | Voice | None = None
    """One of the model's voices; an unknown one gets a list of them. Without one, or with one of
    OpenAI's names (alloy, ...), the model's first speaks."""
    response_format: SpeechFormat | Literal["aac"] | None = None
    """The kind of file; mp3 by default. pcm is 24 kHz, 16 bit, one channel. aac is not
    supported."""
    speed: Speed | None = None
    """1 is the voice's own pace."""
    stream_format: Literal["audio", "sse"] | None = None
    """Whether to send the file itself, which is the default, or events."""
    seed: Seed | None = None
    """The same seed gives the same samples. Ours, not OpenAI's."""
    sample_rate: Annotated[int, Field(ge=MIN_RATE, le=MAX_RATE)] | None = None
    """Samples a second; the voice's own by default. Ours, not OpenAI's."""
    instructions: Annotated[Any, Refused("Voices here read as they read; choose another.", "")] = (
        None
    )

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.UnsupportedField` for what no node could do."""
        super().check(at)
        if self.response_format == "aac":
            raise UnsupportedField(
                "'response_format': aac is not supported.",
                hint=f"Choose one of {', '.join(MEDIA)}; opus is the smallest.",
                param=at + "response_format",
            )

    def task(self) -> SpeechInput:
        """Return the input of the task."""
        format = self.response_format or "mp3"
        return task_of(
            text=self.input,
            voice=self.voice.id if isinstance(self.voice, Voice) else self.voice,
            speed=self.speed,
            seed=self.seed,
            format=format,
            sample_rate=self.sample_rate or (PCM_RATE if format == "pcm" else None),
        )


async def create(exchange: Exchange, body: SpeechRequest) -> web.StreamResponse:
    """Say a text. The file is sent as it is made, sentence by sentence.

    A text of several sentences comes in chunks, without a length: a wav header then has none
    either, and flac comes at the end. If a node fails after the first piece, the connection breaks
    off before the end.
    """
    return await speak(exchange, body.model, body.task(), events=body.stream_format == "sse")


OPERATIONS = (
    Operation(
        "POST",
        "/v1/audio/speech",
        create,
        "Say a text",
        "audio",
        body=SpeechRequest,
        media={media: f"The file, with response_format {name}." for name, media in MEDIA.items()},
        event=SpeechEvent,
        errors=TASK_FAILURES,
        task=True,
        example={"model": "joe", "input": "Hello from the mesh.", "response_format": "wav"},
    ),
)

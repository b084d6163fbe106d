"""``POST /api/v1/inference/text-to-speech``: BitingLip's speech."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from blip.errors import InvalidRequest
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.routes.failures import TASK_FAILURES
from blip.gateway.routes.original.dialect import DIALECT, Finished, finished
from blip.gateway.sampling import ModelName
from blip.gateway.speaking import Speed, Text, VoiceName, task_of
from blip.kinds.speech import MEDIA, SPEECH, SpeechInput

#: The voice of BitingLip's default, which means whatever the model's first is called.
_FIRST = "speaker_0"


class SpeechGenerationRequest(Request):
    """A text to say."""

    model: ModelName
    """A name from GET /v1/models."""
    text: Text
    """What to say."""
    voice: VoiceName | None = None
    """One of the model's voices; speaker_0 is its first."""
    voice_id: VoiceName | None = None
    """The name that BitingLip's code has for the voice."""
    language: Annotated[str | None, Ignored()] = None
    speed: Speed | None = None
    """1 is the voice's own pace."""
    pitch: Annotated[Any, Refused("Choose another voice.", 1, 1.0)] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for two voices at once."""
        super().check(at)
        if self.voice is not None and self.voice_id is not None:
            raise InvalidRequest("'voice' and 'voice_id' are the same; send one.", param="voice_id")

    def task(self) -> SpeechInput:
        """Return the input of the task."""
        voice = self.voice or self.voice_id
        return task_of(
            text=self.text,
            voice=None if voice == _FIRST else voice,
            speed=self.speed,
            whole=True,
        )


class SpeechResult(BaseModel):
    """The audio."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    audio_url: str
    """Where anyone can fetch it for a while."""
    duration: float
    """Seconds."""
    format: Literal["wav"] = "wav"
    sample_rate: int
    model_used: str


class SpeechGeneration(Finished):
    """An answer that is complete."""

    result: SpeechResult


async def create(exchange: Exchange, body: SpeechGenerationRequest) -> web.StreamResponse:
    """Say a text, as BitingLip's documents ask for it.

    The audio is kept for a while, and audio_url is where it can be fetched.
    """
    exchange.start(SPEECH, body.model, [body.task()])
    ((_, answer),) = await exchange.results()
    rate = answer.usage.get("sample_rate", 0)
    result = SpeechResult(
        audio_url=await exchange.keep(answer.payload, MEDIA["wav"], "speech.wav"),
        duration=round(answer.usage.get("samples", 0) / rate, 3) if rate else 0.0,
        sample_rate=rate,
        model_used=body.model,
    )
    view = SpeechGeneration(result=result, **finished(exchange))
    return web.Response(text=view.model_dump_json(), content_type="application/json")


OPERATIONS = (
    Operation(
        "POST",
        "/api/v1/inference/text-to-speech",
        create,
        "Say a text",
        "bitinglip",
        body=SpeechGenerationRequest,
        answer=SpeechGeneration,
        errors=TASK_FAILURES,
        task=True,
        example={"model": "joe", "text": "Hello, welcome to BitingLip AI services!"},
        dialect=DIALECT,
    ),
)

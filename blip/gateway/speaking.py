"""How speech is answered: as bytes of a file while it is made, or as events."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from blip.gateway.events import send_events
from blip.gateway.exchange import Exchange, News
from blip.gateway.mesh import Answer
from blip.gateway.upload import encode_file
from blip.kinds.speech import (
    FASTEST,
    MAX_CHARACTERS,
    MEDIA,
    SLOWEST,
    SPEECH,
    SpeechInput,
    piece_from_wire,
)
from blip.protocol.messages import Payload

log = logging.getLogger(__name__)

Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
VoiceName = Annotated[str, Field(min_length=1, max_length=128)]
Speed = Annotated[float, Field(ge=SLOWEST, le=FASTEST)]


class SpeechUsage(BaseModel):
    """Tokens that were read. Audio is not made of tokens here."""

    input_tokens: int
    output_tokens: Literal[0] = 0
    total_tokens: int


class SpeechEvent(BaseModel):
    """An event of a stream.

    ``speech.audio.delta`` has ``audio``, the next piece of the file in base64;
    ``speech.audio.done`` has ``usage``.
    """

    type: Literal["speech.audio.delta", "speech.audio.done"]
    audio: str | None = None
    usage: SpeechUsage | None = None


async def speak(
    exchange: Exchange, model: str, task: SpeechInput, *, events: bool
) -> web.StreamResponse:
    """Run a task and answer with its file, as it is made."""
    exchange.start(SPEECH, model, [task])
    if events:
        return await send_events(exchange, _render)
    return await _send_file(exchange, MEDIA[task.format])


async def _send_file(exchange: Exchange, media: str) -> web.StreamResponse:
    """Write the file's pieces as they come; a file that comes whole has its length in the header.

    An error after the first piece cannot be told in the middle of a file: the connection is broken
    off, so that nobody takes half a speech for all of it.
    """
    async with aclosing(exchange.news()) as news:
        batch = await anext(news)
        response = web.StreamResponse(headers={"Content-Type": media, "X-Accel-Buffering": "no"})
        if not exchange.open_calls:
            response.content_length = sum(len(_piece(item)) for _, item in batch)
        exchange.stamp(response)
        await response.prepare(exchange.request)
        try:
            while True:
                for _, item in batch:
                    piece = _piece(item)
                    if piece:
                        await response.write(piece)
                if not exchange.open_calls:
                    break
                batch = await anext(news)
            await response.write_eof()
        except Exception as error:
            if not exchange.client_gone():
                failure = exchange.failure(error)
                log.warning("%s: a speech broke off: %s", exchange.request_id, failure.message)
                assert exchange.request.transport is not None
                exchange.request.transport.abort()
    return response


def _piece(item: Payload | Answer) -> Payload:
    return item.payload if isinstance(item, Answer) else piece_from_wire(item).data


def _render(news: News) -> str:
    _, item = news
    piece = _piece(item)
    text = ""
    if piece:
        # base64 needs no escaping
        audio = encode_file(piece)
        text = _event("speech.audio.delta", f'"audio":"{audio}"')
    if isinstance(item, Answer):
        tokens = item.usage.get("prompt_tokens", 0)
        usage = SpeechUsage(input_tokens=tokens, total_tokens=tokens)
        text += _event("speech.audio.done", f'"usage":{usage.model_dump_json()}')
    return text


def _event(name: str, facts: str) -> str:
    return f'event: {name}\ndata: {{"type":"{name}",{facts}}}\n\n'


def task_of(**fields: Any) -> SpeechInput:
    """Return the input of a task; None leaves a field to its default."""
    return SpeechInput(**{name: value for name, value in fields.items() if value is not None})

"""``POST /v1/echo``: the mesh without a model, for tests of everything else."""

from __future__ import annotations

import json
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from blip.errors import InvalidRequest
from blip.gateway.api import Operation
from blip.gateway.events import send_events
from blip.gateway.exchange import Exchange, News
from blip.gateway.fields import Request
from blip.gateway.mesh import Answer
from blip.gateway.routes.failures import TASK_FAILURES
from blip.gateway.text import quote
from blip.kinds.echo import ECHO, MAX_ECHO_BYTES, EchoInput
from blip.protocol.messages import Payload


class EchoRequest(EchoInput, Request):
    """What to say, how often and at what pace.

    It is the task's input itself: the fields that are not part of that are left out of dumps.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: Annotated[str, Field(exclude=True)] = "echo"
    stream: Annotated[bool, Field(exclude=True)] = False

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` if the whole would not fit into memory."""
        super().check(at)
        whole = (self.size or len(self.text.encode())) * self.chunks
        if not self.stream and whole > MAX_ECHO_BYTES:
            raise InvalidRequest(
                f"'chunks' of that size come to {whole} bytes; {MAX_ECHO_BYTES} at once is most.",
                hint="Set 'stream': true.",
                param=at + "chunks",
            )


class EchoAnswer(BaseModel):
    """All that was said."""

    text: str


class EchoChunk(BaseModel):
    """One chunk of a stream: its text, or for chunks of bytes only how many there were."""

    index: int
    text: str | None = None
    size: int | None = None


async def create(exchange: Exchange, body: EchoRequest) -> web.StreamResponse:
    """Give back what was sent, at a size and pace of your choosing.

    No model is involved, so what it costs is what the mesh costs. With size the answer is that
    many bytes, else it is the text.
    """
    exchange.start(ECHO, body.model, [body])
    if body.stream:
        return await send_events(exchange, _Chunks(binary=body.size > 0).render)
    ((parts, answer),) = await exchange.results()
    # the last chunk may come with the end of the task
    chunks = [*parts, answer.payload] if answer.payload else parts
    if body.size:
        return await _send_bytes(exchange, chunks)
    text = str(chunks[0] if len(chunks) == 1 else b"".join(chunks), "utf-8")
    return web.Response(text=f'{{"text":{json.dumps(text)}}}', content_type="application/json")


async def _send_bytes(exchange: Exchange, chunks: list[Payload]) -> web.StreamResponse:
    """Write the chunks as they lie in memory, none of them copied."""
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    response.content_length = sum(len(chunk) for chunk in chunks)
    exchange.stamp(response)
    await response.prepare(exchange.request)
    for chunk in chunks:
        await response.write(chunk)
    await response.write_eof()
    return response


class _Chunks:
    """Writes :class:`EchoChunk` events."""

    def __init__(self, *, binary: bool) -> None:
        self._binary = binary
        self._index = 0

    def render(self, news: News) -> str:
        _, item = news
        payload = item.payload if isinstance(item, Answer) else item
        if not payload:
            return ""
        index = self._index
        self._index += 1
        if self._binary:
            return f'data: {{"index":{index},"size":{len(payload)}}}\n\n'
        return f'data: {{"index":{index},"text":{quote(str(payload, "utf-8"))}}}\n\n'


OPERATIONS = (
    Operation(
        "POST",
        "/v1/echo",
        create,
        "Echo",
        "mesh",
        body=EchoRequest,
        answer=EchoAnswer,
        media={"application/octet-stream": "The bytes, where size was set."},
        event=EchoChunk,
        errors=TASK_FAILURES,
        task=True,
        example={"text": "hello"},
    ),
)

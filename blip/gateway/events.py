"""Streams: answers written piece by piece, as server-sent events or as lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import NamedTuple

from aiohttp import web

from blip.errors import BlipError
from blip.gateway.envelope import error_json
from blip.gateway.exchange import Exchange, News

#: OpenAI's last event of a stream that ended well.
DONE = "data: [DONE]\n\n"

#: The media type of server-sent events.
SSE = "text/event-stream; charset=utf-8"


def _failed(error: BlipError, request_id: str) -> str:
    return f"data: {error_json(error, request_id)}\n\n"


class Framing(NamedTuple):
    """How a dialect frames its streams; OpenAI's chat unless said otherwise.

    ``heartbeat`` is what may be sent while there is nothing to say, ``end`` what follows an answer
    that is whole, ``failed`` writes an error, and a request's id, after the stream has begun.
    """

    media: str = SSE
    heartbeat: str = ": still here\n\n"
    end: str = DONE
    failed: Callable[[BlipError, str], str] = _failed


#: The framing of OpenAI's chat.
EVENTS = Framing()


class EventStream:
    """A response that is written event by event, and never silent for long."""

    def __init__(self, heartbeat: float, framing: Framing = EVENTS) -> None:
        self.response = web.StreamResponse(
            headers={
                "Content-Type": framing.media,
                "Cache-Control": "no-cache",
                # nginx would collect events otherwise
                "X-Accel-Buffering": "no",
            }
        )
        self._every = heartbeat
        self._beat_text = framing.heartbeat.encode()
        self._loop = asyncio.get_running_loop()
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None

    async def open(self, request: web.Request) -> None:
        """Send the headers. Raises ``ConnectionError``."""
        await self.response.prepare(request)
        self._last = self._loop.time()
        self._timer = self._loop.call_later(self._every, self._check)

    async def send(self, events: str) -> None:
        """Write events, each ended by an empty line. Raises ``ConnectionError``."""
        self._last = self._loop.time()
        await self.response.write(events.encode())

    async def end(self, events: str = "") -> None:
        """Write the last events and end the response. Raises ``ConnectionError``."""
        await self.response.write_eof(events.encode())

    def stop(self) -> None:
        """Stop the heartbeat."""
        if self._timer is not None:
            self._timer.cancel()
        if self._beat is not None:
            self._beat.cancel()

    def _check(self) -> None:
        # one timer a stream that looks at the clock, rather than one a token
        due = self._last + self._every
        now = self._loop.time()
        if now >= due:
            self._last = now
            due = now + self._every
            self._beat = self._loop.create_task(self._write_beat())
        self._timer = self._loop.call_at(due, self._check)

    async def _write_beat(self) -> None:
        try:
            await self.response.write(self._beat_text)
        except (ConnectionError, RuntimeError):
            # the client left or the stream has just ended: its handler learns that by itself
            pass


async def send_events(
    exchange: Exchange,
    render: Callable[[News], str],
    opening: Callable[[], str] = str,
    closing: Callable[[], str] = str,
    framing: Framing = EVENTS,
) -> web.StreamResponse:
    """Answer with the news of the exchange's calls as a stream.

    ``render`` turns one piece of news into events, or "". All that is pending goes out in one
    write. An error that comes before anything else is raised; a later one becomes an event, after
    which the stream ends without its usual end, so that nobody takes half an answer for one.
    """
    async with aclosing(exchange.news()) as news:
        batch = await anext(news)
        stream = EventStream(exchange.gateway.settings.heartbeat, framing)
        exchange.stamp(stream.response)
        await stream.open(exchange.request)
        try:
            events = opening()
            while True:
                events += "".join(map(render, batch))
                if not exchange.open_calls:
                    break
                if events:
                    await stream.send(events)
                batch = await anext(news)
                events = ""
            await stream.end(events + closing() + framing.end)
        except Exception as error:
            if exchange.client_gone():
                raise
            failure = exchange.failure(error)
            await stream.end(framing.failed(failure, exchange.request_id))
        finally:
            stream.stop()
    return stream.response

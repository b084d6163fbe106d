"""Answers that come piece by piece: as bytes, or as server-sent events."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from blip.client.answers import Origin, ToolCall, piece_from, tool_calls
from blip.client.sse import Events
from blip.errors import BlipError, NodeLost

if TYPE_CHECKING:
    from blip.client.connection import Connection

#: Seconds to wait for a TCP connection. The gateway is on this machine or in this network; one
#: that needs longer is not there.
CONNECT_TIMEOUT = 5.0


class Reader:
    """One streamed answer, in an ``async with`` block.

    The request is sent when the block is entered; leaving the block early closes the connection.
    """

    def __init__(
        self,
        client: Connection,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._client = client
        self._path = path
        self._body = body
        self._headers = headers
        self._response: aiohttp.ClientResponse | None = None
        self.origin = Origin()
        self.media_type = ""

    async def __aenter__(self) -> Self:
        client = self._client
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT, sock_read=client._timeout
        )
        try:
            response = await client._open().post(
                client.url + self._path, json=self._body, headers=self._headers, timeout=timeout
            )
            if response.status >= 400:
                async with response:
                    body = await response.read()
                client._check(response.status, body, response.headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise client._unreachable(error) from error
        self._response = response
        self.origin = Origin.of(response.headers)
        self.media_type = response.headers.get("Content-Type", "")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._response is not None:
            # not release(): a connection with half an answer in it must not be used again
            self._response.close()

    async def chunk(self) -> bytes:
        """Return the next bytes, none after the last.

        Raises :class:`~blip.errors.NodeLost` if the connection breaks off.
        """
        if self._response is None:
            raise RuntimeError("iterate over a stream inside its `async with` block")
        try:
            return await self._response.content.readany()
        except TimeoutError as error:
            raise self._client._unreachable(error) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise NodeLost(f"the stream broke off: {error}") from error


class EventReader(Reader):
    """The data of each event of one streamed answer."""

    def __init__(
        self,
        client: Connection,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(client, path, body, headers)
        self._events = Events()
        self._data: deque[str] = deque()

    async def next(self) -> str | None:
        """Return the data of the next event, None after the last.

        Raises :class:`~blip.errors.NodeLost` if the stream breaks off before its end.
        """
        while not self._data:
            chunk = await self.chunk()
            if not chunk:
                raise NodeLost("the stream broke off before its end")
            self._data += self._events.feed(chunk)
        if self._data[0] == "[DONE]":
            return None
        return self._data.popleft()


class TextStream:
    """A text answer as it is made: iterate over its pieces, in an ``async with`` block.

    The request is sent when the block is entered, and errors that come before the first piece are
    raised there; leaving the block early cancels the task. ``finish_reason``, ``usage`` and
    ``tool_calls`` are known once the iteration has ended.
    """

    def __init__(
        self, client: Connection, path: str, body: dict[str, Any], headers: Mapping[str, str]
    ) -> None:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        self._reader = EventReader(client, path, body, headers)
        self._error: BlipError | None = None
        self.finish_reason = ""
        self.usage: Mapping[str, int] = {}
        self._calls: list[Mapping[str, Any]] = []

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The functions that the model calls, as far as they came."""
        return tool_calls(self._calls)

    @property
    def origin(self) -> Origin:
        """Who answers; known once the block is entered."""
        return self._reader.origin

    async def __aenter__(self) -> Self:
        await self._reader.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._reader.__aexit__(kind, error, trace)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._error is not None:
            raise self._error
        while (data := await self._reader.next()) is not None:
            try:
                piece = piece_from(data)
            except BlipError as error:
                self._error = error
                raise
            self.finish_reason = piece.finish_reason or self.finish_reason
            self.usage = piece.usage or self.usage
            self._calls += piece.calls
            if piece.text:
                return piece.text
        raise StopAsyncIteration

"""Speech."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from blip.client.answers import Origin
from blip.client.connection import Connection, body_of
from blip.client.options import Require, task_headers
from blip.client.stream import Reader

_PATH = "/v1/audio/speech"


@dataclass(frozen=True, slots=True)
class SpeechAnswer:
    """The bytes of an audio file, and its media type."""

    audio: bytes
    media_type: str
    origin: Origin


class SpeechStream:
    """An audio file as it is made: iterate over its pieces, in an ``async with`` block.

    The request is sent when the block is entered, and errors that come before the first piece are
    raised there; leaving the block early cancels the task.
    """

    def __init__(
        self, client: Connection, body: dict[str, Any], headers: Mapping[str, str]
    ) -> None:
        self._reader = Reader(client, _PATH, body, headers)

    @property
    def origin(self) -> Origin:
        """Who answers; known once the block is entered."""
        return self._reader.origin

    @property
    def media_type(self) -> str:
        """What kind of file it is; known once the block is entered."""
        return self._reader.media_type

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

    async def __anext__(self) -> bytes:
        chunk = await self._reader.chunk()
        if not chunk:
            raise StopAsyncIteration
        return chunk


class SpeechClient(Connection):
    """What voices are asked."""

    async def speak(
        self,
        model: str,
        text: str,
        *,
        voice: str | None = None,
        format: str | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> SpeechAnswer:
        """Say a text; return the audio file when it is whole.

        ``format`` is mp3 unless given: opus, flac, wav or pcm. Options go on under the route's
        names (``speed``, ``seed``, ``sample_rate``). Raises :class:`~blip.errors.NodeLost` if the
        answer breaks off, and what the mesh raises.
        """
        said: dict[str, Any] = {"priority": priority, "deadline": deadline, "require": require}
        stream = self.speak_stream(model, text, voice=voice, format=format, **said, **options)
        async with stream:
            audio = b"".join([piece async for piece in stream])
        return SpeechAnswer(audio, stream.media_type, stream.origin)

    def speak_stream(
        self,
        model: str,
        text: str,
        *,
        voice: str | None = None,
        format: str | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> SpeechStream:
        """Say a text; return its audio file piece by piece, with the options of ``speak``."""
        wishes = {"input": text, "voice": voice, "response_format": format, **options}
        headers = task_headers(priority, deadline, require)
        return SpeechStream(self, body_of(model, wishes), headers)

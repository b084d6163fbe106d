"""The blocking client: the asyncio one, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from blip.client.aio import AsyncBlip
from blip.client.answers import (
    EchoAnswer,
    EmbeddingAnswer,
    ImageAnswer,
    ModelInfo,
    Origin,
    TextAnswer,
)
from blip.client.stream import TextStream
from blip.client.text import Messages
from blip.client.videos import VideoAnswer

T = TypeVar("T")

#: Most seconds that a client that was interrupted waits to have said so: a gateway that is there
#: answers at once, and nobody waits long after Ctrl-C.
_FAREWELL = 2.0


class Blip:
    """As :class:`~blip.client.AsyncBlip`, for code without asyncio. Safe to use from any thread."""

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout: float = 600.0
    ) -> None:
        self._client = AsyncBlip(url, api_key, timeout=timeout)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="blip-client", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self._client.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. Idempotent."""
        if self._loop.is_closed():
            return
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Return whether the gateway says it is ready, and its report on each dependency."""
        return self._wait(self._client.ready())

    def models(self) -> list[ModelInfo]:
        """Return every model that the mesh serves."""
        return self._wait(self._client.models())

    def mesh(self) -> dict[str, Any]:
        """Return the mesh as its gateway sees it: nodes, devices, replicas, health."""
        return self._wait(self._client.mesh())

    def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks in flight, then those that ended lately."""
        return self._wait(self._client.tasks())

    def task(self, id: str) -> dict[str, Any]:
        """Return one task of the gateway's, by its id, or the start or the end of it."""
        return self._wait(self._client.task(id))

    def why(self, id: str) -> dict[str, Any]:
        """Return why a task ran where it ran: its ``task`` and the ``decisions`` about it."""
        return self._wait(self._client.why(id))

    def chat(self, model: str, messages: Messages, **options: Any) -> TextAnswer:
        """Return the assistant's next message."""
        return self._wait(self._client.chat(model, messages, **options))

    def chat_stream(self, model: str, messages: Messages, **options: Any) -> SyncTextStream:
        """Return the assistant's next message piece by piece, as it is made."""
        return SyncTextStream(self, self._client.chat_stream(model, messages, **options))

    def complete(self, model: str, prompt: str, **options: Any) -> TextAnswer:
        """Return the continuation of a text."""
        return self._wait(self._client.complete(model, prompt, **options))

    def complete_stream(self, model: str, prompt: str, **options: Any) -> SyncTextStream:
        """Return the continuation of a text piece by piece, as it is made."""
        return SyncTextStream(self, self._client.complete_stream(model, prompt, **options))

    def embed(self, model: str, texts: str | Sequence[str], **options: Any) -> EmbeddingAnswer:
        """Return one vector a text; options as :meth:`AsyncBlip.embed`'s."""
        return self._wait(self._client.embed(model, texts, **options))

    def image(self, model: str, prompt: str = "", **options: Any) -> ImageAnswer:
        """Paint pictures; see :meth:`blip.client.AsyncBlip.image` for the options."""
        return self._wait(self._client.image(model, prompt, **options))

    def video(self, model: str, prompt: str, **options: Any) -> VideoAnswer:
        """Make a video and wait for it; options as :meth:`AsyncBlip.video`'s.

        ``progress`` is called on the client's own thread. Ctrl-C stops the video.
        """
        ended = threading.Event()

        async def ask() -> VideoAnswer:
            try:
                return await self._client.video(model, prompt, **options)
            finally:
                ended.set()

        try:
            return self._wait(ask())
        except BaseException:
            # it tells the gateway to stop; closing the client now would cut that off
            ended.wait(_FAREWELL)
            raise

    def echo(self, text: str = "", *, model: str = "echo", **options: Any) -> EchoAnswer:
        """Send a task through the mesh that gives back what it was given."""
        return self._wait(self._client.echo(text, model=model, **options))

    def load(
        self, model: str, node: str | None = None, device: str | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Load a model and wait until it is ready; options as :meth:`AsyncBlip.load`'s.

        ``progress`` is called on the client's own thread.
        """
        return self._wait(self._client.load(model, node, device, **options))

    def unload(
        self, model: str, node: str | None = None, device: str | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Unload a model; options as :meth:`AsyncBlip.unload`'s."""
        return self._wait(self._client.unload(model, node, device, **options))

    def cordon(
        self, node: str, device: str | None = None, *, reason: str | None = None
    ) -> list[dict[str, Any]]:
        """Take a node, or one of its devices, out of service: it takes no new tasks."""
        return self._wait(self._client.cordon(node, device, reason=reason))

    def uncordon(self, node: str, device: str | None = None) -> list[dict[str, Any]]:
        """Put a node, or one of its devices, back into service."""
        return self._wait(self._client.uncordon(node, device))

    def drain(self, node: str, device: str | None = None, **options: Any) -> list[dict[str, Any]]:
        """Take a node or a device out of service and wait until nothing runs on it any more.

        Options as :meth:`AsyncBlip.drain`'s. Ctrl-C ends the wait, not the drain.
        """
        return self._wait(self._client.drain(node, device, **options))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C while waiting: the request must not go on without us
            future.cancel()
            raise


class SyncTextStream:
    """As :class:`~blip.client.TextStream`, with ``with`` and ``for``."""

    def __init__(self, client: Blip, stream: TextStream) -> None:
        self._client = client
        self._stream = stream

    @property
    def origin(self) -> Origin:
        """Who answers; known once the block is entered."""
        return self._stream.origin

    @property
    def finish_reason(self) -> str:
        """Why it ended; known after the iteration."""
        return self._stream.finish_reason

    @property
    def usage(self) -> Mapping[str, int]:
        """Tokens used; known after the iteration."""
        return self._stream.usage

    def __enter__(self) -> Self:
        self._client._wait(self._stream.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client._wait(self._stream.__aexit__(kind, error, trace))

    def __iter__(self) -> Iterator[str]:
        while (piece := self._client._wait(self._next())) is not None:
            yield piece

    async def _next(self) -> str | None:
        return await anext(self._stream, None)

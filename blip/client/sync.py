"""The blocking client: the asyncio one, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
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
    ToolCall,
)
from blip.client.hearing_answers import TranscriptAnswer
from blip.client.kinds import TaskAnswer
from blip.client.pipelines import PipelineAnswer, RerankAnswer
from blip.client.safety import Verdict
from blip.client.speech import SpeechAnswer, SpeechStream
from blip.client.stream import TextStream
from blip.client.text import Messages
from blip.client.upscale import UpscaleAnswer
from blip.client.videos import VideoAnswer
from blip.client.vision_answers import (
    CaptionAnswer,
    DepthAnswer,
    DetectionAnswer,
    LabelAnswer,
    SegmentAnswer,
)

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

    def rerank(
        self, model: str, query: str, documents: Sequence[str], **options: Any
    ) -> RerankAnswer:
        """Sort documents by how well they answer a query; options as :meth:`AsyncBlip.rerank`'s."""
        return self._wait(self._client.rerank(model, query, documents, **options))

    def pipeline(
        self,
        task: str,
        /,
        model: str,
        inputs: str | bytes | Mapping[str, Any] | Sequence[Any],
        **options: Any,
    ) -> PipelineAnswer:
        """Run one of transformers' tasks; options as :meth:`AsyncBlip.pipeline`'s."""
        return self._wait(self._client.pipeline(task, model, inputs, **options))

    def image(self, model: str, prompt: str = "", **options: Any) -> ImageAnswer:
        """Paint pictures; see :meth:`blip.client.AsyncBlip.image` for the options."""
        return self._wait(self._client.image(model, prompt, **options))

    def speak(self, model: str, text: str, **options: Any) -> SpeechAnswer:
        """Say a text; see :meth:`blip.client.AsyncBlip.speak` for the options."""
        return self._wait(self._client.speak(model, text, **options))

    def speak_stream(self, model: str, text: str, **options: Any) -> SyncSpeechStream:
        """Say a text; return its audio file piece by piece, as it is made."""
        return SyncSpeechStream(self, self._client.speak_stream(model, text, **options))

    def caption(
        self, model: str, image: bytes, prompt: str | None = None, **options: Any
    ) -> CaptionAnswer:
        """Say what a picture shows; options as :meth:`AsyncBlip.caption`'s."""
        return self._wait(self._client.caption(model, image, prompt, **options))

    def detect(
        self, model: str, image: bytes, labels: Sequence[str] | None = None, **options: Any
    ) -> DetectionAnswer:
        """Find things in a picture; options as :meth:`AsyncBlip.detect`'s."""
        return self._wait(self._client.detect(model, image, labels, **options))

    def classify_image(
        self, model: str, image: bytes, labels: Sequence[str] | None = None, **options: Any
    ) -> LabelAnswer:
        """Name a picture; options as :meth:`AsyncBlip.classify_image`'s."""
        return self._wait(self._client.classify_image(model, image, labels, **options))

    def depth(self, model: str, image: bytes, **options: Any) -> DepthAnswer:
        """Tell how far away each pixel of a picture is."""
        return self._wait(self._client.depth(model, image, **options))

    def segment(self, model: str, image: bytes, **options: Any) -> SegmentAnswer:
        """Cut a picture up; options as :meth:`AsyncBlip.segment`'s."""
        return self._wait(self._client.segment(model, image, **options))

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

    def upscale(self, model: str, image: bytes, **options: Any) -> UpscaleAnswer:
        """Enlarge a picture; see :meth:`blip.client.AsyncBlip.upscale` for the options."""
        return self._wait(self._client.upscale(model, image, **options))

    def enhance(self, model: str, image: bytes, **options: Any) -> UpscaleAnswer:
        """Clean a picture, which keeps its size."""
        return self._wait(self._client.enhance(model, image, **options))

    def moderate(self, texts: str | Sequence[str] = (), **options: Any) -> list[Verdict]:
        """Return a verdict on each text; options as :meth:`AsyncBlip.moderate`'s."""
        return self._wait(self._client.moderate(texts, **options))

    def kinds(self) -> list[dict[str, Any]]:
        """Return every kind of task, with its schemas, models and nodes."""
        return self._wait(self._client.kinds())

    def run_task(self, kind: str, input: Mapping[str, Any], **options: Any) -> TaskAnswer:
        """Run a task of a plugin's kind; options as :meth:`AsyncBlip.run_task`'s."""
        return self._wait(self._client.run_task(kind, input, **options))

    def stream_task(
        self, kind: str, input: Mapping[str, Any], **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Run a task and yield its events; options as :meth:`AsyncBlip.stream_task`'s."""
        events = self._client.stream_task(kind, input, **options)
        try:
            while (event := self._wait(_next(events))) is not None:
                yield event
        finally:
            self._wait(events.aclose())

    def transcribe(self, model: str, file: bytes, **options: Any) -> TranscriptAnswer:
        """Write down what is said; see :meth:`blip.client.AsyncBlip.transcribe` for the options."""
        return self._wait(self._client.transcribe(model, file, **options))

    def translate(self, model: str, file: bytes, **options: Any) -> TranscriptAnswer:
        """Write down in English what is said; options as :meth:`transcribe`'s."""
        return self._wait(self._client.translate(model, file, **options))

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


async def _next(events: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any] | None:
    return await anext(events, None)


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

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The functions that the model calls; known after the iteration."""
        return self._stream.tool_calls

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


class SyncSpeechStream:
    """As :class:`~blip.client.SpeechStream`, with ``with`` and ``for``."""

    def __init__(self, client: Blip, stream: SpeechStream) -> None:
        self._client = client
        self._stream = stream

    @property
    def origin(self) -> Origin:
        """Who answers; known once the block is entered."""
        return self._stream.origin

    @property
    def media_type(self) -> str:
        """What kind of file it is; known once the block is entered."""
        return self._stream.media_type

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

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self._client._wait(self._next())) is not None:
            yield piece

    async def _next(self) -> bytes | None:
        return await anext(self._stream, None)

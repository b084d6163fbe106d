"""The asyncio client."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

from blip.client.answers import (
    EchoAnswer,
    EmbeddingAnswer,
    GatewayUnreachable,
    ImageAnswer,
    ModelInfo,
    Origin,
    TextAnswer,
    error_from,
    models_from,
    pictures_from,
    piece_from,
    text_from,
    vectors_from,
)
from blip.client.sse import Events
from blip.errors import BlipError, DeadlineExceeded, InternalError, InvalidRequest, NodeLost

DEFAULT_URL = "http://127.0.0.1:8001"

#: Seconds to wait for a TCP connection. The gateway is on this machine or in this network; one
#: that needs longer is not there.
CONNECT_TIMEOUT = 5.0

#: Text for a chat: one user message, or the conversation.
Messages = str | Sequence[Mapping[str, Any]]


class AsyncBlip:
    """A gateway's clients' side. Use it as a context manager, or ``close()`` it.

    ``url`` and ``api_key`` default to ``$BLIP_URL`` (else this machine's gateway) and
    ``$BLIP_API_KEY``. ``timeout`` is the longest wait in seconds for a whole answer, or for the
    next piece of a stream. Methods raise :class:`~blip.errors.BlipError`: the mesh's own errors
    under their own classes, and :class:`~blip.client.GatewayUnreachable`.

    Sampling options of ``chat``, ``complete`` and their streams are passed on under OpenAI's names
    (``max_tokens``, ``temperature``, ``top_p``, ``seed``, ``stop``, ...); None leaves one out.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout: float = 600.0
    ) -> None:
        self.url = (url or os.environ.get("BLIP_URL") or DEFAULT_URL).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            self.url = f"http://{self.url}"
        self._key = api_key or os.environ.get("BLIP_API_KEY") or ""
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- what the mesh is ---

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        """Return whether the gateway says it is ready, and its report on each dependency."""
        status, body, _ = await self._send("GET", "/readyz")
        return status == 200, _object(body)

    async def models(self) -> list[ModelInfo]:
        """Return every model that the mesh serves."""
        return models_from((await self._json("GET", "/v1/models"))[0])

    async def mesh(self) -> dict[str, Any]:
        """Return the mesh as its gateway sees it: nodes, devices, replicas, health."""
        return dict((await self._json("GET", "/v1/mesh"))[0])

    async def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks in flight, then those that ended lately."""
        return list((await self._json("GET", "/v1/tasks"))[0]["tasks"])

    # --- what it does ---

    async def chat(self, model: str, messages: Messages, **options: Any) -> TextAnswer:
        """Return the assistant's next message."""
        body = _chat_body(model, messages, options)
        return text_from(*await self._json("POST", "/v1/chat/completions", body))

    def chat_stream(self, model: str, messages: Messages, **options: Any) -> TextStream:
        """Return the assistant's next message piece by piece, as it is made."""
        return TextStream(self, "/v1/chat/completions", _chat_body(model, messages, options))

    async def complete(self, model: str, prompt: str, **options: Any) -> TextAnswer:
        """Return the continuation of a text."""
        body = _body(model, {"prompt": prompt, **options})
        return text_from(*await self._json("POST", "/v1/completions", body))

    def complete_stream(self, model: str, prompt: str, **options: Any) -> TextStream:
        """Return the continuation of a text piece by piece, as it is made."""
        return TextStream(self, "/v1/completions", _body(model, {"prompt": prompt, **options}))

    async def embed(
        self, model: str, texts: str | Sequence[str], *, dimensions: int | None = None
    ) -> EmbeddingAnswer:
        """Return one vector a text."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        options = {"input": texts, "encoding_format": "base64", "dimensions": dimensions}
        return vectors_from(*await self._json("POST", "/v1/embeddings", _body(model, options)))

    async def image(
        self,
        model: str,
        prompt: str = "",
        *,
        image: bytes | None = None,
        mask: bytes | None = None,
        n: int = 1,
        size: str | None = None,
        **options: Any,
    ) -> ImageAnswer:
        """Paint pictures of a prompt; with the bytes of an ``image``, paint that over.

        A ``mask`` of the same size says where: what is transparent in it, or light if it has no
        transparency. An image without a prompt is varied. Options go on under the route's names
        (``negative_prompt``, ``steps``, ``guidance_scale``, ``seed``, ``scheduler``,
        ``strength``, ``output_format``, ``output_compression``).
        """
        body = _body(model, {"prompt": prompt or None, "n": n, "size": size, **options})
        if image is None:
            if mask is not None:
                raise InvalidRequest("a mask needs an image", param="mask")
            return pictures_from(*await self._json("POST", "/v1/images/generations", body))
        form = aiohttp.FormData({name: str(value) for name, value in body.items()})
        form.add_field("image", image, filename="image")
        if mask is not None:
            form.add_field("mask", mask, filename="mask")
        path = "/v1/images/edits" if prompt else "/v1/images/variations"
        return pictures_from(*await self._json("POST", path, form))

    async def echo(self, text: str = "", *, model: str = "echo", **options: Any) -> EchoAnswer:
        """Send a task through the mesh that gives back what it was given.

        Options are those of :class:`blip.kinds.echo.EchoInput`; with ``size`` the answer is that
        many bytes, else the text.
        """
        body = _body(model, {"text": text, **options})
        status, raw, headers = await self._send("POST", "/v1/echo", body)
        self._check(status, raw, headers)
        if headers.get("Content-Type", "").startswith("application/json"):
            raw = str(_object(raw)["text"]).encode()
        return EchoAnswer(raw, Origin.of(headers))

    # --- HTTP ---

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | aiohttp.FormData | None = None
    ) -> tuple[Any, Origin]:
        status, raw, headers = await self._send(method, path, body)
        self._check(status, raw, headers)
        return _object(raw), Origin.of(headers)

    def _check(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        if status >= 400:
            raise error_from(status, body, headers, self.url)

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | aiohttp.FormData | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        sent: dict[str, Any] = {"data" if isinstance(body, aiohttp.FormData) else "json": body}
        total = aiohttp.ClientTimeout(total=self._timeout, sock_connect=CONNECT_TIMEOUT)
        try:
            async with self._open().request(
                method, self.url + path, timeout=total, **sent
            ) as response:
                return response.status, await response.read(), response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            # limit=0: how many requests are under way is the caller's decision, not the pool's
            self._session = aiohttp.ClientSession(
                headers=headers, connector=aiohttp.TCPConnector(limit=0)
            )
        return self._session

    def _unreachable(self, error: BaseException) -> GatewayUnreachable | DeadlineExceeded:
        if isinstance(error, TimeoutError) and not isinstance(
            error, aiohttp.ConnectionTimeoutError
        ):
            return DeadlineExceeded(f"no answer from {self.url} within {self._timeout:g} s")
        if isinstance(error, aiohttp.InvalidURL):
            return GatewayUnreachable(f"'{self.url}' is not a URL", hint="Write http://host:port.")
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else str(error) or type(error).__name__
        return GatewayUnreachable(f"cannot reach a gateway at {self.url}: {reason}")


class TextStream:
    """A text answer as it is made: iterate over its pieces, in an ``async with`` block.

    The request is sent when the block is entered, and errors that come before the first piece are
    raised there; leaving the block early cancels the task. ``finish_reason`` and ``usage`` are
    known once the iteration has ended.
    """

    def __init__(self, client: AsyncBlip, path: str, body: dict[str, Any]) -> None:
        self._client = client
        self._path = path
        self._body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        self._response: aiohttp.ClientResponse | None = None
        self._events = Events()
        self._pieces: deque[str] = deque()
        self._ended = False
        self._error: BlipError | None = None
        self.origin = Origin()
        self.finish_reason = ""
        self.usage: Mapping[str, int] = {}

    async def __aenter__(self) -> Self:
        client = self._client
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT, sock_read=client._timeout
        )
        try:
            response = await client._open().post(
                client.url + self._path, json=self._body, timeout=timeout
            )
            if response.status >= 400:
                async with response:
                    body = await response.read()
                client._check(response.status, body, response.headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise client._unreachable(error) from error
        self._response = response
        self.origin = Origin.of(response.headers)
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

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._response is None:
            raise RuntimeError("iterate over a stream inside its `async with` block")
        while not (self._pieces or self._ended or self._error):
            self._take(await self._read(self._response))
        if self._pieces:
            return self._pieces.popleft()
        raise self._error or StopAsyncIteration

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            chunk = await response.content.readany()
        except TimeoutError as error:
            raise self._client._unreachable(error) from error
        except aiohttp.ClientError as error:
            raise NodeLost(f"the stream broke off: {error}") from error
        if not chunk:
            raise NodeLost("the stream broke off before its end")
        return chunk

    def _take(self, chunk: bytes) -> None:
        for data in self._events.feed(chunk):
            if data == "[DONE]":
                self._ended = True
                return
            try:
                piece = piece_from(data)
            except BlipError as error:
                # what came before it in the same packet is the reader's first
                self._error = error
                return
            self.finish_reason = piece.finish_reason or self.finish_reason
            self.usage = piece.usage or self.usage
            if piece.text:
                self._pieces.append(piece.text)


def _object(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise InternalError("the gateway's answer is not JSON") from None


def _body(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model, **{key: value for key, value in options.items() if value is not None}}


def _chat_body(model: str, messages: Messages, options: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return _body(model, {"messages": list(messages), **options})

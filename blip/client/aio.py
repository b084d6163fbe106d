"""The asyncio client."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

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
    error_from_envelope,
    models_from,
    pictures_from,
    text_from,
    vectors_from,
)
from blip.client.options import Require, task_headers
from blip.client.stream import CONNECT_TIMEOUT, EventReader, TextStream
from blip.errors import DeadlineExceeded, InternalError, InvalidRequest

DEFAULT_URL = "http://127.0.0.1:8001"

#: Text for a chat: one user message, or the conversation.
Messages = str | Sequence[Mapping[str, Any]]

#: Called with what a node says about an order, as it goes: ``node``, ``name``, ``device``,
#: ``state``, ``text``, ``details``.
Progress = Callable[[dict[str, Any]], None]


class AsyncBlip:
    """A gateway's clients' side. Use it as a context manager, or ``close()`` it.

    ``url`` and ``api_key`` default to ``$BLIP_URL`` (else this machine's gateway) and
    ``$BLIP_API_KEY``. ``timeout`` is the longest wait in seconds for a whole answer, or for the
    next piece of a stream. Methods raise :class:`~blip.errors.BlipError`: the mesh's own errors
    under their own classes, and :class:`~blip.client.GatewayUnreachable`.

    Sampling options of ``chat``, ``complete`` and their streams are passed on under OpenAI's names
    (``max_tokens``, ``temperature``, ``top_p``, ``seed``, ``stop``, ...); None leaves one out.

    Whatever runs a task takes ``priority`` (1, the most urgent, to 10), ``deadline`` (seconds from
    now by which it must be done) and ``require``, which says what the device must be:
    ``{"vendor": "nvidia", "memory": "24GiB"}`` or ``"vendor=nvidia; memory>=24GiB"``.
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

    async def task(self, id: str) -> dict[str, Any]:
        """Return one task of the gateway's, by its id, or the start or the end of it."""
        return dict((await self._json("GET", f"/v1/tasks/{quote(id, safe='')}"))[0])

    async def why(self, id: str) -> dict[str, Any]:
        """Return why a task ran where it ran: its ``task`` and the ``decisions`` about it."""
        return dict((await self._json("GET", f"/v1/tasks/{quote(id, safe='')}/why"))[0])

    # --- what it does ---

    async def chat(
        self,
        model: str,
        messages: Messages,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> TextAnswer:
        """Return the assistant's next message."""
        body = _chat_body(model, messages, options)
        headers = task_headers(priority, deadline, require)
        return text_from(*await self._json("POST", "/v1/chat/completions", body, headers))

    def chat_stream(
        self,
        model: str,
        messages: Messages,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> TextStream:
        """Return the assistant's next message piece by piece, as it is made."""
        body = _chat_body(model, messages, options)
        headers = task_headers(priority, deadline, require)
        return TextStream(self, "/v1/chat/completions", body, headers)

    async def complete(
        self,
        model: str,
        prompt: str,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> TextAnswer:
        """Return the continuation of a text."""
        body = _body(model, {"prompt": prompt, **options})
        headers = task_headers(priority, deadline, require)
        return text_from(*await self._json("POST", "/v1/completions", body, headers))

    def complete_stream(
        self,
        model: str,
        prompt: str,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> TextStream:
        """Return the continuation of a text piece by piece, as it is made."""
        body = _body(model, {"prompt": prompt, **options})
        headers = task_headers(priority, deadline, require)
        return TextStream(self, "/v1/completions", body, headers)

    async def embed(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        dimensions: int | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
    ) -> EmbeddingAnswer:
        """Return one vector a text."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        options = {"input": texts, "encoding_format": "base64", "dimensions": dimensions}
        headers = task_headers(priority, deadline, require)
        body = _body(model, options)
        return vectors_from(*await self._json("POST", "/v1/embeddings", body, headers))

    async def image(
        self,
        model: str,
        prompt: str = "",
        *,
        image: bytes | None = None,
        mask: bytes | None = None,
        n: int = 1,
        size: str | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> ImageAnswer:
        """Paint pictures of a prompt; with the bytes of an ``image``, paint that over.

        A ``mask`` of the same size says where: what is transparent in it, or light if it has no
        transparency. An image without a prompt is varied. Options go on under the route's names
        (``negative_prompt``, ``steps``, ``guidance_scale``, ``seed``, ``scheduler``,
        ``strength``, ``output_format``, ``output_compression``).
        """
        headers = task_headers(priority, deadline, require)
        body = _body(model, {"prompt": prompt or None, "n": n, "size": size, **options})
        if image is None:
            if mask is not None:
                raise InvalidRequest("a mask needs an image", param="mask")
            path = "/v1/images/generations"
            return pictures_from(*await self._json("POST", path, body, headers))
        form = aiohttp.FormData({name: str(value) for name, value in body.items()})
        form.add_field("image", image, filename="image")
        if mask is not None:
            form.add_field("mask", mask, filename="mask")
        path = "/v1/images/edits" if prompt else "/v1/images/variations"
        return pictures_from(*await self._json("POST", path, form, headers))

    async def echo(
        self,
        text: str = "",
        *,
        model: str = "echo",
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> EchoAnswer:
        """Send a task through the mesh that gives back what it was given.

        Options are those of :class:`blip.kinds.echo.EchoInput`; with ``size`` the answer is that
        many bytes, else the text.
        """
        body = _body(model, {"text": text, **options})
        said = task_headers(priority, deadline, require)
        status, raw, headers = await self._send("POST", "/v1/echo", body, said)
        self._check(status, raw, headers)
        if headers.get("Content-Type", "").startswith("application/json"):
            raw = str(_object(raw)["text"]).encode()
        return EchoAnswer(raw, Origin.of(headers))

    # --- what operators do ---

    async def load(
        self,
        model: str,
        node: str | None = None,
        device: str | None = None,
        *,
        pin: bool | None = None,
        keep_alive: float | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Load a model on a node, on the best one if none is named, and wait until it is ready.

        ``pin`` keeps it whatever needs its room; ``keep_alive`` is how many seconds it stays
        without work, below 0 until its room is needed. Returns what each node said last: ``node``,
        ``name``, ``device``, ``text`` and ``details``; ``progress`` is called with the same as it
        goes. Raises the error of the first node that fails.
        """
        said = {"model": model, "node": node, "device": device}
        return await self._order("load", {**said, "pin": pin, "keep_alive": keep_alive}, progress)

    async def unload(
        self,
        model: str,
        node: str | None = None,
        device: str | None = None,
        *,
        force: bool | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Unload a model from a device, a node, or every node; returns as :meth:`load` does.

        What it runs is finished first, unless ``force`` is set.
        """
        said = {"model": model, "node": node, "device": device, "force": force}
        return await self._order("unload", said, progress)

    async def cordon(
        self, node: str, device: str | None = None, *, reason: str | None = None
    ) -> list[dict[str, Any]]:
        """Take a node, or one of its devices, out of service: it takes no new tasks."""
        said = {"node": node, "device": device, "reason": reason}
        return await self._order("cordon", said, None)

    async def uncordon(self, node: str, device: str | None = None) -> list[dict[str, Any]]:
        """Put a node, or one of its devices, back into service."""
        return await self._order("uncordon", {"node": node, "device": device}, None)

    async def drain(
        self,
        node: str,
        device: str | None = None,
        *,
        reason: str | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Take a node or a device out of service and wait until nothing runs on it any more.

        Giving up the wait does not call it off: :meth:`uncordon` does.
        """
        said = {"node": node, "device": device, "reason": reason}
        return await self._order("drain", said, progress)

    async def _order(
        self, verb: str, said: Mapping[str, Any], progress: Progress | None
    ) -> list[dict[str, Any]]:
        # streamed whether anybody listens or not: a load may take longer than the longest wait
        # for an answer, and a stream is never silent for long
        body = {key: value for key, value in said.items() if value is not None}
        last: dict[str, dict[str, Any]] = {}
        async with EventReader(self, f"/v1/mesh/{verb}", {**body, "stream": True}) as events:
            while (data := await events.next()) is not None:
                event = json.loads(data)
                if "error" in event:
                    raise error_from_envelope(event["error"])
                last[event["node"]] = event
                if progress is not None:
                    progress(event)
        return list(last.values())

    # --- HTTP ---

    async def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | aiohttp.FormData | None = None,
        said: Mapping[str, str] | None = None,
    ) -> tuple[Any, Origin]:
        status, raw, headers = await self._send(method, path, body, said)
        self._check(status, raw, headers)
        return _object(raw), Origin.of(headers)

    def _check(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        if status >= 400:
            raise error_from(status, body, headers, self.url)

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | aiohttp.FormData | None = None,
        said: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes, Mapping[str, str]]:
        sent: dict[str, Any] = {"data" if isinstance(body, aiohttp.FormData) else "json": body}
        total = aiohttp.ClientTimeout(total=self._timeout, sock_connect=CONNECT_TIMEOUT)
        try:
            async with self._open().request(
                method, self.url + path, headers=said, timeout=total, **sent
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

"""Models of an engine that runs already, spoken to over OpenAI's HTTP API. Imports no torch.

The engine owns its model, its memory and its queue. What is left to a worker is the conversation:
one HTTP request a job, closed at once when the job is cancelled, not read while nobody takes what
was read, and given up when nothing comes for the upstream's timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, ClassVar, NoReturn

import aiohttp

from blip.errors import (
    BlipError,
    Cancelled,
    ConfigError,
    InvalidRequest,
    ModelLoadFailed,
    RemoteProtocolError,
    Unavailable,
)
from blip.kinds.text import delta_to_wire
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.upstreams import failures
from blip_node.upstreams.answers import TextAnswer, read_vectors
from blip_node.upstreams.engine import Engine
from blip_node.upstreams.events import EventReader
from blip_node.upstreams.requests import Request, embedding_request, text_request

log = logging.getLogger(__name__)

#: An engine beside the node accepts at once; one that does not is down or drowning.
CONNECT_TIMEOUT = 5.0

#: After a 429 or 503 with Retry-After, jobs wait up to this many seconds for it to pass; a longer
#: one is passed on, so that other nodes, or the client, can do something about it.
MOST_PATIENCE = 10.0

#: Idle connections are kept for so many seconds: less than the 5 of uvicorn, which vLLM and SGLang
#: run on, or the engine would close one just as it is used again.
KEEP_ALIVE = 4.0

#: How long the end of a stream may take after the engine said that it is there.
END_TIMEOUT = 1.0

#: Largest answer that is read whole: 2048 vectors of 4096 numbers, at 20 characters each.
MAX_BODY = 192 * 1024 * 1024

#: Of an answer that is an error so much is read.
MAX_ERROR_BODY = 64 * 1024


class OpenAIRuntime:
    """One model of one engine."""

    kinds: ClassVar[tuple[str, ...]] = ("chat", "completion", "embedding")
    preload: ClassVar[tuple[str, ...]] = ("blip_node.runtimes.openai",)

    def __init__(self) -> None:
        self._engine: Engine
        self._model = ""
        self._session: aiohttp.ClientSession | None = None
        self._headers: dict[str, str] = {}
        #: Whether the engine takes ``stream_options``; found out by the first that it refuses.
        self._asks_usage = True
        self._said_uncounted = False
        #: When the engine's Retry-After is over, on the monotonic clock.
        self._resumes = 0.0

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Remember whom to ask; the engine is not, for the node watches it.

        Raises :class:`~blip.errors.ModelLoadFailed` if the engine's key is not there.
        """
        if spec.engine is None:
            raise ModelLoadFailed(
                f"model '{spec.model}': its upstream is not configured on this node",
                hint="Add [upstreams.NAME] with its url.",
            )
        try:
            self._headers = spec.engine.headers(os.environ)
        except ConfigError as error:
            raise ModelLoadFailed(error.message) from None
        self._engine, self._model = spec.engine, spec.remote
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Ask the engine; a ``Delta`` a chunk for text, one payload of float32 for embeddings.

        Raises ``InvalidRequest`` and its kin with the engine's own message, ``Cancelled``,
        ``Unavailable`` for an engine that refuses or makes no sense, and ``NodeLost`` for one
        that breaks off.
        """
        work = asyncio.ensure_future(self._ask(job))

        def changed() -> None:
            if job.cancelled:
                work.cancel()  # which closes the connection

        job.on_change(changed)
        changed()
        try:
            return await work
        except asyncio.CancelledError:
            work.cancel()
            if job.cancelled:
                raise Cancelled("the request to the engine was cancelled") from None
            raise

    def close(self) -> None:
        """Close the connections, as far as the loop still runs: the process ends right after."""
        session, self._session = self._session, None
        if session is not None:
            self._closing = asyncio.ensure_future(session.close())

    # --- kinds ------------------------------------------------------------------------------

    async def _ask(self, job: Job) -> Outcome:
        await self._patience()
        if job.kind.name == "embedding":
            return await self._embed(job)
        if job.input.generated:
            raise Unavailable(
                f"upstream '{self._engine.name}' cannot continue an answer that another began"
            )
        try:
            return await self._write(job)
        except InvalidRequest as error:
            if not (self._asks_usage and "stream_options" in f"{error.message} {error.param}"):
                raise
            log.warning("upstream '%s' knows no stream_options", self._engine.name)
            self._asks_usage = False
        return await self._write(job)

    async def _write(self, job: Job) -> Outcome:
        name = self._engine.name
        request = text_request(job.input, self._model, self._engine.dialect, usage=self._asks_usage)
        answer = TextAnswer(name, chat=job.kind.name == "chat")
        reader = EventReader()
        async with (
            self._post(request, "text/event-stream") as response,
            aclosing(self._chunks(response)) as chunks,
        ):
            async for chunk in chunks:
                try:
                    events = reader.feed(chunk)
                except RemoteProtocolError as error:
                    raise failures.lied(name, error.message) from None
                for event in events:
                    delta = answer.take(event)
                    if delta is not None:
                        job.emit(delta_to_wire(delta))
                if answer.done:
                    await _to_the_end(response)
                    break
                if not job.writable:
                    await job.drained()
        if reader.unfinished and not answer.done:
            raise failures.broken_off(name, "ended its answer in the middle of an event")
        finish = answer.finish()
        if not answer.counted and not self._said_uncounted:
            self._said_uncounted = True
            log.warning("upstream '%s' counts no tokens: chunks are counted instead", name)
        return Outcome(delta_to_wire(finish), answer.usage, answer.units)

    async def _embed(self, job: Job) -> Outcome:
        texts = job.input.texts
        async with self._post(
            embedding_request(job.input, self._model), "application/json"
        ) as response:
            body = bytearray()
            async with aclosing(self._chunks(response)) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > MAX_BODY:
                        raise failures.lied(self._engine.name, f"sent over {MAX_BODY} bytes")
        # seconds for the largest, and other jobs stream meanwhile
        vectors, tokens = await asyncio.to_thread(
            read_vectors, self._engine.name, bytes(body), len(texts)
        )
        return Outcome(vectors, {"prompt_tokens": tokens}, len(texts) + tokens)

    # --- HTTP -------------------------------------------------------------------------------

    async def _patience(self) -> None:
        """Wait until the engine wants to be asked again, or raise if that is too long."""
        left = self._resumes - time.monotonic()
        if left > MOST_PATIENCE:
            raise Unavailable(
                f"upstream '{self._engine.name}' asked for patience", retry_after=left
            )
        if left > 0:
            await asyncio.sleep(left)

    @asynccontextmanager
    async def _post(
        self, request: Request, wanted: str
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Send a request; the answer's status and type are right, else it raises."""
        name, limit = self._engine.name, self._engine.timeout
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                # slots limit the jobs, not the client
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
            )
        url = self._engine.url + request.path
        try:
            async with asyncio.timeout(limit):
                response = await self._session.post(
                    url, json=request.body, allow_redirects=False, headers={"Accept": wanted}
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise failures.unreachable(name, error) from None
        except TimeoutError:
            raise failures.broken_off(name, f"did not answer within {limit:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            # it took the request, or a connection that had just been closed; either way no answer
            raise failures.broken_off(name, f"broke off: {failures.plainly(error)}") from None
        async with response:
            if response.status != 200:
                await self._refuse(response)
            found = response.content_type
            if found != wanted:
                raise failures.lied(name, f"answered {request.path} with {found}, not {wanted}")
            yield response

    async def _refuse(self, response: aiohttp.ClientResponse) -> NoReturn:
        body = bytearray()
        try:
            async with aclosing(self._chunks(response)) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > MAX_ERROR_BODY:
                        break
        except BlipError:
            pass  # the status alone says enough
        name, status = self._engine.name, response.status
        error = failures.refused(name, status, bytes(body), response.headers)
        if status in (429, 503) and error.retry_after is not None:
            self._resumes = max(self._resumes, time.monotonic() + error.retry_after)
        raise error

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes.

        Raises :class:`~blip.errors.NodeLost` when it breaks off, or when nothing comes in time.
        """
        name, limit = self._engine.name, self._engine.timeout
        while True:
            try:
                async with asyncio.timeout(limit):
                    chunk: Any = await response.content.readany()
            except TimeoutError:
                raise failures.broken_off(name, f"said nothing for {limit:g} s") from None
            except (aiohttp.ClientError, OSError) as error:
                raise failures.broken_off(name, f"broke off: {failures.plainly(error)}") from None
            if not chunk:
                return
            yield chunk


async def _to_the_end(response: aiohttp.ClientResponse) -> None:
    """Read what is left of an answer that is complete, so that its connection can be used again.

    A connection that is not done by then is closed, which is no fault of the answer.
    """
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(END_TIMEOUT):
            while await response.content.readany():
                pass

"""One HTTP request and its answer: who asks, and the calls that serve it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

from aiohttp import web

from blip.errors import BlipError, InternalError, Unavailable
from blip.gateway.api import Api
from blip.gateway.auth import Keyring
from blip.gateway.dialect import OPENAI, Dialect
from blip.gateway.files import Files
from blip.gateway.mesh import Answer, Call, Mesh, Options, Timing
from blip.gateway.metrics import Metrics
from blip.gateway.origin import origin_of
from blip.gateway.policy import Policies, Policy
from blip.gateway.settings import GatewaySettings
from blip.gateway.studio import Studio
from blip.kinds import Kind, TaskInput
from blip.protocol.messages import Payload

log = logging.getLogger("blip.gateway")

#: What happened to a call: parts of its result, or its end.
News = tuple[int, Payload | Answer]
Pumped = tuple[int, list[Payload] | Answer | Exception]

#: A client's own request id is taken over if it is visible ASCII and not absurdly long.
_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")

_NOTHING_SAID = Options()

#: Task ids that fit the header lines that common clients accept (8 KiB) with room to spare.
_SHOWN_TASKS = 16


class Result(NamedTuple):
    """All of a call that succeeded."""

    parts: list[Payload]
    answer: Answer


@dataclass
class Gateway:
    """What all requests of one gateway share."""

    mesh: Mesh
    settings: GatewaySettings
    api: Api
    #: What this gateway keeps, for whoever has the address.
    files: Files
    metrics: Metrics = field(default_factory=Metrics)
    #: Seconds since the epoch.
    started: int = field(default_factory=lambda: int(time.time()))
    _prefix: str = field(default_factory=lambda: f"req_{secrets.token_hex(4)}_")
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @cached_property
    def studio(self) -> Studio:
        """The videos under way, and those that were made."""
        return Studio(self.mesh, self.settings, self.files, self.metrics)

    @cached_property
    def keyring(self) -> Keyring:
        """The API keys."""
        return Keyring(self.settings.api_keys)

    @cached_property
    def policies(self) -> Policies:
        """What the holders of keys may have."""
        return Policies(self.settings.policies)

    def request_id(self, offered: str | None) -> str:
        """Return the client's request id if it is sane, else a new one."""
        if offered is not None and _SANE_ID.fullmatch(offered):
            return offered
        return f"{self._prefix}{next(self._numbers):x}"


class Exchange:
    """A request while it is served. Its calls are all of one kind and model, and end with it."""

    __slots__ = (
        "_outcomes",
        "admitted",
        "answers",
        "calls",
        "dialect",
        "gateway",
        "kind",
        "model",
        "open_calls",
        "options",
        "request",
        "request_id",
        "tenant",
    )

    def __init__(
        self,
        gateway: Gateway,
        request: web.Request,
        request_id: str,
        dialect: Dialect = OPENAI,
    ) -> None:
        self.gateway = gateway
        self.request = request
        self.request_id = request_id
        self.dialect = dialect
        #: Name of the API key, "" where none is needed.
        self.tenant = ""
        #: What the headers say about the tasks of this request.
        self.options = _NOTHING_SAID
        self.kind = ""
        self.model = ""
        self.calls: list[Call] = []
        #: How each call ended; ``None`` for those that have not, or not well.
        self.answers: list[Answer | None] = []
        #: Calls whose end has not been in the news.
        self.open_calls = 0
        #: Whether the policy has seen what is asked: see :mod:`blip.gateway.guard`.
        self.admitted = False
        self._outcomes: list[str] = []

    def start(self, kind: Kind, model: str, inputs: Iterable[TaskInput]) -> None:
        """Start one task an input.

        Raises what :meth:`Mesh.call` and :meth:`allow` raise.
        """
        self.allow(kind.name, model)
        self.kind, self.model = kind.name, model
        for value in inputs:
            self.calls.append(self.gateway.mesh.call(kind, model, value, self.options))
            self.answers.append(None)
            self._outcomes.append("cancelled")
            self.open_calls += 1

    @property
    def policy(self) -> Policy | None:
        """The policy for who asks."""
        return self.gateway.policies.of(self.tenant)

    def permit(self, kind: str, model: str) -> None:
        """Raise :class:`~blip.errors.NotPermitted` for what the policy for who asks leaves out."""
        policy = self.policy
        if policy is not None:
            policy.permit(kind, model)

    def allow(self, kind: str, model: str) -> None:
        """Check that a task may start as far as the policy for who asks goes.

        Raises :class:`~blip.errors.NotPermitted`, and ``Unavailable`` for a kind that the policy
        must have looked at and has not: see :mod:`blip.gateway.guard`.
        """
        self.permit(kind, model)
        policy = self.policy
        if policy is not None and policy.guards(kind) and not self.admitted:
            raise Unavailable(
                f"This route does not check '{kind}' against the policy for this API key, and "
                "is therefore closed to it."
            )

    async def results(self) -> list[Result]:
        """Wait for all calls; raises the error of the first that fails."""
        if len(self.calls) == 1:
            # the hot path of short tasks: no generator of ours between call and route
            call = self.calls[0]
            parts: list[Payload] = []
            try:
                async for batch in call.parts():
                    parts += batch
                answer = await call.answer()
            except BlipError as error:
                self._outcomes[0] = error.code
                raise
            self._succeeded(0, answer)
            return [Result(parts, answer)]
        gathered: list[list[Payload]] = [[] for _ in self.calls]
        async with aclosing(self.news()) as news:
            async for several in news:
                for index, item in several:
                    if not isinstance(item, Answer):
                        gathered[index].append(item)
        ends = (answer for answer in self.answers if answer is not None)
        return [Result(parts, answer) for parts, answer in zip(gathered, ends, strict=True)]

    async def news(self) -> AsyncGenerator[list[News], None]:
        """Yield what happens to the calls, by index, all that is pending at once.

        Parts of one call come in order, its :class:`Answer` last. Raises the error of the first
        call that fails. Use it under ``aclosing``.
        """
        if len(self.calls) == 1:
            call = self.calls[0]
            try:
                async for batch in call.parts():
                    yield [(0, part) for part in batch]
                answer = await call.answer()
            except BlipError as error:
                self._outcomes[0] = error.code
                raise
            self._succeeded(0, answer)
            yield [(0, answer)]
            return
        # one batch a call may wait; then its pump does, and with it the credit it grants
        queue: asyncio.Queue[Pumped] = asyncio.Queue(len(self.calls))
        pumps = [
            asyncio.create_task(self._pump(index, call, queue))
            for index, call in enumerate(self.calls)
        ]
        try:
            while self.open_calls:
                pending: list[News] = []
                for index, item in _drain(await queue.get(), queue):
                    if isinstance(item, Exception):
                        if isinstance(item, BlipError):
                            self._outcomes[index] = item.code
                        if pending:
                            yield pending
                        raise item
                    if isinstance(item, Answer):
                        self._succeeded(index, item)
                        pending.append((index, item))
                    else:
                        pending.extend((index, part) for part in item)
                yield pending
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, index: int, call: Call, queue: asyncio.Queue[Pumped]) -> None:
        try:
            async for batch in call.parts():
                await queue.put((index, batch))
            await queue.put((index, await call.answer()))
        except Exception as error:
            await queue.put((index, error))

    def _succeeded(self, index: int, answer: Answer) -> None:
        self._outcomes[index] = "succeeded"
        self.answers[index] = answer
        self.open_calls -= 1
        self.gateway.metrics.usage(self.model, answer.usage)

    async def keep(self, content: Payload, media: str, name: str) -> str:
        """Keep a result to be fetched and return its address, as the client can reach it.

        Raises :class:`~blip.errors.PayloadTooLarge`; see :meth:`blip.gateway.files.Files.keep`.
        """
        files = self.gateway.files
        return await files.address(await files.keep(content, media, name), self.origin())

    def origin(self) -> str:
        """Return the scheme and host that the client has sent its request to."""
        request = self.request
        socket = request.transport and request.transport.get_extra_info("sockname")
        # a unix socket has a path for a name, and no host
        host, port = socket[:2] if isinstance(socket, tuple) else ("localhost", 80)
        own = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return origin_of(request.headers, request.scheme, own)

    def close(self) -> None:
        """Cancel what is still under way and count the outcomes. For the end of the request."""
        for call, outcome in zip(self.calls, self._outcomes, strict=True):
            call.cancel()  # a no-op for those that have ended
            self.gateway.metrics.task(self.kind, outcome, call.timing.first)

    def stamp(self, response: web.StreamResponse) -> None:
        """Add the headers that say who served this and where its time went."""
        headers = response.headers
        headers["X-Request-ID"] = self.request_id
        if self.dialect.request_id is not None:
            headers[self.dialect.request_id] = self.request_id
        calls = self.calls
        if len(calls) == 1:
            call = calls[0]
            headers["X-Blip-Task"] = call.task_id
            if call.node:
                headers["X-Blip-Node"] = visible(call.node)
            headers["X-Blip-Timing"] = timing_header(call.timing)
        elif calls:
            headers["X-Blip-Task"] = ", ".join(call.task_id for call in calls[:_SHOWN_TASKS])
            nodes = dict.fromkeys(visible(call.node) for call in calls if call.node)
            if nodes:
                headers["X-Blip-Node"] = ", ".join(itertools.islice(nodes, _SHOWN_TASKS))
            headers["X-Blip-Timing"] = timing_header(_slowest([call.timing for call in calls]))

    def failure(self, error: Exception) -> BlipError:
        """Return what the client is told of ``error``; what nobody expected goes to the log."""
        if isinstance(error, BlipError):
            return error
        request = self.request
        log.error("%s: %s %s failed", self.request_id, request.method, request.path, exc_info=error)
        return InternalError(
            "Something inside this gateway went wrong.",
            hint=f"Its log has the story under request id {self.request_id}.",
        )

    def client_gone(self) -> bool:
        """Whether nobody is left to answer."""
        transport = self.request.transport
        return transport is None or transport.is_closing()


def _drain(first: Pumped, queue: asyncio.Queue[Pumped]) -> Iterator[Pumped]:
    yield first
    while not queue.empty():
        yield queue.get_nowait()


def timing_header(timing: Timing) -> str:
    """Write a timing as ``queue=0.0010;load=0.0000;first=0.0200;total=0.5000``, in seconds."""
    text = f"queue={timing.queue:.4f};load={timing.load:.4f}"
    if timing.first is not None:
        text += f";first={timing.first:.4f}"
    if timing.total is not None:
        text += f";total={timing.total:.4f}"
    return text


def _slowest(timings: list[Timing]) -> Timing:
    """Sum up tasks that ran side by side: the request waited for the slowest of each."""
    firsts = [timing.first for timing in timings if timing.first is not None]
    totals = [timing.total for timing in timings if timing.total is not None]
    return Timing(
        queue=max(timing.queue for timing in timings),
        load=max(timing.load for timing in timings),
        first=min(firsts, default=None),
        total=max(totals) if len(totals) == len(timings) else None,
    )


@lru_cache(maxsize=4096)
def visible(name: str) -> str:
    """Return a node's name as it may stand in a header: other than visible ASCII becomes '?'."""
    return "".join(char if " " <= char <= "~" else "?" for char in name)

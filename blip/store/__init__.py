"""What the mesh keeps in Redis, and the Redis itself if nobody else runs one.

:class:`Store` is the door: open it once a process, pass its parts to who needs them, close it. The
modules behind it: :mod:`~blip.store.keys` (every key), :mod:`~blip.store.client` (the connection),
:mod:`~blip.store.embedded` (a server of our own), :mod:`~blip.store.discovery` (who is there),
:mod:`~blip.store.results` (how tasks ended) and :mod:`~blip.store.files` (what they made).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from blip.errors import BlipError, StoreUnavailable
from blip.store import embedded
from blip.store.client import Client, Server, advice, check, connect
from blip.store.discovery import Announcer, Discovery, Record, backoff
from blip.store.embedded import Embedded
from blip.store.files import Files
from blip.store.keys import Keys, Role
from blip.store.results import Results, Stored

__all__ = [
    "Announcer",
    "Client",
    "Discovery",
    "Embedded",
    "Files",
    "Health",
    "Keys",
    "Record",
    "Results",
    "Role",
    "Store",
    "Stored",
    "connect",
]

log = logging.getLogger(__name__)

#: Seconds after which an embedded server counts as having come up well: one that ends sooner is
#: started again after ever longer pauses.
STEADY = 10.0


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the store can be used now; true in a condition if it can."""

    ok: bool
    #: Seconds of one round trip; None if there was none.
    latency: float | None
    #: What is wrong, in words; empty if nothing is.
    reason: str = ""
    #: The server, "valkey 9.1.2"; empty until it has been asked.
    engine: str = ""

    def __bool__(self) -> bool:
        return self.ok


class Store:
    """One mesh's Redis. Make it with :meth:`open`; it is also an async context manager."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        url: str,
        state_dir: Path,
        server: Embedded | None = None,
        *,
        revive: bool = False,
    ) -> None:
        self.redis = client
        self.keys = keys
        #: With credentials if there are any; ``redis.where`` is the one for messages.
        self.url = url
        self.discovery = Discovery(client, keys)
        self.results = Results(client, keys)
        self.files = Files(client, keys, self.results)
        #: Our own server, if no URL was given.
        self.embedded = server
        self._state_dir = state_dir
        self._checked: Server | None = None
        self._closed = False
        self._reviving = asyncio.Lock()
        self._revives = revive and server is not None
        self._keeper: asyncio.Task[None] | None = None
        if self._revives and hasattr(os, "pidfd_open"):
            self._keeper = asyncio.create_task(self._keep(), name="store keeper")

    @classmethod
    async def open(
        cls,
        url: str | None,
        state_dir: Path,
        mesh: str,
        *,
        name: str = "blip",
        start: bool = True,
        require: bool = False,
    ) -> Store:
        """Connect to ``url``, or without one to the embedded server of ``state_dir``.

        ``start=False`` only adopts a running embedded server, for commands that look and go; it
        is not brought back either if it ends.
        ``name`` is what CLIENT LIST shows. A configured Redis that is away is no error unless
        ``require``: the store's calls raise :class:`~blip.errors.StoreUnavailable` until it is
        back, and what needs no store goes on. Raises :class:`~blip.errors.ConfigError` for what
        waiting does not mend (URL, mesh name, credentials, version, eviction policy, no server
        program) and StoreUnavailable if the embedded server does not run.
        """
        keys = Keys(mesh)
        server: Embedded | None = None
        if not url:
            find = embedded.ensure if start else embedded.adopt
            server = await asyncio.to_thread(find, state_dir)
            if server is None:
                raise StoreUnavailable(
                    f"no embedded store runs in {state_dir}",
                    hint="Start one with `blip up`, or configure the URL of your Redis.",
                )
            url = server.url
            verb = "started" if server.owned else "adopted"
            log.info("embedded store %s: %s, process %d", verb, server.engine, server.pid)
        store = cls(connect(url, name=name), keys, url, state_dir, server, revive=start)
        try:
            await store._check()
        except StoreUnavailable as error:
            if require or server is not None:
                await store.close()
                raise
            log.warning("continuing without a store: %s", advice(error))
        except BaseException:
            await store.close()
            raise
        return store

    @classmethod
    async def open_if_there(
        cls, url: str | None, state_dir: Path, mesh: str, *, name: str
    ) -> Store | None:
        """Open for a role that serves without a store too: None if no embedded server runs.

        Raises :class:`~blip.errors.ConfigError` as :meth:`open`: waiting does not mend that.
        """
        try:
            return await cls.open(url, state_dir, mesh, name=name, start=False)
        except StoreUnavailable as error:
            log.info("no store: %s", error.message)
            return None

    async def healthy(self) -> Health:
        """Ask the server, within the client's time limit; never raises a blip error."""
        try:
            if self._checked is None:
                await self._check()
            begun = time.perf_counter()
            await self.redis.ping()
        except BlipError as error:
            reason = advice(error)
            if self._revives and self._keeper is None:
                try:
                    await self._revive()
                except BlipError as worse:
                    reason = advice(worse)
            return Health(False, None, reason, self._checked.engine if self._checked else "")
        assert self._checked is not None
        return Health(True, time.perf_counter() - begun, engine=self._checked.engine)

    async def close(self) -> None:
        """Close the connections and end the embedded server if this process owns it."""
        self._closed = True
        async with self._reviving:  # a start in progress ends first, so that it can be stopped
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.wait([self._keeper])
            await self.redis.aclose()
            if self.embedded is not None:
                await asyncio.to_thread(self.embedded.stop)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _check(self) -> None:
        self._checked = await check(self.redis)
        for warning in self._checked.warnings:
            log.warning("Redis at %s: %s", self.redis.where, warning)

    # --- the embedded server ends: whoever notices first starts it again, the others adopt it ---

    async def _keep(self) -> None:
        """Bring the embedded server back whenever it ends: its owner left, or it crashed."""
        assert self.embedded is not None
        failures = 0
        while True:
            begun = time.monotonic()
            await _end_of(self.embedded.pid)
            if time.monotonic() - begun > STEADY:
                failures = 0
            told = False
            ended = self.embedded
            while self.embedded is ended:
                # Even the first pause helps: of several processes, most then find it started.
                await asyncio.sleep(backoff(failures, random.random()))
                failures += 1
                try:
                    await self._revive()
                except BlipError as error:
                    if not told:
                        log.warning("the embedded store is away: %s", advice(error))
                    told = True

    async def _revive(self) -> None:
        """Adopt or start the embedded server again, unless the store is closed."""
        async with self._reviving:
            if self._closed:
                return
            found = await asyncio.to_thread(embedded.ensure, self._state_dir)
            if found.url != self.url:
                found.stop()
                raise StoreUnavailable(
                    f"the embedded store moved from {self.url} to {found.url}",
                    hint="Restart this process.",
                )
            self.embedded = found
            log.warning(
                "embedded store %s: process %d",
                "started again" if found.owned else "adopted from another process",
                found.pid,
            )


async def _end_of(pid: int) -> None:
    """Return when a process has ended; it need not be our child. Linux only."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)

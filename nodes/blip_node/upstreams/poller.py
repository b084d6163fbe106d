"""Asks engines for their models, again and again, and keeps the node's catalogue in step."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Protocol

import aiohttp

from blip.config import UpstreamConfig
from blip.errors import BlipError, ConfigError, Unavailable
from blip_node.catalogue import Catalogue
from blip_node.models.spec import ModelSpec, Upstream, parse_source
from blip_node.upstreams.failures import plainly
from blip_node.upstreams.listing import Listed, read_list
from blip_node.upstreams.watch import State, Watch

log = logging.getLogger(__name__)

#: A list of models takes an engine milliseconds; one that is drowning in work may need longer.
TIMEOUT = 5.0

#: Largest list that is read: a thousand models of a kilobyte, and then some.
MAX_LIST = 4 * 1024 * 1024


class Host(Protocol):
    """What the agent does for it."""

    def changed(self) -> None:
        """Advertise soon."""
        ...

    def release(self, model: str) -> bool:
        """Unload a model's idle replicas; return whether none is at work."""
        ...


class Upstreams:
    """All engines of a node. ``aliases`` are configured models that are some engine's."""

    def __init__(
        self,
        configs: Mapping[str, UpstreamConfig],
        aliases: Sequence[ModelSpec],
        catalogue: Catalogue,
        host: Host,
    ) -> None:
        self._catalogue = catalogue
        self._host = host
        #: What the catalogue has of whom: name to (upstream, spec; None while it is missing).
        self._placed: dict[str, tuple[str, ModelSpec | None]] = {}
        #: Models that are gone, or not what they were, and may still have replicas.
        self._stale: set[str] = set()
        self._said: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._watches: list[Watch] = []
        of: dict[str, list[ModelSpec]] = {name: [] for name in configs}
        for alias in aliases:
            source = parse_source(alias.source, alias.name)
            assert isinstance(source, Upstream)
            if source.engine in of:
                of[source.engine].append(alias)
                continue
            error = ConfigError(
                f"model '{alias.name}': there is no upstream '{source.engine}'",
                hint=f"Add [upstreams.{source.engine}] with its url.",
                param="source",
            )
            log.warning("%s", error.message)
            catalogue.withdraw(alias.name, error)
        for name, config in configs.items():
            try:
                self._watches.append(Watch(name, config, of[name]))
            except ConfigError as error:
                log.error("%s", error.message)
                for alias in of[name]:
                    catalogue.withdraw(alias.name, error)

    def start(self) -> None:
        """Begin to watch; returns at once."""
        self._tasks = [asyncio.create_task(self._watch(watch)) for watch in self._watches]

    async def close(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, watch: Watch) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                await self._look(watch, session)
                self._apply(watch)
                await asyncio.sleep(watch.pause)

    async def _look(self, watch: Watch, session: aiohttp.ClientSession) -> None:
        name, before = watch.engine.name, watch.state
        try:
            for odd in watch.listed(await _ask(watch, session)):
                self._say(f"upstream '{name}': {odd}")
        except TimeoutError:
            watch.failed(Unavailable(f"did not list its models in {TIMEOUT:g} s"), silent=True)
        except (aiohttp.ClientError, OSError) as error:
            watch.failed(Unavailable(f"cannot be reached: {plainly(error)}"))
        except BlipError as error:
            watch.failed(error)
        if watch.state is State.UP and before is not State.UP:
            names = ", ".join(watch.stock.offers) or "no models"
            log.info("upstream '%s' at %s serves %s", name, watch.engine.url, names)
        elif watch.state is State.DOWN and before is not State.DOWN:
            log.warning("%s", watch.reason)

    def _apply(self, watch: Watch) -> None:
        """Bring the catalogue in step with what the watch says."""
        name, stock = watch.engine.name, watch.stock
        changed = False
        for model, (owner, _) in list(self._placed.items()):
            if owner == name and model not in stock.offers and model not in stock.missing:
                self._catalogue.withdraw(model)
                del self._placed[model]
                self._stale.add(model)
                changed = True
        for model, error in stock.missing.items():
            if not self._mine(name, model):
                continue
            known = self._catalogue.rejected.get(model)
            if known is None or known.message != error.message:
                self._catalogue.withdraw(model, error)
                changed = True
            # the spec stays: a replica outlives a pause of its engine
            self._placed.setdefault(model, (name, None))
        for model, spec in stock.offers.items():
            if not self._mine(name, model):
                continue
            placed = self._placed.get(model)
            if placed == (name, spec) and self._catalogue.get(model) is not None:
                continue
            if placed is not None and placed[1] not in (None, spec):
                self._stale.add(model)
            self._catalogue.withdraw(model)
            self._catalogue.add([spec])
            self._placed[model] = name, spec
            changed = True
        self._stale = {model for model in self._stale if not self._host.release(model)}
        if changed:
            self._host.changed()

    def _mine(self, upstream: str, model: str) -> bool:
        """Whether this upstream may offer a model of that name: nobody else does."""
        placed = self._placed.get(model)
        if placed is not None:
            owner: str | None = placed[0]
        elif self._catalogue.get(model) is not None or model in self._catalogue.rejected:
            owner = None
        else:
            return True
        if owner == upstream:
            return True
        whose = f"upstream '{owner}'" if owner else "this node's own configuration"
        self._say(
            f"upstream '{upstream}': '{model}' is not offered, {whose} has one of that name; "
            f"set upstreams.{upstream}.prefix"
        )
        return False

    def _say(self, text: str) -> None:
        """Warn once: the engine is asked every few seconds."""
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)


async def _ask(watch: Watch, session: aiohttp.ClientSession) -> list[Listed]:
    """Ask an engine for its models."""
    headers = watch.engine.headers(os.environ)
    async with session.get(
        f"{watch.engine.url}/models", headers=headers, allow_redirects=False
    ) as response:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_LIST:
                raise Unavailable(f"answers GET /models with over {MAX_LIST} bytes")
        return read_list(response.status, response.content_type, bytes(body))

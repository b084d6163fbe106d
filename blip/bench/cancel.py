"""``blip bench cancel``: how soon a slot is free once a client has closed its connection.

Every model has one slot. A long request takes it; its connection is closed at a moment drawn at
random, and at once a short request is sent, which has to wait for that slot. What it takes more
than by itself is what the runtime went on for, and the way of the news through the mesh.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import random
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from blip import __version__
from blip.bench import stacks
from blip.bench.asks import ASKS, Ask, Request
from blip.bench.freed import Row
from blip.bench.overhead import ended_by_signals
from blip.cli import FAILURE, INTERRUPTED, render
from blip.cli.demo import check_packages, find_settings
from blip.cli.local import LocalMesh
from blip.cli.up import READY_LIMIT
from blip.config import Config, load
from blip.errors import ConfigError, RuntimeFailed

#: Seconds that one request may take, the load of its model included.
LIMIT = 600.0

#: Seconds between two looks at whether a request runs, or a job is done: little beside a step.
LOOK = 0.002

#: A connection is closed within this share of the time that its request would take: what is near
#: its end may be over before.
SHARE = 0.6

#: Short requests by themselves in a round: how far they are apart says how noisy the machine is.
ALONE = 2

#: Chooses the moments: the same ones in every run, as shares of what a request takes.
SEED = 1


class Client:
    """Asks a mesh over HTTP."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def ask(self, request: Request) -> dict[str, Any]:
        """Have a request answered; return the answer if it is JSON.

        Raises :class:`~blip.errors.RuntimeFailed` with what the mesh says went wrong.
        """
        answer = await self._post(request)
        if request.job:
            answer = await self._ended(request, answer["id"])
            await self._forget(request, answer["id"])
            if answer["status"] == "failed":
                raise RuntimeFailed(f"the mesh failed: {answer['error']}")
        return answer

    async def leave(self, request: Request, kind: str, after: float) -> bool:
        """Send a request, and go away so many seconds after it began to run.

        Returns whether that was before its end. Who asked for a job goes away by deleting it.
        """
        if request.job:
            job = await self._post(request)
            ended = asyncio.create_task(self._ended(request, job["id"]))
        else:
            ended = asyncio.create_task(self._post(request))
        try:
            while not await self._runs(kind, request.body["model"]):
                if ended.done():
                    ended.result()  # raises what went wrong
                    return False
                await asyncio.sleep(LOOK)
            await asyncio.wait((ended,), timeout=after)
            return not ended.done()
        finally:
            ended.cancel()  # which closes the connection
            with contextlib.suppress(asyncio.CancelledError):
                await ended
            if request.job:
                await self._forget(request, job["id"])

    async def _ended(self, request: Request, name: str) -> dict[str, Any]:
        while True:
            job = await self._get(f"{request.path}/{name}")
            if job["status"] in ("completed", "failed"):
                return job
            await asyncio.sleep(LOOK)

    async def _forget(self, request: Request, name: str) -> None:
        """Delete a job."""
        async with self._session.delete(f"{self._url}{request.path}/{name}") as response:
            await _json_of(response)

    async def models(self) -> list[tuple[str, str]]:
        """Return the kinds that there are models for, with these."""
        (node,) = (await self._get("/v1/mesh"))["nodes"]
        return [(kind, model["name"]) for model in node["models"] for kind in model["kinds"]]

    async def _runs(self, kind: str, model: str) -> bool:
        tasks = (await self._get("/v1/tasks"))["tasks"]
        return any((each["kind"], each["model"], each["state"]) == (kind, model, "running")
                   for each in tasks)  # fmt: skip

    async def _get(self, path: str) -> dict[str, Any]:
        async with self._session.get(self._url + path) as response:
            return await _json_of(response)

    async def _post(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {"json": request.body}
        if request.file is not None:
            field, content = request.file
            form = aiohttp.FormData({name: str(value) for name, value in request.body.items()})
            form.add_field(field, content, filename="file")
            body = {"data": form}
        async with self._session.post(self._url + request.path, **body) as response:
            return await _json_of(response)


async def _json_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    content = await response.read()
    if response.status >= 300:
        raise RuntimeFailed(f"the mesh answered {response.status}: {content[:300]!r}")
    found: dict[str, Any] = {}
    if response.content_type == "application/json":
        found = await response.json()
    return found


class Bench:
    """Measures kinds, one after the other."""

    def __init__(self, client: Client, rounds: int) -> None:
        self._client = client
        self._rounds = rounds
        self._random = random.Random(SEED)

    async def measure(self, kind: str, model: str) -> Row:
        """Return what is found. Raises :class:`~blip.errors.RuntimeFailed` if requests fail."""
        ask = ASKS[kind]
        long, short = ask.make(model, ask.many), ask.make(model, ask.short)
        await self._client.ask(short)  # which loads the model
        seconds, whole = await self._step(ask, model)
        alone: list[float] = []
        taken: list[float] = []
        missed = 0
        for _ in range(self._rounds):
            alone += [(await self._timed(short))[0] for _ in range(ALONE)]
            after = self._random.random() * SHARE * whole
            if await self._client.leave(long, kind, after):
                taken.append((await self._timed(short))[0])
            else:
                missed += 1
        usual = statistics.median(alone)
        return Row(kind, model, ask.step, seconds, alone, [each - usual for each in taken], missed)

    async def _step(self, ask: Ask, model: str) -> tuple[float, float]:
        """Return what a step takes, and what the long request does."""
        few, none = (0.0, {}) if not ask.few else await self._timed(ask.make(model, ask.few))
        many, answer = await self._timed(ask.make(model, ask.many))
        low, high = ask.few, ask.many
        if ask.took is not None:
            low, high = ask.took(none), ask.took(answer)
        if high <= low or many <= few:
            raise RuntimeFailed(f"{high} steps took no longer than {low}: nothing can be measured")
        return (many - few) / (high - low), many

    async def _timed(self, request: Request) -> tuple[float, dict[str, Any]]:
        began = time.perf_counter()
        answer = await self._client.ask(request)
        return time.perf_counter() - began, answer


@contextlib.asynccontextmanager
async def one_node(config: Config) -> AsyncIterator[Client]:
    """Bring up a mesh with one node and a configuration's models, a slot each."""
    key = f"bench-{secrets.token_urlsafe(16)}"
    with tempfile.TemporaryDirectory(prefix="blip-bench-", ignore_cleanup_errors=True) as home:
        own = load(env={}, search=False, overrides=stacks.settings(Path(home), key)).config
        models = {
            name: model.model_copy(update={"slots": 1, "preload": False})
            for name, model in config.models.items()
        }
        theirs = {name: getattr(config.node, name) for name in ("nvml", "cpu", "data_dir")}
        node = own.node.model_copy(update=theirs)
        own = own.model_copy(update={"models": models, "node": node})
        async with (
            LocalMesh(own, say=render.note) as mesh,
            aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {key}"},
                timeout=aiohttp.ClientTimeout(LIMIT),
            ) as session,
        ):
            await mesh.ready(READY_LIMIT, key)
            yield Client(mesh.url, session)


def main(
    *, config: Path | None = None, kinds: str = "", rounds: int = 9, as_json: bool = False
) -> int:
    """Measure and print; return 0 unless requests failed: a slot that is late is a result.

    ``config`` is a file whose models are asked; None takes the demo's. ``kinds`` are names with
    commas between; "" takes all that there are models for. Raises
    :class:`~blip.errors.BlipError` when something does not come up.
    """
    wanted = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    if unknown := [kind for kind in wanted if kind not in ASKS]:
        raise ConfigError(
            f"--kinds: nothing is known about how to ask for {unknown[0]!r}",
            param="--kinds",
            hint=f"Known are {', '.join(ASKS)}.",
        )
    # env={}: it is the same everywhere, whatever is set for this user's own mesh
    loaded = load(config or find_settings(), env={}).config
    if config is None:
        check_packages(loaded)
    try:
        return asyncio.run(_main(loaded, wanted, rounds, as_json))
    except asyncio.CancelledError:
        return INTERRUPTED


async def _main(config: Config, wanted: Sequence[str], rounds: int, as_json: bool) -> int:
    began = time.monotonic()
    rows: list[Row] = []
    failed: dict[str, str] = {}
    with ended_by_signals():
        async with one_node(config) as client:
            bench = Bench(client, rounds)
            for kind, model in await client.models():
                if kind not in ASKS or (wanted and kind not in wanted):
                    continue
                render.note(f"{kind} on {model}")
                try:
                    rows.append(await bench.measure(kind, model))
                except RuntimeFailed as error:
                    failed[f"{kind} on {model}"] = error.message
    if not rows and not failed:
        raise ConfigError(
            f"there is no model for {' or '.join(wanted) or 'any kind that is known'}",
            param="--kinds",
        )
    if as_json:
        render.print_json(document(rows, failed, rounds))
    else:
        _print(rows, rounds, time.monotonic() - began)
    for what, reason in failed.items():
        render.note(f"{what}: {reason}")
    return FAILURE if failed else 0


def document(rows: Sequence[Row], failed: Mapping[str, str], rounds: int) -> dict[str, Any]:
    """Return everything for programs. Times are seconds."""
    return {
        "version": __version__,
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "rounds": rounds,
        "rows": [asdict(row) | {"noise": row.noise, "within": row.within} for row in rows],
        "failed": dict(failed),
    }


def _print(rows: Sequence[Row], rounds: int, took: float) -> None:
    from blip.bench import tables

    print(
        f"blip {__version__}, one node, {os.cpu_count()} cores; {rounds} connections of each kind "
        f"closed, {render.duration(took)} in all"
    )
    tables.print_tables([tables.cancels(rows)])

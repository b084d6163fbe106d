"""``blip up``: the whole mesh on this machine, in the foreground."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from blip import __version__
from blip.cli import INTERRUPTED, render
from blip.cli.local import LocalMesh
from blip.client import AsyncBlip, ModelInfo
from blip.config import Config
from blip.errors import BlipError, Unauthorized

#: Seconds until the roles must have found each other. Models load later, so this is process
#: starts only: 1 to 3 s, several times that on a machine that is busy.
READY_LIMIT = 60.0


def up(config: Config, nodes: int, *, stream: bool, as_json: bool) -> int:
    """Run the mesh until Ctrl-C; return the exit code."""
    return asyncio.run(_up(config, nodes, stream, as_json))


async def _up(config: Config, nodes: int, stream: bool, as_json: bool) -> int:
    began = time.monotonic()
    mesh = LocalMesh(config, nodes, say=render.note, stream=stream)
    with ctrl_c(mesh):
        async with mesh:
            try:
                await mesh.ready(READY_LIMIT)
            except BlipError:
                if interrupted(mesh):
                    return INTERRUPTED
                raise
            await _announce(mesh, time.monotonic() - began, as_json)
            return await mesh.ended()


def interrupted(mesh: LocalMesh) -> bool:
    """Whether the mesh stops because it was told to, not because a role was given up."""
    return mesh.stopping and not mesh.failed


@contextmanager
def ctrl_c(mesh: LocalMesh) -> Iterator[None]:
    """Drain on the first Ctrl-C (or SIGTERM, or a closed terminal), end at once on the second."""
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if mesh.stopping:
            render.note("ending everything at once")
            mesh.force()
        else:
            render.note("\nstopping; once more to end at once")
            mesh.stop()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, asked)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _announce(mesh: LocalMesh, seconds: float, as_json: bool) -> None:
    """Say where the mesh is and what it has."""
    names: list[str] = []
    models: list[ModelInfo] = []
    async with AsyncBlip(mesh.url) as client:
        try:
            names = [str(node["name"]) for node in (await client.mesh())["nodes"]]
            models = await client.models()
        except Unauthorized:
            pass  # the gateway knows keys by their hashes only, and so do we
    if as_json:
        answer: dict[str, Any] = {"url": mesh.url, "nodes": names}
        answer["models"] = [model.id for model in models]
        answer["logs"] = str(mesh.logs)
        render.print_json(answer)
        return
    lines = [
        ("gateway", f"{mesh.url}   (OpenAI base URL: {mesh.url}/v1)"),
        ("nodes", ", ".join(names)),
        ("models", ", ".join(describe_model(model) for model in models) or NO_MODELS),
        ("logs", str(mesh.logs)),
    ]
    print(f"blip {__version__} is up after {render.duration(seconds)}\n")
    for label, value in lines:
        if value:
            print(f"  {label:<9}{value}")
    print("\nCtrl-C stops it.", flush=True)


NO_MODELS = "none yet: name one in the configuration ([models.NAME] source = ...)"


def describe_model(model: ModelInfo) -> str:
    """Write a model as ``smollm2 (chat, completion)``."""
    kinds = ", ".join(kind for kind in model.kinds if kind != model.id)
    return f"{model.id} ({kinds})" if kinds else model.id

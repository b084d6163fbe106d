"""An engine for tests: an HTTP server that speaks OpenAI's API as each engine documents it.

Its manners are the test's choice: it streams, hangs, lies, refuses or dies. It serves the shapes of
vLLM, llama.cpp, Ollama and SGLang; no model, for what is tested is who talks to it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: ``GET /v1/models`` of each engine, as its documentation and source have it.
LISTS: dict[str, dict[str, Any]] = {
    "vllm": {
        "object": "list",
        "data": [
            {
                "id": "Qwen/Qwen3-0.6B",
                "object": "model",
                "created": 1761000000,
                "owned_by": "vllm",
                "root": "Qwen/Qwen3-0.6B",
                "parent": None,
                "max_model_len": 40960,
                "permission": [{"id": "modelperm-1", "object": "model_permission"}],
            }
        ],
    },
    "sglang": {
        "object": "list",
        "data": [
            {
                "id": "meta-llama/Llama-3.2-1B",
                "object": "model",
                "created": 1761000000,
                "owned_by": "sglang",
                "root": "meta-llama/Llama-3.2-1B",
                "max_model_len": 131072,
            }
        ],
    },
    "llama.cpp": {
        "models": [
            {
                "name": "/models/nomic.gguf",
                "model": "/models/nomic.gguf",
                "type": "model",
                "capabilities": ["embedding"],
                "details": {"format": "gguf"},
            }
        ],
        "object": "list",
        "data": [
            {
                "id": "/models/nomic.gguf",
                "object": "model",
                "created": 1761000000,
                "owned_by": "llamacpp",
                "meta": {"vocab_type": 1, "n_vocab": 30522, "n_ctx_train": 8192, "n_embd": 768},
            }
        ],
    },
    "ollama": {
        "object": "list",
        "data": [
            {
                "id": "llama3.2:latest",
                "object": "model",
                "created": 1761000000,
                "owned_by": "library",
            },
            {
                "id": "nomic-embed-text:latest",
                "object": "model",
                "created": 1761000000,
                "owned_by": "library",
            },
        ],
    },
}


@dataclass
class EngineServer:
    """The state of a server. ``chat`` answers requests for text, ``models`` is what is listed."""

    url: str = ""
    models: Any = None
    chat: Handler | None = None
    embed: Handler | None = None
    #: How ``GET /v1/models`` is answered, if not with ``models``.
    listing: Handler | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    #: Requests for text under way, and those whose client went away.
    open: int = 0
    gone: int = 0
    lists: int = 0
    runner: web.AppRunner | None = None

    async def on_models(self, request: web.Request) -> web.StreamResponse:
        self.lists += 1
        if self.listing is not None:
            return await self.listing(request)
        return web.json_response(self.models)

    async def on_text(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        assert self.chat is not None
        self.open += 1
        try:
            return await self.chat(request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.gone += 1
            raise
        finally:
            self.open -= 1

    async def on_embeddings(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        assert self.embed is not None
        return await self.embed(request)


async def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until something is so; fail if it does not come."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def engine_server(port: int = 0, **settings: Any) -> AsyncIterator[EngineServer]:
    """Serve on a loopback port."""
    server = EngineServer(**settings)
    app = web.Application()
    app.router.add_get("/v1/models", server.on_models)
    app.router.add_post("/v1/chat/completions", server.on_text)
    app.router.add_post("/v1/completions", server.on_text)
    app.router.add_post("/v1/embeddings", server.on_embeddings)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    server.runner = runner
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


def chunk(text: str | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a streamed chat, as engines write it."""
    delta = {} if text is None else {"content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1761000000,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason, **more}],
    }


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """The chunk that ``include_usage`` asks for."""
    counted = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {**chunk(), "choices": [], "usage": counted | {"total_tokens": prompt + completion}}


def event(chunk: Any) -> bytes:
    """A chunk as an event."""
    return b"data: " + (chunk if isinstance(chunk, str) else json.dumps(chunk)).encode() + b"\n\n"


def streams(
    *events: Any, done: bool = True, pause: float = 0.0, kind: str = "text/event-stream"
) -> Handler:
    """Answer with these events (bytes go out as they are), one every ``pause`` seconds."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        for each in (*events, *(["[DONE]"] if done else [])):
            await response.write(each if isinstance(each, bytes) else event(each))
            await asyncio.sleep(pause)
        return response

    return handle


def refuses(status: int, body: Any, **headers: str) -> Handler:
    """Answer with an error."""

    async def handle(request: web.Request) -> web.StreamResponse:
        text = body if isinstance(body, str) else json.dumps(body)
        kind = "text/html" if isinstance(body, str) else "application/json"
        return web.Response(status=status, text=text, content_type=kind, headers=headers)

    return handle


def hangs(*events: Any) -> Handler:
    """Begin like :func:`streams`, and then say nothing more."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if not events:
            await asyncio.sleep(3600)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for each in events:
            await response.write(event(each))
        await asyncio.sleep(3600)
        return response

    return handle


def dies(*events: Any) -> Handler:
    """Begin like :func:`streams`, and cut the connection off."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if events:
            await response.prepare(request)
        for each in events:
            await response.write(event(each))
        assert request.transport is not None
        await asyncio.sleep(0.05)  # what was written is on its way
        request.transport.abort()
        return response

    return handle

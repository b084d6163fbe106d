"""The yardstick: an aiohttp server that answers ``POST /v1/echo`` by itself, and does nothing else.

``python -m blip.bench.bare`` serves on this machine only and prints its port. Its answers are byte
for byte as long as blip's, so that what differs is the way they took. No keys, no validation, no
metrics, default garbage collector: what one writes in an afternoon.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from aiohttp import web

from blip.lifecycle import die_with_parent, new_event_loop

#: What chunks of bytes are cut from, so that making them costs nothing.
_BYTES = bytes(range(256)) * 4096


async def echo(request: web.Request) -> web.StreamResponse:
    """Answer as blip's gateway does."""
    body = json.loads(await request.read())
    size = body.get("size", 0)
    if body.get("stream"):
        return await _stream(request, body)
    if size:
        whole = _BYTES if size == len(_BYTES) else bytes(size)
        return web.Response(body=whole, content_type="application/octet-stream")
    text = f'{{"text":{json.dumps(body.get("text", ""))}}}'
    return web.Response(text=text, content_type="application/json")


async def _stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    interval = body.get("interval", 0)
    text = json.dumps(body.get("text", ""))
    for index in range(body.get("chunks", 1)):
        if index and interval:
            await asyncio.sleep(interval)
        if body.get("stamp"):
            text = f'"{time.monotonic():.9f}"'
        await response.write(f'data: {{"index":{index},"text":{text}}}\n\n'.encode())
    await response.write_eof(b"data: [DONE]\n\n")
    return response


def build_app() -> web.Application:
    """Return the application."""
    app = web.Application()
    app.router.add_post("/v1/echo", echo)
    return app


async def serve() -> None:
    """Serve on a port that the system chooses, and print it; until cancelled."""
    runner = web.AppRunner(build_app(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main(parent: int) -> None:
    """Serve until ended, at the latest with the process ``parent``."""
    die_with_parent(parent)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""How ``blip bench cancel`` goes away, against a server that says what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from blip.bench.asks import ASKS, Request
from blip.bench.cancel import Bench, Client
from blip.errors import RuntimeFailed


class Server:
    """Answers ``/v1/echo`` when it is let, or never; videos have the status that is set."""

    def __init__(self) -> None:
        self.status = "in_progress"
        self.state = "running"
        self.answers = True
        self.code = 200
        self.gone = 0
        self.deleted = 0

    async def echo(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            while not self.answers:  # noqa: ASYNC110  (it is the client that ends it)
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.gone += 1
            raise
        return web.json_response({"text": "x" * body["chunks"]}, status=self.code)

    async def video(self, request: web.Request) -> web.Response:
        return web.json_response({"id": "v", "status": self.status, "error": {"code": "bad"}})

    async def delete(self, request: web.Request) -> web.Response:
        self.deleted += 1
        return web.json_response({"id": "v"})

    async def tasks(self, request: web.Request) -> web.Response:
        kinds = ("echo", "video")
        tasks = [{"kind": kind, "model": "m", "state": self.state} for kind in kinds]
        return web.json_response({"tasks": tasks})


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, Client]]:
    said = Server()
    app = web.Application()
    app.router.add_post("/v1/echo", said.echo)
    app.router.add_post("/v1/videos", said.video)
    app.router.add_get("/v1/videos/v", said.video)
    app.router.add_delete("/v1/videos/v", said.delete)
    app.router.add_get("/v1/tasks", said.tasks)
    async with (
        TestServer(app, handler_cancellation=True) as running,
        aiohttp.ClientSession() as session,
    ):
        yield said, Client(str(running.make_url("")).rstrip("/"), session)


ECHO = Request("/v1/echo", {"model": "m", "chunks": 3})
VIDEO = Request("/v1/videos", {"model": "m"}, job=True)


async def test_who_goes_away_closes_the_connection(server: tuple[Server, Client]) -> None:
    said, client = server
    said.answers = False
    assert await client.leave(ECHO, "echo", 0.02)
    while not said.gone:  # noqa: ASYNC110  (the server has no event for it)
        await asyncio.sleep(0.005)
    said.answers, said.state = True, "succeeded"
    assert not await client.leave(ECHO, "echo", 0.02)  # it was over before it was seen to run
    assert await client.ask(ECHO) == {"text": "xxx"}
    said.code = 500
    with pytest.raises(RuntimeFailed, match="answered 500"):
        await client.leave(ECHO, "echo", 0.02)


async def test_a_job_is_deleted(server: tuple[Server, Client]) -> None:
    said, client = server
    assert await client.leave(VIDEO, "video", 0.02)
    assert said.deleted == 1
    said.status = "completed"
    assert not await client.leave(VIDEO, "video", 0.02)
    assert (await client.ask(VIDEO))["id"] == "v"
    assert said.deleted == 3
    said.status = "failed"
    with pytest.raises(RuntimeFailed, match="bad"):
        await client.ask(VIDEO)


async def test_what_takes_no_longer_cannot_be_measured(
    server: tuple[Server, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = server

    def took(answer: Any) -> int:
        return len(answer["text"])

    monkeypatch.setitem(ASKS, "echo", replace(ASKS["echo"], few=9, many=9, took=took))
    with pytest.raises(RuntimeFailed, match="9 steps took no longer than 9"):
        await Bench(client, 1).measure("echo", "m")

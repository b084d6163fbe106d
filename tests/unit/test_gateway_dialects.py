"""What holds in every dialect: streams of clients that go away, keys, bodies that are too large."""

from __future__ import annotations

import hashlib
from typing import Any

import aiohttp
import pytest

from blip.gateway.settings import GatewaySettings
from tests.unit.gateway_mesh import mesh, served

USER = {"role": "user", "content": "x"}
STREAMS: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "x", "stream": True},
    "/v1/messages": {"messages": [USER], "max_tokens": 9, "stream": True},
    "/api/chat": {"messages": [USER]},
    "/api/generate": {"prompt": "x"},
    "/api/v1/inference/text-generation": {"prompt": "x", "stream": True},
}

streams = pytest.mark.parametrize("route", STREAMS)


@streams
async def test_going_away_cancels_the_task(route: str) -> None:
    backend = mesh()
    body = {"model": "endless", **STREAMS[route]}
    async with served(backend) as origin:
        async with (
            aiohttp.ClientSession(origin) as http,
            http.post(route, json=body) as response,
        ):
            assert response.status == 200
            assert await response.content.readany()
            response.close()
        (call,) = backend.calls
        await call.ended.wait()
    assert call.cancelled


@streams
async def test_keys_and_sizes_are_looked_at(route: str) -> None:
    keys = {"anna": hashlib.sha256(b"k").hexdigest()}
    body = {"model": "endless", **STREAMS[route]}
    async with (
        served(mesh(), GatewaySettings(api_keys=keys, body_limit=10)) as origin,
        aiohttp.ClientSession(origin) as http,
    ):
        for headers, status, code in (
            ({}, 401, "invalid_api_key"),
            ({"X-API-Key": "k"}, 413, "payload_too_large"),
            ({"X-API-Key": "k", "Expect": "100-continue"}, 413, "payload_too_large"),
        ):
            async with http.post(route, json=body, headers=headers) as response:
                assert response.status == status
                text = await response.text()
            assert code in text.lower()

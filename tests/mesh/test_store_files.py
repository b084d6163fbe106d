"""Kept files on a real server, and gateways that share them."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web

from blip.errors import InvalidRequest
from blip.gateway.app import build_app
from blip.gateway.settings import GatewaySettings
from blip.store import Client, Files, Keys, Results
from blip.store.files import PIECE
from tests.mesh.store_servers import until
from tests.unit.gateway_mesh import mesh, png

pytest_plugins = "tests.mesh.store_fixtures"

LIMITS = {"ttl_ms": 3_600_000, "most_bytes": 64 * 1024 * 1024, "most_files": 100}


@pytest.fixture
def files(store_redis: Client, store_keys: Keys) -> Files:
    return Files(store_redis, store_keys, Results(store_redis, store_keys))


async def test_put_find_read_remove(files: Files, store_redis: Client, store_keys: Keys) -> None:
    content = b"".join(number.to_bytes(4, "big") for number in range((2 * PIECE + 40) // 4))
    await files.put("file-1", {"media": "video/mp4"}, content, **LIMITS)
    found = await files.find("file-1")
    assert found == {"media": "video/mp4", "attempt": 1, "bytes": len(content)}
    for start, stop in ((0, len(content)), (3, 9), (PIECE - 2, PIECE + 2), (2 * PIECE, None)):
        stop = len(content) if stop is None else stop
        assert await files.read("file-1", start, stop) == content[start:stop]
    await files.put("empty", {}, b"", **LIMITS)
    assert await files.read("empty", 0, 0) == b""
    await files.remove("file-1")
    assert await files.find("file-1") is None
    assert await files.read("file-1", 0, 4) is None
    assert await store_redis.zrange(store_keys.files, 0, -1) == [b"empty"]
    # pieces and nonsense are no files
    assert await files.find("empty.0") is None
    with pytest.raises(InvalidRequest):
        await files.find("../etc")


@pytest.mark.parametrize("limits", [{"most_files": 2}, {"most_bytes": 250}])
async def test_the_oldest_make_room(
    files: Files, store_redis: Client, store_keys: Keys, limits: dict[str, int]
) -> None:
    for number in range(4):
        await files.put(f"f{number}", {}, bytes(100), **LIMITS | limits)
    there = [await files.find(f"f{number}") is not None for number in range(4)]
    assert there == [False, False, True, True]
    assert await files.read("f1", 0, 1) is None
    assert await store_redis.hlen(store_keys.files_sizes) == 2


async def test_what_expired_counts_no_more(
    files: Files, store_redis: Client, store_keys: Keys
) -> None:
    await files.put("short", {}, bytes(100), **LIMITS | {"ttl_ms": 30})

    async def expired() -> bool:
        return await files.find("short") is None

    await until(expired)
    await files.put("long", {}, bytes(100), **LIMITS | {"most_files": 1})
    assert await files.find("long") is not None
    assert await store_redis.pttl(store_keys.files) > 3_000_000


async def test_a_mesh_has_one_secret(files: Files, store_redis: Client, mesh_name: str) -> None:
    secret = await files.secret()
    assert len(secret) == 32
    assert await files.secret() == secret
    other = Keys(f"{mesh_name}-2")
    assert await Files(store_redis, other, Results(store_redis, other)).secret() != secret


async def test_any_gateway_serves_what_another_kept(files: Files) -> None:
    origins, runners = [], []
    for _ in range(2):
        runner = web.AppRunner(build_app(mesh(), GatewaySettings(), files))
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        origins.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with aiohttp.ClientSession() as http:
            asked = {"model": "toy-shapes", "prompt": "x", "seed": 5, "response_format": "url"}
            async with http.post(f"{origins[0]}/v1/images/generations", json=asked) as response:
                url = (await response.json())["data"][0]["url"]
            await runners.pop(0).cleanup()  # and it may be gone
            elsewhere = url.replace(origins[0], origins[1])
            async with http.get(elsewhere) as response:
                assert await response.read() == png(64, 64, 5)
            async with http.get(elsewhere, headers={"Range": "bytes=1-3"}) as response:
                assert await response.read() == b"PNG"
    finally:
        for runner in runners:
            await runner.cleanup()

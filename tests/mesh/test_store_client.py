"""The client against real servers that are away, hung, full, locked or cut off mid-reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from blip.errors import ConfigError, InternalError, StoreUnavailable
from blip.store import Client, Discovery, Keys, Results, connect
from blip.store.client import check
from blip.store.embedded import ensure
from tests.mesh.store_servers import raw_server, short_folder, suspended, sync_client

pytest_plugins = "tests.mesh.store_fixtures"


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Client]:
    client = connect(url)
    try:
        yield client
    finally:
        await client.aclose()


async def in_a_pipeline(client: Client) -> Any:
    pipeline = client.pipeline()
    pipeline.get("a")
    return await pipeline.execute()


async def test_a_client_has_a_name_and_flat_replies(store_url: str, mesh_name: str) -> None:
    client = connect(store_url, name="blip-gateway-7")
    assert await client.client_getname() == "blip-gateway-7"
    assert "redis_version" in await client.info()
    stream = f"blip:{{{mesh_name}}}:x"
    entry = await client.xadd(stream, {"a": "1"})
    read: Any = await client.xread({stream: 0})
    assert read == {stream.encode(): [(entry, {b"a": b"1"})]}
    await client.delete(stream)
    await client.aclose()


async def test_more_callers_than_connections_wait_instead_of_failing(store_redis: Client) -> None:
    answers = await asyncio.gather(*(store_redis.echo(str(n)) for n in range(500)))
    assert answers == [str(n).encode() for n in range(500)]


async def test_nothing_there_is_store_unavailable(tmp_path: Path) -> None:
    async with client_of(f"unix://{tmp_path}/none") as client:
        with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
            await client.get("a")
        assert caught.value.hint
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await in_a_pipeline(client)


async def test_a_hung_server_is_store_unavailable() -> None:
    with raw_server() as server:
        async with client_of(server.url) as warm, client_of(server.url) as cold:
            await warm.set("a", 1)
            with suspended(server.process.pid):
                calls = [warm.get("a"), cold.get("a"), in_a_pipeline(warm)]
                for told in await asyncio.gather(*calls, return_exceptions=True):
                    assert isinstance(told, StoreUnavailable)
                    assert "does not answer" in told.message
            assert await warm.get("a") == await cold.get("a") == b"1"
            assert await in_a_pipeline(warm) == [b"1"]


async def test_a_server_that_ended_and_returns_is_not_noticed(state_dir: Path) -> None:
    server = ensure(state_dir)
    async with client_of(server.url) as client:
        await client.set("a", 1)
        server.stop()
        server = ensure(state_dir)
        assert await client.get("a") == b"1"
    server.stop()


async def test_a_full_server_is_store_unavailable() -> None:
    with raw_server("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        async with client_of(server.url) as client:
            results = Results(client, Keys("m"))

            async def fill() -> None:
                for n in range(100):
                    await results.put(f"t{n}", {"attempt": 1}, bytes(100_000), ttl_ms=60_000)

            with pytest.raises(StoreUnavailable, match="is full") as caught:
                await fill()
            assert "maxmemory" in caught.value.hint
            assert await results.get("t0") is not None  # what was accepted stays


async def test_a_rejected_command_is_an_internal_error(store_redis: Client) -> None:
    await store_redis.set("blip:{t}:text", "x", ex=60)
    with pytest.raises(InternalError, match="rejected a command"):
        await store_redis.hget("blip:{t}:text", "a")
    pipeline = store_redis.pipeline()
    pipeline.hget("blip:{t}:text", "a")
    with pytest.raises(InternalError, match="rejected a command"):
        await pipeline.execute()


async def test_a_wrong_or_missing_password_is_a_config_error() -> None:
    with raw_server("--requirepass", "right") as server:
        for url in (server.url, f"{server.url}&password=wrong"):
            async with client_of(url) as client:
                with pytest.raises(ConfigError, match="user or password") as caught:
                    await check(client)
                assert "password=" not in caught.value.message
        async with client_of(f"{server.url}&password=right") as client:
            assert (await check(client)).engine


async def test_a_server_that_evicts_is_refused() -> None:
    policy = ("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    with raw_server(*policy) as server:
        async with client_of(server.url) as client:
            with pytest.raises(ConfigError, match="allkeys-lru"):
                await check(client)
            await client.config_set("maxmemory-policy", "noeviction")
            warnings = (await check(client)).warnings
            assert [w for w in warnings if "appendonly" in w] == list(warnings) != []


async def test_the_documented_acl_is_enough_and_no_more() -> None:
    with raw_server() as server:
        with sync_client(server.url) as admin:
            rights = ["~blip:*", "&blip:*", "+@all", "-@admin", "-@dangerous", "+info"]
            admin.execute_command("ACL", "SETUSER", "blip", "on", ">secret", *rights)
        url = server.url.replace("unix://", "unix://blip@") + "&password=secret"
        async with client_of(url) as client:
            await check(client)
            discovery, results = Discovery(client, Keys("m")), Results(client, Keys("m"))
            assert await discovery.register("node", "a", 1, {})
            assert [r.id for r in await anext(discovery.watch("node"))] == ["a"]
            assert await discovery.next_epoch() > 0
            assert await results.put("t", {"attempt": 1}, ttl_ms=60_000)
            assert await results.get("t") is not None
            with pytest.raises(StoreUnavailable, match="does not allow"):
                await client.get("somebody-elses")
            with pytest.raises(StoreUnavailable, match="does not allow"):
                await client.flushall()


@asynccontextmanager
async def losing_one_reply(url: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A way to the server that, once armed, cuts the line after a script ran, before its reply."""
    folder = short_folder()
    target = url.removeprefix("unix://").partition("?")[0]
    armed = asyncio.Event()

    async def forward(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, commands: bool, cut: list[bool]
    ) -> None:
        while data := await source.read(1 << 20):
            if commands and armed.is_set() and b"EVALSHA" in data:
                cut.append(True)
                armed.clear()
            if not commands and cut:
                return
            sink.write(data)
            await sink.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_unix_connection(target)
        cut: list[bool] = []
        ways = [
            asyncio.ensure_future(forward(reader, down, True, cut)),
            asyncio.ensure_future(forward(up, writer, False, cut)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for each in (writer, down):
            each.close()
            await each.wait_closed()

    proxy = await asyncio.start_unix_server(serve, folder / "p")
    try:
        yield f"unix://{folder}/p?db=0", armed
    finally:
        proxy.close()
        await proxy.wait_closed()
        (folder / "p").unlink(missing_ok=True)
        folder.rmdir()


async def test_a_lost_reply_doubles_nothing(
    store_url: str, store_redis: Client, mesh_name: str
) -> None:
    keys = Keys(mesh_name)
    async with losing_one_reply(store_url) as (url, armed), client_of(url) as client:
        results, discovery = Results(client, keys), Discovery(client, keys)
        # every script is loaded before a reply is lost, or the lost one would be NOSCRIPT
        await results.put("warm", {"attempt": 1}, ttl_ms=60_000)
        await discovery.register("node", "warm", 1, {})
        before = await discovery.next_epoch()

        async def calls() -> int:
            return int((await store_redis.info("commandstats"))["cmdstat_evalsha"]["calls"])

        base = await calls()
        armed.set()
        assert await results.put("t", {"attempt": 1, "by": "us"}, b"x", ttl_ms=60_000)
        assert not armed.is_set()
        assert await calls() == base + 2  # it really ran twice
        assert not await results.put("t", {"attempt": 1, "by": "us"}, b"x", ttl_ms=60_000)

        armed.set()
        assert await discovery.register("node", "a", 7, {"x": 1})
        assert not armed.is_set()
        assert [r.id for r in await discovery.list("node")] == ["a", "warm"]

        armed.set()
        epoch = await discovery.next_epoch()
        assert not armed.is_set()
        assert epoch > before
        assert await discovery.next_epoch() > epoch

"""The store as a process uses it: opened, lost, found again, closed."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest

from blip.errors import ConfigError, StoreUnavailable
from blip.store import Store, embedded
from blip.store.embedded import ensure
from tests.mesh.store_servers import await_end, lives, raw_server, suspended, until

pytest_plugins = "tests.mesh.store_fixtures"


async def is_healthy(store: Store) -> bool:
    return bool(await store.healthy())


def pid_of(store: Store) -> int:
    assert store.embedded is not None
    return store.embedded.pid


def owns(store: Store) -> bool:
    assert store.embedded is not None
    return store.embedded.owned


async def test_without_a_url_a_store_brings_its_own_server(state_dir: Path) -> None:
    async with await Store.open(None, state_dir, "m") as store:
        assert store.embedded is not None
        assert store.embedded.owned
        health = await store.healthy()
        assert health
        assert health.latency is not None
        assert health.latency > 0
        assert health.engine == store.embedded.engine
        assert health.reason == ""
        assert await store.discovery.register("node", "a", 1, {})
        assert await store.results.put("t", {"attempt": 1}, b"x", ttl_ms=60_000)
        pid = pid_of(store)
    assert not lives(pid)
    async with await Store.open(None, state_dir, "m") as store:
        assert await store.results.get("t") is not None


async def test_with_a_url_a_store_starts_nothing(store_url: str, state_dir: Path) -> None:
    async with await Store.open(store_url, state_dir, "m", name="me") as store:
        assert store.embedded is None
        assert store.url == store_url
        assert await store.redis.client_getname() == "me"
        assert await store.healthy()
    assert not (state_dir / "store").exists()


async def test_a_configured_redis_that_is_away_stops_nobody(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"unix://{state_dir}/store/valkey.sock?db=0"
    async with await Store.open(url, state_dir, "m") as store:
        assert "continuing without a store" in caplog.text
        health = await store.healthy()
        assert not health
        assert health.latency is None
        assert "cannot be reached" in health.reason
        for call in (store.discovery.list("node"), store.results.get("t")):
            with pytest.raises(StoreUnavailable):
                await call
        server = ensure(state_dir)
        assert await store.healthy()
        assert await store.results.get("t") is None
        server.stop()
        health = await store.healthy()
        assert not health
        assert health.engine == server.engine  # who it was is still known


async def test_a_redis_that_must_be_there_can_be_required(state_dir: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await Store.open(f"unix://{state_dir}/none", state_dir, "m", require=True)


async def test_what_waiting_does_not_mend_stops_the_start(state_dir: Path) -> None:
    evicting = raw_server("--maxmemory", "50mb", "--maxmemory-policy", "volatile-lru")
    with evicting as server, pytest.raises(ConfigError, match="volatile-lru"):
        await Store.open(server.url, state_dir, "m")
    with pytest.raises(ConfigError, match="mesh"):
        await Store.open(None, state_dir, "no good")
    with pytest.raises(ConfigError, match="Redis URL"):
        await Store.open("localhost:6379", state_dir, "m")
    assert not (state_dir / "store").exists()


async def test_a_server_that_becomes_unfit_while_away_is_reported_unhealthy(
    state_dir: Path,
) -> None:
    with raw_server("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru") as server:
        with suspended(server.process.pid):
            store = await Store.open(server.url, state_dir, "m")
        health = await store.healthy()
        assert not health
        assert "allkeys-lru" in health.reason
        await store.close()


async def test_a_store_can_look_without_starting(state_dir: Path) -> None:
    with pytest.raises(StoreUnavailable, match="no embedded store runs"):
        await Store.open(None, state_dir, "m", start=False)
    async with await Store.open(None, state_dir, "m") as owner:
        async with await Store.open(None, state_dir, "m", start=False) as guest:
            assert guest.embedded is not None
            assert not guest.embedded.owned
            await guest.discovery.register("node", "a", 1, {})
        assert len(await owner.discovery.list("node")) == 1


async def test_who_only_looks_brings_nothing_back(state_dir: Path) -> None:
    owner = ensure(state_dir)
    store = await Store.open_if_there(None, state_dir, "m", name="looker")
    assert store is not None
    owner.stop()
    assert not await store.healthy()
    assert embedded.adopt(state_dir) is None
    owner = ensure(state_dir)
    assert await store.healthy()  # the place is the same, so it needs nothing
    await store.close()
    assert lives(owner.pid)
    owner.stop()
    assert await Store.open_if_there(None, state_dir, "m", name="looker") is None


async def test_a_hung_server_is_unhealthy_and_not_replaced(state_dir: Path) -> None:
    async with await Store.open(None, state_dir, "m") as store:
        pid = pid_of(store)
        with suspended(pid):
            health = await store.healthy()
            assert not health
            assert "does not answer" in health.reason
        assert await store.healthy()
        assert pid_of(store) == pid


async def test_a_killed_server_comes_back_for_everybody(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        await Store.open(None, state_dir, "m") as one,
        await Store.open(None, state_dir, "m") as two,
    ):
        assert await one.results.put("t", {"attempt": 1}, ttl_ms=60_000)
        first = pid_of(one)
        os.kill(first, signal.SIGKILL)
        await until(lambda: first not in (pid_of(one), pid_of(two)))
        assert pid_of(one) == pid_of(two)
        assert sorted([owns(one), owns(two)]) == [False, True]
        assert await one.results.get("t") == await two.results.get("t") is not None
        pid = pid_of(one)
    assert not lives(pid)
    assert "started again" in caplog.text
    assert "adopted from another process" in caplog.text


async def test_guests_take_over_when_the_owner_leaves(state_dir: Path) -> None:
    owner = await Store.open(None, state_dir, "m")
    guest = await Store.open(None, state_dir, "m")
    await owner.results.put("t", {"attempt": 1}, ttl_ms=60_000)
    await owner.close()
    await until(lambda: owns(guest))
    assert await guest.results.get("t") is not None
    pid = pid_of(guest)
    await guest.close()
    assert not lives(pid)


async def test_without_pidfd_asking_for_health_brings_it_back(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.delattr(os, "pidfd_open")
        store = await Store.open(None, state_dir, "m")
    os.kill(pid_of(store), signal.SIGKILL)
    await asyncio.to_thread(await_end, pid_of(store))
    assert not await store.healthy()
    assert await store.healthy()
    monkeypatch.setenv("BLIP_REDIS_SERVER_BIN", str(state_dir / "missing"))
    os.kill(pid_of(store), signal.SIGKILL)
    await asyncio.to_thread(await_end, pid_of(store))
    assert "BLIP_REDIS_SERVER_BIN" in (await store.healthy()).reason
    await store.close()


async def test_bringing_it_back_is_tried_until_it_works(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with await Store.open(None, state_dir, "m") as store:
        monkeypatch.setenv("BLIP_REDIS_SERVER_BIN", str(state_dir / "missing"))
        os.kill(pid_of(store), signal.SIGKILL)
        await until(lambda: "the embedded store is away" in caplog.text)
        assert not await store.healthy()
        await asyncio.sleep(0.3)  # for some more tries, which say nothing new
        assert caplog.text.count("the embedded store is away") == 1
        monkeypatch.delenv("BLIP_REDIS_SERVER_BIN")
        await until(lambda: is_healthy(store))


async def test_closing_while_it_is_being_started_leaves_nothing(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for pause in (0.0, 0.02, 0.05, 0.08):
        store = await Store.open(None, state_dir, "m")
        os.kill(pid_of(store), signal.SIGKILL)
        await asyncio.sleep(pause)
        await store.close()
        assert not await store.healthy()
        assert embedded.adopt(state_dir) is None


async def test_a_server_that_could_only_return_elsewhere_is_reported(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = state_dir / "run"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    async with await Store.open(None, state_dir / ("d" * 120), "m") as store:
        pid = pid_of(store)
        shutil.rmtree(runtime)
        runtime.write_text("not a folder any more")
        os.kill(pid, signal.SIGKILL)
        await until(lambda: "the embedded store moved" in caplog.text)
        assert not await store.healthy()
    assert embedded.adopt(state_dir / ("d" * 120)) is None

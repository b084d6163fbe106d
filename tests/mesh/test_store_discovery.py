"""Discovery and the announcer on a real server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip.errors import InternalError, InvalidRequest, PayloadTooLarge, StoreUnavailable
from blip.store import Announcer, Client, Discovery, Keys, Results, connect
from blip.store.embedded import ensure
from tests.mesh.store_servers import await_end, raw_server, until

pytest_plugins = "tests.mesh.store_fixtures"

NOW_NS = 1_790_000_000_000_000_001  # not exact as a double, as real incarnations are not


@pytest.fixture
def discovery(store_redis: Client, store_keys: Keys) -> Discovery:
    return Discovery(store_redis, store_keys)


async def found(discovery: Discovery, id: str) -> bool:
    return await discovery.get("node", id) is not None


async def gone(discovery: Discovery, id: str) -> bool:
    return await discovery.get("node", id) is None


async def test_register_get_list_withdraw(discovery: Discovery) -> None:
    assert await discovery.list("node") == []
    assert await discovery.get("node", "a") is None
    payload = {"gpus": [{"vram": 1 << 40}], "url": "tcp://h:1", "raw": b"\x00"}
    assert await discovery.register("node", "b", 2, payload, ttl_ms=60_000)
    assert await discovery.register("node", "a", 1, {}, ttl_ms=60_000)
    assert await discovery.register("broker", "a", 1, {"role": "broker"}, ttl_ms=60_000)
    assert [record.id for record in await discovery.list("node")] == ["a", "b"]
    record = await discovery.get("node", "b")
    assert record is not None
    assert (record.id, record.incarnation, record.payload) == ("b", 2, payload)
    assert 0 < record.left_ms <= 60_000
    assert await discovery.withdraw("node", "b", 2)
    assert not await discovery.withdraw("node", "b", 2)
    assert [record.id for record in await discovery.list("node")] == ["a"]
    assert [record.payload for record in await discovery.list("broker")] == [{"role": "broker"}]
    assert await discovery.list("gateway") == []


async def test_meshes_do_not_see_each_other(discovery: Discovery, store_redis: Client) -> None:
    await discovery.register("node", "a", 1, {}, ttl_ms=5_000)
    assert await Discovery(store_redis, Keys("another")).list("node") == []


async def test_a_record_expires_by_the_servers_clock(
    discovery: Discovery, store_redis: Client, store_keys: Keys
) -> None:
    await discovery.register("node", "stays", 1, {}, ttl_ms=60_000)
    await discovery.register("node", "goes", 9, {}, ttl_ms=40)
    await until(lambda: gone(discovery, "goes"))
    assert [record.id for record in await discovery.list("node")] == ["stays"]
    # looking removed it from Redis as well
    assert await store_redis.hkeys(store_keys.members("node")) == [b"stays"]
    assert not await discovery.renew("node", "goes", 9)
    # the dead fence nobody: an earlier incarnation that still lives may enter
    assert await discovery.register("node", "goes", 8, {}, ttl_ms=60_000)


async def test_what_nobody_lists_vanishes_too(
    discovery: Discovery, store_redis: Client, store_keys: Keys
) -> None:
    await discovery.register("node", "a", 1, {}, ttl_ms=80)
    await discovery.register("node", "b", 1, {}, ttl_ms=20)  # the shorter life shortens nothing
    assert await store_redis.pttl(store_keys.members("node")) > 20

    async def vanished() -> bool:
        return not await store_redis.exists(store_keys.members("node"))

    await until(vanished)


async def test_renewing_extends_and_keeps_the_payload(discovery: Discovery) -> None:
    await discovery.register("node", "a", 5, {"x": 1}, ttl_ms=1_000)
    assert await discovery.renew("node", "a", 5, ttl_ms=60_000)
    record = await discovery.get("node", "a")
    assert record is not None
    assert record.payload == {"x": 1}
    assert record.left_ms > 1_000
    assert not await discovery.renew("node", "a", 4)
    assert not await discovery.renew("node", "a", 6)
    assert not await discovery.renew("node", "b", 5)


async def test_an_older_incarnation_changes_nothing(discovery: Discovery) -> None:
    new, old = NOW_NS + 1, NOW_NS
    assert await discovery.register("node", "a", old, {"who": "old"})
    assert await discovery.register("node", "a", new, {"who": "new"})
    assert not await discovery.register("node", "a", old, {"who": "old"})
    assert not await discovery.renew("node", "a", old)
    assert not await discovery.withdraw("node", "a", old)
    record = await discovery.get("node", "a")
    assert record is not None
    assert (record.incarnation, record.payload) == (new, {"who": "new"})


operations = st.lists(
    st.tuples(
        st.sampled_from(["register", "renew", "withdraw"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from([0, 1, NOW_NS, NOW_NS + 1, 2**63 - 1]),
    ),
    max_size=12,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations)
async def test_any_order_of_calls_keeps_the_newest(
    store_url: str, mesh_name: str, calls: list[tuple[str, str, int]]
) -> None:
    client = connect(store_url)
    discovery = Discovery(client, Keys(mesh_name))
    alive: dict[str, int] = {}
    for verb, id, incarnation in calls:
        held = alive.get(id, -1)
        if verb == "register":
            done = await discovery.register("node", id, incarnation, {"i": incarnation})
            assert done is (held <= incarnation)
            if done:
                alive[id] = incarnation
        elif verb == "renew":
            assert await discovery.renew("node", id, incarnation) is (held == incarnation)
        else:
            done = await discovery.withdraw("node", id, incarnation)
            assert done is (0 <= held <= incarnation)
            if done:
                del alive[id]
        assert {r.id: r.incarnation for r in await discovery.list("node")} == alive
        assert all(r.payload == {"i": r.incarnation} for r in await discovery.list("node"))
    await client.delete(Keys(mesh_name).members("node"))
    await client.aclose()


async def test_bad_arguments_name_the_field(discovery: Discovery) -> None:
    for id in ("", "x" * 129):
        with pytest.raises(InvalidRequest) as caught:
            await discovery.register("node", id, 1, {})
        assert caught.value.param == "id"
    for incarnation in (-1, 2**63):
        with pytest.raises(InvalidRequest) as caught:
            await discovery.withdraw("node", "a", incarnation)
        assert caught.value.param == "incarnation"
    with pytest.raises(InvalidRequest) as caught:
        await discovery.renew("node", "a", 1, ttl_ms=0)
    assert caught.value.param == "ttl_ms"
    with pytest.raises(PayloadTooLarge, match="the payload of node a is"):
        await discovery.register("node", "a", 1, {"x": bytes(20_000)})
    with pytest.raises(InvalidRequest, match="cannot be stored"):
        await discovery.register("node", "a", 1, {"x": object()})
    assert await discovery.list("node") == []


@pytest.mark.parametrize("damage", [b"", b"\xff" * 60, b"x" * 20 + b"9" * 20 + b"\x80"])
async def test_a_damaged_record_does_not_hide_the_others(
    discovery: Discovery,
    store_redis: Client,
    store_keys: Keys,
    damage: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await discovery.register("node", "good", 1, {})
    await store_redis.hset(store_keys.members("node"), "bad", damage)
    await store_redis.hset(
        store_keys.members("node"), "worse", b"1".zfill(20) + b"9" * 20 + b"\xc1"
    )
    assert [record.id for record in await discovery.list("node")] == ["good"]
    assert "the record of node worse in Redis is corrupt" in caplog.text
    with pytest.raises(InternalError, match="corrupt"):
        await discovery.get("node", "worse")
    # whoever owns the id mends it by registering
    assert await discovery.register("node", "worse", 2, {})
    assert await discovery.get("node", "worse") is not None


async def test_epochs_only_grow_even_when_redis_forgot_everything(
    discovery: Discovery, store_redis: Client, store_keys: Keys
) -> None:
    first = [await discovery.next_epoch() for _ in range(5)]
    many = await asyncio.gather(*(discovery.next_epoch() for _ in range(50)))
    assert first == sorted(set(first))
    assert len(set(many)) == 50
    assert min(many) > max(first)
    await store_redis.set(store_keys.epoch, max(many) + 10**9)  # ahead of the clock: still grows
    ahead = await discovery.next_epoch()
    assert ahead == max(many) + 10**9 + 1
    await store_redis.delete(store_keys.epoch)

    async def ahead_again() -> bool:
        return await discovery.next_epoch() > max(many)

    await until(ahead_again)  # at most as long as the 55 calls took


async def test_every_script_obeys_the_rules_of_a_cluster() -> None:
    """A one-node cluster rejects scripts that touch two slots or keys they did not declare."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        port, bus = str(one.getsockname()[1]), str(two.getsockname()[1])
    options = ["--cluster-enabled", "yes", "--bind", "127.0.0.1", "--port", port]
    with raw_server(*options, "--cluster-port", bus) as server:
        client = connect(server.url)
        await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

        async def formed() -> bool:
            info = await client.execute_command("CLUSTER INFO")
            return bool(info["cluster_state"] == "ok")

        await until(formed)
        discovery, results = Discovery(client, Keys("m")), Results(client, Keys("m"))
        assert await discovery.register("node", "a", 1, {})
        assert await discovery.renew("node", "a", 1)
        assert len(await discovery.list("node")) == 1
        async with aclosing(discovery.watch("node")) as views:
            assert len(await anext(views)) == 1
        assert await discovery.withdraw("node", "a", 1)
        assert await discovery.next_epoch() > 0
        assert await results.fence("t", 1, ttl_ms=60_000)
        assert await results.put("t", {"attempt": 1}, b"x", ttl_ms=60_000)
        assert await results.get("t") is not None
        assert await results.delete("t")
        await client.aclose()


# --- watching ---


async def test_a_watcher_sees_changes_by_hint(discovery: Discovery) -> None:
    await discovery.register("node", "a", 1, {})
    async with aclosing(discovery.watch("node", period=3600)) as views:
        assert [r.id for r in await anext(views)] == ["a"]
        await discovery.register("node", "b", 1, {})
        assert [r.id for r in await anext(views)] == ["a", "b"]
        await discovery.register("node", "b", 1, {"x": 1})
        assert [r.payload for r in await anext(views)] == [{}, {"x": 1}]
        await discovery.withdraw("node", "a", 1)
        assert [r.id for r in await anext(views)] == ["b"]
        await asyncio.gather(*(discovery.register("node", f"n{n}", 1, {}) for n in range(20)))
        while len(await anext(views)) < 21:
            pass
        # renewing, another role, and the same payload again are no changes
        waiting = asyncio.ensure_future(anext(views))
        await discovery.renew("node", "b", 1)
        await discovery.register("broker", "z", 1, {})
        await discovery.register("node", "b", 1, {"x": 1})
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_a_watcher_looks_by_itself_where_no_hint_comes(discovery: Discovery) -> None:
    await discovery.register("node", "a", 1, {}, ttl_ms=50)
    async with aclosing(discovery.watch("node", period=0.02)) as views:
        assert [r.id for r in await anext(views)] == ["a"]
        while await anext(views):  # expiry publishes nothing
            pass


async def test_a_watcher_survives_a_restart(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "blip.store.discovery")
    server = ensure(state_dir)
    client = connect(server.url)
    discovery = Discovery(client, Keys("m"))
    await discovery.register("node", "a", 1, {}, ttl_ms=600_000)
    async with aclosing(discovery.watch("node", period=0.05, jitter=lambda: 0.0)) as views:
        assert [r.id for r in await anext(views)] == ["a"]
        server.stop()
        waiting = asyncio.ensure_future(anext(views))
        await until(lambda: "watching nodes is interrupted" in caplog.text)
        server = ensure(state_dir)
        assert [r.id for r in await waiting] == ["a"]
        assert caplog.text.count("is interrupted") == 1
        assert caplog.text.count("Redis is back") == 1
    await client.aclose()
    server.stop()


# --- announcing ---


async def test_an_announcer_registers_renews_updates_and_withdraws(discovery: Discovery) -> None:
    announcer = Announcer(discovery, "gateway", "g", 3, {"n": 0}, ttl_ms=120)
    announcer.start()
    await announcer.announced.wait()
    for _ in range(3):  # for longer than one life of the record
        await asyncio.sleep(0.06)
        record = await discovery.get("gateway", "g")
        assert record is not None
        assert (record.incarnation, record.payload) == (3, {"n": 0})
    async with aclosing(discovery.watch("gateway", period=3600)) as views:
        await anext(views)
        announcer.update({"n": 1})
        assert [r.payload for r in await anext(views)] == [{"n": 1}]
        await announcer.close()
        assert await anext(views) == []
    await announcer.close()  # a second time does nothing


async def test_an_announcer_refuses_a_payload_at_its_caller(discovery: Discovery) -> None:
    with pytest.raises(PayloadTooLarge):
        Announcer(discovery, "node", "a", 1, {"x": bytes(20_000)})
    announcer = Announcer(discovery, "node", "a", 1, {})
    with pytest.raises(InvalidRequest):
        announcer.update({"x": object()})
    await announcer.close()  # never started


async def test_an_announcer_gives_way_to_a_newer_incarnation(
    discovery: Discovery, caplog: pytest.LogCaptureFixture
) -> None:
    announcer = Announcer(discovery, "node", "a", 3, {}, ttl_ms=60)
    announcer.start()
    await announcer.announced.wait()
    await discovery.register("node", "a", 4, {"who": "new"})
    await announcer.superseded.wait()
    await announcer.close()
    record = await discovery.get("node", "a")
    assert record is not None
    assert record.payload == {"who": "new"}
    assert caplog.text.count("a newer incarnation") == 1


async def test_an_announcer_survives_a_server_that_is_killed_and_one_that_forgot(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "blip.store.discovery")
    server = ensure(state_dir)
    client = connect(server.url)
    discovery = Discovery(client, Keys("m"))
    draws: list[float] = []

    def jitter() -> float:
        draws.append(0.0)
        return 0.0

    announcer = Announcer(discovery, "node", "a", 3, {"x": 1}, ttl_ms=90, jitter=jitter)
    announcer.start()
    await announcer.announced.wait()

    os.kill(server.pid, signal.SIGKILL)
    await asyncio.to_thread(await_end, server.pid)
    await until(lambda: len(draws) >= 2)
    with pytest.raises(StoreUnavailable):
        await discovery.list("node")
    server = ensure(state_dir)
    await client.flushall()
    await until(lambda: found(discovery, "a"))
    await until(lambda: "is announced again" in caplog.text)
    assert caplog.text.count("cannot be announced") == 1
    assert caplog.text.count("is announced again") == 1

    await client.flushall()
    await until(lambda: found(discovery, "a"))
    assert [record.payload for record in await discovery.list("node")] == [{"x": 1}]

    server.stop()
    await announcer.close()  # cannot withdraw any more, and says nothing
    await client.aclose()

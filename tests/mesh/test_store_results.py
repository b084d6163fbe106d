"""Results on a real server: one terminal state, whoever writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip.errors import InternalError, InvalidRequest, PayloadTooLarge
from blip.store import Client, Keys, Results, Stored, connect
from tests.mesh.store_servers import until

pytest_plugins = "tests.mesh.store_fixtures"

HOUR = 3_600_000


@pytest.fixture
def results(store_redis: Client, store_keys: Keys) -> Results:
    return Results(store_redis, store_keys)


async def test_put_get_delete(results: Results, store_redis: Client, store_keys: Keys) -> None:
    record = {"attempt": 2, "state": "succeeded", "usage": {"tokens": 7}, "at": 1.5, "node": None}
    assert await results.get("t") is None
    assert await results.put("t", record, b"\x00image", ttl_ms=HOUR)
    assert await results.get("t") == Stored(record, b"\x00image", 2)
    assert await results.get("t", payload=False) == Stored(record, None, 2)
    assert HOUR - 60_000 < await store_redis.pttl(store_keys.result("t")) <= HOUR
    assert await results.delete("t")
    assert await results.get("t") is None
    assert not await results.delete("t")
    # deleted is not forgotten: a late writer does not bring it back, and the key still expires
    assert not await results.put("t", record, ttl_ms=HOUR)
    assert await store_redis.pttl(store_keys.result("t")) > 0


async def test_no_payload_and_an_empty_one_differ(results: Results) -> None:
    await results.put("none", {"attempt": 1}, ttl_ms=HOUR)
    await results.put("empty", {"attempt": 1}, b"", ttl_ms=HOUR)
    await results.put("view", {"attempt": 1}, memoryview(b"abc")[1:], ttl_ms=HOUR)
    stored = [await results.get(task) for task in ("none", "empty", "view")]
    assert [each and each.payload for each in stored] == [None, b"", b"bc"]


async def test_a_result_expires(results: Results) -> None:
    await results.put("t", {"attempt": 1}, b"x", ttl_ms=30)

    async def expired() -> bool:
        return await results.get("t") is None

    await until(expired)


async def test_of_many_writers_one_wins_and_is_whole(store_url: str, store_keys: Keys) -> None:
    clients = [connect(store_url) for _ in range(4)]
    for task in range(10):

        async def write(n: int, task: int = task) -> bool:
            writer = Results(clients[n % 4], store_keys)
            record = {"attempt": 1 + n % 3, "by": n}
            return await writer.put(f"t{task}", record, str(n).encode() * 1000, ttl_ms=HOUR)

        won = await asyncio.gather(*(write(n) for n in range(24)))
        assert sum(won) == 1
        winner = won.index(True)
        assert await Results(clients[0], store_keys).get(f"t{task}") == Stored(
            {"attempt": 1 + winner % 3, "by": winner}, str(winner).encode() * 1000, 1 + winner % 3
        )
    await asyncio.gather(*(client.aclose() for client in clients))


operations = st.lists(
    st.tuples(st.sampled_from(["put", "fence", "delete"]), st.integers(1, 4)), max_size=10
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations, st.integers(0, 2**48))
async def test_any_order_of_calls_stores_one_state_of_no_superseded_attempt(
    store_url: str, mesh_name: str, calls: list[tuple[str, int]], salt: int
) -> None:
    client = connect(store_url)
    results = Results(client, Keys(mesh_name))
    task = f"t{salt}-{len(calls)}"
    await client.delete(Keys(mesh_name).result(task))
    floor, ended, visible = 0, False, None
    for verb, attempt in calls:
        if verb == "put":
            done = await results.put(task, {"attempt": attempt}, ttl_ms=HOUR)
            assert done is (not ended and attempt >= floor)
            if done:
                ended, visible = True, attempt
        elif verb == "fence":
            done = await results.fence(task, attempt, ttl_ms=HOUR)
            assert done is (not ended and attempt >= floor)
            if done:
                floor = attempt
        else:
            assert await results.delete(task) is (visible is not None)
            visible = None
        stored = await results.get(task)
        assert (stored and stored.attempt) == visible
    await client.aclose()


async def test_a_fence_expires_and_lives_as_long_as_the_longest(
    results: Results, store_redis: Client, store_keys: Keys
) -> None:
    assert await results.fence("t", 1, ttl_ms=HOUR)
    assert await results.fence("t", 2, ttl_ms=1000)
    assert await store_redis.pttl(store_keys.result("t")) > 1000
    assert await results.get("t") is None
    assert not await results.put("t", {"attempt": 1}, ttl_ms=HOUR)
    assert await results.put("t", {"attempt": 2}, ttl_ms=HOUR)


async def test_sizes_are_limited_with_clear_errors(store_redis: Client, store_keys: Keys) -> None:
    results = Results(store_redis, store_keys, payload_limit=1000)
    assert await results.put("fits", {"attempt": 1}, bytes(1000), ttl_ms=HOUR)
    with pytest.raises(PayloadTooLarge, match="1001 bytes; at most 1000") as caught:
        await results.put("t", {"attempt": 1}, bytes(1001), ttl_ms=HOUR)
    assert caught.value.details == {"size": 1001, "limit": 1000}
    with pytest.raises(PayloadTooLarge, match="the record of task t is"):
        await results.put("t", {"attempt": 1, "x": "y" * 70_000}, ttl_ms=HOUR)
    assert await results.get("t") is None


async def test_the_largest_payload_makes_the_way_there_and_back(results: Results) -> None:
    payload = bytes(range(256)) * (8 * 1024 * 1024 // 256)
    assert await results.put("t", {"attempt": 1}, payload, ttl_ms=HOUR)
    stored = await results.get("t")
    assert stored is not None
    assert stored.payload == payload


@pytest.mark.parametrize("attempt", [None, 0, -1, True, "1", 1.0, 2**53])
async def test_an_attempt_is_a_whole_number_from_one(results: Results, attempt: Any) -> None:
    with pytest.raises(InvalidRequest, match="attempt is a whole number") as caught:
        await results.put("t", {"attempt": attempt}, ttl_ms=HOUR)
    assert caught.value.param == "attempt"


async def test_other_bad_arguments(results: Results) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await results.put("t", {"attempt": 1}, ttl_ms=0)
    assert caught.value.param == "ttl_ms"
    for call in (results.get("a}b"), results.delete(""), results.fence("a b", 1, ttl_ms=1)):
        with pytest.raises(InvalidRequest) as caught:
            await call
        assert caught.value.param == "task_id"
    with pytest.raises(InvalidRequest, match="cannot be stored"):
        await results.put("t", {"attempt": 1, "x": object()}, ttl_ms=HOUR)


@pytest.mark.parametrize(
    "fields",
    [
        {"attempt": "1", "record": b"\xc1"},
        {"attempt": "1", "record": b"\x93\x01\x02\x03"},
        {"attempt": "x", "record": b"\x80"},
        {"record": b"\x80"},
    ],
)
async def test_damaged_results_are_a_clear_error_and_can_be_deleted(
    results: Results, store_redis: Client, store_keys: Keys, fields: Any
) -> None:
    await store_redis.hset(store_keys.result("t"), mapping=fields)
    await store_redis.expire(store_keys.result("t"), 60)
    with pytest.raises(InternalError, match="the result of task t in Redis is corrupt"):
        await results.get("t")
    assert await results.delete("t")
    assert await results.get("t") is None

"""What the store decides without a server: URLs, INFO replies, error texts, pauses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions as rx

from blip.errors import ConfigError, InternalError, StoreUnavailable
from blip.store.client import advice, connect, explain, judge, redacted
from blip.store.discovery import TTL_MS, backoff

GOOD = {
    "redis_version": "7.0.15",
    "maxmemory_policy": "noeviction",
    "maxmemory": 0,
    "aof_enabled": 1,
}


def test_a_good_server_passes_without_a_word() -> None:
    assert judge(GOOD).engine == "redis 7.0.15"
    assert judge(GOOD).warnings == ()
    valkey = {**GOOD, "redis_version": "7.2.4", "valkey_version": "9.1.2"}
    assert judge(valkey).engine == "valkey 9.1.2"


@pytest.mark.parametrize("version", ["6.2.14", "5.0", "0", "", "unknown", "6"])
def test_an_old_or_nameless_server_is_refused(version: str) -> None:
    with pytest.raises(ConfigError, match=r"needs 7\.0 or newer"):
        judge({**GOOD, "redis_version": version})


@pytest.mark.parametrize("version", ["7.0", "7.4.1", "8.2.3", "10.0.0", "7.2-rc1"])
def test_newer_servers_pass(version: str) -> None:
    judge({**GOOD, "redis_version": version})


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "volatile-ttl"])
def test_a_policy_that_would_drop_results_is_refused_with_the_way_out(policy: str) -> None:
    with pytest.raises(ConfigError, match=policy) as caught:
        judge({**GOOD, "maxmemory_policy": policy, "maxmemory": 1 << 30})
    assert "CONFIG SET maxmemory-policy noeviction" in caught.value.hint


def test_what_is_only_unwise_is_a_warning() -> None:
    (eviction,) = judge({**GOOD, "maxmemory_policy": "allkeys-lru"}).warnings
    assert "allkeys-lru" in eviction
    (durability,) = judge({**GOOD, "aof_enabled": 0}).warnings
    assert "appendonly" in durability
    # a managed server may hide fields: no more than a warning either
    assert len(judge({"redis_version": "7.0.0"}).warnings) == 1


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:6379/0?x=secret", "redis://host:6379/0"),
        ("rediss://:secret@[::1]:7000", "rediss://[::1]:7000"),
        ("unix://user@/run/s.sock?password=secret", "unix:///run/s.sock"),
        ("redis://host:notaport", "(unreadable)"),
        ("redis://[secret", "(unreadable)"),
    ],
)
def test_messages_show_a_url_without_its_secrets(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "host:6379",
        "http://host",
        "redis://host:notaport",
        "redis://host?socket_timeout=soon",
        "redis://host?no_such_option=1",
        "redis://host?max_connections=-1",
        "redis://host?protocol=4",
    ],
)
async def test_a_wrong_url_says_what_one_looks_like(url: str) -> None:
    with pytest.raises(ConfigError, match="Redis URL") as caught:
        connect(url)
    assert "redis://user:password@host:6379/0" in caught.value.hint


@pytest.mark.parametrize("option", ["protocol=2", "decode_responses=true", "legacy_responses=true"])
async def test_a_url_cannot_change_the_shape_of_replies(option: str) -> None:
    with pytest.raises(ConfigError, match=option.partition("=")[0]):
        connect(f"redis://host?{option}")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (rx.ConnectionError("Error 111 connecting"), "cannot be reached"),
        (ConnectionResetError(104, "reset"), "cannot be reached"),
        (rx.TimeoutError("Timeout reading"), "does not answer"),
        (TimeoutError(), "does not answer"),
        (rx.AuthenticationError("invalid username-password pair"), "user or password"),
        (rx.NoPermissionError("no permissions to run 'eval'"), "does not allow"),
        (rx.BusyLoadingError("Redis is loading"), "still loading"),
        (rx.OutOfMemoryError("command not allowed"), "is full"),
        (rx.ReadOnlyError("You can't write"), "read-only replica"),
        (rx.ResponseError("MISCONF Redis is configured to save"), "cannot write to its disk"),
        (rx.ResponseError("NOREPLICAS Not enough good replicas"), "too few replicas"),
        (rx.ClusterDownError("CLUSTERDOWN", status_code="CLUSTERDOWN"), "cluster that is down"),
    ],
)
def test_every_way_of_being_away_has_a_sentence_and_a_way_out(error: Any, words: str) -> None:
    told = explain(error, "redis://host")
    assert isinstance(told, StoreUnavailable)
    assert words in told.message
    assert "redis://host" in told.message
    assert told.hint
    assert told.retry_after == 1.0
    assert advice(told) == f"{told.message}. {told.hint}"


def test_a_rejected_command_is_a_bug_not_an_outage() -> None:
    told = explain(rx.ResponseError("WRONGTYPE Operation against a key"), "redis://host")
    assert isinstance(told, InternalError)
    assert advice(told) == told.message  # without a hint, no dangling full stop
    moved = explain(rx.MovedError("3999 127.0.0.1:6381"), "redis://host")
    assert isinstance(moved, InternalError)
    assert "Redis Cluster" in moved.message


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_are_positive_bounded_and_spread(failures: int, jitter: float) -> None:
    pause = backoff(failures, jitter)
    assert 0.02 <= pause <= TTL_MS / 3000
    assert backoff(failures, 0.0) <= pause <= backoff(failures + 1, jitter) <= 5.0

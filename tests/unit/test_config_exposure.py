from __future__ import annotations

import hashlib
from typing import Any

import pytest

from blip.config import check_exposure, is_loopback, load
from blip.errors import ConfigError

KEYS = {"me": hashlib.sha256(b"key").hexdigest()}


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("*", False),
        ("192.168.1.5", False),
        ("127.0.0.1.example.org", False),
        ("my-host", False),
    ],
)
def test_loopback(host: str, inside: bool) -> None:
    assert is_loopback(host) is inside


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gateway.host": "0.0.0.0", "gateway.api_keys": KEYS},
        {"broker.bind": "ipc:///run/blip/broker.sock"},
        {"broker.bind": "tcp://[::1]:7411", "node.bind": "tcp://127.0.0.1:*"},
    ],
)
def test_what_may_start(settings: dict[str, Any]) -> None:
    check_exposure(load(env={}, search=False, overrides=settings).config)


@pytest.mark.parametrize(
    ("settings", "said", "way_out"),
    [
        ({"gateway.host": "0.0.0.0"}, "gateway.api_keys is empty", "blip key new"),
        ({"broker.bind": "tcp://0.0.0.0:7411"}, "not encrypted yet", "broker.bind"),
        ({"node.bind": "tcp://*:*"}, "not encrypted yet", "node.bind"),
        ({"broker.bind": "tcp://10.0.0.1:1", "gateway.api_keys": KEYS}, "not encrypted", "broker"),
    ],
)
def test_what_may_not(settings: dict[str, Any], said: str, way_out: str) -> None:
    config = load(env={}, search=False, overrides=settings).config
    with pytest.raises(ConfigError, match=said) as caught:
        check_exposure(config)
    assert way_out in caught.value.hint


def test_a_role_answers_for_itself_only() -> None:
    config = load(env={}, search=False, overrides={"gateway.host": "0.0.0.0"}).config
    check_exposure(config, ("node", "broker"))
    with pytest.raises(ConfigError):
        check_exposure(config, ("gateway",))

"""Bad input of every sort: what the gateway says, and that it never says it in another form."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from blip.errors import ConfigError, Unauthorized
from blip.gateway.auth import Keyring
from blip.gateway.envelope import ErrorEnvelope
from blip.gateway.settings import GatewaySettings
from tests.unit.gateway_mesh import MemoryMesh, failing, mesh, served

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    settings = GatewaySettings(body_limit=100_000)
    async with served(backend, settings) as origin, aiohttp.ClientSession(origin) as session:
        yield session


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Check that a response is an error in the one envelope, and return what is inside."""
    body = await response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    ErrorEnvelope.model_validate(body, strict=True, extra="forbid")
    assert error["request_id"] == response.headers["X-Request-ID"]
    return error


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "parrot", "messages": [USER], **fields}).encode()


def message(**fields: Any) -> bytes:
    return chat(messages=[USER, fields])


#: route, body, code, param, and a piece of the message or the hint.
BODIES = [
    (CHAT, b"", "invalid_request", None, "empty"),
    (CHAT, b"{", "invalid_request", None, "line 1 column 1"),
    (CHAT, b'{"model": "m",\n "messages": [}', "invalid_request", None, "line 2 column 15"),
    (CHAT, b"\xef\xbb\xbf{}", "invalid_request", None, "line 1 column 1"),
    (CHAT, b'{"model": "\xff"}', "invalid_request", None, "unicode"),
    (CHAT, b'{"model": "\\ud800"}', "invalid_request", None, "escape"),
    (CHAT, b"[" * 5000, "invalid_request", None, "recursion"),
    (CHAT, b"[]", "invalid_request", None, "object"),
    (CHAT, b"null", "invalid_request", None, "object"),
    (CHAT, b'"text"', "invalid_request", None, "object"),
    (CHAT, b"{}", "invalid_request", "model", "required"),
    (CHAT, b'{"model": "parrot"}', "invalid_request", "messages", "required"),
    (CHAT, chat(tempratur=1), "invalid_request", "tempratur", "'temperature'"),
    (CHAT, chat(zzzzzz=1), "invalid_request", "zzzzzz", "GET /docs"),
    (CHAT, b'{"modle": "x", "messages": []}', "invalid_request", "modle", "'model'"),
    (CHAT, chat(temperature="1"), "invalid_request", "temperature", "number"),
    (CHAT, chat(temperature=2.5), "invalid_request", "temperature", "less than or equal to 2"),
    (CHAT, chat(temperature=float("nan")), "invalid_request", "temperature", "finite"),
    (CHAT, chat(top_p=0), "invalid_request", "top_p", "greater than 0"),
    (CHAT, chat(max_tokens=0), "invalid_request", "max_tokens", "1"),
    (CHAT, chat(max_tokens=True), "invalid_request", "max_tokens", "integer"),
    (CHAT, chat(max_tokens=10**30), "invalid_request", "max_tokens", "less than"),
    (CHAT, chat(seed=2**63), "invalid_request", "seed", "less than"),
    (CHAT, chat(n=17), "invalid_request", "n", "16"),
    (CHAT, chat(n=0), "invalid_request", "n", "1"),
    (CHAT, chat(stream="yes"), "invalid_request", "stream", "boolean"),
    (CHAT, chat(stop=["a"] * 5), "invalid_request", "stop", "at most 4"),
    (CHAT, chat(stop=""), "invalid_request", "stop", "at least 1"),
    (CHAT, chat(stop=5), "invalid_request", "stop", "a valid string or a valid array"),
    (CHAT, chat(stop=["a", 5]), "invalid_request", "stop.1", "string"),
    (CHAT, chat(logit_bias={"x": 1}), "invalid_request", "logit_bias.x", "integer"),
    (CHAT, chat(logit_bias={"5": 101}), "invalid_request", "logit_bias.5", "100"),
    (CHAT, chat(top_logprobs=2), "invalid_request", "top_logprobs", "'logprobs': true"),
    (CHAT, chat(logprobs=True, top_logprobs=21), "invalid_request", "top_logprobs", "20"),
    (CHAT, chat(stream_options={}), "invalid_request", "stream_options", "'stream': true"),
    (
        CHAT,
        chat(stream=True, stream_options={"include_usag": True}),
        "invalid_request",
        "stream_options.include_usag",
        "'include_usage'",
    ),
    (CHAT, chat(max_tokens=1, max_completion_tokens=1), "invalid_request", "max_tokens", "one"),
    (CHAT, chat(messages=[]), "invalid_request", "messages", "at least 1"),
    (CHAT, chat(messages="hi"), "invalid_request", "messages", "array"),
    (CHAT, chat(messages=["hi"]), "invalid_request", "messages.0", "object"),
    (CHAT, message(role="bot", content=""), "invalid_request", "messages.1.role", "'user'"),
    (CHAT, message(content=""), "invalid_request", "messages.1.role", "required"),
    (CHAT, message(role="user"), "invalid_request", "messages.1.content", "missing"),
    (CHAT, message(role="user", contnt="x"), "invalid_request", "messages.1.contnt", "'content'"),
    (CHAT, message(role="user", content=5), "invalid_request", "messages.1.content", "array"),
    (CHAT, message(role="user", content={}), "invalid_request", "messages.1.content", "array"),
    (
        CHAT,
        message(role="user", content=[{"type": "text", "text": "x"}, 5]),
        "invalid_request",
        "messages.1.content.1",
        "object",
    ),
    (
        CHAT,
        message(role="user", content=[{"text": "x"}]),
        "invalid_request",
        "messages.1.content.0.type",
        "required",
    ),
    (
        CHAT,
        message(role="user", content=[{"type": "text", "txt": "x"}]),
        "invalid_request",
        "messages.1.content.0.txt",
        "'text'",
    ),
    (
        CHAT,
        message(role="user", content=[{"type": "text"}]),
        "invalid_request",
        "messages.1.content.0.text",
        "missing",
    ),
    (
        CHAT,
        message(role="user", content=[{"type": "image_url", "image_url": {"url": "http://x/y"}}]),
        "unsupported_field",
        "messages.1.content.0.image_url.url",
        "base64",
    ),
    (
        CHAT,
        message(role="assistant", content="x", tool_calls=[{"id": "1"}]),
        "invalid_request",
        "messages.1.tool_calls.0.function",
        "missing",
    ),
    (CHAT, chat(tools=[{}]), "invalid_request", "tools.0.type", "required"),
    (
        CHAT,
        chat(response_format={"type": "yaml"}),
        "unsupported_field",
        "response_format.type",
        "json_schema",
    ),
    ("/v1/completions", b'{"model": "parrot"}', "invalid_request", "prompt", "required"),
    (
        "/v1/completions",
        b'{"model": "parrot", "prompt": null}',
        "invalid_request",
        "prompt",
        "a valid string or a valid array",
    ),
    (
        "/v1/completions",
        b'{"model": "parrot", "prompt": [1, "a"]}',
        "invalid_request",
        "prompt.1",
        "integer",
    ),
    (
        "/v1/completions",
        b'{"model": "parrot", "prompt": [-1]}',
        "invalid_request",
        "prompt.0",
        "greater than or equal to 0",
    ),
    ("/v1/completions", b'{"model": "parrot", "prompt": []}', "invalid_request", "prompt", "1"),
    (
        "/v1/completions",
        json.dumps({"model": "parrot", "prompt": ["x"] * 65, "n": 2}).encode(),
        "invalid_request",
        "prompt",
        "130",
    ),
    (
        "/v1/completions",
        b'{"model": "parrot", "prompt": "x", "best_of": 2}',
        "unsupported_field",
        "best_of",
        "pick",
    ),
    (
        "/v1/completions",
        b'{"model": "parrot", "prompt": "x", "suffix": "y"}',
        "unsupported_field",
        "suffix",
        "forwards",
    ),
    (
        "/v1/completions",
        b'{"model": "parrot", "prompt": "x", "logprobs": 6}',
        "invalid_request",
        "logprobs",
        "5",
    ),
    ("/v1/embeddings", b'{"model": "embedder"}', "invalid_request", "input", "required"),
    ("/v1/embeddings", b'{"model": "embedder", "input": ""}', "invalid_request", "input", "1"),
    (
        "/v1/embeddings",
        b'{"model": "embedder", "input": ["a", ""]}',
        "invalid_request",
        "input.1",
        "at least 1",
    ),
    (
        "/v1/embeddings",
        json.dumps({"model": "embedder", "input": ["x"] * 2049}).encode(),
        "invalid_request",
        "input",
        "2048",
    ),
    (
        "/v1/embeddings",
        b'{"model": "embedder", "input": "x", "encoding_format": "hex"}',
        "invalid_request",
        "encoding_format",
        "'float' or 'base64'",
    ),
    ("/v1/echo", b'{"size": -1}', "invalid_request", "size", "0"),
    ("/v1/echo", b'{"chunks": 3, "siez": 1}', "invalid_request", "siez", "'size'"),
    ("/v1/echo", b'{"size": 60000000, "chunks": 3}', "invalid_request", "chunks", "stream"),
    ("/v1/echo", b'{"interval": 1e999}', "invalid_request", "interval", "finite"),
    ("/v1/echo", b'{"size": "5"}', "invalid_request", "size", "integer"),
    ("/v1/echo", b'{"size": ' + b"9" * 5000 + b"}", "invalid_request", None, "out of range"),
]


@pytest.mark.parametrize(("route", "body", "code", "param", "piece"), BODIES)
async def test_bodies(
    http: aiohttp.ClientSession,
    backend: MemoryMesh,
    route: str,
    body: bytes,
    code: str,
    param: str | None,
    piece: str,
) -> None:
    headers = {"Content-Type": "application/json"}
    async with http.post(route, data=body, headers=headers) as response:
        assert response.status == 400
        error = await error_of(response)
    assert (error["code"], error["param"]) == (code, param)
    assert piece in f"{error['message']} {error['hint']}"
    assert error["type"] == "invalid_request_error"
    assert backend.calls == []


@pytest.mark.parametrize(
    ("declared", "status", "piece"),
    [
        ("application/json; charset=utf-8", 200, ""),
        ("application/vnd.api+json", 200, ""),
        (None, 200, ""),
        ("application/x-www-form-urlencoded", 415, "curl --json"),
        ("text/plain", 415, "Content-Type: application/json"),
        ("application/json; charset=utf-16", 415, "UTF-8"),
    ],
)
async def test_content_types(
    http: aiohttp.ClientSession, declared: str | None, status: int, piece: str
) -> None:
    headers = {"Content-Type": declared} if declared else {}
    skip = () if declared else ("Content-Type",)
    async with http.post(CHAT, data=chat(), headers=headers, skip_auto_headers=skip) as response:
        assert response.status == status
        if status == 415:
            error = await error_of(response)
            assert error["code"] == "unsupported_media_type"
            assert piece in f"{error['message']} {error['hint']}"


async def test_large_bodies(http: aiohttp.ClientSession) -> None:
    big = chat(user="x" * 100_000)
    json_type = {"Content-Type": "application/json"}

    async def pieces() -> AsyncIterator[bytes]:
        yield big  # in chunks: no Content-Length tells beforehand

    bodies: list[tuple[Any, dict[str, str]]] = [
        (big, {}),
        (pieces(), {}),
        (gzip.compress(big), {"Content-Encoding": "gzip"}),
    ]
    for data, headers in bodies:
        async with http.post(CHAT, data=data, headers=json_type | headers) as response:
            assert response.status == 413
            error = await error_of(response)
            assert error["code"] == "payload_too_large"
            assert "100000" in error["message"]
    async with http.post(
        CHAT, data=gzip.compress(chat()), headers=json_type | {"Content-Encoding": "gzip"}
    ) as response:
        assert response.status == 200
    async with http.post(
        CHAT, data=b"not gzip", headers=json_type | {"Content-Encoding": "gzip"}
    ) as response:
        assert response.status == 400
        assert "could not be read" in (await error_of(response))["message"]


async def raw(origin: str, request: bytes) -> tuple[bytes, bytes]:
    """Send bytes as they are; return the first head and all that follows until the close."""
    host, _, port = origin.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        return head, await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_expectations(backend: MemoryMesh) -> None:
    body = chat()
    async with served(backend, GatewaySettings(body_limit=1000)) as origin:
        start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        good = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        head, rest = await raw(origin, start + good + body)
        assert head == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert rest.startswith(b"HTTP/1.1 200 ")
        # the body is refused before it is sent: nothing but the head goes out here
        large = b"Expect: 100-continue\r\nContent-Length: 1001\r\nX-Request-ID: me\r\n\r\n"
        head, rest = await raw(origin, start + large + b"x" * 1001)
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"X-Request-ID: me\r\n" in head
        assert json.loads(rest)["error"]["code"] == "payload_too_large"
        odd = b"Expect: wonders\r\nContent-Length: %d\r\n\r\n" % len(body)
        head, rest = await raw(origin, start + odd + body)
        assert head.startswith(b"HTTP/1.1 417 ")
        assert json.loads(rest)["error"]["code"] == "expectation_failed"


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "piece"),
    [
        ("GET", "/v1/chat/completions", 405, "method_not_allowed", "POST"),
        ("DELETE", "/v1/models/org/parrot", 405, "method_not_allowed", "GET, HEAD"),
        ("OPTIONS", "/healthz", 405, "method_not_allowed", "GET, HEAD"),
        ("POST", "/v1/chat/completion", 404, "not_found", "/v1/chat/completions"),
        ("POST", "/chat/completions", 404, "not_found", "/v1/chat/completions"),
        ("GET", "/favicon.ico", 404, "not_found", "GET /docs"),
        ("GET", "/v1/models/", 404, "not_found", "/v1/models"),
        ("GET", "/v1/models/nobody", 404, "model_not_found", "/v1/models"),
    ],
)
async def test_wrong_addresses(
    http: aiohttp.ClientSession, method: str, path: str, status: int, code: str, piece: str
) -> None:
    async with http.request(method, path) as response:
        assert response.status == status
        error = await error_of(response)
        assert error["code"] == code
        assert piece in error["hint"]
        if status == 405:
            assert response.headers["Allow"] in error["hint"]


async def test_unexpected_errors_stay_inside(
    http: aiohttp.ClientSession, backend: MemoryMesh, caplog: pytest.LogCaptureFixture
) -> None:
    backend.nodes_by_model["broken"] = failing(ZeroDivisionError("the secret path"))
    request = json.loads(chat(model="broken"))
    with caplog.at_level(logging.ERROR, "blip.gateway"):
        async with http.post(CHAT, json=request, headers={"X-Request-ID": "abc"}) as response:
            assert response.status == 500
            error = await error_of(response)
    assert error["code"] == "internal_error"
    assert "secret" not in json.dumps(error)
    assert "abc" in error["hint"]
    assert "abc" in caplog.text
    assert "ZeroDivisionError: the secret path" in caplog.text


async def test_garbage_from_a_node_is_an_internal_error(
    http: aiohttp.ClientSession, backend: MemoryMesh, caplog: pytest.LogCaptureFixture
) -> None:
    async def garbage(value: Any) -> Any:
        yield b"\xc1\xff"

    backend.nodes_by_model["garbage"] = garbage
    for stream in (False, True):
        request = json.loads(chat(model="garbage", stream=stream))
        async with http.post(CHAT, json=request) as response:
            text = await response.text()
        assert "internal_error" in text
        assert "[DONE]" not in text
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ("my-id_1", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("two words", False),
        ("naïve", False),
    ],
)
async def test_request_ids(http: aiohttp.ClientSession, offered: str, taken: bool) -> None:
    seen = set()
    for _ in range(2):
        async with http.get("/healthz", headers={"X-Request-ID": offered}) as response:
            seen.add(response.headers["X-Request-ID"])
    assert (seen == {offered}) is taken
    assert taken or len(seen) == 2


# --- keys ------------------------------------------------------------------------------------


def test_keyring() -> None:
    keys = {"a": hashlib.sha256(b"k1").hexdigest(), "b": hashlib.sha256(b"k2").hexdigest()}
    ring = Keyring(keys)
    assert ring.tenant("Bearer k1") == "a"
    assert ring.tenant("bearer  k2 ") == "b"
    assert ring.tenant("Bearer k1") == "a"
    assert Keyring({}).tenant(None) == ""
    assert Keyring({}).tenant("nonsense") == ""


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer k", "Basic azE6", "k1", "\udcff"])
async def test_bad_keys(header: str | None) -> None:
    ring = Keyring({"a": hashlib.sha256(b"k1").hexdigest()})
    for _ in range(2):
        with pytest.raises(Unauthorized):
            ring.tenant(header)


async def test_what_needs_a_key(backend: MemoryMesh) -> None:
    keys = {"a": hashlib.sha256(b"k1").hexdigest()}
    public = ["/", "/docs", "/openapi.json", "/healthz", "/readyz"]
    private = ["/v1/models", "/v1/models/parrot", "/v1/mesh", "/v1/tasks"]
    for metrics_open in (False, True):
        settings = GatewaySettings(api_keys=keys, metrics_open=metrics_open)
        (public if metrics_open else private).append("/metrics")
        async with served(backend, settings) as origin, aiohttp.ClientSession(origin) as http:
            for path in public:
                async with http.get(path) as response:
                    assert response.status == 200, path
            for path in private:
                async with http.get(path) as response:
                    assert response.status == 401, path
                    assert (await error_of(response))["code"] == "invalid_api_key"
                async with http.get(path, headers={"Authorization": "Bearer k1"}) as response:
                    assert response.status == 200, path
            async with http.post(CHAT, data=b"{", headers={}) as response:
                assert response.status == 401  # before the body is looked at
        if not metrics_open:
            private.remove("/metrics")


@pytest.mark.parametrize(
    "bad",
    [
        {"api_keys": {"a": "sk-plain"}},
        {"api_keys": {"a": "A" * 64}},
        {"body_limit": 0},
        {"heartbeat": -1.0},
        {"heartbeat": float("nan")},
    ],
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        GatewaySettings(**bad)


def test_a_key_is_not_repeated_in_errors() -> None:
    with pytest.raises(ConfigError) as caught:
        GatewaySettings(api_keys={"a": "sk-plain"})
    assert "sk-plain" not in str(caught.value)

"""Results that are kept: their addresses, what is served there, and how long."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from blip.errors import ConfigError, NotFound, PayloadTooLarge, StoreUnavailable
from blip.gateway.app import build_app
from blip.gateway.download import disposition
from blip.gateway.files import Files
from blip.gateway.origin import origin_of
from blip.gateway.settings import GatewaySettings
from blip.gateway.shelf import Kept, Shelf
from blip.gateway.signing import Signer
from blip.store.files import PIECE
from tests.unit.gateway_mesh import MemoryMesh, mesh, png, served

ASKED = {"model": "toy-shapes", "prompt": "x", "seed": 5, "response_format": "url"}
PICTURE = png(64, 64, 5)


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(backend) as origin, aiohttp.ClientSession(origin) as session:
        yield session


async def address(http: aiohttp.ClientSession, **headers: str) -> str:
    async with http.post("/v1/images/generations", json=ASKED, headers=headers) as response:
        assert response.status == 200
        url: str = (await response.json())["data"][0]["url"]
    return url


# --- over HTTP -------------------------------------------------------------------------------


async def test_a_file_is_what_was_made(http: aiohttp.ClientSession) -> None:
    url = await address(http)
    async with http.get(url) as response:
        assert response.status == 200
        assert await response.read() == PICTURE
        headers = response.headers
        assert headers["Content-Type"] == "image/png"
        assert headers["Content-Length"] == str(len(PICTURE))
        assert headers["Content-Disposition"].startswith('inline; filename="picture.png"')
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Request-ID"]
        assert "private" in headers["Cache-Control"]
        tag, date = headers["ETag"], headers["Last-Modified"]
    async with http.head(url) as response:
        assert response.headers["Content-Length"] == str(len(PICTURE))
        assert await response.read() == b""
    async with http.get(url, headers={"If-None-Match": tag}) as response:
        assert (response.status, response.headers["ETag"]) == (304, tag)
    for condition, status in ((tag, 206), (date, 206), ('"another"', 200)):
        asked = {"Range": "bytes=1-3", "If-Range": condition}
        async with http.get(url, headers=asked) as response:
            assert response.status == status


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=10-", 206, 10, None),
        ("bytes=-4", 206, -4, None),
        ("bytes=5-999999", 206, 5, None),
        ("bytes=0-1,4-5", 200, 0, None),
        ("lines=1-2", 200, 0, None),
        ("bytes=999999-", 416, 0, 0),
    ],
)
async def test_ranges(
    http: aiohttp.ClientSession, asked: str, status: int, start: int, stop: int | None
) -> None:
    url = await address(http)
    async with http.get(url, headers={"Range": asked}) as response:
        body = await response.read()
        assert response.status == status
        said = response.headers.get("Content-Range")
    size = len(PICTURE)
    if status == 416:
        assert said == f"bytes */{size}"
        assert b"range_not_satisfiable" in body
        return
    assert body == PICTURE[start:stop]
    if status == 206:
        first, last, _ = slice(start, stop).indices(size)
        assert said == f"bytes {first}-{last - 1}/{size}"


async def test_the_address_is_all_it_takes_and_nothing_less() -> None:
    keys = {"anna": hashlib.sha256(b"secret").hexdigest()}
    key = {"Authorization": "Bearer secret"}
    async with (
        served(mesh(), GatewaySettings(api_keys=keys)) as origin,
        aiohttp.ClientSession(origin) as http,
    ):
        url = URL(await address(http, **key))
        async with http.get(url) as response:
            assert response.status == 200
        later = str(int(url.query["expires"]) + 1)
        other = "x" if url.query["signature"][0] == "y" else "y"
        for wrong in (
            url.with_query(None),
            url.update_query(expires=later),
            url.update_query(expires="soon"),
            url.update_query(signature=other + url.query["signature"][1:]),
            url.update_query(signature="ü"),
            url.with_path("/v1/files/file-" + "0" * 32 + "/content").with_query(url.query),
        ):
            async with http.get(wrong, headers=key) as response:
                assert response.status == 404
                assert (await response.json())["error"]["code"] == "not_found"


async def test_addresses_lead_to_where_the_request_was_sent(http: aiohttp.ClientSession) -> None:
    own = str(http._base_url).rstrip("/")
    assert (await address(http)).startswith(f"{own}/v1/files/file-")
    proxied = {"X-Forwarded-Host": "blip.example.com:8443", "X-Forwarded-Proto": "https"}
    assert (await address(http, **proxied)).startswith("https://blip.example.com:8443/v1/files/")
    mad = {"X-Forwarded-Host": "evil.example/path?", "X-Forwarded-Proto": "javascript"}
    assert (await address(http, **mad)).startswith(f"{own}/v1/files/")
    assert (await address(http, Host="a b")).startswith(f"{own}/v1/files/")


async def test_addresses_as_configured() -> None:
    settings = GatewaySettings(results_url="https://cdn.example.com/blip")
    async with served(mesh(), settings) as origin, aiohttp.ClientSession(origin) as http:
        assert (await address(http)).startswith("https://cdn.example.com/blip/v1/files/")


async def test_the_oldest_goes_first_and_what_cannot_be_kept_is_told() -> None:
    async with (
        served(mesh(), GatewaySettings(results_count=2)) as origin,
        aiohttp.ClientSession(origin) as http,
    ):
        urls = [await address(http) for _ in range(3)]
        found = []
        for url in urls:
            async with http.get(url) as response:
                found.append(response.status)
        assert found == [404, 200, 200]
    async with (
        served(mesh(), GatewaySettings(results_bytes=10)) as origin,
        aiohttp.ClientSession(origin) as http,
        http.post("/v1/images/generations", json=ASKED) as response,
    ):
        assert response.status == 413
        assert "results_bytes" in (await response.json())["error"]["hint"]


# --- without HTTP ----------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """A store in memory, which may be away."""

    def __init__(self) -> None:
        self.away = False
        self.kept: dict[str, tuple[dict[str, Any], bytes]] = {}

    def _look(self) -> None:
        if self.away:
            raise StoreUnavailable("away")

    async def secret(self) -> bytes:
        self._look()
        return b"s" * 32

    async def put(self, id: str, record: Mapping[str, Any], content: bytes, **limits: int) -> None:
        self._look()
        self.kept[id] = {**record, "bytes": len(content)}, bytes(content)

    async def find(self, id: str) -> dict[str, Any] | None:
        self._look()
        return self.kept[id][0] if id in self.kept else None

    async def read(self, id: str, start: int, stop: int) -> bytes | None:
        self._look()
        return self.kept[id][1][start:stop] if id in self.kept else None

    async def remove(self, id: str) -> None:
        self._look()
        self.kept.pop(id, None)


async def opened(files: Files, url: str) -> bytes:
    parts = URL(url)
    id = parts.parts[3]
    await files.admit(id, parts.query["expires"], parts.query["signature"])
    return bytes(await files.read(await files.find(id)))


async def test_an_address_expires() -> None:
    clock = Clock()
    files = Files(GatewaySettings(results_seconds=60), clock=clock)
    kept = await files.keep(b"content", "image/png", "a.png")
    url = await files.address(kept, "http://here")
    clock.now += 59
    assert await opened(files, url) == b"content"
    assert files.left(kept) == 1
    clock.now += 2
    with pytest.raises(NotFound, match="expired"):
        await opened(files, url)
    with pytest.raises(NotFound, match="not kept"):
        await files.find(kept.id)


async def test_gateways_with_one_store_know_each_others_addresses() -> None:
    store: Any = Store()
    one, other = (Files(GatewaySettings(), store) for _ in range(2))
    url = await one.address(await one.keep(b"content", "image/png", "a.png"), "http://one")
    assert await opened(other, url) == b"content"
    await other.forget(URL(url).parts[3])
    with pytest.raises(NotFound):
        await opened(one, url)


async def test_while_the_store_is_away_memory_keeps() -> None:
    store: Any = Store()
    store.away = True
    files = Files(GatewaySettings(), store)
    url = await files.address(await files.keep(b"content", "image/png", "a.png"), "http://one")
    assert await opened(files, url) == b"content"
    store.away = False
    # the secret is another from now on, and addresses that were given out stay good
    later = await files.address(await files.keep(b"more", "image/png", "a.png"), "http://one")
    assert await opened(files, later) == b"more"
    assert await opened(files, url) == b"content"
    assert len(store.kept) == 1


async def test_what_went_meanwhile_is_not_found() -> None:
    store: Any = Store()
    files = Files(GatewaySettings(), store)
    kept = await files.keep(b"content", "image/png", "a.png")
    store.kept.clear()
    with pytest.raises(NotFound, match="any more"):
        await files.read(kept)
    for id in ("file-1", "../etc", "file-" + "g" * 32):
        with pytest.raises(NotFound, match="no file"):
            await files.find(id)


async def test_a_file_that_is_larger_than_all() -> None:
    files = Files(GatewaySettings(results_bytes=6))
    with pytest.raises(PayloadTooLarge, match="7 bytes"):
        await files.keep(b"content", "image/png", "a.png")


async def test_a_file_that_breaks_off_is_not_taken_for_a_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store: Any = Store()
    made = Files(GatewaySettings(), store)
    kept = await made.keep(bytes(PIECE + 100), "video/mp4", "a.mp4")
    monkeypatch.setattr("blip.gateway.app.Files", lambda settings, store: made)
    read = store.read

    async def half(id: str, start: int, stop: int) -> bytes | None:
        return None if start else await read(id, start, stop)

    store.read = half
    async with served(mesh()) as origin, aiohttp.ClientSession() as http:
        url = await made.address(kept, origin)
        async with http.get(url) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await response.read()


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(0, 8)), max_size=30))
def test_a_shelf_is_never_over_its_limits(files: list[tuple[int, int, int]]) -> None:
    shelf = Shelf(20, 4)
    now = 0
    there: list[Kept] = []
    for number, (size, passed, life) in enumerate(files):
        now += passed
        kept = Kept(str(number), "", "", size, now, now + life)
        shelf.put(kept, bytes(size), now)
        there = [each for each in [*there, kept] if each.expires > now or each is kept]
        while sum(each.size for each in there) > 20 or len(there) > 4:
            there.pop(0)
        assert shelf.size == sum(each.size for each in there) <= 20
        assert len(shelf) == len(there) <= 4
        for each in there:
            if each.expires > now:
                assert shelf.get(each.id, now) == (each, bytes(each.size))


@given(st.text(max_size=20), st.integers(0, 10**11), st.text(max_size=50))
def test_signatures(id: str, expires: int, other: str) -> None:
    signer = Signer(b"a" * 32)
    signature = signer.sign(id, expires)
    assert signer.genuine(id, expires, signature)
    assert not signer.genuine(id, expires + 1, signature)
    assert not signer.genuine(id + "x", expires, signature)
    assert signer.genuine(id, expires, other) == (other == signature)
    assert not Signer(b"b" * 32).genuine(id, expires, signature)
    signer.adopt(b"b" * 32)
    assert signer.sign(id, expires) == Signer(b"b" * 32).sign(id, expires)
    assert signer.genuine(id, expires, signature)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, "http://own:1"),
        ({"Host": "example.com"}, "http://example.com"),
        ({"Host": "[::1]:8001"}, "http://[::1]:8001"),
        ({"Host": "gpu_box:80"}, "http://gpu_box:80"),
        ({"Host": "example.com:99999"}, "http://own:1"),
        ({"Host": "user@example.com"}, "http://own:1"),
        ({"Host": "example.com/x"}, "http://own:1"),
        ({"Host": "example.com\r\nX: y"}, "http://own:1"),
        (
            {"Host": "a", "X-Forwarded-Host": "b, c", "X-Forwarded-Proto": "HTTPS, http"},
            "https://b",
        ),
        ({"Host": "a", "X-Forwarded-Host": "b c"}, "http://a"),
        ({"Host": "a", "X-Forwarded-Proto": "file"}, "http://a"),
    ],
)
def test_origins(headers: dict[str, str], found: str) -> None:
    assert origin_of(headers, "http", "own:1") == found


async def test_a_gateway_on_a_unix_socket(backend: MemoryMesh, tmp_path: Path) -> None:
    runner = web.AppRunner(build_app(backend, GatewaySettings()))
    await runner.setup()
    path = str(tmp_path / "gateway")
    await web.UnixSite(runner, path).start()
    try:
        async with aiohttp.ClientSession(
            "http://nowhere", connector=aiohttp.UnixConnector(path)
        ) as http:
            assert (await address(http)).startswith("http://nowhere/v1/files/")
            assert (await address(http, Host="?")).startswith("http://localhost:80/v1/files/")
    finally:
        await runner.cleanup()


def test_names_that_would_break_a_header() -> None:
    found = disposition('a"b\\c\n ü.png')
    assert found == (
        "inline; filename=\"a_b_c_ _.png\"; filename*=UTF-8''a%22b%5Cc%0A%20%C3%BC.png"
    )


@pytest.mark.parametrize("name", ["results_bytes", "results_seconds", "video_jobs"])
def test_settings_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        GatewaySettings(**{name: 0})  # type: ignore[arg-type]

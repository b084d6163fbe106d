"""Fixtures with a real Redis. Use them with ``pytest_plugins = "tests.mesh.store_fixtures"``.

``store_url``, ``mesh_name``, ``store_keys``, ``store_redis`` share one embedded server a session;
each test has a mesh of its own on it. ``state_dir`` is a short private folder for a test that wants
an embedded server to itself. Nothing of all that outlives the test. Helpers that are no fixtures
are in :mod:`tests.mesh.store_servers`; do not import this module.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from blip.store import Client, Embedded, Keys, connect, embedded
from tests.mesh.store_servers import lives, short_folder


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A short state directory; if the test left a server there, it is ended and the test fails."""
    folder = short_folder()
    try:
        yield folder
        left = embedded.adopt(folder)
        if left is not None:
            left.owned = True
            left.stop()
            pytest.fail(f"the test left server {left.pid} running")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def store_server() -> Iterator[Embedded]:
    """One embedded server for the whole session."""
    folder = short_folder()
    server = embedded.ensure(folder)
    yield server
    server.stop()
    assert not lives(server.pid)
    shutil.rmtree(folder)


@pytest.fixture
def store_url(store_server: Embedded) -> str:
    """The session's server."""
    return store_server.url


@pytest.fixture
def mesh_name() -> str:
    """A mesh that no other test has."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def store_keys(mesh_name: str) -> Keys:
    """The keys of this test's mesh."""
    return Keys(mesh_name)


@pytest.fixture
async def store_redis(store_url: str) -> AsyncIterator[Client]:
    """A client of the session's server."""
    client = connect(store_url, name="test")
    yield client
    await client.aclose()

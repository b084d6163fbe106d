"""``blip up`` as people run it: real roles, real Ctrl-C, real kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from blip.cli import INTERRUPTED, USAGE, main
from blip.cli.local import LocalMesh, check_port, free_port
from blip.client import AsyncBlip, Blip
from blip.config import Config, load
from blip.errors import ConfigError, Unavailable

pytestmark = pytest.mark.timeout(120)

#: Seconds for what takes one or two on an idle machine.
PATIENCE = 60.0

ECHO: dict[str, Any] = {
    "models.echo.source": "builtin:echo",
    "node.cpu": "on",
    "node.nvml": False,
    "node.find_models": False,
    "node.benchmark": False,
}


@pytest.fixture
def home() -> Iterator[Path]:
    # not tmp_path: sockets have short names only
    with tempfile.TemporaryDirectory(prefix="blip-up-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def settings(home: Path, **more: Any) -> dict[str, Any]:
    return {
        **ECHO,
        "mesh.state_dir": home,
        "broker.bind": f"tcp://127.0.0.1:{free_port()}",
        "gateway.port": free_port(),
        **more,
    }


def config(home: Path, **more: Any) -> Config:
    return load(env={}, search=False, overrides=settings(home, **more)).config


def eventually(fact: Callable[[], bool]) -> bool:
    """Wait until something is so; false if it never is."""
    until = time.monotonic() + PATIENCE
    while not fact() and time.monotonic() < until:
        time.sleep(0.05)
    return fact()


# --- the mesh as an object ------------------------------------------------------------------


async def test_two_nodes_that_answer(home: Path) -> None:
    said: list[str] = []
    async with LocalMesh(config(home), 2, say=said.append) as mesh:
        view = await mesh.ready(PATIENCE)
        assert len(view["nodes"]) == 2
        names = {node["name"] for node in view["nodes"]}
        assert {name.rpartition("-")[2] for name in names} == {"1", "2"}
        async with AsyncBlip(mesh.url) as client:
            answer = await client.echo("hello")
        assert answer.body == b"hello"
        assert answer.origin.node in names
        assert mesh.store_pid is not None
        pids = [mesh.store_pid, *(mesh.pid(role) for role in mesh.roles)]
        assert mesh.roles == ("gateway", "node-1", "node-2", "broker")
        assert sorted(path.name for path in (home / "run").iterdir()) == [
            "broker.json", "gateway.json", "node-1.json", "node-2.json",
        ]  # fmt: skip
    assert said == []
    assert not [pid for pid in pids if pid is not None and psutil.pid_exists(pid)]
    assert list((home / "run").iterdir()) == []
    assert sorted(path.name for path in (home / "logs").iterdir()) == [
        "broker.log", "gateway.log", "node-1.log", "node-2.log",
    ]  # fmt: skip


async def test_whatever_dies_comes_back(home: Path) -> None:
    said: list[str] = []
    async with LocalMesh(config(home), say=said.append) as mesh:
        await mesh.ready(PATIENCE)
        store = mesh.store_pid
        assert store is not None
        for role in mesh.roles:
            pid = mesh.pid(role)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        os.kill(store, signal.SIGKILL)
        assert await asyncio.to_thread(eventually, lambda: mesh.store_pid != store)
        await mesh.ready(PATIENCE)
        async with AsyncBlip(mesh.url) as client:
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        assert (await client.echo("again")).body == b"again"
                        break
                    except Unavailable:
                        await asyncio.sleep(0.1)
    text = "\n".join(said)
    assert "the embedded store ended; starting it again" in text
    for role in mesh.roles:
        assert f"{role} was ended by SIGKILL; starting it again in 0.5 s" in text


async def test_keys_are_not_needed_to_know_that_it_is_up(home: Path) -> None:
    keys = {"me": "0" * 64}
    async with LocalMesh(config(home, **{"gateway.api_keys": keys})) as mesh:
        assert (await mesh.ready(PATIENCE))["nodes"] == []


async def test_one_mesh_a_state_folder(home: Path) -> None:
    first = LocalMesh(config(home))
    first._claim()
    try:
        with pytest.raises(ConfigError, match=rf"already running in .* \(process {os.getpid()}\)"):
            async with LocalMesh(config(home)):
                pass
    finally:
        await first.close()
    second = LocalMesh(config(home))
    second._claim()
    await second.close()


async def test_a_state_folder_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="/dev/null/x cannot be used"):
        async with LocalMesh(config(Path("/dev/null/x"))):
            pass


async def test_ports_that_are_taken(home: Path) -> None:
    async with await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match=r"gateway\.port: cannot listen on") as caught:
            async with LocalMesh(config(home, **{"gateway.port": port})):
                pass
        assert "--port" in caught.value.hint
        with pytest.raises(ConfigError, match=r"broker\.bind: cannot listen on"):
            async with LocalMesh(config(home, **{"broker.bind": f"tcp://127.0.0.1:{port}"})):
                pass


def test_a_port_that_is_free() -> None:
    check_port("127.0.0.1", free_port(), "gateway.port", "")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
    ],
)
def test_the_address_for_clients(home: Path, host: str, url: str) -> None:
    keys = {"me": "0" * 64}
    found = config(home, **{"gateway.host": host, "gateway.port": 80, "gateway.api_keys": keys})
    assert LocalMesh(found).url == url


def test_port_0_is_chosen_before_anything_starts(home: Path) -> None:
    assert LocalMesh(config(home, **{"gateway.port": 0})).config.gateway.port > 0


async def test_a_role_that_cannot_run_ends_the_start(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: LocalMesh, name: str, kind: str) -> tuple[str, ...]:
        return (sys.executable, "-c", "raise SystemExit('no such thing')")

    monkeypatch.setattr(LocalMesh, "_argv", broken)
    said: list[str] = []
    async with LocalMesh(config(home), say=said.append) as mesh:
        with pytest.raises(Unavailable, match="did not come up") as caught:
            await mesh.ready(PATIENCE)
        assert str(home) in caught.value.hint
        assert mesh.failed
        assert await mesh.ended() == 1
    assert any("no such thing" in line for line in said)


async def test_a_mesh_that_is_never_ready(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(self: LocalMesh, name: str, kind: str) -> tuple[str, ...]:
        return (sys.executable, "-c", "import time; time.sleep(300)")

    monkeypatch.setattr(LocalMesh, "_argv", idle)
    async with LocalMesh(config(home)) as mesh:
        with pytest.raises(Unavailable, match=r"not ready within 0\.3 s: .* does not answer"):
            await mesh.ready(0.3)


# --- the verb -------------------------------------------------------------------------------


@contextmanager
def up(home: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``blip up`` in a process of its own."""
    sets = [
        part
        for key, value in settings(home).items()
        for part in ("-s", f"{key}={json.dumps(value) if isinstance(value, bool) else value}")
    ]
    command = [sys.executable, "-m", "blip", "up", *sets, *args]
    environment = {key: text for key, text in os.environ.items() if not key.startswith("BLIP_")}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def announced(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the JSON document that ``--json`` prints when the mesh is up."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            break
    found: dict[str, Any] = json.loads(text)
    return found


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=30)
    return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_up_and_ctrl_c(home: Path) -> None:
    with up(home, "--nodes", "2", "--json") as process:
        found = announced(process)
        assert len(found["nodes"]) == 2
        assert found["models"] == ["echo"]
        children = family(process)
        assert len(children) >= 5  # store, broker, two nodes, gateway
        with Blip(found["url"]) as client:
            assert client.echo("x").body == b"x"
        assert main(["status", "--url", found["url"]]) == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == "\nstopping; once more to end at once\n"
    assert all_gone(children)


def test_ctrl_c_lets_a_request_finish(home: Path) -> None:
    with up(home, "--json") as process, Blip(announced(process)["url"]) as client:
        client.echo("warm")
        began = time.monotonic()
        timer = _later(0.5, lambda: process.send_signal(signal.SIGINT))
        assert client.echo("slow", delay=2.0).body == b"slow"
        assert time.monotonic() - began >= 2.0
        timer.join()
        assert process.wait(PATIENCE) == 0


def _later(seconds: float, action: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_twice_ends_at_once(home: Path) -> None:
    with up(home, "--json") as process:
        url = announced(process)["url"]
        children = family(process)
        with Blip(url) as client:
            client.echo("warm")
            stream = _later(0, lambda: _ignore(lambda: client.echo("x", delay=600.0)))
            assert eventually(lambda: any(t["state"] == "running" for t in client.tasks()))
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            while "once more" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
            stream.join()
    assert all_gone(children)


def _ignore(action: Callable[[], object]) -> None:
    try:
        action()
    except Exception:
        pass  # the mesh went away under it, which is what the test does


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_no_orphans_after_kill_9(home: Path) -> None:
    with up(home, "--json") as process:
        with Blip(announced(process)["url"]) as client:
            client.echo("a worker is there")
        children = family(process)
        process.kill()
        process.wait()
    assert all_gone(children)


def test_interrupted_before_it_is_up(home: Path) -> None:
    with up(home, "--json") as process:
        while not family(process):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == INTERRUPTED


def test_what_it_says(home: Path) -> None:
    with up(home, "--verbose") as process:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if "Ctrl-C" in line:
                break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    assert "OpenAI base URL: http://127.0.0.1:" in text
    assert "models   echo" in text
    assert str(home / "logs") in text
    assert "gateway | " in errors


def test_a_second_one_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with up(home, "--json") as process:
        announced(process)
        where = ["-s", f"mesh.state_dir={home}", "-s", "broker.bind=tcp://127.0.0.1:*"]
        assert main(["up", "--port", "0", *where]) == USAGE
        process.terminate()
        process.wait(PATIENCE)
    assert f"already running in {home} (process {process.pid})" in capsys.readouterr().err

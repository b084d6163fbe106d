"""Real Redis servers for tests, and what may happen to them."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from blip.store.program import find_server


@dataclass(frozen=True)
class RawServer:
    """A server process outside blip's care."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def raw_server(*options: str) -> Iterator[RawServer]:
    """Run a server with these command line options on a unix socket."""
    folder = short_folder()
    socket = folder / "s"
    argv = [str(find_server().path), "--port", "0", "--unixsocket", str(socket)]
    argv += ["--dir", str(folder), "--save", "", "--logfile", str(folder / "log"), *options]
    with subprocess.Popen(argv) as process:
        try:
            while not socket.exists():  # bound last, when it is ready; the test's timeout guards
                assert process.poll() is None, (folder / "log").read_text()
            yield RawServer(f"unix://{socket}?db=0", process)
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
    shutil.rmtree(folder)


@contextmanager
def suspended(pid: int) -> Iterator[None]:
    """Stop a process inside the block, as a hung one would look."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Return when ``condition`` holds; the test's own timeout guards."""
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return
        await asyncio.sleep(0.005)


def await_end(pid: int) -> None:
    """Return when a process has ended; it need not be a child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [])
    finally:
        os.close(descriptor)


def lives(pid: int) -> bool:
    """Whether a process runs: exists, and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def sync_client(url: str) -> redis.Redis:
    """A plain blocking client, for looking at a server from outside."""
    return redis.Redis.from_url(url, legacy_responses=False)


def short_folder() -> Path:
    """A private folder whose path leaves room for a unix socket, unlike pytest's tmp_path."""
    return Path(tempfile.mkdtemp(prefix="blip-t-"))

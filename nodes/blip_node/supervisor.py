"""Starts worker processes and knows when they end.

Workers come from a forkserver that has already imported what they need: a model process is there
in 0.03 s instead of 3 to 10 s. The forkserver never touches a GPU. Each worker connects back
through a unix socket and says its token; nobody else gets in, for the socket's folder is private.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import secrets
import signal
from collections.abc import Callable, Iterable
from typing import Any

from blip.transport.folder import socket_folder
from blip_node import worker as worker_module
from blip_node.arena import Arena
from blip_node.pipe import Pipe, Row
from blip_node.runtimes import RUNTIMES
from blip_node.runtimes.environment import WORKER_ENV
from blip_node.worker import Assignment

log = logging.getLogger(__name__)

#: A worker that was told to stop and has not ended after this is killed: it is stuck in a kernel.
STOP_GRACE = 5.0

#: How long the rows of a worker whose process has ended may still be on their way.
PIPE_GRACE = 1.0


class WorkerHandle:
    """A worker process, as the agent sees it."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.process: multiprocessing.process.BaseProcess | None = None
        self.pid: int | None = None
        self.pipe: Pipe | None = None
        self.arena: Arena | None = None
        #: How its process ended; "" while it runs.
        self.reason = ""
        self.ended = False

    def send(self, *row: Any) -> None:
        """Send a row; swallowed while the worker is not there."""
        if self.pipe is not None:
            self.pipe.send(*row)


class Supervisor:
    """The processes of one agent. ``on_row`` and ``on_exit`` are called on the event loop.

    ``on_exit`` gets the reason in words and is called exactly once for each worker.
    """

    def __init__(
        self,
        on_row: Callable[[WorkerHandle, list[Any]], None],
        on_exit: Callable[[WorkerHandle, str], None],
    ) -> None:
        self._on_row = on_row
        self._on_exit = on_exit
        self._context = multiprocessing.get_context("forkserver")
        self._expected: dict[str, WorkerHandle] = {}
        self._workers: dict[Pipe, WorkerHandle] = {}
        self._alive: set[WorkerHandle] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._empty: asyncio.Future[None] | None = None
        self._folder = contextlib.ExitStack()
        folder = self._folder.enter_context(socket_folder("blip-workers-"))
        self.address = str(folder / "workers.sock")

    async def start(self, kinds: Iterable[str]) -> None:
        """Listen for workers, and have the forkserver import what these kinds' runtimes need."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._accept, self.address)
        # read by libraries when they are imported, that is in the forkserver
        os.environ.update(WORKER_ENV)
        self._context.set_forkserver_preload([worker_module.__name__, *_preloads(kinds)])
        # starting it returns at once; the imports go on in the forkserver
        multiprocessing.forkserver.ensure_running()

    def launch(self, assignment: Assignment) -> WorkerHandle:
        """Start a worker; returns at once, and ``on_row`` tells how it goes on."""
        handle = WorkerHandle(assignment)
        self._expected[assignment.token] = handle
        self._alive.add(handle)
        task = asyncio.create_task(self._start(handle))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return handle

    async def _start(self, handle: WorkerHandle) -> None:
        process = self._context.Process(
            target=worker_module.main, args=(handle.assignment,), name="blip-worker", daemon=True
        )
        try:
            # blocks while the forkserver is still importing
            await asyncio.to_thread(process.start)
        except Exception as error:
            log.exception("starting a worker")
            handle.reason = f"it could not be started: {error}"
            self._exited(handle)
            return
        handle.process = process
        handle.pid = process.pid
        loop = asyncio.get_running_loop()
        loop.add_reader(process.sentinel, self._reap, handle)

    def stop(self, handle: WorkerHandle) -> None:
        """Ask a worker to end; it is killed if it does not."""
        handle.send(Row.STOP)
        asyncio.get_running_loop().call_later(STOP_GRACE, self.kill, handle)

    def kill(self, handle: WorkerHandle) -> None:
        """End a worker at once; harmless if it has ended."""
        if not handle.ended and handle.process is not None:
            handle.process.kill()

    @property
    def pids(self) -> frozenset[int]:
        """Process ids of all workers."""
        return frozenset(handle.pid for handle in self._alive if handle.pid is not None)

    async def close(self) -> None:
        """End every worker."""
        for handle in list(self._alive):
            handle.send(Row.STOP)
        if self._starting:
            # the forkserver may import for many seconds yet, and nobody wants the result
            kill_forkserver()
            await asyncio.wait(self._starting, timeout=STOP_GRACE)
        for how in (lambda handle: None, self.kill):  # ask, then insist
            if self._alive:
                for handle in list(self._alive):
                    how(handle)
                self._empty = asyncio.get_running_loop().create_future()
                await asyncio.wait({self._empty}, timeout=STOP_GRACE)
        if self._server is not None:
            self._server.close()
        for pipe in list(self._workers):
            pipe.close()
        self._folder.close()

    # --- what workers do --------------------------------------------------------------------

    def _accept(self) -> Pipe:
        return Pipe(self._row, self._closed)

    def _row(self, pipe: Pipe, row: list[Any]) -> None:
        handle = self._workers.get(pipe)
        if handle is not None:
            self._on_row(handle, row)
            return
        handle = self._expected.pop(row[1], None) if row[0] == Row.HELLO else None
        if handle is None:
            log.warning("a stranger on the workers' socket")
            pipe.close()
            return
        handle.pipe = pipe
        handle.arena = Arena(row[2])
        handle.arena.unlink()
        self._workers[pipe] = handle
        self._on_row(handle, row)

    def _closed(self, pipe: Pipe) -> None:
        handle = self._workers.pop(pipe, None)
        if handle is not None:
            handle.pipe = None
            self._gone(handle)
            # its process ends next; one that does not is of no use without its pipe
            asyncio.get_running_loop().call_later(STOP_GRACE, self.kill, handle)

    def _reap(self, handle: WorkerHandle) -> None:
        assert handle.process is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(handle.process.sentinel)
        handle.process.join()
        handle.reason = _how(handle.process.exitcode)
        handle.process.close()
        handle.process = None
        self._gone(handle)
        # a process that the worker left behind may hold the pipe open
        loop.call_later(PIPE_GRACE, self._exited, handle)

    def _gone(self, handle: WorkerHandle) -> None:
        # Its last rows may still be in the pipe when the process has ended: both must be over.
        if handle.pipe is None and handle.reason:
            self._exited(handle)

    def _exited(self, handle: WorkerHandle) -> None:
        if handle.ended:
            return
        handle.ended = True
        self._alive.discard(handle)
        self._expected.pop(handle.assignment.token, None)
        if handle.arena is not None:
            handle.arena.close()
            handle.arena = None
        if handle.pipe is not None:
            handle.pipe.close()
        self._on_exit(handle, handle.reason)
        if self._empty is not None and not self._alive and not self._empty.done():
            self._empty.set_result(None)


def token() -> str:
    """Make a worker's secret for its first row."""
    return secrets.token_hex(16)


def _how(code: int | None) -> str:
    if code is None:
        return "it ended without an exit code"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"


def _preloads(kinds: Iterable[str]) -> list[str]:
    """What the forkserver imports: the runtimes' modules and what those ask for."""
    wanted: list[str] = []
    for place in sorted({RUNTIMES[kind] for kind in kinds if kind in RUNTIMES}):
        module, _, name = place.partition(":")
        wanted += [module, *getattr(importlib.import_module(module), name).preload]
    return list(dict.fromkeys(wanted))


def kill_forkserver() -> None:
    """End the process's forkserver, and with it whatever workers are left; nothing public does.

    Blocks for the moment that the kernel needs. A later start of a worker makes a new one.
    """
    server = multiprocessing.forkserver._forkserver
    pid = getattr(server, "_forkserver_pid", None)
    stop = getattr(server, "_stop", None)
    if pid is None or stop is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    stop()

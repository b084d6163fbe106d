"""A worker: the process that runs one replica. It may die without its agent.

Started by the supervisor from the forkserver; connects back through the pipe, loads, serves, and
ends when told, when the pipe closes, or when its parent dies. Ending is how a model is unloaded:
nothing else gives all memory back.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.errors import (
    BlipError,
    Cancelled,
    ModelLoadFailed,
    NoCapacity,
    RuntimeFailed,
    WorkerCrashed,
)
from blip.kinds import KINDS, Kind, input_from_wire
from blip.kinds.plugin import plugin_kind
from blip.lifecycle import die_with_parent, new_event_loop, tune_gc, tune_memory
from blip.protocol.credit import SendWindow
from blip_node.arena import Arena
from blip_node.gauge import Gauge
from blip_node.models import additions
from blip_node.models.abilities import sees
from blip_node.models.files import read_object
from blip_node.models.prepare import prepare
from blip_node.models.snapshot import locate
from blip_node.models.spec import Fileless, ModelSpec, Plugin, Upstream, parse_source
from blip_node.pipe import Pipe, Row
from blip_node.runtimes import runtime_for
from blip_node.runtimes.base import LoadSpec, Outcome, Runtime

log = logging.getLogger(__name__)

#: Seconds between two looks at the memory that the model takes, and the growth worth telling.
GAUGE_EVERY = 1.0
GAUGE_STEP = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is started with; pickled by multiprocessing between our own processes."""

    address: str
    token: str
    model: ModelSpec
    kinds: tuple[str, ...]
    device: str
    slots: int
    data_dir: str
    #: Whether a hub model may be downloaded.
    download: bool
    #: Environment to set before the runtime is imported, such as CUDA_VISIBLE_DEVICES.
    environment: dict[str, str]
    threads: int | None
    speed: float
    context: int | None
    #: Whether it takes device memory, which is then watched.
    gauged: bool


def main(assignment: Assignment) -> None:
    """Run a worker until it is told to stop. The target of the supervisor's processes."""
    # the forkserver is our parent; it ends with the agent, and we end with it
    die_with_parent(os.getppid(), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(assignment.environment)
    tune_memory()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(Worker(assignment).run())


class RunningJob:
    """Implements :class:`blip_node.runtimes.base.Job`."""

    def __init__(self, worker: Worker, id: int, kind: Kind, value: Any, window: int) -> None:
        self._worker = worker
        # the runtime's thread takes while the loop's grants
        self._lock = threading.Lock()
        self._window = SendWindow(window)
        self._changed: list[Callable[[], None]] = []
        self._pending: collections.deque[bytes | memoryview] = collections.deque()
        self._waiter: asyncio.Future[None] | None = None
        self.id = id
        self.kind = kind
        self.input = value
        self.cancelled = False
        self.writable = self._window.open
        self.began = time.monotonic()
        self.first: float | None = None

    def emit(self, payload: bytes | memoryview) -> None:
        """Send a part of the result; see :meth:`blip_node.runtimes.base.Job.emit`."""
        with self._lock:
            self._window.take(len(payload))
            self.writable = self._window.open
        if self.first is None:
            self.first = time.monotonic() - self.began
        self._worker.emit(self, payload)

    async def drained(self) -> None:
        """Wait until writable or cancelled; see :meth:`blip_node.runtimes.base.Job.drained`."""
        while not self.writable and not self.cancelled:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def on_change(self, wake: Callable[[], None]) -> None:
        """Register ``wake``; see :meth:`blip_node.runtimes.base.Job.on_change`."""
        self._changed.append(wake)

    def credit(self, size: int) -> None:
        """The receiver grants more."""
        with self._lock:
            opened = self._window.grant(size)
            self.writable = self._window.open
        if opened:
            self._wake()

    def cancel(self) -> None:
        """The client is gone."""
        self.cancelled = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        for wake in self._changed:
            wake()


#: How long a runtime may take to end what it computes before the process ends regardless.
CLOSE_SECONDS = 5.0


class Worker:
    """The event loop's side of a worker process."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._jobs: dict[int, RunningJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._runtime: Runtime | None = None
        self._arena = Arena()
        self._outbox: collections.deque[tuple[RunningJob, bytes | memoryview]] = collections.deque()
        self._thread = threading.get_ident()
        self._waking = False
        self._gauge: Gauge | None = None
        self._gauged = 0.0
        self._told = 0
        self._gauging: asyncio.TimerHandle | None = None
        # what only a plugin knows is its runtime's business
        self._kinds = {name: KINDS.get(name) or plugin_kind(name) for name in assignment.kinds}
        self._pipe: Pipe
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Future[None]

    async def run(self) -> None:
        """Connect, load, serve; return when told to stop or when the agent is gone."""
        self._loop = asyncio.get_running_loop()
        self._stopped = self._loop.create_future()
        _, self._pipe = await self._loop.create_unix_connection(
            lambda: Pipe(self._on_row, self._on_close), self._assignment.address
        )
        self._pipe.send(Row.HELLO, self._assignment.token, self._arena.path)
        loading = asyncio.create_task(self._load())
        await self._stopped
        loading.cancel()
        for task in self._tasks:
            task.cancel()
        if self._runtime is not None:
            # it waits for its threads, and a pass of a large model may take them minutes
            closing = threading.Thread(target=self._runtime.close, daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS)
        self._pipe.close()
        # A thread stuck in a kernel must not keep the process: its memory is what is wanted back.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    async def _load(self) -> None:
        began = time.monotonic()
        try:
            runtime, spec, memory = await asyncio.to_thread(self._load_blocking)
        except BlipError as error:
            self._broken(error)
        except MemoryError:
            self._broken(NoCapacity("the machine ran out of memory during the load"))
        except Exception as error:
            # whatever a library raises while it loads is the reason the operator needs
            log.exception("loading %s", self._assignment.model.name)
            self._broken(ModelLoadFailed(f"{type(error).__name__}: {error}"))
        else:
            self._runtime = runtime
            tune_gc()
            self._told, self._gauged = memory, time.monotonic()
            self._pipe.send(Row.READY, spec.slots, memory, time.monotonic() - began)

    def _load_blocking(self) -> tuple[Runtime, LoadSpec, int]:
        todo = self._assignment
        path = ""
        source = parse_source(todo.model.source, todo.model.name)
        if not isinstance(source, Fileless):
            # preparing is a download or a conversion: as long as loading, or much longer
            path = str(
                prepare(
                    todo.model,
                    Path(todo.data_dir),
                    lambda share: self._report(share / 2),
                    download=todo.download,
                )
            )
        packed = todo.model.runtime == "llama.cpp"
        spec = LoadSpec(
            model=todo.model.name,
            path=path,
            gguf=str(locate(todo.model)) if packed else "",
            device=todo.device,
            slots=todo.slots,
            dtype=todo.model.dtype,
            context=todo.context,
            threads=todo.threads,
            speed=todo.speed,
            engine=todo.model.engine,
            remote=source.model if isinstance(source, Upstream) else "",
            means=todo.model.means.plain(),
            loras=additions.prepare(todo.model.loras, download=todo.download),
            controlnets=additions.prepare(todo.model.controlnets, download=todo.download),
            plugin=source.place if isinstance(source, Plugin) else "",
            options=todo.model.options,
            labels=todo.model.labels,
            thresholds=todo.model.thresholds,
        )
        config = read_object(Path(path) / "config.json", missing_ok=True) if path else {}
        runtime = runtime_for(
            todo.kinds,
            upstream=isinstance(source, Upstream),
            plugin=isinstance(source, Plugin),
            sees=sees(config),
        )()
        # without a model there is nothing to watch, and no need of torch
        gauge = Gauge(todo.device, allocator=not packed) if todo.gauged else None
        runtime.load(spec, lambda share: self._report(0.5 + share / 2))
        self._gauge = gauge
        return runtime, spec, gauge.read() if gauge is not None else 0

    def _report(self, share: float) -> None:
        self._loop.call_soon_threadsafe(self._pipe.send, Row.PROGRESS, share)

    def _broken(self, error: BlipError) -> None:
        self._pipe.send(Row.BROKEN, *error.to_wire())

    # --- rows -------------------------------------------------------------------------------

    def _on_row(self, pipe: Pipe, row: list[Any]) -> None:
        what, *rest = row
        if what == Row.RUN:
            self._run(*rest)
        elif what == Row.FREE:
            self._arena.release(rest[0])
        elif what == Row.STOP:
            self._stop()
        elif rest and (job := self._jobs.get(rest[0])):
            if what == Row.CREDIT:
                job.credit(rest[1])
            elif what == Row.CANCEL:
                job.cancel()

    def _on_close(self, pipe: Pipe) -> None:
        self._stop()

    def _stop(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _run(self, id: int, kind_name: str, window: int, payload: bytes) -> None:
        kind = self._kinds[kind_name]
        try:
            value = input_from_wire(kind, payload)
        except BlipError as error:
            self._pipe.send(Row.FAILED, id, *error.to_wire())
            return
        job = self._jobs[id] = RunningJob(self, id, kind, value, window)
        if self._gauging is None and self._gauge is not None:
            self._gauging = self._loop.call_later(GAUGE_EVERY, self._watch)
        task = asyncio.create_task(self._work(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, job: RunningJob) -> None:
        assert self._runtime is not None
        try:
            outcome = await self._runtime.run(job)
            if job.cancelled:
                raise Cancelled("cancelled")
        except BlipError as error:
            self._flush()
            self._pipe.send(Row.FAILED, job.id, *error.to_wire())
            if isinstance(error, WorkerCrashed):
                # the runtime says that this process is beyond repair (its GPU is lost, say)
                self._stop()
        except Exception as error:
            log.exception("job of kind %s", job.kind.name)
            self._flush()
            failure = RuntimeFailed(f"{type(error).__name__}: {error}")
            self._pipe.send(Row.FAILED, job.id, *failure.to_wire())
        else:
            self._flush()
            self._look()
            self._done(job, outcome)
        finally:
            del self._jobs[job.id]

    def _watch(self) -> None:
        """Look at the memory while jobs run; without jobs an idle process stays asleep."""
        self._look()
        self._gauging = self._loop.call_later(GAUGE_EVERY, self._watch) if self._jobs else None

    def _look(self) -> None:
        """Tell how much memory the model takes by now, if that has grown."""
        now = time.monotonic()
        if self._gauge is None or now - self._gauged < GAUGE_EVERY:
            return
        self._gauged = now
        peak = self._gauge.read()
        if peak >= self._told + GAUGE_STEP:
            self._told = peak
            self._pipe.send(Row.MEMORY, peak)

    def _done(self, job: RunningJob, outcome: Outcome) -> None:
        run = time.monotonic() - job.began
        first = run if job.first is None else job.first
        facts = (job.id, outcome.usage, outcome.units, first, run)
        block = self._arena.put(outcome.payload)
        if block is None:
            self._pipe.send(Row.DONE, *facts, outcome.payload)
        else:
            self._pipe.send(Row.DONE_BLOCK, *facts, block, len(outcome.payload))

    # --- parts ------------------------------------------------------------------------------

    def emit(self, job: RunningJob, payload: bytes | memoryview) -> None:
        """Queue a part; from any thread. The loop is woken once for all that gathers meanwhile."""
        self._outbox.append((job, payload))
        if threading.get_ident() == self._thread:
            self._flush()
        elif not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self._waking = False
        while self._outbox:
            job, payload = self._outbox.popleft()
            block = self._arena.put(payload)
            if block is None:
                self._pipe.send(Row.DATA, job.id, payload)
            else:
                self._pipe.send(Row.DATA_BLOCK, job.id, block, len(payload))

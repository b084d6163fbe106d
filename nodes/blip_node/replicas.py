"""The replicas of this node: which are loaded, which load, and what runs on them.

The state machine of one is in :mod:`blip_node.replica`; here its worker is started, fed, and
cleared away. What happens to an attempt is told to ``outcome``, the agent, in its own words.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from blip.errors import BlipError, DeadlineExceeded, ModelLoadFailed, WorkerCrashed, from_wire
from blip_node.capacity import Reading
from blip_node.catalogue import Entry
from blip_node.executions import Event as Moved
from blip_node.executions import Execution
from blip_node.pipe import Row
from blip_node.replica import MAX_CRASHES, Event, Replica, State
from blip_node.supervisor import Supervisor, WorkerHandle, token
from blip_node.worker import Assignment

log = logging.getLogger(__name__)


class Outcomes(Protocol):
    """What the agent is told about attempts."""

    def part(self, execution: Execution, payload: bytes) -> None:
        """A part of the result came."""
        ...

    def done(
        self,
        execution: Execution,
        usage: dict[str, int],
        units: float,
        first: float,
        run: float,
        payload: bytes,
    ) -> None:
        """The worker finished it."""
        ...

    def failed(self, execution: Execution, error: BlipError) -> None:
        """It failed, or has stopped after a cancel."""
        ...

    def changed(self) -> None:
        """Something that adverts tell has changed."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where workers run: the node's own facts that every assignment repeats."""

    data_dir: Path
    downloads: bool
    speed: float
    threads: int


class Replicas:
    """Every replica of the node, by (model, device)."""

    def __init__(self, outcomes: Outcomes, place: Place) -> None:
        self._supervisor = Supervisor(self._on_row, self._on_exit)
        self._outcomes = outcomes
        self._place = place
        self._loop = asyncio.get_running_loop()
        # finer than the loop's own under uvloop, with the same origin
        self._now = time.monotonic
        self._replicas: dict[tuple[str, str], Replica] = {}
        self._by_worker: dict[WorkerHandle, Replica] = {}
        self._jobs = itertools.count(1)
        self._blocked: dict[tuple[str, str], list[Replica]] = {}
        self._entries: dict[tuple[str, str], tuple[Entry, Reading]] = {}
        self._closing = False
        #: Measured while loading, in bytes a second, by device.
        self.bandwidth: dict[str, float] = {}

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._replicas.values()))

    def get(self, model: str, device: str) -> Replica | None:
        """Return the replica of a model on a device."""
        return self._replicas.get((model, device))

    def on(self, device: str) -> list[Replica]:
        """Return the replicas on a device."""
        return [each for each in self._replicas.values() if each.device == device]

    def reserved(self, device: str) -> int:
        """Bytes promised on a device to replicas that are not loaded yet."""
        return sum(
            each.memory
            for each in self._replicas.values()
            if each.device == device and each.state in (State.LOADING, State.BACKOFF)
        )

    @property
    def pids(self) -> frozenset[int]:
        """Process ids of the workers."""
        return self._supervisor.pids

    async def start(self, kinds: Iterable[str]) -> None:
        """Be ready to start workers for these kinds."""
        await self._supervisor.start(kinds)

    async def close(self) -> None:
        """End every worker and start no other."""
        self._closing = True
        await self._supervisor.close()

    # --- what the agent asks for ------------------------------------------------------------

    def load(self, entry: Entry, reading: Reading, evict: tuple[Replica, ...] = ()) -> Replica:
        """Load a model on a device, once however often asked, after stopping ``evict``."""
        key = (entry.spec.name, reading.info.id)
        replica = self._replicas.get(key)
        if replica is not None and replica.state is not State.FAILED:
            return replica
        memory = entry.memory(gpu=reading.info.gpu)
        replica = Replica(*key, entry.slots, memory, self._now())
        self._replicas[key] = replica
        self._entries[key] = (entry, reading)
        for victim in evict:
            log.info("unloading '%s' to make room for '%s'", victim.model, entry.spec.name)
            self.unload(victim)
        # memory is only free once the evicted workers have ended
        waits = [victim for victim in evict if (victim.model, victim.device) in self._replicas]
        if waits:
            self._blocked[key] = waits
        else:
            self._launch(replica)
        self._outcomes.changed()
        return replica

    def unload(self, replica: Replica) -> None:
        """Stop a replica; what still waits for it or runs on it fails as if it had crashed."""
        if not replica.move(Event.STOP):
            return
        if replica.worker is not None:
            self._supervisor.stop(replica.worker)
        else:
            self._remove(replica)
        self._outcomes.changed()

    def submit(self, replica: Replica, execution: Execution) -> None:
        """Queue an attempt on a replica and start it if there is a slot."""
        execution.replica = replica
        replica.waiting.append(execution)
        replica.used = self._now()
        self._pump(replica)

    def cancel(self, execution: Execution) -> bool:
        """Stop an attempt; True if it had not begun and is simply gone."""
        replica = execution.replica
        if execution in replica.waiting:
            replica.waiting.remove(execution)
            return True
        if execution.move(Moved.STOP):
            replica.worker.send(Row.CANCEL, execution.job)
        return False

    def credit(self, execution: Execution, size: int) -> None:
        """Pass on credit."""
        if execution.job in execution.replica.jobs:
            execution.replica.worker.send(Row.CREDIT, execution.job, size)
        else:
            execution.window += size

    # --- what workers do --------------------------------------------------------------------

    def _on_row(self, handle: WorkerHandle, row: list[Any]) -> None:
        replica = self._by_worker.get(handle)
        if replica is None:
            return
        what, *rest = row
        if what in (Row.DATA, Row.DATA_BLOCK):
            execution = replica.jobs.get(rest[0])
            payload = self._payload(handle, rest[1:])
            if execution is not None:
                self._outcomes.part(execution, payload)
        elif what in (Row.DONE, Row.DONE_BLOCK):
            execution = replica.jobs.pop(rest[0], None)
            payload = self._payload(handle, rest[5:])
            if execution is not None:
                usage, units, first, run = rest[1:5]
                self._outcomes.done(execution, usage, units, first, run, payload)
            self._freed(replica)
        elif what == Row.FAILED:
            execution = replica.jobs.pop(rest[0], None)
            if execution is not None:
                self._outcomes.failed(execution, from_wire(*rest[1:]))
            self._freed(replica)
        elif what == Row.PROGRESS:
            replica.progress = rest[0]
        elif what == Row.READY:
            self._ready(replica, *rest)
        elif what == Row.BROKEN:
            self._broken(replica, from_wire(*rest))

    def _payload(self, handle: WorkerHandle, rest: list[Any]) -> bytes:
        if len(rest) == 1:
            payload: bytes = rest[0]
            return payload
        assert handle.arena is not None
        block, size = rest
        payload = handle.arena.take(block, size)
        handle.send(Row.FREE, block)
        return payload

    def _freed(self, replica: Replica) -> None:
        replica.used = self._now()
        self._pump(replica)

    def _ready(self, replica: Replica, slots: int, memory: int, seconds: float) -> None:
        if not replica.move(Event.LOADED):
            return
        entry, reading = self._entries[replica.model, replica.device]
        replica.slots = slots
        replica.load_seconds = seconds
        if not reading.info.gpu and replica.memory:
            replica.memory = memory
        read = entry.load_bytes(gpu=reading.info.gpu)
        if read and seconds > 0:
            self.bandwidth[replica.device] = read / seconds
        entry.error = None
        now = self._now()
        for execution in replica.waiting:
            execution.loaded = now
        replica.began = now
        log.info("'%s' is loaded on %s after %.1f s", replica.model, replica.device, seconds)
        self._pump(replica)
        self._outcomes.changed()

    def _broken(self, replica: Replica, error: BlipError) -> None:
        """Loading failed for a reason: everyone who waits hears it, once."""
        if not replica.move(Event.BROKEN):
            return
        replica.error = error.message
        entry, _ = self._entries[replica.model, replica.device]
        entry.broken(error, self._now())
        log.error("'%s' cannot be loaded: %s", replica.model, error.message)
        waiting = list(replica.waiting)
        replica.waiting.clear()
        for execution in waiting:
            self._outcomes.failed(execution, error)
        if replica.worker is not None:
            self._supervisor.stop(replica.worker)
        self._outcomes.changed()

    def _on_exit(self, handle: WorkerHandle, reason: str) -> None:
        replica = self._by_worker.pop(handle, None)
        if replica is None:
            return
        replica.worker = None
        was = replica.state
        wait = replica.crashed(self._now())
        replica.move(Event.GONE)
        jobs, replica.jobs = replica.jobs, {}
        lost = WorkerCrashed(f"the worker of '{replica.model}' ended: {reason}")
        for execution in jobs.values():
            self._outcomes.failed(execution, lost)
        if was in (State.STOPPING, State.FAILED) or self._closing:
            self._remove(replica, keep_failed=was is State.FAILED)
        elif replica.crashes >= MAX_CRASHES:
            log.error("'%s' crashed %d times in a row", replica.model, replica.crashes)
            text = f"its worker ended {replica.crashes} times in a row, last: {reason}"
            replica.state = State.LOADING  # a crash loop is a load that failed
            self._broken(replica, ModelLoadFailed(f"'{replica.model}': {text}"))
        else:
            log.warning("'%s': %s; again in %.1f s", replica.model, lost.message, wait)
            self._loop.call_later(wait, self._restart, replica)
        self._outcomes.changed()

    def _restart(self, replica: Replica) -> None:
        if not self._closing and replica.move(Event.RETRY):
            replica.began = self._now()
            replica.progress = 0.0
            self._launch(replica)

    # --- inside -----------------------------------------------------------------------------

    def _launch(self, replica: Replica) -> None:
        entry, reading = self._entries[replica.model, replica.device]
        gpu = reading.info.gpu
        assignment = Assignment(
            address=self._supervisor.address,
            token=token(),
            model=entry.spec,
            kinds=entry.kinds,
            # a worker sees its own GPU only, and so cannot take another's memory by mistake
            device="cuda:0" if gpu else "cpu",
            slots=entry.slots,
            data_dir=str(self._place.data_dir),
            download=self._place.downloads,
            environment=reading.info.visibility,
            threads=entry.spec.threads or self._place.threads,
            speed=reading.info.speed or self._place.speed,
            context=entry.spec.context,
        )
        replica.worker = self._supervisor.launch(assignment)
        self._by_worker[replica.worker] = replica

    def _remove(self, replica: Replica, *, keep_failed: bool = False) -> None:
        key = (replica.model, replica.device)
        if not keep_failed:
            self._replicas.pop(key, None)
            self._blocked.pop(key, None)  # it waits for nobody's room any more
        gone = ModelLoadFailed(f"'{replica.model}' was unloaded before this could begin")
        waiting = list(replica.waiting)
        replica.waiting.clear()
        for execution in waiting:
            self._outcomes.failed(execution, gone)
        for blocked, victims in list(self._blocked.items()):
            if replica in victims:
                victims.remove(replica)
                if not victims:
                    del self._blocked[blocked]
                    self._launch(self._replicas[blocked])

    def _pump(self, replica: Replica) -> None:
        for execution in replica.startable():
            now = self._now()
            if execution.expires <= now:
                late = DeadlineExceeded("the deadline passed while it waited on the node")
                self._outcomes.failed(execution, late)
                continue
            execution.move(Moved.START)
            execution.started = now
            execution.job = next(self._jobs)
            replica.jobs[execution.job] = execution
            replica.worker.send(
                Row.RUN, execution.job, execution.kind, execution.window, execution.payload
            )
            execution.payload = b""

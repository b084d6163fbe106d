"""The replicas of this node: which are loaded, which load, and what runs on them.

The state machine of one is in :mod:`blip_node.replica`; here its worker is started, fed, and
cleared away. What happens to an attempt is told to ``outcome``, the agent, in its own words.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.errors import (
    BlipError,
    DeadlineExceeded,
    ModelLoadFailed,
    NoCapacity,
    WorkerCrashed,
    from_wire,
)
from blip_node.admission import Fit
from blip_node.capacity import Reading
from blip_node.catalogue import RETRY_AFTER, Entry
from blip_node.executions import Event as Moved
from blip_node.executions import Execution
from blip_node.executions import State as Stage
from blip_node.footprints import Footprints
from blip_node.memory import Memory, held, reserved
from blip_node.outcomes import Outcomes
from blip_node.pipe import Row
from blip_node.replica import MAX_CRASHES, Event, Replica, State
from blip_node.supervisor import Supervisor, WorkerHandle, token
from blip_node.worker import Assignment

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where workers run: the node's own facts that every assignment repeats."""

    data_dir: Path
    downloads: bool
    speed: float
    threads: int


class Replicas:
    """Every replica of the node, by (model, device)."""

    def __init__(
        self,
        outcomes: Outcomes,
        place: Place,
        footprints: Footprints,
        readings: Callable[[str], Reading | None],
    ) -> None:
        self._supervisor = Supervisor(self._on_row, self._on_exit)
        self._outcomes = outcomes
        self._place = place
        self._loop = asyncio.get_running_loop()
        # finer than the loop's own under uvloop, with the same origin
        self._now = time.monotonic
        self._replicas: dict[tuple[str, str], Replica] = {}
        self._by_worker: dict[WorkerHandle, Replica] = {}
        self._jobs = itertools.count(1)
        self._entries: dict[tuple[str, str], tuple[Entry, Reading]] = {}
        self._footprints = footprints
        self._memory = Memory(lambda: self._replicas.values(), readings, self._now)
        self._saving: asyncio.Task[None] | None = None
        self._closing = False
        self.bandwidth: Mapping[str, float] = self._memory.bandwidth

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
        return reserved(device, self._replicas.values())

    def held(self, device: str) -> int:
        """Bytes on a device that replicas take, for the advert.

        Without those whose load failed: they are gone in a moment, and nobody should be turned
        away for that. Others are told to be stopping, which says the same.
        """
        return held(device, [each for each in self if each.state is not State.FAILED])

    def room(self, entry: Entry, reading: Reading) -> Fit | None:
        """Whether a model fits a device, and what would have to go; None if it is there already."""
        replica = self.get(entry.spec.name, reading.info.id)
        if replica is not None and replica.state is not State.FAILED:
            return None
        return self._memory.room(entry, reading)

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
        if self._saving is not None:
            await self._saving
        await asyncio.to_thread(self._footprints.save)

    def tick(self, now: float) -> None:
        """Unload what nobody has needed for its ``keep_alive``; keep what was measured."""
        for replica in self:
            if replica.idle and replica.unload_in(now) == 0.0:
                idle = replica.idle_for(now)
                log.info("unloading '%s': no work for %.0f s", replica.model, idle)
                self.unload(replica)
        if self._footprints.unsaved and (self._saving is None or self._saving.done()):
            self._saving = asyncio.create_task(asyncio.to_thread(self._footprints.save))

    # --- what the agent asks for ------------------------------------------------------------

    def load(self, entry: Entry, reading: Reading, evict: tuple[Replica, ...] = ()) -> Replica:
        """Load a model on a device, once however often asked, after stopping ``evict``."""
        key = (entry.spec.name, reading.info.id)
        replica = self._replicas.get(key)
        if replica is not None and replica.state is not State.FAILED:
            return replica
        memory = entry.memory(gpu=reading.info.gpu)
        replica = Replica(*key, entry.slots, memory, self._now())
        replica.load_bytes = entry.load_bytes(gpu=reading.info.gpu)
        replica.pinned, replica.keep_alive = entry.spec.pin, entry.spec.keep_alive
        self._replicas[key] = replica
        self._entries[key] = (entry, reading)
        self._evict(evict, replica)
        self._go_on(replica)
        self._outcomes.changed()
        return replica

    def retire(self, replica: Replica) -> None:
        """Stop a replica once it has done what it was given; it takes nothing new."""
        replica.leaving = True
        self._pump(replica)
        self._outcomes.changed()

    def keep(self, replica: Replica) -> None:
        """Take back :meth:`retire`, if it is not too late."""
        replica.leaving = False
        self._outcomes.changed()

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
        replica.served = True
        self._pump(replica)

    def cancel(self, execution: Execution) -> bool:
        """Stop an attempt; True if it had not begun and is simply gone."""
        replica = execution.replica
        if execution in replica.waiting:
            replica.waiting.remove(execution)
            self._pump(replica)  # it may only have waited for this one to be unloaded
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
                execution.payload = b""  # it has begun to answer, and is not run again
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
                self._failed(replica, execution, from_wire(*rest[1:]))
            self._freed(replica)
        elif what == Row.MEMORY:
            self._grown(replica, rest[0])
        elif what == Row.PROGRESS:
            replica.progress = rest[0]
        elif what == Row.READY:
            self._ready(replica, *rest)
        elif what == Row.BROKEN:
            self._unloadable(replica, from_wire(*rest))

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
        if replica.state is not State.LOADING:
            return
        entry, reading = self._entries[self._key(replica)]
        self._memory.measured(replica, entry, memory, gpu=reading.info.gpu)
        victims, error = self._memory.beyond(replica)
        if error is not None:
            self._broken(replica, error)
            return
        replica.move(Event.LOADED)
        replica.slots = slots
        replica.load_seconds = seconds
        self._memory.loaded(replica, seconds)
        self._evict(victims)
        entry.error = None
        now = replica.used = self._now()
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
        if isinstance(error, NoCapacity):  # other devices may have the memory, and this one later
            replica.retry_at = self._now() + RETRY_AFTER
        else:
            self._entries[self._key(replica)][0].broken(error, self._now())
        replica.failure = error
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
        again, replica.again = replica.again, False
        wait = 0.0 if again else replica.crashed(self._now())
        replica.move(Event.GONE)
        jobs, replica.jobs = replica.jobs, {}
        lost = WorkerCrashed(f"the worker of '{replica.model}' ended: {reason}")
        for execution in jobs.values():
            self._outcomes.failed(execution, lost)
        if was in (State.STOPPING, State.FAILED) or self._closing:
            self._remove(replica, keep_failed=was is State.FAILED)
        elif again:
            self._go_on(replica)
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

    # --- memory -----------------------------------------------------------------------------

    def _grown(self, replica: Replica, size: int) -> None:
        """The worker says that its model takes more than it said before."""
        entry, reading = self._entries[self._key(replica)]
        self._memory.measured(replica, entry, size, gpu=reading.info.gpu)
        victims, error = self._memory.beyond(replica)
        if error is not None:
            log.warning("%s", error.message)  # what runs is not stopped for a declaration
        self._evict(victims)
        self._outcomes.changed()

    def _unloadable(self, replica: Replica, error: BlipError) -> None:
        """The worker says why it cannot load. For want of memory it gets a second chance."""
        if replica.state is not State.LOADING or replica.again:
            return
        if isinstance(error, NoCapacity):
            if self._once_more(replica):
                log.warning("'%s': %s; once more, with more room", replica.model, error.message)
                return
            entry, reading = self._entries[self._key(replica)]
            gpu = reading.info.gpu
            error = self._memory.outgrown(replica, entry, error.message, gpu=gpu)
        self._broken(replica, error)

    def _once_more(self, replica: Replica) -> bool:
        """Make all the room there is and load again, the first time; False if that is no use."""
        idle = self._memory.idle_beside(replica)
        if replica.retried or not idle or replica.worker is None:
            return False
        replica.retried = replica.again = True
        self._evict(idle, replica)
        self._supervisor.stop(replica.worker)
        return True

    def _failed(self, replica: Replica, execution: Execution, error: BlipError) -> None:
        """An attempt failed. What ran out of memory gets all the room there is, once."""
        if isinstance(error, NoCapacity) and execution.state is Stage.RUNNING:
            idle = self._memory.idle_beside(replica)
            room = bool(idle or replica.jobs)  # what runs beside it will give its memory back
            if room and not execution.part and not execution.retried:
                log.warning("a task of '%s' ran out of memory: %s", replica.model, error.message)
                execution.move(Moved.REQUEUE)
                execution.retried = True
                execution.started = None
                replica.waiting.appendleft(execution)
                self._evict(idle, replica)
                return
            error = self._memory.exhausted(replica, error.message)
        self._outcomes.failed(execution, error)

    def _evict(self, chosen: tuple[Replica, ...], keeper: Replica | None = None) -> None:
        """Stop replicas; ``keeper``, for which they go, waits until their memory is free."""
        for victim in chosen:
            if not victim.going:
                log.info("unloading '%s' on %s: its room is needed", victim.model, victim.device)
                self.unload(victim)
        if keeper is not None:
            # memory is only free once the workers have ended
            keeper.waits_for += [each for each in chosen if each in self._replicas.values()]

    def _go_on(self, replica: Replica) -> None:
        """Do what a replica could not do while it waited for memory or its last worker's end."""
        if replica.waits_for or self._closing:
            return
        if replica.state is State.LOADING and replica.worker is None:
            self._launch(replica)
        elif replica.state is State.BACKOFF:
            self._restart(replica)
        else:
            self._pump(replica)

    # --- inside -----------------------------------------------------------------------------

    @staticmethod
    def _key(replica: Replica) -> tuple[str, str]:
        return replica.model, replica.device

    def _launch(self, replica: Replica) -> None:
        entry, reading = self._entries[replica.model, replica.device]
        gpu = reading.info.gpu
        replica.had = self._memory.free(replica)
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
            gauged=not entry.weightless,
        )
        replica.worker = self._supervisor.launch(assignment)
        self._by_worker[replica.worker] = replica

    def _remove(self, replica: Replica, *, keep_failed: bool = False) -> None:
        key = self._key(replica)
        if not keep_failed:
            self._replicas.pop(key, None)
        if replica.served and replica.peak:
            entry, reading = self._entries[key]
            entry.ended(replica.peak, gpu=reading.info.gpu)
        gone = ModelLoadFailed(f"'{replica.model}' was unloaded before this could begin")
        waiting = list(replica.waiting)
        replica.waiting.clear()
        for execution in waiting:
            self._outcomes.failed(execution, gone)
        for each in self:
            if replica in each.waits_for:
                each.waits_for.remove(replica)
                self._go_on(each)

    def _pump(self, replica: Replica) -> None:
        if replica.leaving and not replica.jobs and not replica.waiting:
            self.unload(replica)
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

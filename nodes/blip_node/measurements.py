"""What devices of this machine were measured to do: kept on disk, and made where it is missing.

Measuring runs in a process of its own (:mod:`blip_node.benchmark`), once for each device, driver
and torch. It waits until the device is idle, and gives way when work comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.protocol import ranking
from blip_node.capacity import DeviceInfo, Reading

log = logging.getLogger(__name__)

#: Seconds that the process may take: a first import of torch from a hard disk takes most of it.
TIMEOUT = 90.0

#: Seconds between two looks at a lock that another agent on this machine holds.
LOCK_PAUSE = 0.5

#: Seconds until a device that was taken away from us is measured again: each try costs an import.
REST = 30.0

#: Seconds after the start before anything is measured: models that should be there from the start
#: go first.
SETTLE = 3.0

#: Utilization from which a device counts as used by others; they would falsify what we see.
BUSY = 0.5

#: Seconds after that from which a processor is measured however busy: some never rest, and the best
#: of several runs is about right all the same. A GPU waits, for its owner's game ends some day.
PATIENCE = 10.0

#: Longest reason that is logged.
REASON = 300

Figures = Mapping[str, float]


class Store:
    """Figures by device in a file that all agents of a machine share; safe against any reader.

    A result is for one device with one driver and one torch: another torch brings other kernels.
    A file that cannot be read counts as empty and is written anew.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "benchmarks.json"
        self._lock = folder / "benchmarks.lock"

    def get(self, key: str) -> dict[str, float] | None:
        """Return what was measured, or None."""
        return self._read().get(key)

    def put(self, key: str, figures: Figures) -> None:
        """Keep a result; call it under :meth:`lock`. Raises :class:`OSError` if it cannot."""
        everything = self._read() | {key: dict(figures)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            part.write_text(json.dumps(everything, indent=1), encoding="utf-8")
            part.replace(self._path)
        finally:
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Try to be the only one on this machine that measures; yields whether we are."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: _figures(value) for key, value in found.items() if _figures(value)}


def _figures(value: Any) -> dict[str, float]:
    """Return what is sound in something that was read or printed."""
    if not isinstance(value, dict):
        return {}
    return {
        key: float(number)
        for key in ranking.KEYS
        if isinstance(number := value.get(key), int | float) and 0 < number < math.inf
    }


def key_of(info: DeviceInfo) -> str | None:
    """Return what a device's result is kept by; None without torch."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    # A GPU's id is its own in all the world. Every machine has a "cpu", and a home directory may
    # be shared by many machines.
    parts = [info.id, info.driver or "", f"torch {torch}"]
    if not info.gpu:
        parts += [info.name, f"{info.cores} cores", platform.node()]
    return " | ".join(parts)


@dataclass(slots=True)
class _Wish:
    """A device without a result. ``key`` is None until it was looked for in the store; it is not
    measured before ``after``.
    """

    info: DeviceInfo
    after: float
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """How the process is started; tests put other values."""

    module: str = "blip_node.benchmark"
    budget: float = 2.0
    timeout: float = TIMEOUT
    settle: float = SETTLE
    environment: Mapping[str, str] = field(default_factory=dict)


class Measurements:
    """Results of this agent's devices. Call :meth:`step` often; ``changed`` says that one is new.

    Never blocks the loop, and never raises: without a result a device is advertised without.
    """

    def __init__(
        self, store: Store, changed: Callable[[], None], program: Program | None = None
    ) -> None:
        self._store = store
        self._changed = changed
        self._program = program or Program()
        self._began = time.monotonic()
        #: What is known, by device id.
        self.figures: dict[str, Figures] = {}
        self._wishes: dict[str, _Wish] = {}
        #: Devices that are settled: known, or not measurable.
        self._settled: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._measured: str | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pids(self) -> frozenset[int]:
        """The process that measures: what it uses of a device is ours."""
        return frozenset() if self._process is None else frozenset({self._process.pid})

    def step(self, readings: Iterable[Reading], idle: Callable[[str], bool]) -> None:
        """Look for devices without a result, measure the next one that is idle.

        ``idle`` tells whether none of our own work runs or is about to run on a device. One that
        is being measured is given back at once when that ends.
        """
        now = time.monotonic()
        patient_until = self._began + self._program.settle + PATIENCE
        free = {}
        for reading in readings:
            info = reading.info
            if info.id not in self._settled and info.id not in self._wishes:
                # Nobody can measure what exists only in the configuration.
                if info.vendor == "static":
                    self._settled.add(info.id)
                else:
                    self._wishes[info.id] = _Wish(info, self._began + self._program.settle)
            used = _used(reading) and (info.gpu or now < patient_until)
            free[info.id] = idle(info.id) and not reading.fault and not used
        if self._task is not None:
            if self._measured is not None and not idle(self._measured):
                log.info("device %s is needed; it is measured later", self._measured)
                self._wishes[self._measured].after = now + REST
                self._task.cancel()
            return
        for wish in self._wishes.values():
            if wish.key is None:
                self._begin(self._look_up(wish))
                return
        for wish in self._wishes.values():
            if wish.after <= now and free.get(wish.info.id, False):
                self._begin(self._settle(wish))
                return

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(self._over)

    async def close(self) -> None:
        """End a measuring process, if one runs."""
        if self._task is not None:
            task = self._task
            task.cancel()
            await asyncio.wait({task})

    def _over(self, task: asyncio.Task[None]) -> None:
        self._task = self._measured = None
        if not task.cancelled() and task.exception() is not None:
            log.error("measuring a device", exc_info=task.exception())

    async def _look_up(self, wish: _Wish) -> None:
        """See whether a device was measured before."""
        wish.key = await asyncio.to_thread(key_of, wish.info)
        if wish.key is None:
            self._give_up(wish.info, "torch is not installed")
            return
        found = await asyncio.to_thread(self._store.get, wish.key)
        if found is not None:
            self._found(wish.info, found)

    async def _settle(self, wish: _Wish) -> None:
        """Measure a device, unless another agent does so meanwhile."""
        info, key = wish.info, wish.key
        assert key is not None
        found: Figures | None = None
        try:
            while found is None:
                with self._store.lock() as ours:
                    # The one who had the lock before may have measured this very device.
                    found = await asyncio.to_thread(self._store.get, key)
                    if found is None and ours:
                        self._measured = info.id
                        found = await self._measure(info)
                        if found is None:
                            return
                        await asyncio.to_thread(self._keep, key, found)
                if found is None:
                    await asyncio.sleep(LOCK_PAUSE)
        except OSError as error:  # no folder, or one that is not ours
            self._give_up(info, f"{type(error).__name__}: {error}")
            return
        self._found(info, found)

    def _found(self, info: DeviceInfo, figures: Figures) -> None:
        self.figures[info.id] = figures
        self._settled.add(info.id)
        del self._wishes[info.id]
        self._changed()

    def _keep(self, key: str, found: Figures) -> None:
        try:
            self._store.put(key, found)
        except OSError as error:
            log.warning("a benchmark could not be stored and will be repeated: %s", error)

    def _give_up(self, info: DeviceInfo, reason: str) -> None:
        log.warning("device %s could not be measured: %s", info.id, reason[:REASON])
        self._settled.add(info.id)
        del self._wishes[info.id]

    async def _measure(self, info: DeviceInfo) -> Figures | None:
        """Run the process; None, with a reason in the log, if it came to nothing."""
        program = self._program
        arguments = ["--device", "cuda:0" if info.gpu else "cpu", "--budget", str(program.budget)]
        arguments += ["--threads", str(info.cores or 0), "--parent", str(os.getpid())]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            program.module,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **info.visibility, **program.environment},
        )
        self._process = process
        log.info("measuring device %s", info.id)
        try:
            async with asyncio.timeout(program.timeout):
                out, err = await process.communicate()
        except TimeoutError:
            self._give_up(info, f"it took more than {program.timeout:g} s")
            return None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._process = None
        return self._understand(info, process.returncode, out, err)

    def _understand(
        self, info: DeviceInfo, code: int | None, out: bytes, err: bytes
    ) -> Figures | None:
        try:
            said = json.loads(out)
            error = said.get("error")
            figures = _figures(said.get("figures"))
        except (ValueError, AttributeError):
            last = err.decode(errors="replace").strip().rpartition("\n")[2]
            error, figures = f"the process ended with code {code}: {last}", {}
        if not figures:
            self._give_up(info, str(error or "it printed no figures"))
            return None
        for key, reason in (said.get("left_out") or {}).items():
            log.info("device %s: no %s: %s", info.id, key, reason)
        log.info("device %s: %s", info.id, ranking.describe(figures))
        return figures


def _used(reading: Reading) -> bool:
    """Whether others use a device so much that measuring it would say little."""
    sample = reading.sample
    return sample is not None and (sample.utilization or 0.0) > BUSY

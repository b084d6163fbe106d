"""Keeps an eye on all devices, in threads of its own, and hands out snapshots.

Drivers block: a first NVML call can take ten seconds, one on a dying card may never return. So
each provider has a thread; the agent's event loop only ever reads what was seen last. A provider
that hangs lets its readings age and harms nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from blip_node.capacity.device import DeviceEvent, DeviceInfo, DeviceSample, Provider, Reading

log = logging.getLogger(__name__)

#: Free memory that moves by this share of a device's total is worth telling at once; below it, the
#: advert of the next second is soon enough.
MEMORY_STEP = 0.01


@dataclass(frozen=True, slots=True)
class Capacity:
    """All devices of this machine as seen at ``at``.

    ``missing`` tells, by provider, why devices are not among ``readings``.
    """

    at: float
    readings: tuple[Reading, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def get(self, device: str) -> Reading | None:
        """Return the reading of the device with this id."""
        return next((reading for reading in self.readings if reading.info.id == device), None)


def differs(before: Capacity, after: Capacity) -> bool:
    """Tell whether placement should hear of ``after`` at once: devices, faults, free memory."""
    if before.missing != after.missing or len(before.readings) != len(after.readings):
        return True
    for old, new in zip(before.readings, after.readings, strict=True):
        if old.info != new.info or old.fault != new.fault or _moved(old, new):
            return True
    return False


def _moved(old: Reading, new: Reading) -> bool:
    was = old.sample.memory_free if old.sample else None
    now = new.sample.memory_free if new.sample else None
    if was is None or now is None:
        return was is not now
    return abs(now - was) >= MEMORY_STEP * (new.info.memory_total or 1)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one provider's thread has found so far; replaced as a whole, so never half-written."""

    devices: tuple[DeviceInfo, ...] = ()
    samples: Mapping[str, DeviceSample] = field(default_factory=dict)
    reason: str | None = None
    probed: bool = False


class _Pump(threading.Thread):
    """The thread of one provider: probe once, then sample until told to stop.

    It is a daemon because a call that hangs in the driver must not keep the process alive.
    """

    def __init__(self, monitor: Monitor, provider: Provider) -> None:
        super().__init__(name=f"blip-{provider.name}", daemon=True)
        self.provider = provider
        self.seen = _Seen()
        self._monitor = monitor
        self._wake = threading.Event()
        self._stopping = False

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        # Whatever a provider raises is its reason: vendors' bindings raise KeyError and OSError
        # where a driver is missing, and one of them must not cost us the others.
        try:
            devices = tuple(self.provider.probe())
            self.seen = _Seen(devices, reason=self.provider.reason, probed=True)
            if self.provider.reason is not None:
                log.info("capacity provider %s: %s", self.provider.name, self.provider.reason)
            if devices:
                self._sample()  # before the first notice, so that it already has numbers
                self.provider.watch(self._monitor._record)
        except Exception as error:
            log.warning("capacity provider %s failed: %r", self.provider.name, error)
            self._failed(error)
        self._monitor._notice()
        while self.seen.devices and not self._stopping:
            self._wake.wait(self._monitor.interval)
            self._wake.clear()
            if not self._stopping:
                self._sample()
                self._monitor._notice()
        try:
            self.provider.close()
        except Exception as error:
            log.warning("closing capacity provider %s failed: %r", self.provider.name, error)

    def _sample(self) -> None:
        try:
            samples = {sample.id: sample for sample in self.provider.sample(self._monitor.own_pids)}
        except Exception as error:
            if self.seen.reason == self.provider.reason:  # once, not each second
                log.warning("capacity provider %s failed: %r", self.provider.name, error)
            self._failed(error)
        else:
            for id, sample in samples.items():
                before = self.seen.samples.get(id)
                if sample.lost and not (before is not None and before.lost):
                    log.error("device %s is lost: %s", id, sample.error)
            self.seen = replace(self.seen, samples=samples, reason=self.provider.reason)

    def _failed(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        self.seen = replace(self.seen, reason=reason, probed=True)


class Monitor:
    """Samples ``providers`` every ``interval`` seconds from :meth:`start` to :meth:`close`.

    ``changed`` is called on ``loop`` when something happened that placement should know at once
    (see :func:`differs`); it reads :meth:`capacity` itself. The agent sets :attr:`own_pids` to
    the pids of its workers whenever they change.
    """

    def __init__(
        self,
        providers: Iterable[Provider],
        *,
        interval: float = 1.0,
        changed: Callable[[], None] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if changed is not None and loop is None:
            raise ValueError("changed needs the loop that it is called on")
        self.interval = interval
        self.own_pids: frozenset[int] = frozenset()
        self._clock = clock
        self._changed = changed
        self._loop = loop
        self._pumps = [_Pump(self, provider) for provider in providers]
        self._lock = threading.Lock()
        self._events: dict[str, dict[int, DeviceEvent]] = {}
        self._announced = Capacity(0.0)
        self._closed = False

    def start(self) -> None:
        """Start sampling; returns at once, and readings follow as providers answer."""
        for pump in self._pumps:
            pump.start()

    def refresh(self) -> None:
        """Sample now instead of at the next interval: a model was loaded, a worker ended."""
        for pump in self._pumps:
            pump.wake()

    def capacity(self) -> Capacity:
        """Return what is known right now. Never blocks; callable from any thread."""
        now = self._clock()
        views = [(pump.provider, pump.seen) for pump in self._pumps]
        # A fallback waits until the others have looked: a node is not a CPU node for the seconds
        # that its GPU driver needs to wake up.
        needed = all(
            seen.probed and not seen.devices for provider, seen in views if not provider.fallback
        )
        readings: dict[str, Reading] = {}
        missing: dict[str, str] = {}
        for provider, seen in views:
            if not seen.probed:
                missing[provider.name] = "The first look at the devices is not finished."
            elif seen.reason is not None:
                missing[provider.name] = seen.reason
            if provider.fallback and not needed:
                continue
            for info in seen.devices:
                if info.id in readings:
                    missing[provider.name] = f"Device id {info.id!r} is taken by another provider."
                else:
                    readings[info.id] = self._reading(info, seen.samples.get(info.id), now)
        return Capacity(now, tuple(readings.values()), missing)

    def close(self, timeout: float = 2.0) -> None:
        """Stop all threads and wait for them, ``timeout`` seconds at most; again is harmless.

        A thread that hangs inside a driver call is left behind: nothing can end it.
        """
        self._closed = True
        for pump in self._pumps:
            pump.stop()
        deadline = time.monotonic() + timeout
        for pump in self._pumps:
            if pump.ident is None:  # never started
                continue
            pump.join(max(0.0, deadline - time.monotonic()))
            if pump.is_alive():
                log.warning("provider %s hangs in its driver; left behind", pump.provider.name)

    def _reading(self, info: DeviceInfo, sample: DeviceSample | None, now: float) -> Reading:
        age = None if sample is None else max(0.0, now - sample.at)
        with self._lock:
            events = tuple(self._events.get(info.id, {}).values())
        return Reading(info, sample, age, tuple(sorted(events, key=lambda event: event.at)))

    def _record(self, event: DeviceEvent) -> None:
        """Keep an event; called from providers' threads."""
        level = logging.ERROR if event.fatal else logging.WARNING
        log.log(level, "device %s: %s", event.device, event.text)
        with self._lock:
            self._events.setdefault(event.device, {})[event.code] = event
        self._notice()

    def _notice(self) -> None:
        """Call ``changed`` on the loop if there is news since the last time."""
        if self._changed is None or self._loop is None:
            return
        now = self.capacity()
        with self._lock:
            if not differs(self._announced, now):
                return
            self._announced = now
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            pass  # the loop is closed, and with it everyone who wanted to know

    def _deliver(self) -> None:
        if self._changed is not None and not self._closed:
            self._changed()

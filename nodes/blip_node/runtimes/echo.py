"""``echo``: no model and no arithmetic, what was asked for at the pace that was asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import ClassVar

from blip.errors import Cancelled
from blip.kinds.echo import ECHO, EchoInput
from blip_node.runtimes.base import Job, LoadSpec, Outcome

#: Chunks without an interval go out in turns of this many bytes or chunks, whichever comes
#: first; in between the event loop gets to see cancels and credit.
TURN_BYTES = 256 * 1024
TURN_CHUNKS = 64

_PATTERN = bytes(range(256))


class EchoRuntime:
    """Runs on the event loop alone; all chunks of a size are views of one buffer."""

    kinds: ClassVar[tuple[str, ...]] = ("echo",)
    preload: ClassVar[tuple[str, ...]] = ("blip_node.runtimes.echo",)

    def __init__(self) -> None:
        self._speed = 1.0
        self._buffer = b""

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Remember the device's speed; there is nothing to load."""
        self._speed = spec.speed
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Give back the text, or bytes 0, 1, ..., 255, 0, ... of the asked size.

        A single chunk is the outcome's payload; several are emitted, and the outcome is empty.
        """
        asked: EchoInput = job.input
        changed = asyncio.Event()
        job.on_change(changed.set)
        chunk = self._bytes(asked.size) if asked.size else memoryview(asked.text.encode())
        await _pause(job, changed, asked.delay + asked.work / self._speed)
        units = ECHO.units(asked)
        stamped = asked.stamp and not asked.size
        if asked.chunks == 1:
            return Outcome(_stamp() if stamped else chunk, units=units)
        turn = min(TURN_CHUNKS, max(1, TURN_BYTES // max(1, len(chunk))))
        for number in range(asked.chunks):
            if number and asked.interval:
                await _pause(job, changed, asked.interval)
            elif number % turn == 0:
                await asyncio.sleep(0)
            if not job.writable:
                await job.drained()
            if job.cancelled:
                raise Cancelled("the echo was cancelled")
            job.emit(_stamp() if stamped else chunk)
        return Outcome(units=units)

    def close(self) -> None:
        """Let go of the buffer."""
        self._buffer = b""

    def _bytes(self, size: int) -> memoryview:
        if len(self._buffer) < size:
            self._buffer = _PATTERN * -(-size // len(_PATTERN))
        return memoryview(self._buffer)[:size]


def _stamp() -> bytes:
    return b"%.9f" % time.monotonic()


async def _pause(job: Job, changed: asyncio.Event, seconds: float) -> None:
    """Sleep, but wake at once and raise ``Cancelled`` when the job is cancelled."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while not job.cancelled and (left := until - loop.time()) > 0:
        changed.clear()
        timer = loop.call_later(left, changed.set)
        try:
            await changed.wait()
        finally:
            timer.cancel()
    if job.cancelled:
        raise Cancelled("the echo was cancelled")

"""A job for tests: records what a runtime sends, and can be cancelled and held up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from blip.kinds import KINDS
from blip.kinds.text import Delta, Finish, delta_from_wire, finish_from_wire
from blip_node.runtimes.base import Job, Outcome, Runtime


class RecordingJob:
    """One attempt. ``on_emit`` is called with the job, on the emitting thread, after each part."""

    def __init__(
        self, kind: str, on_emit: Callable[[RecordingJob], None] | None = None, **fields: Any
    ) -> None:
        self.kind = KINDS[kind]
        self.input: Any = self.kind.input.model_validate(fields)
        self.cancelled = False
        self.writable = True
        self.parts: list[bytes] = []
        self._on_emit = on_emit
        self._wakes: list[Callable[[], None]] = []
        self._changed = asyncio.Event()

    def emit(self, payload: bytes | memoryview) -> None:
        """Record a part."""
        self.parts.append(bytes(payload))
        if self._on_emit is not None:
            self._on_emit(self)

    async def drained(self) -> None:
        """Wait until writable or cancelled."""
        while not (self.writable or self.cancelled):
            self._changed.clear()
            await self._changed.wait()

    def on_change(self, wake: Callable[[], None]) -> None:
        """Remember a callback."""
        self._wakes.append(wake)

    def cancel(self) -> None:
        """Cancel, as the worker would: on the event loop, and tell everyone."""
        self.cancelled = True
        self._tell()

    def let(self, writable: bool) -> None:
        """Grant or withdraw credit."""
        self.writable = writable
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        for wake in self._wakes:
            wake()

    @property
    def deltas(self) -> list[Delta]:
        """The parts of a text task."""
        return [delta_from_wire(part) for part in self.parts]


async def answer(runtime: Runtime, job: RecordingJob) -> tuple[str, list[int], Finish, Outcome]:
    """Run a text job to its end; return all of its text, all of its ids, and how it ended."""
    outcome = await runtime.run(job)
    finish = finish_from_wire(outcome.payload)
    text = "".join(delta.text for delta in job.deltas) + finish.text
    ids = [token for delta in job.deltas for token in delta.ids] + finish.ids
    return text, ids, finish, outcome


def _is_a_job(job: RecordingJob) -> Job:
    return job  # mypy compares it with the protocol here

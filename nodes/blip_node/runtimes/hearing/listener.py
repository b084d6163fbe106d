"""What the two sorts of models that hear have in common, and how a task watches over them."""

from __future__ import annotations

from typing import Any, Protocol

from blip.kinds.transcription import (
    Heard,
    Segment,
    Transcript,
    TranscriptionInput,
    heard_to_wire,
)
from blip_node.runtimes.base import Job
from blip_node.runtimes.lane import Lane


class Watch:
    """Tells a job how far it is, and its model whether to go on."""

    def __init__(self, job: Job, lane: Lane) -> None:
        self._job = job
        self._lane = lane
        self._pending: list[Segment] = []

    def look(self) -> None:
        """Raise if the job need not go on; for between steps."""
        self._lane.look(self._job)

    def tell(self, segments: list[Segment], done: float, duration: float) -> None:
        """Send what was found up to ``done`` seconds, if anybody wants to know.

        What a slow client has no room for goes with the next; the end has all of it anyway.
        """
        self.look()
        if not self._job.input.parts:
            return
        self._pending += segments
        if self._job.writable:
            self._job.emit(heard_to_wire(Heard(self._pending, min(done, duration), duration)))
            self._pending = []


class Listener(Protocol):
    """A loaded model of speech."""

    #: Samples a second that it takes.
    rate: int

    def check(self, kind: str, wishes: TranscriptionInput) -> None:
        """Raise what :meth:`listen` would for the wishes alone, before a file is decoded."""
        ...

    def listen(
        self, kind: str, wishes: TranscriptionInput, samples: Any, watch: Watch
    ) -> Transcript:
        """Return what is said in float32 [samples]; looks up between steps.

        Raises a :class:`~blip.errors.BlipError`.
        """
        ...

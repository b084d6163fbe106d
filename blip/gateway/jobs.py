"""Jobs: work that goes on after its request was answered, and is asked about later. Pure.

A job is in one of four states, which are OpenAI's. What is under way when a gateway ends is gone
with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from blip.errors import BlipError, NotFound, Overloaded

#: Ended jobs of one tenant that can still be asked about; then the oldest are forgotten.
HISTORY = 256


class Status(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


class Event(StrEnum):
    """What happens to a job."""

    STEP = "step"
    DONE = "done"
    FAIL = "fail"


#: Every transition there is; what is not here is not possible. A node that is lost sends a job back
#: to no other state: it begins again elsewhere, and goes on being in progress.
TRANSITIONS: Mapping[tuple[Status, Event], Status] = {
    (Status.QUEUED, Event.STEP): Status.IN_PROGRESS,
    (Status.QUEUED, Event.DONE): Status.COMPLETED,
    (Status.QUEUED, Event.FAIL): Status.FAILED,
    (Status.IN_PROGRESS, Event.STEP): Status.IN_PROGRESS,
    (Status.IN_PROGRESS, Event.DONE): Status.COMPLETED,
    (Status.IN_PROGRESS, Event.FAIL): Status.FAILED,
}

#: States that a job stays in.
ENDED = frozenset({Status.COMPLETED, Status.FAILED})


@dataclass
class Job:
    """One job. Times are in seconds since the epoch.

    ``facts`` are what its owner knows of it: what was asked for, and what came out.
    """

    id: str
    tenant: str
    model: str
    created: int
    facts: dict[str, Any] = field(default_factory=dict)
    status: Status = Status.QUEUED
    #: Percent; 100 only once it is completed.
    progress: int = 0
    completed: int | None = None
    #: When what came out is no longer kept.
    expires: int | None = None
    error: BlipError | None = None

    def step(self, done: int, steps: int) -> bool:
        """So many steps of so many are done. False if that comes too late."""
        if not self._move(Event.STEP):
            return False
        self.progress = min(99, 100 * done // max(1, steps))
        return True

    def done(self, now: float, expires: int) -> bool:
        """It ended well. False if it had ended before."""
        if not self._move(Event.DONE):
            return False
        self.progress, self.completed, self.expires = 100, int(now), expires
        return True

    def fail(self, error: BlipError) -> bool:
        """It ended badly. False if it had ended before."""
        if not self._move(Event.FAIL):
            return False
        self.error = error
        return True

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED

    def _move(self, event: Event) -> bool:
        target = TRANSITIONS.get((self.status, event))
        if target is None:
            return False
        self.status = target
        return True


class Jobs:
    """The jobs of one gateway, by tenant; ``most`` is how many one tenant may have under way."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: dict[str, Job] = {}

    def check(self, tenant: str) -> None:
        """Raise :class:`~blip.errors.Overloaded` if a tenant may have no more under way."""
        under_way = sum(not job.ended for job in self._of(tenant))
        if under_way >= self._most:
            raise Overloaded(
                f"{under_way} videos are under way, and one key may have {self._most}.",
                hint="Wait for one to end, or delete one.",
                details={"under_way": under_way, "limit": self._most},
            )

    def add(self, job: Job) -> None:
        """Take a job; ended ones of the same tenant are forgotten where there are too many."""
        self._jobs[job.id] = job
        ended = [each for each in self._of(job.tenant) if each.ended]
        for old in ended[: max(0, len(ended) - HISTORY)]:
            del self._jobs[old.id]

    def get(self, id: str, tenant: str) -> Job:
        """Return a tenant's job.

        Raises :class:`~blip.errors.NotFound`, also for another tenant's.
        """
        job = self._jobs.get(id)
        if job is None or job.tenant != tenant:
            raise NotFound(
                f"There is no video '{id[:64]}'.",
                hint="A gateway knows the videos that were asked of it since it was started.",
            )
        return job

    def remove(self, id: str) -> None:
        """Forget a job, if it is there."""
        self._jobs.pop(id, None)

    def page(
        self, tenant: str, after: str | None, limit: int, *, newest_first: bool
    ) -> tuple[list[Job], bool]:
        """Return a tenant's jobs after the one named, and whether there are more.

        Raises :class:`~blip.errors.NotFound` for an ``after`` that does not exist.
        """
        jobs = list(self._of(tenant))
        if newest_first:
            jobs.reverse()
        start = 0 if after is None else jobs.index(self.get(after, tenant)) + 1
        return jobs[start : start + limit], len(jobs) > start + limit

    def __len__(self) -> int:
        return len(self._jobs)

    def _of(self, tenant: str) -> Iterator[Job]:
        """Yield a tenant's jobs, oldest first."""
        return (job for job in self._jobs.values() if job.tenant == tenant)

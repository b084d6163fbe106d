"""Where videos are made: jobs that go on in the background, each a task of the mesh."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from blip.errors import BlipError, Cancelled, InternalError, Unavailable
from blip.gateway.files import Files
from blip.gateway.jobs import Job, Jobs
from blip.gateway.mesh import Answer, Call, Mesh, Options
from blip.gateway.metrics import Metrics
from blip.gateway.settings import GatewaySettings
from blip.kinds.image import step_from_wire
from blip.kinds.video import ENDINGS, MEDIA_TYPES, VIDEO, VideoInput, video_format

log = logging.getLogger(__name__)


class Studio:
    """The videos of one gateway. ``clock`` tells the seconds since the epoch."""

    def __init__(
        self,
        mesh: Mesh,
        settings: GatewaySettings,
        files: Files,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._mesh = mesh
        self._settings = settings
        self._files = files
        self._metrics = metrics
        self._clock = clock
        self.jobs = Jobs(settings.video_jobs)
        self._under_way: dict[str, tuple[Call, asyncio.Task[None]]] = {}

    def start(
        self, tenant: str, model: str, value: VideoInput, options: Options
    ) -> tuple[Job, str]:
        """Begin a video; return its job, and the id of its task.

        Raises what :meth:`blip.gateway.mesh.Mesh.call` raises, and
        :class:`~blip.errors.Overloaded` if the tenant has too many under way. A gateway of several
        processes raises :class:`~blip.errors.Unavailable`: whoever asks about a job would mostly
        meet another process than the one that has it.
        """
        if self._settings.processes > 1:
            raise Unavailable(
                f"Videos are jobs of one process, and this gateway has {self._settings.processes}.",
                hint="Set gateway.processes to 1, or run another gateway for videos.",
            )
        self.jobs.check(tenant)
        timeout = options.timeout or self._settings.video_timeout
        call = self._mesh.call(VIDEO, model, value, replace(options, timeout=timeout))
        job = Job(f"video_{secrets.token_hex(16)}", tenant, model, int(self._clock()))
        self.jobs.add(job)
        work = asyncio.create_task(self._follow(job, call), name=f"video {job.id}")
        self._under_way[job.id] = call, work
        return job, call.task_id

    async def remove(self, job: Job) -> None:
        """Forget a job: what is under way is stopped, what came out is no longer kept."""
        self.jobs.remove(job.id)
        if job.id in self._under_way:
            call, _ = self._under_way[job.id]
            call.cancel()  # its end is awaited by what follows it
        if "file" in job.facts:
            await self._files.forget(job.facts["file"])

    async def close(self) -> None:
        """Stop everything."""
        works = [work for _, work in self._under_way.values()]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    async def _follow(self, job: Job, call: Call) -> None:
        outcome = "cancelled"
        try:
            async for batch in call.parts():
                step = step_from_wire(batch[-1])
                job.step(step.step, step.steps)
            answer = await call.answer()
            await self._keep(job, answer)
            outcome = "succeeded"
            self._metrics.usage(job.model, answer.usage)
        except BlipError as error:
            outcome = error.code
            job.fail(error)
            if not isinstance(error, Cancelled):
                log.warning("%s (task %s): %s", job.id, call.task_id, error.message)
        except Exception as error:
            outcome = InternalError.code
            log.exception("%s (task %s) failed", job.id, call.task_id)
            job.fail(InternalError(f"Something inside this gateway went wrong: {error}"))
        finally:
            call.cancel()  # a no-op if it has ended
            self._under_way.pop(job.id, None)
            self._metrics.task(VIDEO.name, outcome, call.timing.first)

    async def _keep(self, job: Job, answer: Answer) -> None:
        format = video_format(answer.payload)
        if format is None:
            raise InternalError("the node answered with something that is no video")
        name = f"{job.id}.{ENDINGS[format]}"
        kept = await self._files.keep(answer.payload, MEDIA_TYPES[format], name)
        usage = answer.usage
        job.facts |= {
            "file": kept.id,
            "width": usage.get("width", 0),
            "height": usage.get("height", 0),
            "frames": usage.get("frames", 0),
            "fps": usage.get("fps", 0),
            "media": kept.media,
        }
        job.done(self._clock(), kept.expires)
        try:
            self.jobs.get(job.id, job.tenant)
        except BlipError:  # deleted while it was being kept
            await self._files.forget(kept.id)

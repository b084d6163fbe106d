"""``/v1/videos``: moving pictures, as OpenAI's Videos API has them: begun, asked about, fetched."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from blip.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    PolicyViolation,
    StoreUnavailable,
    UnsupportedField,
)
from blip.gateway.api import Operation
from blip.gateway.download import send_file
from blip.gateway.envelope import RangeNotSatisfiable
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored
from blip.gateway.form import File, FormRequest
from blip.gateway.guard import admit
from blip.gateway.jobs import Job, Status
from blip.gateway.painting import parse_size
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.kinds.image import MAX_STEPS
from blip.kinds.pictures import check_picture
from blip.kinds.video import (
    MAX_FPS,
    MAX_FRAMES,
    MAX_SECONDS,
    MAX_VIDEO_PIXELS,
    VIDEO,
    VideoFormat,
    VideoInput,
)

#: Most videos of one page of the list, as OpenAI has it.
MAX_PAGE = 100
DEFAULT_PAGE = 20

_NUMBER = re.compile(r"\d{1,4}(?:\.\d{1,3})?")


class VideoRequest(FormRequest):
    """A text to film. A form, as OpenAI's clients send it, or JSON."""

    json_too: ClassVar[bool] = True
    files: ClassVar[Mapping[str, File]] = {
        "input_reference": File("A picture that the video begins with: PNG, JPEG or WebP.")
    }

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """A name from GET /v1/models."""
    prompt: Annotated[str, Field(min_length=1, max_length=32_000)]
    """What to film."""
    seconds: Annotated[str, Field(max_length=16)] | float | None = None
    """How long it is, as a number or as text; as long as the model was made for by default. The
    nearest that the model can film is taken."""
    size: Annotated[str, Field(max_length=16)] | None = None
    """Width and height, such as 832x480; what the model was made for by default."""
    negative_prompt: Annotated[str, Field(max_length=32_000)] | None = None
    """What to keep out of it. Ours, not OpenAI's."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Denoising steps. Ours, not OpenAI's."""
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    """How closely to follow the prompt. Ours, not OpenAI's."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed gives the same video. Ours, not OpenAI's."""
    scheduler: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """How noise is taken away; an unknown one gets a list of all. Ours, not OpenAI's."""
    fps: Annotated[int, Field(ge=1, le=MAX_FPS)] | None = None
    """Frames a second; what the model was made for by default. Ours, not OpenAI's."""
    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None
    """How many frames, in place of seconds. Ours, not OpenAI's."""
    output_format: VideoFormat | None = None
    """The kind of file: mp4 by default where the node can write it, else webp. Ours, not
    OpenAI's."""

    user: Annotated[str | None, Ignored()] = None
    safety_identifier: Annotated[str | None, Ignored()] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        length = self.length()
        if length is not None and self.num_frames is not None:
            raise InvalidRequest(
                "'seconds' and 'num_frames' both say how long it is.",
                hint="Leave one of them out.",
                param="num_frames",
            )
        size, fps = self.dimensions(), self.fps or 1
        frames = self.num_frames or (length or 0) * fps
        if size is not None and size[0] * size[1] * frames > MAX_VIDEO_PIXELS:
            raise InvalidRequest(
                f"A video has at most {MAX_VIDEO_PIXELS} pixels in all frames together.",
                hint="Ask for a shorter or a smaller one.",
                param="size",
            )
        picture = self.picture()
        if picture is not None:
            check_picture(picture, "input_reference")

    def length(self) -> float | None:
        """Return the seconds; None where they are left to the model.

        Raises :class:`~blip.errors.InvalidRequest`.
        """
        if self.seconds is None:
            return None
        if isinstance(self.seconds, str) and not _NUMBER.fullmatch(self.seconds):
            seconds = 0.0
        else:
            seconds = float(self.seconds)
        if not 0 < seconds <= MAX_SECONDS:
            raise InvalidRequest(
                f"'seconds' is {self.seconds!r}; it is a number above 0, up to {MAX_SECONDS:g}.",
                param="seconds",
            )
        return seconds

    def dimensions(self) -> tuple[int, int] | None:
        """Return width and height; None where they are left to the model."""
        return parse_size(self.size)

    def picture(self) -> bytes | None:
        """Return the picture to begin with, if any."""
        return self.upload("input_reference")

    def task(self) -> VideoInput:
        """Return the task. Without a seed one is drawn here, so that it can be told."""
        size = self.dimensions() or (None, None)
        return VideoInput(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt or "",
            width=size[0],
            height=size[1],
            num_frames=self.num_frames,
            seconds=self.length(),
            fps=self.fps,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            seed=random.getrandbits(31) if self.seed is None else self.seed,
            scheduler=self.scheduler,
            image=self.picture(),
            progress=True,
            format=self.output_format,
        )


class VideoError(BaseModel):
    """Why it failed: a stable code, a sentence, and what to do next."""

    code: str
    message: str
    param: str | None = None
    hint: str | None = None


class Video(BaseModel):
    """A video, as far as it is."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int
    """Percent."""
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    """Until when it can be fetched."""
    prompt: str
    seconds: str
    """How long it is; "auto" until it is known."""
    size: str
    """Width and height; "auto" until they are known."""
    seed: int
    fps: int | None = None
    num_frames: int | None = None
    content_type: str | None = None
    """What the file is: video/mp4, or image/webp from a node without PyAV."""
    url: str | None = None
    """Where anyone can fetch it until it expires."""
    remixed_from_video_id: None = None
    error: VideoError | None = None


class VideoList(BaseModel):
    """Videos of this API key, one page of them."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """It is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


async def _view(exchange: Exchange, job: Job) -> Video:
    facts = job.facts
    url = None
    if job.status is Status.COMPLETED:
        try:
            files = exchange.gateway.files
            url = await files.address(await files.find(facts["file"]), exchange.origin())
        except (NotFound, StoreUnavailable):
            pass  # the rest is true all the same
    frames, fps = facts.get("frames"), facts.get("fps")
    error = job.error
    return Video(
        id=job.id,
        model=job.model,
        status=job.status,
        progress=job.progress,
        created_at=job.created,
        completed_at=job.completed,
        expires_at=job.expires,
        prompt=facts["prompt"],
        seconds=f"{frames / fps:.3g}" if frames and fps else facts["seconds"],
        size=f"{facts['width']}x{facts['height']}" if "width" in facts else facts["size"],
        seed=facts["seed"],
        fps=fps,
        num_frames=frames,
        content_type=facts.get("media"),
        url=url,
        error=None
        if error is None
        else VideoError(
            code=error.code, message=error.message, param=error.param, hint=error.hint or None
        ),
    )


async def _answer(exchange: Exchange, job: Job) -> web.Response:
    text = (await _view(exchange, job)).model_dump_json()
    return web.Response(text=text, content_type="application/json")


def _job(exchange: Exchange) -> Job:
    id = exchange.request.match_info["video_id"]
    return exchange.gateway.studio.jobs.get(id, exchange.tenant)


async def create(exchange: Exchange, body: VideoRequest) -> web.StreamResponse:
    """Begin a video and answer at once; ask for it by its id until it is completed or failed.

    It goes on whether or not anybody asks. This gateway knows it until it is deleted or the
    gateway ends.
    """
    value = body.task()
    await admit(exchange, {"prompt": value.prompt}, {"input_reference": value.image}, films=True)
    exchange.allow(VIDEO.name, body.model)  # a job is started by the studio, not the exchange
    studio = exchange.gateway.studio
    job, task_id = studio.start(exchange.tenant, body.model, value, exchange.options)
    job.facts |= {
        "prompt": body.prompt,
        "seed": value.seed,
        "size": body.size or "auto",
        "seconds": "auto" if value.seconds is None else f"{value.seconds:g}",
    }
    response = await _answer(exchange, job)
    response.headers["X-Blip-Task"] = task_id
    return response


async def retrieve(exchange: Exchange) -> web.StreamResponse:
    """Say how far a video is."""
    return await _answer(exchange, _job(exchange))


async def listing(exchange: Exchange) -> web.StreamResponse:
    """List the videos of this API key, the newest first unless order says otherwise."""
    query = exchange.request.query
    limit, order = query.get("limit", str(DEFAULT_PAGE)), query.get("order", "desc")
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 0 <= int(limit) <= MAX_PAGE:
        raise InvalidRequest(f"'limit' is a number from 0 to {MAX_PAGE}.", param="limit")
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' is asc or desc.", param="order")
    jobs, more = exchange.gateway.studio.jobs.page(
        exchange.tenant, query.get("after"), int(limit), newest_first=order == "desc"
    )
    page = VideoList(
        data=[await _view(exchange, job) for job in jobs],
        first_id=jobs[0].id if jobs else None,
        last_id=jobs[-1].id if jobs else None,
        has_more=more,
    )
    return web.Response(text=page.model_dump_json(), content_type="application/json")


async def content(exchange: Exchange) -> web.StreamResponse:
    """Fetch a completed video. Ranges and conditional requests are served."""
    job = _job(exchange)
    variant = exchange.request.query.get("variant", "video")
    if variant != "video":
        raise UnsupportedField(
            f"'variant': there is no {variant[:32]!r} of a video here.",
            hint="Leave it out.",
            param="variant",
        )
    if job.status is not Status.COMPLETED:
        raise InvalidRequest(
            f"The video {job.id} is {job.status}; there is nothing to fetch.",
            hint="It failed for the reason in 'error'."
            if job.status is Status.FAILED
            else "Ask GET /v1/videos/{id} until it is completed.",
        )
    return await send_file(exchange, await exchange.gateway.files.find(job.facts["file"]))


async def delete(exchange: Exchange) -> web.StreamResponse:
    """Delete a video. One that is under way is stopped within a step."""
    job = _job(exchange)
    await exchange.gateway.studio.remove(job)
    text = VideoDeleted(id=job.id).model_dump_json()
    return web.Response(text=text, content_type="application/json")


_PAGING: dict[str, dict[str, Any]] = {
    "after": {"type": "string", "description": "The last id of the page before."},
    "limit": {"type": "integer", "minimum": 0, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    "order": {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
}

OPERATIONS = (
    Operation(
        "POST",
        "/v1/videos",
        create,
        "Begin a video",
        "video",
        body=VideoRequest,
        answer=Video,
        task=True,
        errors=(*TEXT_FAILURES, Overloaded, PolicyViolation),
        example={"model": "wan", "prompt": "a red heart that beats", "seconds": "4"},
    ),
    Operation(
        "GET",
        "/v1/videos",
        listing,
        "List videos",
        "video",
        answer=VideoList,
        query=_PAGING,
        errors=(InvalidRequest, NotFound),
    ),
    Operation(
        "GET",
        "/v1/videos/{video_id}",
        retrieve,
        "Ask about a video",
        "video",
        answer=Video,
        errors=(NotFound,),
    ),
    Operation(
        "GET",
        "/v1/videos/{video_id}/content",
        content,
        "Fetch a video",
        "video",
        media={"video/mp4": "The file; also image/webp, image/gif or image/apng."},
        query={"variant": {"type": "string", "enum": ["video"]}},
        errors=(InvalidRequest, UnsupportedField, NotFound, RangeNotSatisfiable, StoreUnavailable),
    ),
    Operation(
        "DELETE",
        "/v1/videos/{video_id}",
        delete,
        "Delete a video",
        "video",
        answer=VideoDeleted,
        errors=(NotFound, StoreUnavailable),
    ),
)

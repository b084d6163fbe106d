"""``POST /v1/images/upscale`` and ``/enhance``: more pixels, or cleaner ones."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from aiohttp import web
from pydantic import BaseModel, Field

from blip.gateway.events import send_events
from blip.gateway.exchange import Exchange, News
from blip.gateway.fields import Ignored, Refused
from blip.gateway.form import File, FormRequest
from blip.gateway.guard import admit, release
from blip.gateway.mesh import Answer
from blip.gateway.picture_file import PictureFileRequest, size_of
from blip.gateway.routes.images import operation
from blip.gateway.sampling import Seed, wishes
from blip.gateway.upload import encode_file
from blip.kinds.image import MAX_STEPS, step_from_wire
from blip.kinds.pictures import PictureFormat, check_picture
from blip.kinds.upscale import MAX_SCALE, UPSCALE, UpscaleInput

_FACES = "No library that blip builds on restores faces."


class _BetterRequest(PictureFileRequest, FormRequest):
    """A picture to make better, by a model of the kind upscale."""

    files: ClassVar[Mapping[str, File]] = {
        "image": File("The picture: PNG, JPEG or WebP.", required=True)
    }

    prompt: Annotated[str, Field(max_length=32_000)] | None = None
    """What the picture shows, in words. This and what follows is for diffusion models alone."""
    negative_prompt: Annotated[str, Field(max_length=32_000)] | None = None
    """What it does not show."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Steps of denoising; 75 by default."""
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    """How closely to follow the prompt."""
    seed: Seed | None = None
    """The same seed gives the same picture."""

    user: Annotated[str | None, Ignored()] = None
    face_restore: Annotated[Any, Refused(_FACES, False, "false")] = None
    face_enhance: Annotated[Any, Refused(_FACES, False, "false")] = None
    background_enhance: Annotated[
        Any, Refused("All of a picture is treated alike.", False, "false")
    ] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        check_picture(self.upload("image") or b"", "image")

    def task(self, scale: float | None) -> UpscaleInput:
        """Return the input of the task."""
        asked = wishes(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
        )
        return UpscaleInput(
            image=self.upload("image") or b"",
            scale=scale,
            progress=bool(self.stream),
            format=self.format,
            quality=self.file_quality,
            **asked,
        )


class ImageUpscaleRequest(_BetterRequest):
    """A picture to enlarge."""

    scale: Annotated[float, Field(ge=1, le=MAX_SCALE)] | None = None
    """How many times longer its sides are to be; what the model was made for by default, and at
    most that."""


class ImageEnhanceRequest(_BetterRequest):
    """A picture to clean."""


class UpscaledPicture(BaseModel):
    """A file in base64, or its address."""

    b64_json: str | None = None
    url: str | None = None


class Upscaled(BaseModel):
    """The picture."""

    created: int
    output_format: PictureFormat
    size: str
    data: list[UpscaledPicture]


class UpscaleEvent(BaseModel):
    """An event of a stream.

    ``image_upscale.progress`` has ``step`` and ``steps``, which are tiles;
    ``image_upscale.completed`` has ``b64_json`` and ``size``.
    """

    type: str
    created_at: int
    output_format: PictureFormat
    step: int | None = None
    steps: int | None = None
    size: str | None = None
    b64_json: str | None = None


async def upscale(exchange: Exchange, body: ImageUpscaleRequest) -> web.StreamResponse:
    """Enlarge a picture with a super-resolution or a diffusion model.

    A super-resolution model makes the pixels, tile by tile; a diffusion model paints them, all at
    once and of 512 x 512 at most, by a prompt. Where scale is below what it was made for, its
    result is scaled down. What is transparent in the picture becomes white.
    """
    return await _answer(exchange, body, body.scale)


async def enhance(exchange: Exchange, body: ImageEnhanceRequest) -> web.StreamResponse:
    """Clean a picture: of noise, blocks and blur, as far as the model knows how.

    It is enlarged with a super-resolution model, and scaled back to the size that it had. Models
    that were trained on compressed pictures ("real-world") clean most.
    """
    return await _answer(exchange, body, 1.0)


async def _answer(
    exchange: Exchange, body: _BetterRequest, scale: float | None
) -> web.StreamResponse:
    task = body.task(scale)
    written = {"prompt": body.prompt}
    await admit(exchange, written, {"image": task.image}, streams=bool(body.stream))
    exchange.start(UPSCALE, body.model, [task])
    if body.stream:
        return await send_events(exchange, _Events(body).render)
    ((_, answer),) = await exchange.results()
    await release(exchange, [answer.payload])
    file = await body.shown(exchange, answer)
    return web.Response(
        text=f'{{"created":{int(time.time())},"output_format":"{body.format}",'
        f'"size":"{size_of(answer)}","data":[{{{file}}}]}}',
        content_type="application/json",
    )


class _Events:
    """Writes :class:`UpscaleEvent` events."""

    def __init__(self, body: _BetterRequest) -> None:
        self._tail = f'"created_at":{int(time.time())},"output_format":"{body.format}"}}\n\n'

    def render(self, news: News) -> str:
        _, item = news
        if isinstance(item, Answer):
            facts = f'"size":"{size_of(item)}","b64_json":"{encode_file(item.payload)}"'
            return self._event("completed", facts)
        step = step_from_wire(item)
        return self._event("progress", f'"step":{step.step},"steps":{step.steps}')

    def _event(self, name: str, facts: str) -> str:
        kind = f"image_upscale.{name}"
        return f'event: {kind}\ndata: {{"type":{json.dumps(kind)},{facts},{self._tail}'


OPERATIONS = (
    operation(
        "upscale",
        upscale,
        "Enlarge a picture",
        ImageUpscaleRequest,
        {"model": "swin2sr", "image": "@small.png", "scale": "2"},
        Upscaled,
        UpscaleEvent,
    ),
    operation(
        "enhance",
        enhance,
        "Clean a picture",
        ImageEnhanceRequest,
        {"model": "swin2sr", "image": "@old.jpg"},
        Upscaled,
        UpscaleEvent,
    ),
)

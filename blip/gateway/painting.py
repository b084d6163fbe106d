"""What all image requests share: how a picture is asked for, and how it is answered."""

from __future__ import annotations

import base64
import json
import random
import re
import time
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import InvalidRequest
from blip.gateway.events import send_events
from blip.gateway.exchange import Exchange, News
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.form import FormRequest
from blip.gateway.guard import admit, release
from blip.gateway.guides import Guide, Loras, lora_tasks
from blip.gateway.mesh import Answer
from blip.gateway.text import quote
from blip.kinds.image import (
    IMAGE,
    MAX_SIDE,
    MAX_STEPS,
    MIN_SIDE,
    Control,
    ImageInput,
    step_from_wire,
)
from blip.kinds.pictures import MAX_PIXELS, PictureFormat
from blip.protocol.messages import Payload

#: Pictures of one request, as OpenAI has it.
MAX_PICTURES = 10

#: Unfinished pictures of one stream, as OpenAI has it.
MAX_PARTIAL = 3

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class PaintRequest(Request):
    """Fields that mean the same in all image requests."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """A name from GET /v1/models."""
    n: Annotated[int, Field(ge=1, le=MAX_PICTURES)] | None = None
    """Pictures; 1 by default. Each is a task of its own, with seed + its number."""
    size: Annotated[str, Field(max_length=16)] | None = None
    """Width and height, such as 512x512; what the model was made for by default, or with auto."""
    output_format: PictureFormat | None = None
    """The kind of file; png by default."""
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    """Quality of jpeg and webp, 100 the best; 95 by default."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Denoising steps: more take longer and come out finer. Ours, not OpenAI's."""
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    """How closely to follow the prompt. Ours, not OpenAI's."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed gives the same picture. Ours, not OpenAI's."""
    scheduler: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """How noise is taken away: euler, dpm++2m-karras, ...; an unknown one gets a list of all.
    Ours, not OpenAI's."""
    loras: Loras | None = None
    """LoRAs of the model to use, with weights: [{"name": "ink", "weight": 0.8}]. In a form, as
    JSON text. Ours, not OpenAI's."""
    control: Guide | None = None
    """A picture whose shapes to follow, with a ControlNet of the model. In a form, as JSON text,
    with the file control_image. Ours, not OpenAI's."""
    stream: bool | None = None
    """Whether to send events as it is painted."""
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL)] | None = None
    """Unfinished pictures in a stream."""
    progress: bool | None = None
    """Whether a stream tells every step. Ours, not OpenAI's."""

    response_format: Literal["url", "b64_json"] | None = None
    """How the pictures come: in the answer, by default, or kept for a while under an address."""

    user: Annotated[str | None, Ignored()] = None
    safety_identifier: Annotated[str | None, Ignored()] = None
    moderation: Annotated[Any, Ignored()] = None
    quality: Annotated[Any, Refused("Set 'steps'.", "auto", "standard")] = None
    background: Annotated[Any, Refused("Models here paint no alpha.", "auto", "opaque")] = None
    style: Annotated[Any, Refused("Say it in the prompt.")] = None
    complexity: Annotated[Any, Refused("Set 'steps'.")] = None
    svg: Annotated[Any, Refused("Models here paint pixels.")] = None
    frame_count: Annotated[Any, Refused("Models here paint single pictures.", 1, "1")] = None
    frame_duration_ms: Annotated[Any, Refused("Models here paint single pictures.")] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        self.dimensions()
        self.guide()
        if not self.stream and (self.partial_images or self.progress):
            name = "partial_images" if self.partial_images else "progress"
            raise InvalidRequest(f"'{name}' needs 'stream': true.", param=at + name)
        if self.stream and self.response_format == "url":
            raise InvalidRequest(
                "A stream carries its pictures with it.",
                hint="Leave out 'response_format', or 'stream'.",
                param=at + "response_format",
            )
        if self.output_compression not in (None, 100) and self.format == "png":
            raise InvalidRequest(
                "'output_compression' is for jpeg and webp; png loses nothing.",
                hint="Set 'output_format'.",
                param=at + "output_compression",
            )

    @property
    def format(self) -> PictureFormat:
        """The kind of file."""
        return self.output_format or "png"

    def guide(self) -> Control | None:
        """Return what shapes to follow. Raises :class:`~blip.errors.InvalidRequest`."""
        upload = self.upload("control_image") if isinstance(self, FormRequest) else None
        if self.control is not None:
            return self.control.task(upload)
        if upload is not None:
            raise InvalidRequest(
                "'control_image' needs 'control' to say what to do with it.",
                hint="""Add -F 'control={"type": "canny"}'.""",
                param="control",
            )
        return None

    def dimensions(self) -> tuple[int, int] | None:
        """Return width and height; None where they are left to the model.

        Raises :class:`~blip.errors.InvalidRequest`.
        """
        return parse_size(self.size)

    def tasks(self, **fields: Any) -> list[ImageInput]:
        """Return one task a picture. ``fields`` are the kind's own; None leaves one out.

        Without a seed one is drawn here: a task that moves to another node paints the same, and
        the answer can say how to have it again.
        """
        size = self.dimensions()
        if size is not None:
            fields |= {"width": size[0], "height": size[1]}
        seed = random.getrandbits(31) if self.seed is None else self.seed
        fields |= {
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "scheduler": self.scheduler,
            "loras": lora_tasks(self.loras),
            "control": self.guide(),
            "format": self.format,
            "quality": None if self.format == "png" else self.output_compression,
            "previews": self.partial_images if self.stream else None,
            "progress": self.progress if self.stream else None,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return [ImageInput(seed=nth_seed(seed, number), **given) for number in range(self.n or 1)]


def parse_size(size: str | None) -> tuple[int, int] | None:
    """Return width and height of ``512x512``; None for None and ``auto``.

    Raises :class:`~blip.errors.InvalidRequest`.
    """
    if size in (None, "auto"):
        return None
    found = _SIZE.fullmatch(size or "")
    width, height = map(int, found.groups()) if found else (0, 0)
    small, large = min(width, height), max(width, height)
    if small < MIN_SIDE or large > MAX_SIDE or width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"'size' is {size!r}; it is written as 512x512, with sides from {MIN_SIDE} "
            f"to {MAX_SIDE}.",
            param="size",
        )
    return width, height


def nth_seed(seed: int, number: int) -> int:
    """Return the seed of a request's picture; after the last seed comes the first again."""
    return (seed + number + 2**63) % 2**64 - 2**63


# --- the answer ------------------------------------------------------------------------------


class Picture(BaseModel):
    """One picture: its file in base64, or its address, and the seed that it grew from."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class PictureTokens(BaseModel):
    """What was read."""

    text_tokens: int
    image_tokens: Literal[0] = 0


class PictureUsage(BaseModel):
    """Tokens of the prompt, of each picture's task. Pictures are not made of tokens here."""

    input_tokens: int
    input_tokens_details: PictureTokens
    output_tokens: Literal[0] = 0
    total_tokens: int


class Pictures(BaseModel):
    """All pictures of a request."""

    created: int
    background: Literal["opaque"] = "opaque"
    output_format: PictureFormat
    size: str
    data: list[Picture]
    usage: PictureUsage


class PictureEvent(BaseModel):
    """An event of a stream. ``type`` says which fields are there.

    ``<what>.progress`` has ``step`` and ``steps``, ``<what>.partial_image`` has
    ``partial_image_index`` and ``b64_json``, ``<what>.completed`` has ``b64_json``, ``seed`` and
    ``usage``; ``<what>`` is image_generation or image_edit. ``index`` tells the n pictures apart.
    """

    type: str
    index: int
    created_at: int
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"
    output_format: PictureFormat
    size: str
    step: int | None = None
    steps: int | None = None
    partial_image_index: int | None = None
    b64_json: str | None = None
    seed: int | None = None
    usage: PictureUsage | None = None


def _usage(*answers: Answer) -> PictureUsage:
    tokens = sum(answer.usage.get("prompt_tokens", 0) for answer in answers)
    return PictureUsage(
        input_tokens=tokens,
        input_tokens_details=PictureTokens(text_tokens=tokens),
        total_tokens=tokens,
    )


def _size(answer: Answer) -> str:
    return f"{answer.usage.get('width', 0)}x{answer.usage.get('height', 0)}"


def _base64(payload: Payload) -> str:
    return base64.b64encode(payload).decode()


async def paint(
    exchange: Exchange, body: PaintRequest, tasks: list[ImageInput], what: str
) -> web.StreamResponse:
    """Run the tasks and answer with their pictures; ``what`` names the events of a stream."""
    asked = tasks[0]  # the others differ in their seeds only
    texts = {"prompt": asked.prompt}
    followed = None if asked.control is None else asked.control.image
    pictures = {"image": asked.image, "control": followed}
    await admit(exchange, texts, pictures, streams=bool(body.stream))
    exchange.start(IMAGE, body.model, tasks)
    if body.stream:
        return await send_events(exchange, _Events(body, tasks, what).render)
    answers = [result.answer for result in await exchange.results()]
    await release(exchange, [answer.payload for answer in answers])
    # written by hand: a picture has megabytes, and base64 needs no escaping
    if body.response_format == "url":
        shown = [f'"url":{quote(await _kept(exchange, body, answer))}' for answer in answers]
    else:
        shown = [f'"b64_json":"{_base64(answer.payload)}"' for answer in answers]
    data = ",".join(
        f'{{{file},"seed":{task.seed}}}' for task, file in zip(tasks, shown, strict=True)
    )
    return web.Response(
        text=f'{{"created":{int(time.time())},"background":"opaque",'
        f'"output_format":"{body.format}","size":"{_size(answers[0])}","data":[{data}],'
        f'"usage":{_usage(*answers).model_dump_json()}}}',
        content_type="application/json",
    )


async def _kept(exchange: Exchange, body: PaintRequest, answer: Answer) -> str:
    """Keep a picture; return its address."""
    ending = "jpg" if body.format == "jpeg" else body.format
    return await exchange.keep(answer.payload, f"image/{body.format}", f"picture.{ending}")


class _Events:
    """Writes :class:`PictureEvent` events."""

    def __init__(self, body: PaintRequest, tasks: list[ImageInput], what: str) -> None:
        self._what = what
        self._tasks = tasks
        self._asked = quote(body.size or "auto")
        self._shown = [0] * len(tasks)
        self._tail = (
            f'"created_at":{int(time.time())},"background":"opaque","quality":"auto",'
            f'"output_format":"{body.format}"}}\n\n'
        )

    def render(self, news: News) -> str:
        index, item = news
        if isinstance(item, Answer):
            return self._event(
                "completed",
                index,
                f'"b64_json":"{_base64(item.payload)}","seed":{self._tasks[index].seed},'
                f'"size":"{_size(item)}","usage":{_usage(item).model_dump_json()}',
            )
        step = step_from_wire(item)
        events = ""
        if self._tasks[index].progress:
            facts = f'"step":{step.step},"steps":{step.steps},"size":{self._asked}'
            events = self._event("progress", index, facts)
        if step.preview is not None:
            number = self._shown[index]
            self._shown[index] += 1
            events += self._event(
                "partial_image",
                index,
                f'"partial_image_index":{number},"b64_json":"{_base64(step.preview)}",'
                f'"size":{self._asked}',
            )
        return events

    def _event(self, name: str, index: int, facts: str) -> str:
        kind = json.dumps(f"{self._what}.{name}")
        return (
            f"event: {self._what}.{name}\n"
            f'data: {{"type":{kind},"index":{index},{facts},{self._tail}'
        )

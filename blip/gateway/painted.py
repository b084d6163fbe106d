"""How image requests are answered: with their pictures, or with a stream as they are painted."""

from __future__ import annotations

import json
import time
from typing import Literal

from aiohttp import web
from pydantic import BaseModel

from blip.gateway.events import send_events
from blip.gateway.exchange import Exchange, News
from blip.gateway.guard import admit, release
from blip.gateway.mesh import Answer
from blip.gateway.painting import PaintRequest
from blip.gateway.picture_file import size_of
from blip.gateway.text import quote
from blip.gateway.upload import encode_file
from blip.kinds.image import IMAGE, ImageInput, step_from_wire
from blip.kinds.pictures import PictureFormat


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
    shown = [await body.shown(exchange, answer) for answer in answers]
    data = ",".join(
        f'{{{file},"seed":{task.seed}}}' for task, file in zip(tasks, shown, strict=True)
    )
    return web.Response(
        text=f'{{"created":{int(time.time())},"background":"opaque",'
        f'"output_format":"{body.format}","size":"{size_of(answers[0])}","data":[{data}],'
        f'"usage":{_usage(*answers).model_dump_json()}}}',
        content_type="application/json",
    )


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
                f'"b64_json":"{encode_file(item.payload)}","seed":{self._tasks[index].seed},'
                f'"size":"{size_of(item)}","usage":{_usage(item).model_dump_json()}',
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
                f'"partial_image_index":{number},"b64_json":"{encode_file(step.preview)}",'
                f'"size":{self._asked}',
            )
        return events

    def _event(self, name: str, index: int, facts: str) -> str:
        kind = json.dumps(f"{self._what}.{name}")
        return (
            f"event: {self._what}.{name}\n"
            f'data: {{"type":{kind},"index":{index},{facts},{self._tail}'
        )

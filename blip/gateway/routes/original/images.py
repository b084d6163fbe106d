"""``POST /api/v1/inference/image-generation``: BitingLip's pictures."""

from __future__ import annotations

import base64
import random
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import InvalidRequest, PolicyViolation
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Request
from blip.gateway.guard import admit, release
from blip.gateway.painting import MAX_PICTURES, nth_seed
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.original.dialect import DIALECT, Finished, finished
from blip.gateway.sampling import ModelName
from blip.kinds.image import IMAGE, MAX_STEPS, ImageInput, Side

#: The defaults of BitingLip's API reference. It has a size of 1024, too, but a model paints best
#: at the size that it was made for.
_STEPS = 50
_GUIDANCE = 7.5

Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Text = Annotated[str, Field(max_length=32_000)]


class ImageGenerationsRequest(Request):
    """A text to paint."""

    model: ModelName
    """A name from GET /v1/models."""
    prompt: Text | None = None
    """What to paint."""
    text: Text | None = None
    """The name that BitingLip's code has for the prompt of other requests."""
    negative_prompt: Text = ""
    """What to keep out of it."""
    width: Side | None = None
    """Pixels; what the model was made for by default."""
    height: Side | None = None
    """Pixels; what the model was made for by default."""
    steps: Steps | None = None
    """Denoising steps; 50 by default."""
    num_inference_steps: Steps | None = None
    """The name that BitingLip's code has for the steps."""
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = _GUIDANCE
    """How closely to follow the prompt."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed gives the same picture; -1 draws one."""
    num_images: Annotated[int, Field(ge=1, le=MAX_PICTURES)] = 1
    """Pictures. Each is a task of its own, with seed + its number."""

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` unless each thing is said once."""
        super().check(at)
        if not (self.prompt or self.text):
            raise InvalidRequest("'prompt' is missing.", param="prompt")
        for one, other in (("prompt", "text"), ("steps", "num_inference_steps")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise InvalidRequest(
                    f"'{one}' and '{other}' are the same; send one.", param=at + other
                )

    def tasks(self) -> list[ImageInput]:
        """Return one task a picture."""
        drawn = self.seed is None or self.seed == -1
        seed = random.getrandbits(31) if drawn else self.seed or 0
        return [
            ImageInput(
                prompt=self.prompt or self.text or "",
                negative_prompt=self.negative_prompt,
                width=self.width,
                height=self.height,
                steps=self.steps or self.num_inference_steps or _STEPS,
                guidance_scale=self.guidance_scale,
                seed=nth_seed(seed, number),
            )
            for number in range(self.num_images)
        ]


class GeneratedImage(BaseModel):
    """A picture. ``url`` is a data: URL: the file itself, in base64."""

    url: str
    width: int
    height: int
    format: str
    seed: int


class ImageGenerationsResult(BaseModel):
    """What was painted."""

    images: list[GeneratedImage]
    model_used: str
    steps_completed: int


class ImageGenerations(Finished):
    """An answer that is complete."""

    result: ImageGenerationsResult


async def create(exchange: Exchange, body: ImageGenerationsRequest) -> web.StreamResponse:
    """Paint pictures, as BitingLip's documents ask for them.

    Defaults are those of its API reference, 50 steps and a guidance of 7.5, but for the size,
    which is the model's own. Where its documents show the address of a CDN, url holds the file.
    """
    tasks = body.tasks()
    await admit(exchange, {"prompt" if body.prompt else "text": tasks[0].prompt})
    exchange.start(IMAGE, body.model, tasks)
    answers = [result.answer for result in await exchange.results()]
    await release(exchange, [answer.payload for answer in answers])
    images = [
        GeneratedImage(
            url=f"data:image/png;base64,{base64.b64encode(answer.payload).decode()}",
            width=answer.usage.get("width", 0),
            height=answer.usage.get("height", 0),
            format=task.format,
            seed=task.seed or 0,
        )
        for task, answer in zip(tasks, answers, strict=True)
    ]
    result = ImageGenerationsResult(
        images=images,
        model_used=body.model,
        steps_completed=answers[0].usage.get("steps", tasks[0].steps or 0),
    )
    view = ImageGenerations(result=result, **finished(exchange))
    return web.Response(text=view.model_dump_json(), content_type="application/json")


OPERATIONS = (
    Operation(
        "POST",
        "/api/v1/inference/image-generation",
        create,
        "Paint a text",
        "bitinglip",
        body=ImageGenerationsRequest,
        answer=ImageGenerations,
        errors=(*TEXT_FAILURES, PolicyViolation),
        task=True,
        example={"model": "toy-shapes", "prompt": "a large red heart on a white background"},
        dialect=DIALECT,
    ),
)

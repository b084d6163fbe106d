"""``POST /v1/images/generations``, ``/edits`` and ``/variations``: pictures, OpenAI's way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from aiohttp import web
from pydantic import Field

from blip.errors import PolicyViolation
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Refused
from blip.gateway.form import File, FormRequest
from blip.gateway.painted import PictureEvent, Pictures, paint
from blip.gateway.painting import PaintRequest
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.kinds.pictures import check_mask, check_picture

Prompt = Annotated[str, Field(min_length=1, max_length=32_000)]
Negative = Annotated[str, Field(max_length=32_000)]
Strength = Annotated[float, Field(gt=0, le=1)]

_KEPT = """How much of the picture may change: the nearer to 0, the less. Ours, not OpenAI's."""


_GUIDE = File("The picture that 'control' is about.")


class ImageGenerationRequest(PaintRequest):
    """A text to paint."""

    prompt: Prompt
    """What to paint."""
    negative_prompt: Negative | None = None
    """What to keep out of it. Ours, not OpenAI's."""
    strength: Annotated[Any, Refused("It says how much of a picture changes: use /edits.")] = None


class _FromPicture(PaintRequest, FormRequest):
    """A picture to start from, and how much of it may change."""

    strength: Annotated[Strength | None, Field(description=_KEPT)] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for pictures that cannot be."""
        super().check(at)
        image, mask = self.upload("image"), self.upload("mask")
        if image is not None:
            header = check_picture(image, "image")
            if mask is not None:
                check_mask(check_picture(mask, "mask"), header)


class ImageEditRequest(_FromPicture):
    """A picture to change, as a whole or where a mask says."""

    files: ClassVar[Mapping[str, File]] = {
        "image": File("The picture: PNG, JPEG or WebP.", required=True),
        "mask": File(
            "A picture of the same size. Where it is transparent, the picture is painted anew; if "
            "it has no transparency at all, where it is light."
        ),
        "control_image": _GUIDE,
    }

    prompt: Prompt
    """What the picture is to become, or what is to be where the mask says."""
    negative_prompt: Negative | None = None
    """What to keep out of it. Ours, not OpenAI's."""
    input_fidelity: Annotated[Any, Refused("Set 'strength'.")] = None
    markup: Annotated[Any, Refused("Send a mask.")] = None


class ImageVariationRequest(_FromPicture):
    """A picture to vary."""

    files: ClassVar[Mapping[str, File]] = {
        "image": File("The picture: PNG, JPEG or WebP.", required=True),
        "control_image": _GUIDE,
    }


async def generate(exchange: Exchange, body: ImageGenerationRequest) -> web.StreamResponse:
    """Paint pictures of a text.

    Each of the n pictures is a task of its own, so that several devices share them; the answer
    says each one's seed. With stream: true unfinished pictures come on the way, as many as
    partial_images says.
    """
    tasks = body.tasks(prompt=body.prompt, negative_prompt=body.negative_prompt)
    return await paint(exchange, body, tasks, "image_generation")


async def edit(exchange: Exchange, body: ImageEditRequest) -> web.StreamResponse:
    """Paint a picture over, with a text to say how.

    With a mask only what that marks is painted, and the rest stays to the pixel. The answer has
    the picture's shape, and no more pixels than the model was made for, unless size says
    otherwise.
    """
    tasks = body.tasks(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        image=body.upload("image"),
        mask=body.upload("mask"),
        strength=body.strength,
    )
    return await paint(exchange, body, tasks, "image_edit")


async def vary(exchange: Exchange, body: ImageVariationRequest) -> web.StreamResponse:
    """Paint a picture over without a text: something like it comes out."""
    tasks = body.tasks(image=body.upload("image"), strength=body.strength)
    return await paint(exchange, body, tasks, "image_edit")


def operation(
    name: str,
    handler: Any,
    summary: str,
    body: Any,
    example: Any,
    answer: Any = Pictures,
    event: Any = PictureEvent,
) -> Operation:
    """Return an operation below ``/v1/images``."""
    return Operation(
        "POST",
        f"/v1/images/{name}",
        handler,
        summary,
        "images",
        body=body,
        answer=answer,
        task=True,
        event=event,
        errors=(*TEXT_FAILURES, PolicyViolation),
        example=example,
    )


OPERATIONS = (
    operation(
        "generations",
        generate,
        "Paint a text",
        ImageGenerationRequest,
        {"model": "toy-shapes", "prompt": "a large red heart on a white background"},
    ),
    operation(
        "edits",
        edit,
        "Paint a picture over",
        ImageEditRequest,
        {"model": "toy-shapes", "image": "@heart.png", "prompt": "a large blue heart"},
    ),
    operation(
        "variations",
        vary,
        "Vary a picture",
        ImageVariationRequest,
        {"model": "toy-shapes", "image": "@heart.png", "n": "2"},
    ),
)

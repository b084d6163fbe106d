"""``POST /api/v1/inference/image-to-text``: BitingLip's captions."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import InvalidRequest
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Request
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.original.dialect import DIALECT, Finished, finished
from blip.gateway.sampling import MaxTokens, ModelName
from blip.gateway.upload import decode_picture
from blip.kinds.caption import CAPTION, CaptionInput
from blip.kinds.pictures import read_header
from blip.kinds.text import finish_from_wire

#: The default of BitingLip's code.
_MAX_TOKENS = 100


#: What the example shows: gray, 8 x 8 pixels.
_PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAADklEQVR42mNo"
    "gAIGyhgAgIQgARDoahcAAAAASUVORK5CYII="
)


class ImageToTextRequest(Request):
    """A picture to caption."""

    model: ModelName
    """A name from GET /v1/models."""
    image_data: str | None = None
    """The picture in base64, bare or as a data: URL."""
    image: str | None = None
    """Another name of image_data."""
    prompt: Annotated[str, Field(max_length=32_000)] | None = None
    """What the caption continues; of a chat model, the question. Ours."""
    max_tokens: MaxTokens = _MAX_TOKENS
    """Most tokens of the caption."""

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` unless there is one picture."""
        super().check(at)
        if self.image_data is None and self.image is None:
            raise InvalidRequest("'image_data' is missing.", param="image_data")
        if self.image_data is not None and self.image is not None:
            raise InvalidRequest("'image_data' and 'image' are the same; send one.", param="image")

    def task(self) -> CaptionInput:
        """Return the input of the task."""
        name = "image_data" if self.image is None else "image"
        file = decode_picture(self.image_data or self.image or "", name)
        return CaptionInput(image=file, prompt=self.prompt or "", max_tokens=self.max_tokens)


class ImageToTextResult(BaseModel):
    """What the model says of the picture."""

    caption: str
    image_size: list[int]
    """Width and height."""
    image_mode: str
    """What the model was shown: always RGB."""
    model_used: str


class ImageToText(Finished):
    """An answer that is complete."""

    result: ImageToTextResult


async def create(exchange: Exchange, body: ImageToTextRequest) -> web.StreamResponse:
    """Caption a picture, as BitingLip's documents ask for it."""
    task = body.task()
    exchange.start(CAPTION, body.model, [task])
    ((_, answer),) = await exchange.results()
    header = read_header(task.image)
    result = ImageToTextResult(
        caption=finish_from_wire(answer.payload).text.strip(),
        image_size=[header.width, header.height] if header is not None else [],
        image_mode="RGB",
        model_used=body.model,
    )
    view = ImageToText(result=result, **finished(exchange))
    return web.Response(text=view.model_dump_json(), content_type="application/json")


OPERATIONS = (
    Operation(
        "POST",
        "/api/v1/inference/image-to-text",
        create,
        "Caption a picture",
        "bitinglip",
        body=ImageToTextRequest,
        answer=ImageToText,
        errors=TEXT_FAILURES,
        task=True,
        example={"model": "toy-caption", "image_data": _PICTURE},
        dialect=DIALECT,
    ),
)

"""``upscale``: a picture in, the same picture with more pixels, or cleaner ones, out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from blip.kinds.base import Kind, TaskInput
from blip.kinds.image import MAX_STEPS
from blip.kinds.pictures import PictureFormat, read_header

#: The most that the sides of a picture may be multiplied by; models do 2 to 4.
MAX_SCALE = 8.0

#: What is assumed of a picture whose header says nothing: it is refused before it costs more.
TYPICAL_MEGAPIXELS = 0.25

#: Steps of diffusers' pipelines that enlarge, unless told otherwise.
TYPICAL_STEPS = 75


class UpscaleInput(TaskInput):
    """What to enlarge: the bytes of a picture, and how many times its sides are to be longer.

    Without ``scale`` that is what the model was made for. Less is made of the model's own result,
    so a ``scale`` of 1 gives back the size that the picture had. With ``progress`` each tile is
    told as a :class:`~blip.kinds.image.Step`; the DONE payload is the file.

    Models that denoise read what the picture shows in ``prompt``; they alone know the fields below
    it, tell steps rather than tiles, and leave to their pipeline what is None.
    """

    image: bytes
    prompt: Annotated[str, StringConstraints(max_length=32_000)] = ""
    negative_prompt: Annotated[str, StringConstraints(max_length=32_000)] = ""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    scale: Annotated[float, Field(ge=1, le=MAX_SCALE)] | None = None
    progress: bool = False
    format: PictureFormat = "png"
    quality: Annotated[int, Field(ge=0, le=100)] | None = None


def _units(value: UpscaleInput) -> float:
    """Megapixels of the source, at whose size almost all of the work is done.

    Where steps are asked for, times their share of a pipeline's own number.
    """
    header = read_header(value.image)
    megapixels = header.width * header.height / 1e6 if header else TYPICAL_MEGAPIXELS
    return megapixels * (1.0 if value.steps is None else value.steps / TYPICAL_STEPS)


UPSCALE = Kind("upscale", UpscaleInput, _units)

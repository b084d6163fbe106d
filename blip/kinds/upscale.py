"""``upscale``: a picture in, the same picture with more pixels, or cleaner ones, out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from blip.kinds.base import Kind, TaskInput
from blip.kinds.pictures import PictureFormat, read_header

#: The most that the sides of a picture may be multiplied by; models do 2 to 4.
MAX_SCALE = 8.0

#: What is assumed of a picture whose header says nothing: it is refused before it costs more.
TYPICAL_MEGAPIXELS = 0.25


class UpscaleInput(TaskInput):
    """What to enlarge: the bytes of a picture, and how many times its sides are to be longer.

    Without ``scale`` that is what the model was made for. Less is made of the model's own result,
    so a ``scale`` of 1 gives back the size that the picture had. With ``progress`` each tile is
    told as a :class:`~blip.kinds.image.Step`; the DONE payload is the file.
    """

    image: bytes
    scale: Annotated[float, Field(ge=1, le=MAX_SCALE)] | None = None
    progress: bool = False
    format: PictureFormat = "png"
    quality: Annotated[int, Field(ge=0, le=100)] | None = None


def _units(value: UpscaleInput) -> float:
    """Megapixels of the source: almost all of the work is done at its size."""
    header = read_header(value.image)
    return header.width * header.height / 1e6 if header else TYPICAL_MEGAPIXELS


UPSCALE = Kind("upscale", UpscaleInput, _units)

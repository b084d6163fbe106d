"""Pictures in and out: decoding what was uploaded, encoding what was painted."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy
from PIL import Image, ImageOps, PngImagePlugin

from blip.errors import InvalidRequest, RuntimeFailed
from blip.kinds.pictures import PictureFormat, check_picture, wrong_mask

#: Quality of JPEG and WebP unless asked otherwise: no visible loss, a tenth of a PNG's size.
DEFAULT_QUALITY = 95

#: EXIF tags: what the picture shows, and what made it.
_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131

#: An alpha channel's or a mask's value from which on a pixel counts as set.
_HALF = 128


def open_picture(data: bytes, field: str) -> Image.Image:
    """Decode a picture, upright. Its header is checked before anything is decoded.

    Raises :class:`~blip.errors.InvalidRequest` naming the field.
    """
    header = check_picture(data, field)
    try:
        picture = Image.open(io.BytesIO(data), formats=[header.format.upper()])
        if picture.size != (header.width, header.height):  # what we checked is what is decoded
            raise ValueError(f"its header says {header.width} x {header.height} pixels")
        picture.load()
        return ImageOps.exif_transpose(picture)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InvalidRequest(
            f"'{field}' is a {header.format.upper()} file that cannot be decoded: {error}.",
            hint="It may be cut off; send the whole file.",
            param=field,
        ) from None


def open_source(data: bytes, field: str = "image") -> Image.Image:
    """Decode a picture to start from, in RGB; what is transparent in it becomes white."""
    picture = open_picture(data, field)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def open_mask(data: bytes, size: tuple[int, int]) -> Image.Image:
    """Decode a mask for a picture of ``size``: 255 where to paint, 0 where not to.

    Where a mask has transparency, transparent means paint, as OpenAI has it; where it has none,
    light does, as diffusers has it. Raises :class:`~blip.errors.InvalidRequest`.
    """
    picture = open_picture(data, "mask")
    if picture.size != size:
        raise wrong_mask(picture.size, size)
    alpha = picture.has_transparency_data
    if alpha:
        values = 255 - numpy.asarray(picture.convert("RGBA").getchannel("A"))
    else:
        values = numpy.asarray(picture.convert("L"))
    marked = values >= _HALF
    if not marked.any():
        raise InvalidRequest(
            f"'mask' has no {'transparent' if alpha else 'white'} pixel: nothing would be painted.",
            hint="Make transparent (or, without transparency, white) what is to be painted anew.",
            param="mask",
        )
    return Image.fromarray(marked.astype("uint8") * 255)


def to_picture(pixels: Any) -> Image.Image:
    """Turn a pipeline's numbers, float [height, width, 3] from 0 to 1, into a picture.

    Raises :class:`~blip.errors.RuntimeFailed` if they are no numbers.
    """
    if not numpy.isfinite(pixels).all():
        raise RuntimeFailed(
            "the model computed NaN or infinity instead of a picture",
            hint="Its weights or its decoder overflow in half precision: set its dtype to "
            "bfloat16 or float32.",
        )
    return Image.fromarray((pixels * 255).round().clip(0, 255).astype("uint8"))


def encode(
    picture: Image.Image,
    format: PictureFormat,
    quality: int | None = None,
    facts: Mapping[str, str | int | float] | None = None,
) -> bytes:
    """Write a picture's file, with facts about it inside: PNG text chunks, else EXIF."""
    file = io.BytesIO()
    facts = facts or {}
    if format == "png":
        chunks = PngImagePlugin.PngInfo()
        for key, value in facts.items():
            chunks.add_text(key, str(value))
        picture.save(file, "PNG", pnginfo=chunks)
    else:
        exif = Image.Exif()
        if facts:
            rest = {key: value for key, value in facts.items() if key != "Software"}
            exif[_DESCRIPTION] = json.dumps(rest)  # ASCII, as EXIF wants it
            exif[_SOFTWARE] = str(facts.get("Software", ""))
        chosen = DEFAULT_QUALITY if quality is None else quality
        picture.save(file, format.upper(), quality=chosen, exif=exif)
    return file.getvalue()

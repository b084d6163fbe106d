"""``caption``: a picture in, a text about it out, in one piece: a ``Finish`` as DONE payload."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from blip.kinds.base import Kind
from blip.kinds.text import TextInput, text_units

#: Most tokens of a caption that sets no limit. Captioners stop after ten to twenty; one that
#: does not is a chat model, or has lost its way.
TYPICAL_CAPTION_TOKENS = 64

#: What a picture costs as much as, in characters of a prompt: common models make 200 to 1000
#: tokens of one.
PICTURE_CHARS = 2000


class CaptionInput(TextInput):
    """A picture (the bytes of a file), and maybe a text to continue or a question about it.

    Captions are the likeliest ones unless a temperature is set.
    """

    image: bytes
    prompt: Annotated[str, StringConstraints(max_length=32_000)] = ""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0


def _units(value: CaptionInput) -> float:
    limited = value
    if value.max_tokens is None:
        limited = value.model_copy(update={"max_tokens": TYPICAL_CAPTION_TOKENS})
    return text_units(limited, len(value.prompt) + PICTURE_CHARS)


CAPTION = Kind("caption", CaptionInput, _units)

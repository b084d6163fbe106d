"""``embedding``: texts in, one vector a text out, as raw little-endian float32."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from blip.kinds.base import Kind, TaskInput
from blip.kinds.text import CHARS_PER_TOKEN

#: One text or one list of token ids of the model's own vocabulary.
EmbeddingText = (
    Annotated[str, Field(min_length=1)]
    | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
)


class EmbeddingInput(TaskInput):
    """Texts to embed; ``dimensions`` truncates and re-normalises where the model allows it.

    Where a request was cut into several tasks ``first`` is the number of this one's first text,
    for its errors.
    """

    texts: Annotated[list[EmbeddingText], Field(min_length=1, max_length=2048)]
    dimensions: Annotated[int, Field(ge=1)] | None = None
    first: Annotated[int, Field(ge=0)] = 0


def _units(value: EmbeddingInput) -> float:
    chars = sum(
        len(text) * (1 if isinstance(text, str) else CHARS_PER_TOKEN) for text in value.texts
    )
    return len(value.texts) + chars / CHARS_PER_TOKEN


EMBEDDING = Kind("embedding", EmbeddingInput, _units)

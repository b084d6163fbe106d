"""``completion``: raw text (or token ids) in, its continuation out, token by token."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from blip.kinds.base import Kind
from blip.kinds.text import CHARS_PER_TOKEN, TextInput, text_units


class CompletionInput(TextInput):
    """One prompt: a string, or token ids of the model's own vocabulary."""

    prompt: str | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    echo: bool = False


def _units(value: CompletionInput) -> float:
    tokens = not isinstance(value.prompt, str)
    return text_units(value, len(value.prompt) * (CHARS_PER_TOKEN if tokens else 1))


COMPLETION = Kind("completion", CompletionInput, _units, resumable=True)

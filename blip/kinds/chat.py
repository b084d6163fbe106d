"""``chat``: messages in, the assistant's next message out, token by token."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blip.kinds.base import Kind, TaskInput
from blip.kinds.text import TextInput, text_units


class ChatMessage(TaskInput):
    """One turn. Parts of several content types arrive here already joined to plain text."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str | None = None


class ChatInput(TextInput):
    """A conversation to continue; the model's own chat template renders it."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]


def _units(value: ChatInput) -> float:
    return text_units(value, sum(len(message.content) for message in value.messages))


CHAT = Kind("chat", ChatInput, _units, resumable=True)

"""``chat``: messages in, the assistant's next message out, token by token."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blip.kinds.base import Kind, TaskInput
from blip.kinds.caption import PICTURE_CHARS
from blip.kinds.text import TextInput, text_units

#: Pictures of one message.
MAX_MESSAGE_PICTURES = 16


class ChatPicture(TaskInput):
    """A picture (the bytes of a file) in a message: ``at`` characters of its text come before."""

    data: bytes
    at: Annotated[int, Field(ge=0)] = 0


class ChatMessage(TaskInput):
    """One turn. Parts of text arrive here already joined; ``pictures`` are in their order."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str | None = None
    pictures: Annotated[list[ChatPicture], Field(max_length=MAX_MESSAGE_PICTURES)] = Field(
        default_factory=list
    )


class ChatInput(TextInput):
    """A conversation to continue; the model's own chat template renders it."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]


def _units(value: ChatInput) -> float:
    chars = sum(
        len(message.content) + PICTURE_CHARS * len(message.pictures) for message in value.messages
    )
    return text_units(value, chars)


CHAT = Kind("chat", ChatInput, _units, resumable=True)

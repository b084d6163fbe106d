"""``chat``: messages in, the assistant's next message out, token by token."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blip.kinds.base import Kind, TaskInput
from blip.kinds.caption import PICTURE_CHARS
from blip.kinds.text import TextInput, text_units
from blip.kinds.tools import MAX_TOOLS, Tool, ToolCall

#: Pictures of one message.
MAX_MESSAGE_PICTURES = 16


class ChatPicture(TaskInput):
    """A picture (the bytes of a file) in a message: ``at`` characters of its text come before."""

    data: bytes
    at: Annotated[int, Field(ge=0)] = 0


class ChatMessage(TaskInput):
    """One turn. Parts of text arrive here already joined; ``pictures`` are in their order.

    ``tool_calls`` are what an assistant called; what came of the call ``tool_call_id`` is the
    content of a message of the role ``tool``.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str | None = None
    pictures: Annotated[list[ChatPicture], Field(max_length=MAX_MESSAGE_PICTURES)] = Field(
        default_factory=list
    )
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: str | None = None


class ChatInput(TextInput):
    """A conversation to continue; the model's own chat template renders it.

    Of the ``tools`` the model calls what it likes, at least one if they are ``required``, and
    ``tool``, once, if that names one. Without ``parallel_tool_calls`` it makes one call at most.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Literal["auto", "required"] = "auto"
    tool: str | None = None
    parallel_tool_calls: bool = True

    @property
    def chars(self) -> int:
        """About how many characters the prompt has."""
        messages = sum(
            len(message.content) + PICTURE_CHARS * len(message.pictures)
            for message in self.messages
        )
        tools = sum(len(tool.description) + len(tool.parameters) for tool in self.tools)
        return messages + tools


def _units(value: ChatInput) -> float:
    return text_units(value, value.chars)


CHAT = Kind("chat", ChatInput, _units, resumable=True)

"""``POST /api/chat``, Ollama's chat."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import UnsupportedField
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.ollama.answer import OllamaAnswer, reply
from blip.gateway.routes.ollama.dialect import DIALECT, served_name
from blip.gateway.routes.ollama.options import OllamaText
from blip.gateway.routes.ollama.pictures import pictures_of
from blip.gateway.tools import ANY, Tools, tool_fields
from blip.kinds.chat import CHAT, ChatInput, ChatMessage
from blip.kinds.tools import ToolCall


class OllamaFunction(Request):
    """What was called, and with what."""

    name: str
    arguments: dict[str, Any]
    index: Annotated[Any, Ignored()] = None
    description: Annotated[Any, Ignored()] = None


class OllamaCall(Request):
    """A call in an earlier message of the assistant."""

    function: OllamaFunction
    id: str | None = None
    type: Annotated[Any, Ignored()] = None


class OllamaMessage(Request):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: list[OllamaCall] | None = None
    """What an assistant called."""
    tool_name: str | None = None
    """The function that a tool's message answers."""
    tool_call_id: str | None = None
    """The call that a tool's message answers, if it had an id."""
    images: list[str] | None = None
    """Pictures in base64, for models that see; they come before the text."""
    thinking: Annotated[Any, Refused("Leave out what was thought.", "")] = None

    def plain(self, at: str) -> ChatMessage:
        """Return the message as models get it; ``at`` is where it stands, ending in a dot."""
        self.check(at)
        tool = self.role == "tool"
        return ChatMessage(
            role=self.role,
            content=self.content,
            name=self.tool_name if tool else None,
            pictures=pictures_of(self.images, f"{at}images"),
            tool_calls=[
                ToolCall(
                    id=call.id or f"call_{number}",
                    name=call.function.name,
                    arguments=json.dumps(call.function.arguments),
                )
                for number, call in enumerate(self.tool_calls or ())
            ],
            tool_call_id=(self.tool_call_id or "call_0") if tool else None,
        )


class OllamaChatRequest(OllamaText):
    """A conversation to continue."""

    messages: Annotated[list[OllamaMessage], Field(min_length=1)]
    """The conversation so far, oldest first."""
    tools: Tools | None = None
    """Functions that the model may call."""

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        last = len(self.messages) - 1
        if self.messages[last].role == "assistant":
            raise UnsupportedField(
                f"'messages.{last}.role': an answer cannot be begun for the model here.",
                hint="End with a user's message.",
                param=f"messages.{last}.role",
            )

    def task(self) -> ChatInput:
        """Return the input of the task."""
        messages = [each.plain(f"messages.{index}.") for index, each in enumerate(self.messages)]
        tools = [tool.plain(f"tools.{index}.") for index, tool in enumerate(self.tools or ())]
        return ChatInput(messages=messages, **self.sampling(), **tool_fields(tools, ANY, None))


class OllamaAnswerFunction(BaseModel):
    """What is called, and with what."""

    name: str
    arguments: dict[str, Any]


class OllamaAnswerCall(BaseModel):
    """A call that the model makes."""

    function: OllamaAnswerFunction


class OllamaAnswerMessage(BaseModel):
    """What the model said, or a piece of it."""

    role: Literal["assistant"] = "assistant"
    content: str
    tool_calls: list[OllamaAnswerCall] | None = None


class OllamaChatAnswer(OllamaAnswer):
    """An answer, or a piece of it."""

    message: OllamaAnswerMessage


async def create(exchange: Exchange, body: OllamaChatRequest) -> web.StreamResponse:
    """Continue a conversation, in Ollama's shapes.

    It streams unless stream is false. Options that would change the answer and are not supported
    are refused by name; those that concern loading are ignored.
    """
    exchange.start(CHAT, served_name(exchange, body.model), [body.task()])
    return await reply(exchange, body, _place)


def _place(text: str, calls: str) -> str:
    called = f',"tool_calls":[{calls}]' if calls else ""
    return f'"message":{{"role":"assistant","content":{text}{called}}}'


OPERATIONS = (
    Operation(
        "POST",
        "/api/chat",
        create,
        "Continue a conversation",
        "ollama",
        body=OllamaChatRequest,
        answer=OllamaChatAnswer,
        event=OllamaChatAnswer,
        errors=TEXT_FAILURES,
        task=True,
        example={
            "model": "smollm2",
            "messages": [{"role": "user", "content": "Name three rivers."}],
            "options": {"num_predict": 64},
        },
        dialect=DIALECT,
    ),
)

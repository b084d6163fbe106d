"""``POST /api/chat``, Ollama's chat."""

from __future__ import annotations

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
from blip.kinds.chat import CHAT, ChatInput, ChatMessage

_NO_TOOLS = "This mesh runs no tools: describe them in the prompt, or leave the field out."


class OllamaMessage(Request):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_name: Annotated[Any, Ignored()] = None
    tool_call_id: Annotated[Any, Ignored()] = None
    images: list[str] | None = None
    """Pictures in base64, for models that see; they come before the text."""
    thinking: Annotated[Any, Refused("Leave out what was thought.", "")] = None
    tool_calls: Annotated[Any, Refused(_NO_TOOLS, [])] = None


class OllamaChatRequest(OllamaText):
    """A conversation to continue."""

    messages: Annotated[list[OllamaMessage], Field(min_length=1)]
    """The conversation so far, oldest first."""
    tools: Annotated[Any, Refused(_NO_TOOLS, [])] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        for index, message in enumerate(self.messages):
            message.check(f"messages.{index}.")
        last = len(self.messages) - 1
        if self.messages[last].role == "assistant":
            raise UnsupportedField(
                f"'messages.{last}.role': an answer cannot be begun for the model here.",
                hint="End with a user's message.",
                param=f"messages.{last}.role",
            )

    def task(self) -> ChatInput:
        """Return the input of the task."""
        messages = [
            ChatMessage(
                role=each.role,
                content=each.content,
                pictures=pictures_of(each.images, f"messages.{index}.images"),
            )
            for index, each in enumerate(self.messages)
        ]
        return ChatInput(messages=messages, **self.sampling())


class OllamaAnswerMessage(BaseModel):
    """What the model said, or a piece of it."""

    role: Literal["assistant"] = "assistant"
    content: str


class OllamaChatAnswer(OllamaAnswer):
    """An answer, or a piece of it."""

    message: OllamaAnswerMessage


async def create(exchange: Exchange, body: OllamaChatRequest) -> web.StreamResponse:
    """Continue a conversation, in Ollama's shapes.

    It streams unless stream is false. Options that would change the answer and are not supported
    are refused by name; those that concern loading are ignored.
    """
    exchange.start(CHAT, served_name(exchange, body.model), [body.task()])
    return await reply(
        exchange, body, lambda text: f'"message":{{"role":"assistant","content":{text}}}'
    )


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

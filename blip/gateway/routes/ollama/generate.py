"""``POST /api/generate``, Ollama's answer to one prompt."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import Field

from blip.errors import InvalidRequest
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Refused
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.ollama.answer import OllamaAnswer, reply
from blip.gateway.routes.ollama.dialect import DIALECT, served_name
from blip.gateway.routes.ollama.options import OllamaText
from blip.gateway.routes.ollama.pictures import pictures_of
from blip.kinds.chat import CHAT, ChatInput, ChatMessage
from blip.kinds.completion import COMPLETION, CompletionInput

_IMAGES = "Ask for images where the mesh makes them, with their own route."


class GenerateRequest(OllamaText):
    """A prompt to answer, or, if raw, to continue."""

    prompt: Annotated[str, Field(min_length=1)]
    """What the user says, or with raw the text to continue."""
    system: str | None = None
    """What the model should heed throughout."""
    raw: bool | None = None
    """Whether to continue the prompt as it is, without the model's template."""

    images: list[str] | None = None
    """Pictures in base64, for models that see; they come before the prompt."""

    context: Annotated[Any, Refused("Use /api/chat and send the conversation.", [])] = None
    height: Annotated[Any, Refused(_IMAGES, 0)] = None
    steps: Annotated[Any, Refused(_IMAGES, 0)] = None
    suffix: Annotated[Any, Refused("Models here only write forwards.", "")] = None
    template: Annotated[Any, Refused("Render the prompt yourself and set raw.", "")] = None
    width: Annotated[Any, Refused(_IMAGES, 0)] = None
    truncate: Annotated[Any, Ignored()] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        if self.raw and self.system:
            raise InvalidRequest(
                "'system' has no place in a raw prompt.",
                hint="Write it into the prompt.",
                param="system",
            )
        if self.raw and self.images:
            raise InvalidRequest(
                "'images' have no place in a raw prompt.", hint="Leave out raw.", param="images"
            )

    def task(self) -> ChatInput | CompletionInput:
        """Return the input of the task: a completion if raw, else a chat."""
        sampling = self.sampling()
        if self.raw:
            return CompletionInput(prompt=self.prompt, **sampling)
        pictures = pictures_of(self.images, "images")
        messages = [ChatMessage(role="user", content=self.prompt, pictures=pictures)]
        if self.system:
            messages.insert(0, ChatMessage(role="system", content=self.system))
        return ChatInput(messages=messages, **sampling)


class GenerateAnswer(OllamaAnswer):
    """An answer, or a piece of it."""

    response: str


async def create(exchange: Exchange, body: GenerateRequest) -> web.StreamResponse:
    """Answer one prompt, in Ollama's shapes.

    The prompt goes through the model's chat template unless raw is set. It streams unless stream is
    false. There is no context to go on with: conversations are what /api/chat is for.
    """
    kind = COMPLETION if body.raw else CHAT
    exchange.start(kind, served_name(exchange, body.model), [body.task()])
    return await reply(exchange, body, lambda text, calls: f'"response":{text}')


OPERATIONS = (
    Operation(
        "POST",
        "/api/generate",
        create,
        "Answer a prompt",
        "ollama",
        body=GenerateRequest,
        answer=GenerateAnswer,
        event=GenerateAnswer,
        errors=TEXT_FAILURES,
        task=True,
        example={"model": "smollm2", "prompt": "Name three rivers.", "stream": False},
        dialect=DIALECT,
    ),
)

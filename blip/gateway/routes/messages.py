"""``POST /v1/messages``, Anthropic's chat."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import Field

from blip.errors import InvalidRequest, UnsupportedField
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.parts import Content, Part, Typed, contents
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.messages_answer import (
    DIALECT,
    FRAMING,
    Events,
    MessageAnswer,
    MessageEvent,
    message_of,
)
from blip.gateway.sampling import (
    MaxTokens,
    ModelName,
    Seed,
    Stops,
    Temperature,
    TopK,
    TopP,
    wishes,
)
from blip.gateway.text import collect, stream, usage_of
from blip.gateway.upload import decode_picture
from blip.kinds.chat import CHAT, ChatInput, ChatMessage

_NO_TOOLS = "This mesh runs no tools: describe them in the prompt, or leave the field out."

Role = Literal["user", "assistant", "system"]


class ImageSource(Typed):
    """Where a picture is: here."""

    noun: ClassVar[str] = "sources"

    type: str = ""
    """base64, the only type that is supported."""
    media_type: Annotated[str | None, Ignored()] = None
    data: str | None = None
    """The file in base64: PNG, JPEG or WebP, whatever media_type says."""
    url: Annotated[Any, Refused("Send the picture itself, with type base64.")] = None
    file_id: Annotated[Any, Refused("Send the picture itself, with type base64.")] = None


class Block(Part):
    """A block of content: text, or a picture for models that see."""

    noun: ClassVar[str] = "blocks"

    type: str
    """text or image."""
    text: str | None = None
    source: ImageSource | None = None
    """The picture of an image block."""
    cache_control: Annotated[Any, Ignored()] = None
    citations: Annotated[Any, Ignored()] = None

    def picture(self, at: str) -> bytes | None:
        """Return the file of an image block, None for others."""
        if self.type != "image":
            return None
        self.check(at)
        source = self.source
        if source is None:
            raise InvalidRequest(f"'{at}source' is missing from this block.", param=at + "source")
        source.check(f"{at}source.")
        if source.type != "base64" or source.data is None:
            raise UnsupportedField(
                f"'{at}source.type': pictures come as base64, not as '{source.type}'.",
                hint="Send the picture itself: type base64, and its data.",
                param=at + "source.type",
            )
        return decode_picture(source.data, f"{at}source.data")


class MessageParam(Request):
    """One turn of the conversation."""

    role: Role
    content: str | list[Block]
    """Text, or text in blocks, which become paragraphs."""


class OutputConfig(Request):
    """What the answer should be like."""

    format: Annotated[Any, Refused("Ask for it in the prompt and check what comes.")] = None
    effort: Annotated[Any, Refused("Say in the prompt how hard to think.", "high")] = None


class MessagesRequest(Request):
    """A conversation to continue."""

    model: ModelName
    """A name from GET /v1/models."""
    max_tokens: MaxTokens
    """Most tokens of the answer."""
    messages: Annotated[list[MessageParam], Field(min_length=1)]
    """The conversation so far, oldest first; turns of one role in a row become one."""
    system: str | list[Block] | None = None
    """What the model should heed throughout."""
    stop_sequences: Stops | None = None
    """Texts, at most four, before which the answer ends."""
    temperature: Temperature | None = None
    """0 takes the likeliest token always, 1 (the default) samples as the model was trained."""
    top_p: TopP | None = None
    """Sample from the likeliest tokens that make up this much probability; 1 by default."""
    top_k: TopK | None = None
    """Sample from this many likeliest tokens; 0 or -1 for all."""
    seed: Seed | None = None
    """Makes sampling repeatable, as far as devices agree. OpenAI's, not Anthropic's."""
    stream: bool | None = None
    """Whether to send the answer piece by piece, as server-sent events."""
    output_config: OutputConfig | None = None

    cache_control: Annotated[Any, Ignored()] = None
    diagnostics: Annotated[Any, Ignored()] = None
    metadata: Annotated[Any, Ignored()] = None
    service_tier: Annotated[Any, Ignored()] = None
    speed: Annotated[Any, Ignored()] = None
    user_profile_id: Annotated[Any, Ignored()] = None
    workspace_id: Annotated[Any, Ignored()] = None

    container: Annotated[Any, Refused(_NO_TOOLS)] = None
    inference_geo: Annotated[
        Any, Refused("Say in X-Blip-Require where it may run: label.zone=cellar.")
    ] = None
    thinking: Annotated[
        Any, Refused("Say in the prompt how hard to think.", {"type": "disabled"})
    ] = None
    tool_choice: Annotated[Any, Refused(_NO_TOOLS, {"type": "none"}, {"type": "auto"})] = None
    tools: Annotated[Any, Refused(_NO_TOOLS, [])] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        if self.output_config is not None:
            self.output_config.check("output_config.")
        last = len(self.messages) - 1
        if self.messages[last].role == "assistant":
            raise UnsupportedField(
                f"'messages.{last}.role': an answer cannot be begun for the model here.",
                hint="End with a user's message.",
                param=f"messages.{last}.role",
            )

    def task(self) -> ChatInput:
        """Return the input of the task."""
        turns: list[tuple[Role, Content]] = []
        if self.system is not None:
            turns.append(("system", _content(self.system, "system")))
        for index, message in enumerate(self.messages):
            content = _content(message.content, f"messages.{index}.content")
            if turns and turns[-1][0] == message.role:
                content = turns.pop()[1].followed(content)
            turns.append((message.role, content))
        sampling = wishes(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop_sequences,
            # the tokens tell which of the sequences ended it
            logprobs=0 if self.stop_sequences else None,
        )
        messages = [
            ChatMessage(role=role, content=content.text, pictures=content.pictures)
            for role, content in turns
        ]
        return ChatInput(messages=messages, **sampling)


def _content(content: Any, at: str) -> Content:
    found = contents(content, at)
    if not isinstance(content, str) and not content:
        raise InvalidRequest(f"'{at}' has no blocks.", param=at)
    return found


async def create(exchange: Exchange, body: MessagesRequest) -> web.StreamResponse:
    """Continue a conversation, in the shapes of Anthropic's Messages API.

    Errors have Anthropic's envelope. Fields that would change the answer and are not supported are
    refused by name. Tokens of the prompt are counted where the model runs, hence a stream says
    them at its end, in message_delta.
    """
    task = body.task()
    exchange.start(CHAT, body.model, [task])
    task_id = exchange.calls[0].task_id
    if body.stream:
        events = Events(task_id, body.model, task.stop)
        return await stream(exchange, events, 1, usage=True, framing=FRAMING)
    (draft,) = await collect(exchange)
    answer = message_of(task_id, body.model, task.stop, draft, usage_of(exchange.answers, 1))
    return web.Response(text=answer.model_dump_json(), content_type="application/json")


OPERATIONS = (
    Operation(
        "POST",
        "/v1/messages",
        create,
        "Continue a conversation",
        "anthropic",
        body=MessagesRequest,
        answer=MessageAnswer,
        event=MessageEvent,
        errors=TEXT_FAILURES,
        task=True,
        example={
            "model": "smollm2",
            "max_tokens": 64,
            "messages": [{"role": "user", "content": "Name three rivers."}],
        },
        dialect=DIALECT,
    ),
)

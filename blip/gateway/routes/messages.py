"""``POST /v1/messages``, Anthropic's chat."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import Field

from blip.errors import InvalidRequest, UnsupportedField
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.formats import Schema, of_schema
from blip.gateway.parts import Content, Part, Typed, contents, joined
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
from blip.gateway.tools import ANY, Choice, tool_fields, tool_of
from blip.gateway.upload import decode_picture
from blip.kinds.chat import CHAT, ChatInput, ChatMessage
from blip.kinds.grammar import Grammar
from blip.kinds.tools import MAX_TOOLS, Tool, ToolCall, ToolName

_NO_CONTAINER = "This mesh runs no code of its own: describe functions as tools and run them."

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


class ContentBlock(Part):
    """A text, or a picture for models that see."""

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


class Block(ContentBlock):
    """A block of content: text, a picture, an assistant's call of a tool, or what came of one."""

    hint: ClassVar[str] = "Send text, image, tool_use and tool_result."

    type: str
    """text, image, tool_use, or tool_result."""
    id: str | None = None
    """Of a tool_use."""
    name: str | None = None
    """The tool that is used."""
    input: dict[str, Any] | None = None
    """What the tool is given."""
    tool_use_id: str | None = None
    """The tool_use whose result this is."""
    content: str | list[ContentBlock] | None = None
    """The result: text, or texts and pictures in blocks."""
    is_error: bool | None = None
    """Whether the tool failed; the model gets to read that."""
    caller: Annotated[Any, Ignored()] = None

    def call(self, at: str) -> ToolCall:
        """Return a tool_use; ``at`` is where the block stands in the body, ending in a dot."""
        given = self._with(at, "id", "name", "input")
        return ToolCall(id=given.id, name=given.name, arguments=json.dumps(given.input))

    def result(self, at: str) -> ChatMessage:
        """Return a tool_result; ``at`` is where the block stands in the body, ending in a dot."""
        given = self._with(at, "tool_use_id")
        found = contents(given.content or "", at + "content")
        if self.is_error:
            found = found.introduced("Error: ")
        return ChatMessage(
            role="tool",
            content=found.text,
            pictures=found.pictures,
            tool_call_id=self.tool_use_id,
        )

    def _with(self, at: str, *names: str) -> Any:
        self.check(at)
        for name in names:
            if getattr(self, name) is None:
                raise InvalidRequest(f"'{at}{name}' is missing from this block.", param=at + name)
        return self


class MessageParam(Request):
    """One turn of the conversation."""

    role: Role
    content: str | list[Block]
    """Text, or blocks: texts, which become paragraphs, and uses of tools and their results."""

    def turns(self, at: str) -> list[ChatMessage]:
        """Return the turn as models get it: results are turns of their own, before the text.

        ``at`` is where this stands in the body, ending in a dot.
        """
        blocks = self.content if isinstance(self.content, list) else []
        calls, results = [], []
        pieces: list[str | bytes] = []
        for index, block in enumerate(blocks):
            where = f"{at}content.{index}."
            if block.type == "tool_use" and self.role == "assistant":
                calls.append(block.call(where))
            elif block.type == "tool_result" and self.role == "user":
                results.append(block.result(where))
            elif block.type in ("tool_use", "tool_result"):
                raise InvalidRequest(
                    f"'{where}type': a {block.type} is not {self.role}'s to send.",
                    hint="Tools are used by the assistant, and results are sent by the user.",
                    param=where + "type",
                )
            else:
                pieces.append(block.piece(where))
        if isinstance(self.content, str):
            found = Content(self.content, [])
        elif not blocks:
            raise InvalidRequest(f"'{at}content' has no blocks.", param=f"{at}content")
        elif pieces or calls:
            found = joined(pieces, f"{at}content")
        else:
            return results
        said = ChatMessage(
            role=self.role, content=found.text, pictures=found.pictures, tool_calls=calls
        )
        return [*results, said]


class ToolParam(Typed):
    """Something that the model may use."""

    noun: ClassVar[str] = "tools"
    hint: ClassVar[str] = "Describe a tool of your own, and run it yourself."

    type: str | None = None
    """custom, the only type that is supported."""
    name: ToolName
    description: str | None = None
    """What it does, for the model."""
    input_schema: Schema | None = None
    """The JSON Schema of what it is given."""
    strict: bool | None = None
    """Whether keywords that cannot be enforced are an error; otherwise they are ignored."""
    allowed_callers: Annotated[Any, Ignored()] = None
    cache_control: Annotated[Any, Ignored()] = None
    eager_input_streaming: Annotated[Any, Ignored()] = None
    input_examples: Annotated[Any, Ignored()] = None

    def plain(self, at: str) -> Tool:
        """Return it as models get it; ``at`` is where it stands in the body, ending in a dot."""
        if self.type not in (None, "custom"):
            self.refuse_type(str(self.type), at)
        self.check(at)
        if self.input_schema is None:
            raise InvalidRequest(f"'{at}input_schema' is missing.", param=at + "input_schema")
        where = f"{at}input_schema"
        return tool_of(self.name, self.description, self.input_schema, where, strict=self.strict)


class ToolChoiceParam(Request):
    """Which tools the model may or must use."""

    type: Literal["auto", "any", "tool", "none"]
    """Whether it may use tools, must use any or a certain one, or must not."""
    name: str | None = None
    """The tool, with the type tool."""
    disable_parallel_tool_use: bool | None = None
    """True for at most one use an answer."""

    def plain(self, at: str) -> Choice:
        """Return the choice; ``at`` is where it stands in the body, ending in a dot."""
        if self.type == "tool":
            if self.name is None:
                raise InvalidRequest(f"'{at}name' is missing.", param=at + "name")
            return Choice("required", self.name)
        return Choice("required" if self.type == "any" else self.type)


class OutputFormat(Typed):
    """A form that the text keeps to."""

    noun: ClassVar[str] = "formats"
    hint: ClassVar[str] = "Send a json_schema."

    type: str
    """json_schema, the only type that is supported."""
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    """The JSON Schema that the text satisfies."""

    def grammar(self, at: str) -> Grammar:
        """Return the form; ``at`` is where this stands in the body, ending in a dot."""
        if self.type != "json_schema":
            self.refuse_type(self.type, at)
        self.check(at)
        if self.schema_ is None:
            raise InvalidRequest(f"'{at}schema' is missing.", param=at + "schema")
        return of_schema(self.schema_, at + "schema")


class OutputConfig(Request):
    """What the answer should be like."""

    format: OutputFormat | None = None
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
    tools: Annotated[list[ToolParam], Field(max_length=MAX_TOOLS)] | None = None
    """Tools of yours that the model may use."""
    tool_choice: ToolChoiceParam | None = None
    output_config: OutputConfig | None = None

    cache_control: Annotated[Any, Ignored()] = None
    diagnostics: Annotated[Any, Ignored()] = None
    metadata: Annotated[Any, Ignored()] = None
    service_tier: Annotated[Any, Ignored()] = None
    speed: Annotated[Any, Ignored()] = None
    user_profile_id: Annotated[Any, Ignored()] = None
    workspace_id: Annotated[Any, Ignored()] = None

    container: Annotated[Any, Refused(_NO_CONTAINER)] = None
    inference_geo: Annotated[
        Any, Refused("Say in X-Blip-Require where it may run: label.zone=cellar.")
    ] = None
    thinking: Annotated[
        Any, Refused("Say in the prompt how hard to think.", {"type": "disabled"})
    ] = None

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
        turns: list[ChatMessage] = []
        if self.system is not None:
            system = _content(self.system, "system")
            turns.append(ChatMessage(role="system", content=system.text, pictures=system.pictures))
        for index, message in enumerate(self.messages):
            for turn in message.turns(f"messages.{index}."):
                if turns and turns[-1].role == turn.role != "tool":
                    turn = _together(turns.pop(), turn)
                turns.append(turn)
        config = self.output_config
        sampling = wishes(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop_sequences,
            grammar=config.format.grammar("output_config.format.")
            if config is not None and config.format is not None
            else None,
        )
        tools = [tool.plain(f"tools.{index}.") for index, tool in enumerate(self.tools or ())]
        given = self.tool_choice
        choice = ANY if given is None else given.plain("tool_choice.")
        parallel = not (given is not None and given.disable_parallel_tool_use)
        return ChatInput(messages=turns, **sampling, **tool_fields(tools, choice, parallel))


def _together(first: ChatMessage, second: ChatMessage) -> ChatMessage:
    """Return two turns of one role as one."""
    said = [
        Content(each.content, each.pictures)
        for each in (first, second)
        if each.content or each.pictures or not each.tool_calls
    ]
    found = said[0].followed(said[1]) if len(said) > 1 else (said or [Content("", [])])[0]
    calls = [*first.tool_calls, *second.tool_calls]
    changes = {"content": found.text, "pictures": found.pictures, "tool_calls": calls}
    return first.model_copy(update=changes)


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
        events = Events(task_id, body.model, calls=bool(task.tools))
        return await stream(exchange, events, 1, usage=True, framing=FRAMING)
    (draft,) = await collect(exchange)
    answer = message_of(task_id, body.model, draft, usage_of(exchange.answers, 1))
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

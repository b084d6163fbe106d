"""What ``POST /v1/responses`` takes: items of input, and what is wished of the answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from blip.errors import InvalidRequest
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.formats import Schema, any_object, of_schema
from blip.gateway.parts import Part, Typed, contents
from blip.gateway.sampling import (
    MaxTokens,
    ModelName,
    RepetitionPenalty,
    Seed,
    Stop,
    Stops,
    Temperature,
    TopK,
    TopP,
    wishes,
)
from blip.gateway.tools import ANY, Choice, Mode, tool_fields, tool_of
from blip.gateway.upload import decode_picture
from blip.kinds.chat import ChatInput, ChatMessage
from blip.kinds.grammar import Grammar
from blip.kinds.tools import MAX_TOOLS, Tool, ToolCall, ToolName

_NOTHING_STORED = "Nothing is stored here: send the whole conversation as input."
_LOGPROBS = "message.output_text.logprobs"


class InputPart(Part):
    """A part of a message: what a user or an assistant wrote."""

    texts = {  # noqa: RUF012  (a ClassVar of the base)
        "input_text": "text",
        "output_text": "text",
        "text": "text",
        "refusal": "refusal",
    }

    type: str
    """input_text or input_image; output_text or refusal for an assistant's."""
    text: str | None = None
    image_url: str | None = None
    """The picture of an input_image: data:image/png;base64,... or another format."""
    detail: Annotated[Any, Ignored()] = None
    file_id: Annotated[Any, Refused("Send the picture itself as image_url.")] = None
    refusal: str | None = None
    annotations: Annotated[Any, Ignored()] = None
    logprobs: Annotated[Any, Ignored()] = None
    prompt_cache_breakpoint: Annotated[Any, Ignored()] = None

    def picture(self, at: str) -> bytes | None:
        """Return the file of an input_image, None for others."""
        if self.type != "input_image":
            return None
        self.check(at)
        if self.image_url is None:
            raise InvalidRequest(
                f"'{at}image_url' is missing from this part.", param=at + "image_url"
            )
        return decode_picture(self.image_url, f"{at}image_url")


class InputItem(Typed):
    """A message, a call, or what came of one; an item of an earlier response's output is one."""

    noun: ClassVar[str] = "items"
    hint: ClassVar[str] = "Send messages, function_call and function_call_output."

    type: str = "message"
    """message, function_call, or function_call_output."""
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    """Text, or text in parts, which become paragraphs."""
    call_id: str | None = None
    """Which call this is, or answers."""
    name: str | None = None
    """The function of a call."""
    arguments: str | None = None
    """Those of a call, as JSON text."""
    output: str | list[InputPart] | None = None
    """What came of a call."""
    id: Annotated[Any, Ignored()] = None
    status: Annotated[Any, Ignored()] = None
    phase: Annotated[Any, Ignored()] = None

    def plain(self, at: str) -> ChatMessage:
        """Return the message as models get it."""
        needed = _NEEDED.get(self.type)
        if needed is None:
            self.refuse_type(self.type, at)
        self.check(at)
        for name in needed:
            if getattr(self, name) is None:
                raise InvalidRequest(f"'{at}{name}' is missing.", param=at + name)
        given: Any = self
        if self.type == "function_call":
            call = ToolCall(id=given.call_id, name=given.name, arguments=given.arguments)
            return ChatMessage(role="assistant", content="", tool_calls=[call])
        if self.type == "function_call_output":
            found = contents(given.output, at + "output")
            return ChatMessage(
                role="tool",
                content=found.text,
                pictures=found.pictures,
                tool_call_id=self.call_id,
            )
        found = contents(given.content, at + "content")
        return ChatMessage(role=given.role, content=found.text, pictures=found.pictures)


#: The types of items, and what each must have.
_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}


class FormatConfig(Typed):
    """A form that the text keeps to."""

    noun: ClassVar[str] = "formats"
    hint: ClassVar[str] = "Send text, json_object or json_schema."

    type: str
    """text, json_object, or json_schema."""
    name: Annotated[str | None, Ignored()] = None
    description: Annotated[str | None, Ignored()] = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    """With json_schema: the JSON Schema that the text satisfies."""
    strict: bool | None = None
    """Whether keywords that cannot be enforced are an error; otherwise they are ignored."""

    def grammar(self, at: str) -> Grammar | None:
        """Return the form; ``at`` is where this stands in the body, ending in a dot."""
        if self.type not in ("text", "json_object", "json_schema"):
            self.refuse_type(self.type, at)
        self.check(at)
        if self.type == "text":
            return None
        if self.type == "json_object":
            return any_object(at.rstrip("."))
        if self.schema_ is None:
            raise InvalidRequest(f"'{at}schema' is missing.", param=at + "schema")
        return of_schema(self.schema_, at + "schema", strict=bool(self.strict))


class FunctionTool(Typed):
    """Something that the model may call."""

    noun: ClassVar[str] = "tools"
    hint: ClassVar[str] = "Describe a function."

    type: str
    """function, the only type that is supported."""
    name: ToolName | None = None
    description: str | None = None
    """What it does, for the model."""
    parameters: dict[str, Any] | None = None
    """The JSON Schema of its arguments; none without it."""
    strict: bool | None = None
    """Whether keywords that cannot be enforced are an error; otherwise they are ignored."""

    def plain(self, at: str) -> Tool:
        """Return it as models get it; ``at`` is where it stands in the body, ending in a dot."""
        if self.type != "function":
            self.refuse_type(self.type, at)
        self.check(at)
        if self.name is None:
            raise InvalidRequest(f"'{at}name' is missing.", param=at + "name")
        where = f"{at}parameters"
        return tool_of(self.name, self.description, self.parameters, where, strict=self.strict)


class FunctionChoice(Typed):
    """The function that must be called."""

    noun: ClassVar[str] = "choices"
    hint: ClassVar[str] = "Name a function, or send none, auto or required."

    type: str
    """function, the only type that is supported."""
    name: str | None = None

    def plain(self, at: str) -> Choice:
        """Return the choice; ``at`` is where it stands in the body, ending in a dot."""
        if self.type != "function":
            self.refuse_type(self.type, at)
        self.check(at)
        if self.name is None:
            raise InvalidRequest(f"'{at}name' is missing.", param=at + "name")
        return Choice("required", self.name)


class TextConfig(Request):
    """What the text should be like."""

    format: FormatConfig | None = None
    verbosity: Annotated[Any, Refused("Say in the prompt how long to answer.", "medium")] = None


class Reasoning(Request):
    """How to think before the answer; models here show no such thing."""

    effort: Annotated[Any, Refused("Say in the prompt how hard to think.", "none")] = None
    mode: Annotated[Any, Refused("Say in the prompt how hard to think.", "standard")] = None
    context: Annotated[Any, Ignored()] = None
    summary: Annotated[Any, Ignored()] = None
    generate_summary: Annotated[Any, Ignored()] = None


class ResponseStreamOptions(Request):
    """Nothing that matters here."""

    include_obfuscation: Annotated[Any, Ignored()] = None


class ResponseRequest(Request):
    """A conversation to continue, as one text or as items."""

    model: ModelName
    """A name from GET /v1/models."""
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    """One text of a user, or the conversation so far, oldest first."""
    instructions: str | None = None
    """What the model should heed throughout; it comes before the input."""
    max_output_tokens: MaxTokens | None = None
    """Most tokens of the answer."""
    temperature: Temperature | None = None
    """0 takes the likeliest token always, 1 (the default) samples as the model was trained."""
    top_p: TopP | None = None
    """Sample from the likeliest tokens that make up this much probability; 1 by default."""
    top_k: TopK | None = None
    """Sample from this many likeliest tokens; 0 or -1 for all. vLLM's, not OpenAI's."""
    repetition_penalty: RepetitionPenalty | None = None
    """Above 1 makes tokens less likely that were there before. vLLM's, not OpenAI's."""
    stop: Stop | Stops | None = None
    """Texts, at most four, before which the answer ends. As in chat; not OpenAI's here."""
    seed: Seed | None = None
    """Makes sampling repeatable, as far as devices agree. As in chat; not OpenAI's here."""
    include: list[str] | None = None
    """message.output_text.logprobs says how likely each token was; others have nothing to add."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """How many alternatives to list for each token; needs that include."""
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    """Functions that the model may call."""
    tool_choice: Mode | FunctionChoice | None = None
    """Whether it may, must, or must not; or the function that it must."""
    parallel_tool_calls: bool | None = None
    """False for at most one call an answer."""
    metadata: dict[str, str] | None = None
    """Comes back with the answer."""
    stream: bool | None = None
    """Whether to send the answer piece by piece, as server-sent events."""
    stream_options: ResponseStreamOptions | None = None

    background_options: Annotated[Any, Ignored()] = None
    image: Annotated[Any, Ignored()] = None
    max_tool_calls: Annotated[Any, Ignored()] = None
    prompt_cache_key: Annotated[Any, Ignored()] = None
    prompt_cache_options: Annotated[Any, Ignored()] = None
    prompt_cache_retention: Annotated[Any, Ignored()] = None
    safety_identifier: Annotated[Any, Ignored()] = None
    service_tier: Annotated[Any, Ignored()] = None
    user: Annotated[Any, Ignored()] = None

    access_programs: Annotated[Any, Refused("Leave it out; it is OpenAI's own.")] = None
    background: Annotated[Any, Refused("Wait for the answer, or stream it.", False)] = None
    context_management: Annotated[Any, Refused(_NOTHING_STORED, [])] = None
    conversation: Annotated[Any, Refused(_NOTHING_STORED)] = None
    moderation: Annotated[Any, Refused("Nothing here moderates; do it before or after.")] = None
    previous_response_id: Annotated[Any, Refused(_NOTHING_STORED)] = None
    prompt: Annotated[Any, Refused("Send the prompt itself as input.")] = None
    store: Annotated[Any, Refused("Nothing is stored here; keep the answer yourself.", False)] = (
        None
    )
    truncation: Annotated[Any, Refused("Shorten the input yourself.", "disabled")] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        for name in ("text", "reasoning", "stream_options"):
            inner: Request | None = getattr(self, name)
            if inner is not None:
                inner.check(f"{at}{name}.")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest(
                f"'top_logprobs' needs 'include': ['{_LOGPROBS}'].", param="top_logprobs"
            )
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("'stream_options' needs 'stream': true.", param="stream_options")

    @property
    def logprobs(self) -> bool:
        """Whether the answer says how likely each token was."""
        return self.include is not None and _LOGPROBS in self.include

    def task(self) -> ChatInput:
        """Return the input of the task."""
        messages: list[ChatMessage]
        if isinstance(self.input, str):
            messages = [ChatMessage(role="user", content=self.input)]
        else:
            messages = _turns(
                item.plain(f"input.{index}.") for index, item in enumerate(self.input)
            )
        if self.instructions:
            messages = [ChatMessage(role="system", content=self.instructions), *messages]
        sampling = wishes(
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            stop=self.stop,
            seed=self.seed,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            grammar=self.text.format.grammar("text.format.")
            if self.text is not None and self.text.format is not None
            else None,
        )
        tools = [tool.plain(f"tools.{index}.") for index, tool in enumerate(self.tools or ())]
        calling = tool_fields(tools, self._choice(), self.parallel_tool_calls)
        return ChatInput(messages=messages, **sampling, **calling)

    def _choice(self) -> Choice:
        given = self.tool_choice
        if given is None:
            return ANY
        return Choice(given) if isinstance(given, str) else given.plain("tool_choice.")


def _turns(messages: Iterable[ChatMessage]) -> list[ChatMessage]:
    """Return messages with calls in the turn of the assistant that made them."""
    turns: list[ChatMessage] = []
    for message in messages:
        if message.tool_calls and turns and turns[-1].role == "assistant":
            calls = [*turns[-1].tool_calls, *message.tool_calls]
            turns[-1] = turns[-1].model_copy(update={"tool_calls": calls})
        else:
            turns.append(message)
    return turns

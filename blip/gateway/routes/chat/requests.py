"""What ``POST /v1/chat/completions`` takes: messages of parts, and what is wished of the answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from blip.errors import InvalidRequest, UnsupportedField
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.formats import ResponseFormat
from blip.gateway.parts import Content, joined
from blip.gateway.sampling import SamplingRequest
from blip.gateway.tools import (
    CallParam,
    Mode,
    ToolChoice,
    Tools,
    choice_of,
    tool_fields,
)
from blip.gateway.upload import decode_picture
from blip.kinds.chat import ChatInput, ChatMessage

_USE_TOOLS = "Use tools: functions are an older form of them."


class ImageUrl(Request):
    """A picture."""

    url: str
    """data:image/png;base64,... or another format; nothing is fetched from elsewhere."""
    detail: Annotated[Any, Ignored()] = None


class ContentPart(Request):
    """A part of a message: text, or a picture for models that see; ``refusal`` is text, too."""

    type: str
    """text, image_url, or refusal for an assistant's."""
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None
    input_audio: Annotated[Any, Refused("Send text and pictures only.")] = None
    file: Annotated[Any, Refused("Send text and pictures only.")] = None
    prompt_cache_breakpoint: Annotated[Any, Ignored()] = None

    def piece(self, at: str) -> str | bytes:
        """Return the text, or the file of a picture.

        Raises :class:`~blip.errors.UnsupportedField` for other types.
        """
        if self.type not in ("text", "refusal", "image_url"):
            raise UnsupportedField(
                f"'{at}type': parts of type '{self.type}' are not supported.",
                hint="Send text and pictures only.",
                param=at + "type",
            )
        self.check(at)
        if self.type == "image_url":
            if self.image_url is None:
                raise InvalidRequest(
                    f"'{at}image_url' is missing from this part.", param=at + "image_url"
                )
            return decode_picture(self.image_url.url, f"{at}image_url.url")
        text = self.text if self.type == "text" else self.refusal
        if text is None:
            raise InvalidRequest(
                f"'{at}{self.type}' is missing from this part.", param=at + self.type
            )
        return text


class Message(Request):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    """Text, or parts: texts become paragraphs, pictures keep their places among them."""
    name: str | None = None
    """Who is speaking, for models whose template has a place for it."""
    refusal: str | None = None
    """What an assistant said instead of content."""
    tool_calls: list[CallParam] | None = None
    """What an assistant called."""
    tool_call_id: str | None = None
    """The call that a tool's message answers."""
    annotations: Annotated[Any, Ignored()] = None
    audio: Annotated[Any, Refused("Send the transcript as content.")] = None
    function_call: Annotated[Any, Refused(_USE_TOOLS)] = None

    def plain(self, at: str) -> ChatMessage:
        """Return the message as models get it: several parts become paragraphs."""
        self.check(at)
        content = self.content
        if isinstance(content, list):
            pieces = (part.piece(f"{at}content.{n}.") for n, part in enumerate(content))
            found = joined(pieces, f"{at}content")
        else:
            found = Content((self.refusal if content is None else content) or "", [])
        calls = [
            call.plain(f"{at}tool_calls.{index}.")
            for index, call in enumerate(self.tool_calls or ())
        ]
        if calls and self.role != "assistant":
            raise InvalidRequest(
                f"'{at}tool_calls': only an assistant calls tools.", param=at + "tool_calls"
            )
        if content is None and self.refusal is None and not calls:
            raise InvalidRequest(f"'{at}content' is missing.", param=at + "content")
        return ChatMessage(
            role=self.role,
            content=found.text,
            name=self.name,
            pictures=found.pictures,
            tool_calls=calls,
            tool_call_id=self.tool_call_id if self.role == "tool" else None,
        )


class ChatRequest(SamplingRequest):
    """A conversation to continue."""

    messages: Annotated[list[Message], Field(min_length=1)]
    """The conversation so far, oldest first."""
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    """Whether to say how likely each token was."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """How many alternatives to list for each token; needs logprobs."""

    response_format: ResponseFormat | None = None
    """A form that the answer keeps to."""
    tools: Tools | None = None
    """Functions that the model may call."""
    tool_choice: Mode | ToolChoice | None = None
    """Whether it may, must, or must not; or the function that it must."""
    parallel_tool_calls: bool | None = None
    """False for at most one call an answer."""

    metadata: Annotated[Any, Ignored()] = None
    prompt_cache_key: Annotated[Any, Ignored()] = None
    prompt_cache_options: Annotated[Any, Ignored()] = None
    prompt_cache_retention: Annotated[Any, Ignored()] = None
    safety_identifier: Annotated[Any, Ignored()] = None
    service_tier: Annotated[Any, Ignored()] = None

    audio: Annotated[Any, Refused("Answers are text.")] = None
    function_call: Annotated[Any, Refused(_USE_TOOLS, "none", "auto")] = None
    functions: Annotated[Any, Refused(_USE_TOOLS, [])] = None
    modalities: Annotated[Any, Refused("Answers are text.", ["text"])] = None
    moderation: Annotated[Any, Refused("Nothing here moderates; do it before or after.")] = None
    prediction: Annotated[Any, Refused("Leave it out; it only saves OpenAI's time.")] = None
    reasoning_effort: Annotated[Any, Refused("Say in the prompt how hard to think.")] = None
    store: Annotated[Any, Refused("Nothing is stored here; keep the answer yourself.", False)] = (
        None
    )
    verbosity: Annotated[Any, Refused("Say in the prompt how long to answer.", "medium")] = None
    web_search_options: Annotated[Any, Refused("Put what you found into the prompt.")] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidRequest(
                "'max_tokens' and 'max_completion_tokens' are the same limit; send one of them.",
                param="max_tokens",
            )

    def task(self) -> ChatInput:
        """Return the input of the task that makes one choice."""
        limit = self.max_completion_tokens or self.max_tokens
        top = (self.top_logprobs or 0) if self.logprobs else None
        messages = [
            message.plain(f"messages.{index}.") for index, message in enumerate(self.messages)
        ]
        tools = [tool.plain(f"tools.{index}.") for index, tool in enumerate(self.tools or ())]
        calling = tool_fields(tools, choice_of(self.tool_choice), self.parallel_tool_calls)
        sampling = self.sampling(limit, top)
        if self.response_format is not None:
            grammar = self.response_format.grammar("response_format.")
            if grammar is not None and "grammar" in sampling:
                raise InvalidRequest(
                    "'response_format' and 'structured_outputs' both give the answer a form; "
                    "send one of them.",
                    param="structured_outputs",
                )
            sampling |= {"grammar": grammar} if grammar is not None else {}
        return ChatInput(messages=messages, **sampling, **calling)

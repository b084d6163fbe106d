"""``POST /v1/chat/completions``, OpenAI's chat."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import InvalidRequest, UnsupportedField
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.formats import ResponseFormat
from blip.gateway.parts import Content, joined
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.sampling import SamplingRequest
from blip.gateway.text import (
    Draft,
    Usage,
    collect,
    likelihood,
    quote,
    safe,
    stream,
    usage_of,
    with_seeds,
)
from blip.gateway.tools import (
    AnswerCall,
    AnswerCallPiece,
    CallParam,
    Mode,
    ToolChoice,
    Tools,
    answer_calls,
    choice_of,
    piece_json,
    tool_fields,
)
from blip.gateway.upload import decode_picture
from blip.kinds.chat import CHAT, ChatInput, ChatMessage
from blip.kinds.text import FinishReason, TokenLogprob
from blip.kinds.tools import CallPiece

_USE_TOOLS = "Use tools: functions are an older form of them."


# --- the request -----------------------------------------------------------------------------


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


# --- the answer ------------------------------------------------------------------------------


class TopLogprob(BaseModel):
    """A token that might have come instead."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token with its natural log-probability."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a choice, token by token."""

    content: list[ChatLogprob] | None
    refusal: list[ChatLogprob] | None = None


class ChatAnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None
    annotations: list[Any] = []


class ChatCallingMessage(BaseModel):
    """What the model called, and what it said before."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    annotations: list[Any] = []
    tool_calls: list[AnswerCall]


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatAnswerMessage | ChatCallingMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """All answers to a chat request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None


class ChatDelta(BaseModel):
    """What is new in a choice; the first one says the role, the last one nothing."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[AnswerCallPiece] | None = None


class ChatChunkChoice(BaseModel):
    """A piece of a choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    """An event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


def chat_logprobs(rows: list[TokenLogprob]) -> ChatLogprobs:
    """Return log-probabilities in OpenAI's shape."""
    return ChatLogprobs(
        content=[
            ChatLogprob(
                token=row.token,
                logprob=likelihood(row.logprob),
                bytes=list(row.raw),
                top_logprobs=[
                    TopLogprob(token=token, logprob=likelihood(logprob), bytes=list(raw))
                    for token, logprob, raw in row.top
                ],
            )
            for row in rows
        ]
    )


class ChatChunks:
    """Writes :class:`ChatCompletionChunk` events; what does not change is written once."""

    def __init__(self, completion_id: str, body: ChatRequest, tasks: Sequence[str]) -> None:
        self._tasks = tasks
        self._choices = body.choices
        self._logprobs = bool(body.logprobs)
        self._head = (
            f'data: {{"id":"{completion_id}","object":"chat.completion.chunk",'
            f'"created":{int(time.time())},"model":{quote(body.model)},'
            f'"system_fingerprint":null,"choices":['
        )
        self._tail = ',"usage":null}\n\n' if body.wants_usage else "}\n\n"
        self._plain = f'}},"logprobs":null,"finish_reason":null}}]{self._tail}'
        self._starts = [
            f'{self._head}{{"index":{index},"delta":{{"content":' for index in range(self._choices)
        ]

    def opening(self) -> str:
        """Every choice's role."""
        return "".join(
            f'{self._head}{{"index":{index},"delta":{{"role":"assistant","content":"",'
            f'"refusal":null{self._plain}'
            for index in range(self._choices)
        )

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None) -> str:
        """A piece of a choice."""
        if not self._logprobs or logprobs is None:
            return self._starts[index] + quote(text) + self._plain
        shape = chat_logprobs(logprobs).model_dump_json()
        return (
            f'{self._starts[index]}{quote(text)}}},"logprobs":{shape},'
            f'"finish_reason":null}}]{self._tail}'
        )

    def calls(self, index: int, pieces: list[CallPiece]) -> str:
        """Pieces of calls."""
        shape = ",".join(safe(piece_json(self._tasks[index], piece)) for piece in pieces)
        return f'{self._head}{{"index":{index},"delta":{{"tool_calls":[{shape}]{self._plain}'

    def finish(self, index: int, reason: FinishReason, stop: str | None) -> str:
        """The end of a choice."""
        return (
            f'{self._head}{{"index":{index},"delta":{{}},"logprobs":null,'
            f'"finish_reason":"{reason}"}}]{self._tail}'
        )

    def usage(self, usage: Usage) -> str:
        """The chunk after all choices."""
        return f'{self._head}],"usage":{usage.model_dump_json()}}}\n\n'


async def create(exchange: Exchange, body: ChatRequest) -> web.StreamResponse:
    """Continue a conversation.

    Fields have OpenAI's names and meanings; top_k and repetition_penalty are vLLM's. Fields that
    would change the answer and are not supported are refused by name. Each of the n choices is a
    task of its own, with seed + index where a seed is given.
    """
    exchange.start(CHAT, body.model, with_seeds(body.task(), body.choices))
    completion_id = f"chatcmpl-{exchange.calls[0].task_id}"
    if body.stream:
        chunks = ChatChunks(completion_id, body, [call.task_id for call in exchange.calls])
        return await stream(exchange, chunks, body.choices, usage=body.wants_usage)
    drafts = await collect(exchange)
    answer = ChatCompletion(
        id=completion_id,
        created=int(time.time()),
        model=body.model,
        choices=[
            _choice(index, draft, body, exchange.calls[index].task_id)
            for index, draft in enumerate(drafts)
        ],
        usage=usage_of(exchange.answers, body.choices),
    )
    return web.Response(text=answer.model_dump_json(), content_type="application/json")


def _choice(index: int, draft: Draft, body: ChatRequest, task_id: str) -> ChatChoice:
    message: ChatAnswerMessage | ChatCallingMessage = ChatAnswerMessage(content=draft.text)
    if draft.calls:
        calls = answer_calls(task_id, draft.calls)
        message = ChatCallingMessage(content=draft.text or None, tool_calls=calls)
    return ChatChoice(
        index=index,
        message=message,
        logprobs=chat_logprobs(draft.logprobs) if body.logprobs else None,
        finish_reason=draft.reason,
    )


OPERATIONS = (
    Operation(
        "POST",
        "/v1/chat/completions",
        create,
        "Continue a conversation",
        "text",
        body=ChatRequest,
        answer=ChatCompletion,
        event=ChatCompletionChunk,
        errors=TEXT_FAILURES,
        task=True,
        example={
            "model": "smollm2",
            "messages": [{"role": "user", "content": "Name three rivers."}],
            "max_tokens": 64,
        },
    ),
)

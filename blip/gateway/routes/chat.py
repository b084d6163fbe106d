"""``POST /v1/chat/completions``, OpenAI's chat."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import InvalidRequest, UnsupportedField
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.parts import Content, joined
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.sampling import SamplingRequest
from blip.gateway.text import (
    Draft,
    Usage,
    collect,
    likelihood,
    quote,
    stream,
    usage_of,
    with_seeds,
)
from blip.gateway.upload import decode_picture
from blip.kinds.chat import CHAT, ChatInput, ChatMessage
from blip.kinds.text import FinishReason, TokenLogprob

_NO_TOOLS = "This mesh runs no tools: describe them in the prompt, or leave the field out."


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
    tool_call_id: Annotated[str | None, Ignored()] = None
    annotations: Annotated[Any, Ignored()] = None
    audio: Annotated[Any, Refused("Send the transcript as content.")] = None
    function_call: Annotated[Any, Refused(_NO_TOOLS)] = None
    tool_calls: Annotated[Any, Refused(_NO_TOOLS, [])] = None

    def plain(self, at: str) -> ChatMessage:
        """Return the message as models get it: several parts become paragraphs."""
        self.check(at)
        content = self.content
        if isinstance(content, list):
            pieces = (part.piece(f"{at}content.{n}.") for n, part in enumerate(content))
            found = joined(pieces, f"{at}content")
        else:
            text = self.refusal if content is None else content
            if text is None:
                raise InvalidRequest(f"'{at}content' is missing.", param=at + "content")
            found = Content(text, [])
        return ChatMessage(
            role=self.role, content=found.text, name=self.name, pictures=found.pictures
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

    metadata: Annotated[Any, Ignored()] = None
    parallel_tool_calls: Annotated[Any, Ignored()] = None
    prompt_cache_key: Annotated[Any, Ignored()] = None
    prompt_cache_options: Annotated[Any, Ignored()] = None
    prompt_cache_retention: Annotated[Any, Ignored()] = None
    safety_identifier: Annotated[Any, Ignored()] = None
    service_tier: Annotated[Any, Ignored()] = None

    audio: Annotated[Any, Refused("Answers are text.")] = None
    function_call: Annotated[Any, Refused(_NO_TOOLS, "none", "auto")] = None
    functions: Annotated[Any, Refused(_NO_TOOLS, [])] = None
    modalities: Annotated[Any, Refused("Answers are text.", ["text"])] = None
    moderation: Annotated[Any, Refused("Nothing here moderates; do it before or after.")] = None
    prediction: Annotated[Any, Refused("Leave it out; it only saves OpenAI's time.")] = None
    reasoning_effort: Annotated[Any, Refused("Say in the prompt how hard to think.")] = None
    response_format: Annotated[
        Any, Refused("Ask for the format in the prompt and check what comes.", {"type": "text"})
    ] = None
    store: Annotated[Any, Refused("Nothing is stored here; keep the answer yourself.", False)] = (
        None
    )
    tool_choice: Annotated[Any, Refused(_NO_TOOLS, "none", "auto")] = None
    tools: Annotated[Any, Refused(_NO_TOOLS, [])] = None
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
        return ChatInput(messages=messages, **self.sampling(limit, top))


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


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatAnswerMessage
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

    def __init__(self, completion_id: str, body: ChatRequest) -> None:
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

    def finish(self, index: int, reason: FinishReason) -> str:
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
        chunks = ChatChunks(completion_id, body)
        return await stream(exchange, chunks, body.choices, usage=body.wants_usage)
    drafts = await collect(exchange)
    answer = ChatCompletion(
        id=completion_id,
        created=int(time.time()),
        model=body.model,
        choices=[_choice(index, draft, body) for index, draft in enumerate(drafts)],
        usage=usage_of(exchange.answers, body.choices),
    )
    return web.Response(text=answer.model_dump_json(), content_type="application/json")


def _choice(index: int, draft: Draft, body: ChatRequest) -> ChatChoice:
    return ChatChoice(
        index=index,
        message=ChatAnswerMessage(content=draft.text),
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

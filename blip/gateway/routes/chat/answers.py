"""What ``POST /v1/chat/completions`` answers: choices, or the chunks that they come in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from blip.gateway.routes.chat.requests import ChatRequest
from blip.gateway.text import (
    Usage,
    likelihood,
    quote,
    safe,
)
from blip.gateway.tools import (
    AnswerCall,
    AnswerCallPiece,
    piece_json,
)
from blip.kinds.text import FinishReason, TokenLogprob
from blip.kinds.tools import CallPiece


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

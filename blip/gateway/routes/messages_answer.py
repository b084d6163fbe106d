"""What ``POST /v1/messages`` answers: a message, the events it grows by, Anthropic's errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from blip.errors import BlipError
from blip.gateway.dialect import Dialect
from blip.gateway.envelope import about
from blip.gateway.events import SSE, Framing
from blip.gateway.text import Draft, Usage, quote, safe, stopped_by
from blip.kinds.text import FinishReason, TokenLogprob

#: Anthropic's words for errors, by status. Other requests that are wrong are invalid_request_error,
#: other failures api_error.
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    405: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

StopReason = Literal["end_turn", "max_tokens", "stop_sequence"]


class AnthropicErrorDetail(BaseModel):
    """What went wrong, in Anthropic's words, and what blip knows besides."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    message: str
    param: str | None
    """The request field at fault."""
    code: str
    """Stable, the same in every dialect; match on this."""
    hint: str | None
    details: dict[str, Any]


class AnthropicError(BaseModel):
    """The body of every error."""

    type: Literal["error"] = "error"
    error: AnthropicErrorDetail
    request_id: str


def error_json(error: BlipError, request_id: str) -> str:
    """Return the envelope of ``error`` as JSON text on one line."""
    kind = _TYPES.get(error.status)
    if kind is None:
        kind = "invalid_request_error" if error.status < 499 else "api_error"
    detail = {"type": kind, "message": error.message, **about(error)}
    envelope = {"type": "error", "error": detail, "request_id": request_id}
    return safe(json.dumps(envelope, ensure_ascii=False))


DIALECT = Dialect(
    AnthropicError,
    error_json,
    streams="With stream: true. The data of each event, which is named by its type; the last one "
    "is message_stop, or error.",
    request_id="request-id",
)


def _event(type: str, fields: str = "") -> str:
    return f'event: {type}\ndata: {{"type":"{type}"{fields}}}\n\n'


_PING = _event("ping")

FRAMING = Framing(
    media=SSE,
    heartbeat=_PING,
    end=_event("message_stop"),
    failed=lambda error, request_id: f"event: error\ndata: {error_json(error, request_id)}\n\n",
)


class TextBlock(BaseModel):
    """The text of an answer."""

    type: Literal["text"] = "text"
    text: str
    citations: None = None


class MessageUsage(BaseModel):
    """Tokens that the request used."""

    input_tokens: int
    output_tokens: int


class MessageAnswer(BaseModel):
    """What the model said."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageDelta(BaseModel):
    """What is new: text, or how the message ended."""

    type: Literal["text_delta"] | None = None
    text: str | None = None
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None


class MessageEvent(BaseModel):
    """An event of a streamed answer; which of the fields it has depends on its type."""

    type: Literal[
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ]
    message: MessageAnswer | None = None
    index: int | None = None
    content_block: TextBlock | None = None
    delta: MessageDelta | None = None
    usage: MessageUsage | None = None
    error: AnthropicErrorDetail | None = None


def stop_of(
    reason: FinishReason, stops: Sequence[str], rows: Sequence[TokenLogprob]
) -> tuple[StopReason, str | None]:
    """Return Anthropic's reason, and the stop sequence if one ended the answer."""
    if reason == "length":
        return "max_tokens", None
    stop = stopped_by(stops, rows)
    return ("end_turn" if stop is None else "stop_sequence"), stop


def message_of(
    task_id: str, model: str, stops: Sequence[str], draft: Draft, usage: Usage
) -> MessageAnswer:
    """Return an answer that has ended."""
    reason, stop = stop_of(draft.reason, stops, draft.logprobs)
    return MessageAnswer(
        id=f"msg_{task_id}",
        model=model,
        content=[TextBlock(text=draft.text)],
        stop_reason=reason,
        stop_sequence=stop,
        usage=_usage(usage),
    )


def _usage(usage: Usage) -> MessageUsage:
    return MessageUsage(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)


class Events:
    """Writes :class:`MessageEvent`; see :class:`blip.gateway.text.Chunks`."""

    def __init__(self, task_id: str, model: str, stops: Sequence[str]) -> None:
        self._start = MessageAnswer(
            id=f"msg_{task_id}",
            model=model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=MessageUsage(input_tokens=0, output_tokens=0),  # counted so far
        )
        self._stops = stops
        self._rows: list[TokenLogprob] = []
        self._end = ""

    def opening(self) -> str:
        """The message and its text, both still empty."""
        block = TextBlock(text="").model_dump_json()
        return (
            _event("message_start", f',"message":{safe(self._start.model_dump_json())}')
            + _event("content_block_start", f',"index":0,"content_block":{block}')
            + _PING
        )

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None) -> str:
        """A piece of the text."""
        self._rows += logprobs or ()
        if not text:
            return ""
        delta = f',"index":0,"delta":{{"type":"text_delta","text":{quote(text)}}}'
        return _event("content_block_delta", delta)

    def finish(self, index: int, reason: FinishReason) -> str:
        """The end of the text; that of the message says how much was used, which follows."""
        stop_reason, stop = stop_of(reason, self._stops, self._rows)
        quoted = "null" if stop is None else quote(stop)
        self._end = f',"delta":{{"stop_reason":"{stop_reason}","stop_sequence":{quoted}}}'
        return _event("content_block_stop", ',"index":0')

    def usage(self, usage: Usage) -> str:
        """How the message ended."""
        return _event("message_delta", f'{self._end},"usage":{_usage(usage).model_dump_json()}')

"""What ``POST /v1/messages`` answers: a message, the events it grows by, Anthropic's errors."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from blip.errors import BlipError
from blip.gateway.dialect import Dialect
from blip.gateway.envelope import about
from blip.gateway.events import SSE, Framing
from blip.gateway.text import Draft, Usage, quote, safe
from blip.gateway.tools import call_id
from blip.kinds.text import FinishReason, TokenLogprob
from blip.kinds.tools import CallPiece, joined

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

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


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


class ToolUseBlock(BaseModel):
    """A tool that the model uses."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: Any


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
    content: list[TextBlock | ToolUseBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageDelta(BaseModel):
    """What is new: text, a piece of the JSON that a tool is given, or how the message ended."""

    type: Literal["text_delta", "input_json_delta"] | None = None
    text: str | None = None
    partial_json: str | None = None
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
    content_block: TextBlock | ToolUseBlock | None = None
    delta: MessageDelta | None = None
    usage: MessageUsage | None = None
    error: AnthropicErrorDetail | None = None


def stop_of(reason: FinishReason, stop: str | None) -> StopReason:
    """Return Anthropic's reason; ``stop`` is the stop sequence that ended the answer."""
    if reason == "length":
        return "max_tokens"
    if reason == "tool_calls":
        return "tool_use"
    return "end_turn" if stop is None else "stop_sequence"


def message_of(task_id: str, model: str, draft: Draft, usage: Usage) -> MessageAnswer:
    """Return an answer that has ended."""
    uses = [
        ToolUseBlock(
            id=call_id(task_id, call.number, "toolu"), name=call.name, input=_input(call.arguments)
        )
        for call in joined(draft.calls)
    ]
    texts = [TextBlock(text=draft.text)] if draft.text or not uses else []
    return MessageAnswer(
        id=f"msg_{task_id}",
        model=model,
        content=[*texts, *uses],
        stop_reason=stop_of(draft.reason, draft.stop),
        stop_sequence=draft.stop,
        usage=_usage(usage),
    )


def _input(arguments: str) -> Any:
    """Return what a tool is given; of an answer that was cut off, nothing."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def _usage(usage: Usage) -> MessageUsage:
    return MessageUsage(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)


class Events:
    """Writes :class:`MessageEvent`; see :class:`blip.gateway.text.Chunks`."""

    def __init__(self, task_id: str, model: str, *, calls: bool) -> None:
        self._task_id = task_id
        self._start = MessageAnswer(
            id=f"msg_{task_id}",
            model=model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=MessageUsage(input_tokens=0, output_tokens=0),  # counted so far
        )
        #: Whether tools may be used, so that the text may be missing.
        self._calls = calls
        #: The block that is under way, -1 before the first, and whether it is the text.
        self._block = -1
        self._speaks = False
        self._end = ""

    def opening(self) -> str:
        """The message, and its text if nothing else may come, both still empty."""
        begun = _event("message_start", f',"message":{safe(self._start.model_dump_json())}')
        return begun + ("" if self._calls else self._speak()) + _PING

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None) -> str:
        """A piece of the text."""
        if not text:
            return ""
        begun = "" if self._speaks else self._speak()
        return begun + self._delta(f'"type":"text_delta","text":{quote(text)}')

    def calls(self, index: int, pieces: list[CallPiece]) -> str:
        """Pieces of what tools are given."""
        written = ""
        for piece in pieces:
            if piece.name:
                use = call_id(self._task_id, piece.number, "toolu")
                block = ToolUseBlock(id=use, name=piece.name, input={})
                written += self._begin(block)
                self._speaks = False
            if piece.arguments:
                quoted = quote(piece.arguments)
                written += self._delta(f'"type":"input_json_delta","partial_json":{quoted}')
        return written

    def finish(self, index: int, reason: FinishReason, stop: str | None) -> str:
        """The end of the last block; that of the message says how much was used: that follows."""
        quoted = "null" if stop is None else quote(stop)
        why = stop_of(reason, stop)
        self._end = f',"delta":{{"stop_reason":"{why}","stop_sequence":{quoted}}}'
        return ("" if self._block >= 0 else self._speak()) + self._stop()

    def usage(self, usage: Usage) -> str:
        """How the message ended."""
        return _event("message_delta", f'{self._end},"usage":{_usage(usage).model_dump_json()}')

    def _speak(self) -> str:
        self._speaks = True
        return self._begin(TextBlock(text=""))

    def _begin(self, block: TextBlock | ToolUseBlock) -> str:
        """End the block that is under way, and begin another."""
        ended = self._stop()
        self._block += 1
        fields = f',"index":{self._block},"content_block":{block.model_dump_json()}'
        return ended + _event("content_block_start", fields)

    def _delta(self, fields: str) -> str:
        return _event("content_block_delta", f',"index":{self._block},"delta":{{{fields}}}')

    def _stop(self) -> str:
        if self._block < 0:
            return ""
        return _event("content_block_stop", f',"index":{self._block}')

"""What ``POST /v1/responses`` answers: a response, or the events it grows by."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from blip.errors import BlipError
from blip.gateway.dialect import Dialect
from blip.gateway.envelope import ErrorEnvelope, error_json
from blip.gateway.routes.chat import ChatLogprob, chat_logprobs
from blip.gateway.text import Usage, quote, safe
from blip.kinds.text import FinishReason, TokenLogprob

DIALECT = Dialect(
    ErrorEnvelope,
    error_json,
    streams="With stream: true. The data of each event, which is named by its type; the last one "
    "is response.completed, response.incomplete or response.failed.",
)

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(BaseModel):
    """The text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[ChatLogprob] = []


class OutputMessage(BaseModel):
    """What the model said."""

    type: Literal["message"] = "message"
    id: str
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class InputDetails(BaseModel):
    """Nothing is cached from one request to the next."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    """No tokens are spent on thinking that is not shown."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Tokens that the request used."""

    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class Incomplete(BaseModel):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(BaseModel):
    """Why an answer failed after it had begun."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    code: Literal["server_error", "rate_limit_exceeded"]
    """OpenAI's word."""
    message: str
    param: str | None
    type: str
    """The code that errors have everywhere else; match on this."""


class TextFormat(BaseModel):
    """The format of the text."""

    type: Literal["text"] = "text"


class TextView(BaseModel):
    """What the text is like."""

    format: TextFormat = TextFormat()


class Response(BaseModel):
    """An answer, with what was asked for."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    error: ResponseError | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage] = []
    parallel_tool_calls: bool = False
    previous_response_id: str | None = None
    store: bool = False
    temperature: float
    text: TextView = TextView()
    tool_choice: Literal["none"] = "none"
    tools: list[Any] = []
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None


class ResponseEvent(BaseModel):
    """An event of a streamed answer; which of the fields it has depends on its type."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: int
    response: Response | None = None
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    item: OutputMessage | None = None
    part: OutputText | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: list[ChatLogprob] | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """What of a response is known before the model says anything."""

    task_id: str
    created_at: int
    model: str
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    temperature: float
    top_p: float
    top_logprobs: int

    @property
    def item_id(self) -> str:
        """The id of the message."""
        return f"msg_{self.task_id}"

    def view(self, status: Status, **fields: Any) -> Response:
        """Return the response as it stands."""
        return Response(
            id=f"resp_{self.task_id}",
            created_at=self.created_at,
            status=status,
            instructions=self.instructions,
            max_output_tokens=self.max_output_tokens,
            metadata=self.metadata,
            model=self.model,
            temperature=self.temperature,
            top_p=self.top_p,
            top_logprobs=self.top_logprobs,
            **fields,
        )

    def message(self, status: Status, content: list[OutputText]) -> OutputMessage:
        """Return the message as it stands."""
        return OutputMessage(id=self.item_id, status=status, content=content)

    def whole(
        self, text: str, rows: list[TokenLogprob] | None, reason: FinishReason, usage: Usage
    ) -> Response:
        """Return the response of an answer that has ended."""
        status: Status = "completed" if reason == "stop" else "incomplete"
        return self.view(
            status,
            completed_at=int(time.time()) if reason == "stop" else None,
            incomplete_details=Incomplete() if reason == "length" else None,
            output=[self.message(status, [output_text(text, rows)])],
            usage=ResponseUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
            ),
        )


def output_text(text: str, rows: list[TokenLogprob] | None) -> OutputText:
    """Return a text with its log-probabilities, where they were asked for."""
    logprobs = chat_logprobs(rows).content if rows else None
    return OutputText(text=text, logprobs=logprobs or [])


class Events:
    """Writes :class:`ResponseEvent`; see :class:`blip.gateway.text.Chunks`."""

    def __init__(self, answered: Answered, *, logprobs: bool) -> None:
        self._answered = answered
        self._logprobs = logprobs
        self._number = 0
        self._texts: list[str] = []
        self._rows: list[TokenLogprob] = []
        self._reason: FinishReason = "stop"
        self._place = f'"item_id":"{answered.item_id}","output_index":0,"content_index":0'

    def opening(self) -> str:
        """The response, its message and that one's text, all of them still empty."""
        begun = f'"response":{_json(self._answered.view("in_progress"))}'
        item = self._answered.message("in_progress", []).model_dump_json()
        part = output_text("", None).model_dump_json()
        return (
            self._event("response.created", begun)
            + self._event("response.in_progress", begun)
            + self._event("response.output_item.added", f'"output_index":0,"item":{item}')
            + self._event("response.content_part.added", f'{self._place},"part":{part}')
        )

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None) -> str:
        """A piece of the text."""
        self._texts.append(text)
        shape = "[]"
        if self._logprobs and logprobs:
            self._rows += logprobs
            shape = _rows(logprobs)
        fields = f'{self._place},"delta":{quote(text)},"logprobs":{shape}'
        return self._event("response.output_text.delta", fields)

    def finish(self, index: int, reason: FinishReason) -> str:
        """Nothing yet: what follows says how much was used too."""
        self._reason = reason
        return ""

    def usage(self, usage: Usage) -> str:
        """The whole text, message and response."""
        text = "".join(self._texts)
        response = self._answered.whole(text, self._rows, self._reason, usage)
        (item,) = response.output
        (part,) = item.content
        done = f'{self._place},"text":{quote(text)},"logprobs":{_rows(self._rows)}'
        return (
            self._event("response.output_text.done", done)
            + self._event("response.content_part.done", f'{self._place},"part":{_json(part)}')
            + self._event("response.output_item.done", f'"output_index":0,"item":{_json(item)}')
            + self._event(f"response.{response.status}", f'"response":{_json(response)}')
        )

    def failed(self, error: BlipError, request_id: str) -> str:
        """The end of a response that failed half-way, with what there is of it."""
        text = output_text("".join(self._texts), self._rows)
        response = self._answered.view(
            "failed",
            output=[self._answered.message("incomplete", [text])],
            error=ResponseError(
                code="rate_limit_exceeded" if error.status == 429 else "server_error",
                message=error.message,
                param=error.param,
                type=error.code,
            ),
        )
        return self._event("response.failed", f'"response":{_json(response)}')

    def _event(self, type: str, fields: str) -> str:
        number = self._number
        self._number += 1
        return f'event: {type}\ndata: {{"type":"{type}","sequence_number":{number},{fields}}}\n\n'


def _json(view: BaseModel) -> str:
    return safe(view.model_dump_json())


def _rows(rows: list[TokenLogprob]) -> str:
    content = chat_logprobs(rows).content or []
    return safe(f"[{','.join(row.model_dump_json() for row in content)}]")

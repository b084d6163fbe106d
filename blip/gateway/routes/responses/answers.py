"""What ``POST /v1/responses`` answers: a response, and the events it grows by."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from blip.gateway.dialect import Dialect
from blip.gateway.envelope import ErrorEnvelope, error_json
from blip.gateway.routes.chat.answers import ChatLogprob, chat_logprobs
from blip.gateway.text import Usage
from blip.gateway.tools import call_id
from blip.kinds.text import FinishReason, TokenLogprob
from blip.kinds.tools import CallPiece

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


class OutputCall(BaseModel):
    """A function that the model calls; ``arguments`` are JSON text."""

    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


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
    """The format of the text, as it was asked for."""

    model_config = ConfigDict(extra="allow")

    type: str = "text"


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
    output: list[OutputMessage | OutputCall] = []
    parallel_tool_calls: bool
    previous_response_id: str | None = None
    store: bool = False
    temperature: float
    text: TextView
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
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
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
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
    item: OutputMessage | OutputCall | None = None
    name: str | None = None
    arguments: str | None = None
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
    format: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool

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
            text=TextView(format=TextFormat(**self.format)),
            tools=self.tools,
            tool_choice=self.tool_choice,
            parallel_tool_calls=self.parallel_tool_calls,
            **fields,
        )

    def message(self, status: Status, content: list[OutputText]) -> OutputMessage:
        """Return the message as it stands."""
        return OutputMessage(id=self.item_id, status=status, content=content)

    def call(self, status: Status, call: CallPiece) -> OutputCall:
        """Return a function call as it stands."""
        return OutputCall(
            id=call_id(self.task_id, call.number, "fc"),
            call_id=call_id(self.task_id, call.number),
            name=call.name,
            arguments=call.arguments,
            status=status,
        )

    def output(
        self, status: Status, text: OutputText | None, calls: list[CallPiece]
    ) -> list[OutputMessage | OutputCall]:
        """Return all that the model made: its message, where there is a text, and its calls.

        Of an answer that is not whole only the last of them is not.
        """
        message = [self.message(status, [text])] if text is not None else []
        if calls and message:
            message = [message[0].model_copy(update={"status": "completed"})]
        whole = [self.call("completed", call) for call in calls[:-1]]
        return [*message, *whole, *(self.call(status, call) for call in calls[-1:])]

    def whole(
        self,
        text: str,
        rows: list[TokenLogprob] | None,
        calls: list[CallPiece],
        reason: FinishReason,
        usage: Usage,
    ) -> Response:
        """Return the response of an answer that has ended."""
        status: Status = "incomplete" if reason == "length" else "completed"
        said = output_text(text, rows) if text or not calls else None
        return self.view(
            status,
            completed_at=None if reason == "length" else int(time.time()),
            incomplete_details=Incomplete() if reason == "length" else None,
            output=self.output(status, said, calls),
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

"""Writes the events of a response that is streamed."""

from __future__ import annotations

from pydantic import BaseModel

from blip.errors import BlipError
from blip.gateway.routes.chat.answers import chat_logprobs
from blip.gateway.routes.responses.answers import Answered, ResponseError, Status, output_text
from blip.gateway.text import Usage, quote, safe
from blip.gateway.tools import call_id
from blip.kinds.text import FinishReason, TokenLogprob
from blip.kinds.tools import CallPiece, joined


class Events:
    """Writes :class:`ResponseEvent`; see :class:`blip.gateway.text.Chunks`.

    Items come one after the other: the message, then each call.
    """

    def __init__(self, answered: Answered, *, logprobs: bool) -> None:
        self._answered = answered
        self._logprobs = logprobs
        self._number = 0
        self._texts: list[str] = []
        self._rows: list[TokenLogprob] = []
        self._pieces: list[CallPiece] = []
        self._reason: FinishReason = "stop"
        self._place = f'"item_id":"{answered.item_id}","output_index":0,"content_index":0'
        #: Whether there is a message, and whether an item is not done.
        self._speaks = False
        self._open = False

    def opening(self) -> str:
        """The response, and the message if nothing else may come, both still empty."""
        begun = f'"response":{_json(self._answered.view("in_progress"))}'
        return (
            self._event("response.created", begun)
            + self._event("response.in_progress", begun)
            + ("" if self._answered.tools else self._speak())
        )

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None) -> str:
        """A piece of the text."""
        if self._pieces:
            return ""  # log-probabilities of a call
        begun = "" if self._speaks else self._speak()
        self._texts.append(text)
        shape = "[]"
        if self._logprobs and logprobs:
            self._rows += logprobs
            shape = _rows(logprobs)
        fields = f'{self._place},"delta":{quote(text)},"logprobs":{shape}'
        return begun + self._event("response.output_text.delta", fields)

    def calls(self, index: int, pieces: list[CallPiece]) -> str:
        """Pieces of calls."""
        written = ""
        for piece in pieces:
            if piece.name:
                written += self._close("completed")
                self._open = True
                item = self._answered.call("in_progress", piece._replace(arguments=""))
                fields = f'"output_index":{self._at(piece)},"item":{_json(item)}'
                written += self._event("response.output_item.added", fields)
            self._pieces.append(piece)
            if piece.arguments:
                fields = f'{self._call(piece)},"delta":{quote(piece.arguments)}'
                written += self._event("response.function_call_arguments.delta", fields)
        return written

    def finish(self, index: int, reason: FinishReason, stop: str | None) -> str:
        """Nothing yet: what follows says how much was used too."""
        self._reason = reason
        return ""

    def usage(self, usage: Usage) -> str:
        """The end of the last item, and the whole response."""
        said = "" if self._speaks or self._pieces else self._speak()
        text, calls = "".join(self._texts), joined(self._pieces)
        response = self._answered.whole(text, self._rows, calls, self._reason, usage)
        return (
            said
            + self._close(response.status)
            + self._event(f"response.{response.status}", f'"response":{_json(response)}')
        )

    def failed(self, error: BlipError, request_id: str) -> str:
        """The end of a response that failed half-way, with what there is of it."""
        text = output_text("".join(self._texts), self._rows)
        said = text if self._speaks or not self._pieces else None
        response = self._answered.view(
            "failed",
            output=self._answered.output("incomplete", said, joined(self._pieces)),
            error=ResponseError(
                code="rate_limit_exceeded" if error.status == 429 else "server_error",
                message=error.message,
                param=error.param,
                type=error.code,
            ),
        )
        return self._event("response.failed", f'"response":{_json(response)}')

    def _speak(self) -> str:
        """Begin the message."""
        self._speaks = self._open = True
        item = self._answered.message("in_progress", []).model_dump_json()
        part = output_text("", None).model_dump_json()
        return self._event(
            "response.output_item.added", f'"output_index":0,"item":{item}'
        ) + self._event("response.content_part.added", f'{self._place},"part":{part}')

    def _close(self, status: Status) -> str:
        """End the item that is not done, if there is one."""
        if not self._open:
            return ""
        self._open = False
        if not self._pieces:
            text = "".join(self._texts)
            part = output_text(text, self._rows)
            item = self._answered.message(status, [part])
            done = f'{self._place},"text":{quote(text)},"logprobs":{_rows(self._rows)}'
            return (
                self._event("response.output_text.done", done)
                + self._event("response.content_part.done", f'{self._place},"part":{_json(part)}')
                + self._event("response.output_item.done", f'"output_index":0,"item":{_json(item)}')
            )
        last = joined(self._pieces)[-1]
        call = self._answered.call(status, last)
        done = f'{self._call(last)},"name":{quote(call.name)},"arguments":{quote(call.arguments)}'
        ended = f'"output_index":{self._at(last)},"item":{_json(call)}'
        return self._event("response.function_call_arguments.done", done) + self._event(
            "response.output_item.done", ended
        )

    def _at(self, piece: CallPiece) -> int:
        return piece.number + self._speaks

    def _call(self, piece: CallPiece) -> str:
        item = call_id(self._answered.task_id, piece.number, "fc")
        return f'"item_id":"{item}","output_index":{self._at(piece)}'

    def _event(self, type: str, fields: str) -> str:
        number = self._number
        self._number += 1
        return f'event: {type}\ndata: {{"type":"{type}","sequence_number":{number},{fields}}}\n\n'


def _json(view: BaseModel) -> str:
    return safe(view.model_dump_json())


def _rows(rows: list[TokenLogprob]) -> str:
    content = chat_logprobs(rows).content or []
    return safe(f"[{','.join(row.model_dump_json() for row in content)}]")

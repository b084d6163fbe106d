"""Answers of chat and generate: the same lines, but for the place of the text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from blip.gateway.exchange import Exchange
from blip.gateway.moments import iso
from blip.gateway.routes.chat.answers import ChatLogprob, chat_logprobs
from blip.gateway.routes.ollama.dialect import Durations, durations, framing
from blip.gateway.routes.ollama.options import OllamaText
from blip.gateway.text import Draft, Usage, collect, quote, safe, stream
from blip.kinds.text import FinishReason, TokenLogprob
from blip.kinds.tools import CallPiece, joined


class OllamaAnswer(BaseModel):
    """What every line says. Without stream there is one, with all of the text."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str
    created_at: str
    done: bool
    logprobs: list[ChatLogprob] | None = None
    """Of the tokens behind this piece of text, where they were asked for."""
    done_reason: Literal["stop", "length"] | None = None
    """This and what follows comes with done: true."""
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


#: Puts a text, and the calls behind it as JSON objects, in their place.
Place = Callable[[str, str], str]


class Lines:
    """Writes lines; see :class:`blip.gateway.text.Chunks`. ``place`` puts a text in its place."""

    def __init__(self, exchange: Exchange, body: OllamaText, place: Place) -> None:
        self._exchange = exchange
        self._logprobs = bool(body.logprobs)
        self._place = place
        self._head = f'{{"model":{quote(body.model)},"created_at":"'
        self._reason: FinishReason = "stop"
        self._pieces: list[CallPiece] = []

    def line(self, text: str, rest: str, calls: list[CallPiece] | None = None) -> str:
        """Return one line."""
        now = iso(time.time())
        shapes = ",".join(_call(call) for call in calls or ())
        return f'{self._head}{now}",{self._place(quote(text), shapes)}{rest}}}\n'

    def opening(self) -> str:
        """Nothing: a stream begins with its first piece."""
        return ""

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None) -> str:
        """A piece of the text."""
        return self.line(text, f'{self._rows(logprobs)},"done":false')

    def calls(self, index: int, pieces: list[CallPiece]) -> str:
        """Calls that are whole, for Ollama has no others."""
        written = ""
        for piece in pieces:
            if piece.name:
                written += self._whole_calls()
            self._pieces.append(piece)
        return written

    def finish(self, index: int, reason: FinishReason, stop: str | None) -> str:
        """The last call; the last line follows, as it says how much was used too."""
        self._reason = reason
        return self._whole_calls() if reason != "length" else ""

    def usage(self, usage: Usage) -> str:
        """The last line."""
        return self.line("", self._end(self._reason))

    def whole(self, draft: Draft) -> str:
        """Return the answer on one line."""
        calls = joined(draft.calls)
        if draft.reason == "length":
            del calls[-1:]  # what was cut off is no call
        return self.line(draft.text, self._rows(draft.logprobs) + self._end(draft.reason), calls)

    def _whole_calls(self) -> str:
        calls, self._pieces = joined(self._pieces), []
        return self.line("", ',"done":false', calls) if calls else ""

    def _end(self, reason: FinishReason) -> str:
        (call,), (answer,) = self._exchange.calls, self._exchange.answers
        spent: Durations = durations(call.timing, answer.usage if answer is not None else {})
        why = "length" if reason == "length" else "stop"
        return f',"done":true,"done_reason":"{why}",{spent.model_dump_json()[1:-1]}'

    def _rows(self, rows: list[TokenLogprob] | None) -> str:
        if not self._logprobs or not rows:
            return ""
        content = chat_logprobs(rows).content or []
        return f',"logprobs":[{",".join(safe(row.model_dump_json()) for row in content)}]'


def _call(call: CallPiece) -> str:
    """Return a call as JSON text; its arguments are an object in it."""
    return f'{{"function":{{"name":{quote(call.name)},"arguments":{safe(call.arguments)}}}}}'


async def reply(exchange: Exchange, body: OllamaText, place: Place) -> web.StreamResponse:
    """Answer with the text of the exchange's only call, line by line or as a whole."""
    lines = Lines(exchange, body, place)
    if body.streams:
        idle = lines.line("", ',"done":false')
        return await stream(exchange, lines, 1, usage=True, framing=framing(idle))
    (draft,) = await collect(exchange)
    text = lines.whole(draft)
    return web.Response(text=text, content_type="application/json")

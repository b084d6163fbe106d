"""Answers of chat and generate: the same lines, but for the place of the text."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from blip.gateway.exchange import Exchange
from blip.gateway.moments import iso
from blip.gateway.routes.chat import ChatLogprob, chat_logprobs
from blip.gateway.routes.ollama.dialect import Durations, durations, framing
from blip.gateway.routes.ollama.options import OllamaText
from blip.gateway.text import Usage, collect, quote, safe, stream
from blip.kinds.text import FinishReason, TokenLogprob


class OllamaAnswer(BaseModel):
    """What every line says. Without stream there is one, with all of the text."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str
    created_at: str
    done: bool
    logprobs: list[ChatLogprob] | None = None
    """Of the tokens behind this piece of text, where they were asked for."""
    done_reason: FinishReason | None = None
    """This and what follows comes with done: true."""
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class Lines:
    """Writes lines; see :class:`blip.gateway.text.Chunks`. ``place`` puts a text in its place."""

    def __init__(self, exchange: Exchange, body: OllamaText, place: Callable[[str], str]) -> None:
        self._exchange = exchange
        self._logprobs = bool(body.logprobs)
        self._place = place
        self._head = f'{{"model":{quote(body.model)},"created_at":"'
        self._reason: FinishReason = "stop"

    def line(self, text: str, rest: str) -> str:
        """Return one line."""
        now = iso(time.time())
        return f'{self._head}{now}",{self._place(quote(text))}{rest}}}\n'

    def opening(self) -> str:
        """Nothing: a stream begins with its first piece."""
        return ""

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None) -> str:
        """A piece of the text."""
        return self.line(text, f'{self._rows(logprobs)},"done":false')

    def finish(self, index: int, reason: FinishReason) -> str:
        """Nothing yet: the last line says how much was used too."""
        self._reason = reason
        return ""

    def usage(self, usage: Usage) -> str:
        """The last line."""
        return self.line("", self._end(self._reason))

    def whole(self, text: str, rows: list[TokenLogprob], reason: FinishReason) -> str:
        """Return the answer on one line."""
        return self.line(text, self._rows(rows) + self._end(reason))

    def _end(self, reason: FinishReason) -> str:
        (call,), (answer,) = self._exchange.calls, self._exchange.answers
        spent: Durations = durations(call.timing, answer.usage if answer is not None else {})
        return f',"done":true,"done_reason":"{reason}",{spent.model_dump_json()[1:-1]}'

    def _rows(self, rows: list[TokenLogprob] | None) -> str:
        if not self._logprobs or not rows:
            return ""
        content = chat_logprobs(rows).content or []
        return f',"logprobs":[{",".join(safe(row.model_dump_json()) for row in content)}]'


async def reply(
    exchange: Exchange, body: OllamaText, place: Callable[[str], str]
) -> web.StreamResponse:
    """Answer with the text of the exchange's only call, line by line or as a whole."""
    lines = Lines(exchange, body, place)
    if body.streams:
        idle = lines.line("", ',"done":false')
        return await stream(exchange, lines, 1, usage=True, framing=framing(idle))
    (draft,) = await collect(exchange)
    text = lines.whole(draft.text, draft.logprobs, draft.reason)
    return web.Response(text=text, content_type="application/json")

"""What chat and completion answers share: drafts of choices, usage, and quick JSON for streams."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from aiohttp import web
from pydantic import BaseModel

from blip.gateway.events import EVENTS, Framing, send_events
from blip.gateway.exchange import Exchange, News, Result
from blip.gateway.mesh import Answer
from blip.kinds.text import (
    FinishReason,
    TextInput,
    TokenLogprob,
    delta_from_wire,
    finish_from_wire,
)
from blip.kinds.tools import CallPiece

#: OpenAI's word for "so unlikely that it does not matter"; JSON has no minus infinity.
_LEAST = -9999.0

Input = TypeVar("Input", bound=TextInput)

_encode = json.JSONEncoder(ensure_ascii=False).encode


class Usage(BaseModel):
    """Tokens that a request used; a prompt counts once, however many choices it got."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def usage_of(answers: Sequence[Answer | None], choices: int) -> Usage:
    """Sum up what the nodes counted; each prompt has ``choices`` answers in a row."""
    done = [answer.usage if answer is not None else {} for answer in answers]
    prompt = sum(usage.get("prompt_tokens", 0) for usage in done[::choices])
    completion = sum(usage.get("completion_tokens", 0) for usage in done)
    return Usage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
    )


def with_seeds(value: Input, choices: int) -> list[Input]:
    """Return one input a choice, each with a seed of its own if the request set one."""
    if choices == 1 or value.seed is None:
        return [value] * choices
    seed = value.seed
    return [value.model_copy(update={"seed": seed + index}) for index in range(choices)]


def quote(text: str) -> str:
    """Return ``text`` as a JSON string that is safe in an event stream.

    Not-quite-conforming clients split events at every line end that Unicode knows.
    """
    return safe(_encode(text))


def safe(document: str) -> str:
    """Return a JSON document on one line, whatever the client takes for the end of a line."""
    if not document.isascii():
        for char, escape in _LINE_ENDS:
            document = document.replace(char, escape)
    return document


_LINE_ENDS = (("\x85", "\\u0085"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))


def likelihood(logprob: float) -> float:
    """Return a log-probability as JSON can carry it."""
    return logprob if logprob > _LEAST else _LEAST  # also for NaN


class Draft(NamedTuple):
    """A choice that is complete; ``stop`` is the stop sequence that ended it."""

    text: str
    logprobs: list[TokenLogprob]
    reason: FinishReason
    calls: list[CallPiece]
    stop: str | None


async def collect(exchange: Exchange) -> list[Draft]:
    """Wait for all calls of the exchange; raises the first error among them."""
    return [_draft(result) for result in await exchange.results()]


def _draft(result: Result) -> Draft:
    deltas = [delta_from_wire(part) for part in result.parts]
    finish = finish_from_wire(result.answer.payload)
    rows = [row for delta in deltas for row in delta.logprobs or ()] + list(finish.logprobs or ())
    text = "".join([*(delta.text for delta in deltas), finish.text])
    calls = [piece for delta in deltas for piece in delta.calls or ()] + list(finish.calls or ())
    return Draft(text, rows, finish.reason, calls, finish.stop)


class Chunks(Protocol):
    """Writes the chunks of a streamed answer, each a whole event of its dialect."""

    def opening(self) -> str:
        """What comes first."""
        ...

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None) -> str:
        """A piece of a choice."""
        ...

    def calls(self, index: int, pieces: list[CallPiece]) -> str:
        """Pieces of the function calls of a choice."""
        ...

    def finish(self, index: int, reason: FinishReason, stop: str | None) -> str:
        """The end of a choice, and the stop sequence if one ended it."""
        ...

    def usage(self, usage: Usage) -> str:
        """The chunk after all choices."""
        ...


async def stream(
    exchange: Exchange,
    chunks: Chunks,
    choices: int,
    *,
    usage: bool,
    framing: Framing = EVENTS,
) -> web.StreamResponse:
    """Answer with the chunks of all choices as they come, interleaved."""

    def render(news: News) -> str:
        index, item = news
        if isinstance(item, Answer):
            finish = finish_from_wire(item.payload)
            last = ""
            if finish.text or finish.logprobs:
                last = chunks.delta(index, finish.text, finish.logprobs)
            if finish.calls:
                last += chunks.calls(index, finish.calls)
            return last + chunks.finish(index, finish.reason, finish.stop)
        delta = delta_from_wire(item)
        written = ""  # there may be ids only, whose text is still held back
        if delta.text or delta.logprobs:
            written = chunks.delta(index, delta.text, delta.logprobs)
        return written + chunks.calls(index, delta.calls) if delta.calls else written

    def closing() -> str:
        return chunks.usage(usage_of(exchange.answers, choices)) if usage else ""

    return await send_events(exchange, render, chunks.opening, closing, framing)

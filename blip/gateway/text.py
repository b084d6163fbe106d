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
    """A choice that is complete."""

    text: str
    logprobs: list[TokenLogprob]
    reason: FinishReason


async def collect(exchange: Exchange) -> list[Draft]:
    """Wait for all calls of the exchange; raises the first error among them."""
    return [_draft(result) for result in await exchange.results()]


def _draft(result: Result) -> Draft:
    deltas = [delta_from_wire(part) for part in result.parts]
    finish = finish_from_wire(result.answer.payload)
    rows = [row for delta in deltas for row in delta.logprobs or ()] + list(finish.logprobs or ())
    text = "".join([*(delta.text for delta in deltas), finish.text])
    return Draft(text, rows, finish.reason)


def stopped_by(stops: Sequence[str], rows: Sequence[TokenLogprob]) -> str | None:
    """Return the stop sequence that ended an answer, None if none did; ``rows`` are its tokens.

    The one that was complete first ended it, the longest of those that were complete together. An
    end marker has no row, and before the last token none was complete: so one that ends inside
    the last token is the one.
    """
    if not rows:
        return None
    whole = b"".join(row.raw for row in rows)
    before = len(whole) - len(rows[-1].raw)
    ends: dict[str, tuple[int, int]] = {}
    for stop in stops:
        raw = stop.encode()
        at = whole.find(raw, max(0, before - len(raw) + 1))
        if at >= 0:
            ends[stop] = (at + len(raw), -len(raw))
    return min(ends, key=ends.__getitem__, default=None)


class Chunks(Protocol):
    """Writes the chunks of a streamed answer, each a whole event of its dialect."""

    def opening(self) -> str:
        """What comes first."""
        ...

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None) -> str:
        """A piece of a choice."""
        ...

    def finish(self, index: int, reason: FinishReason) -> str:
        """The end of a choice."""
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
            return last + chunks.finish(index, finish.reason)
        delta = delta_from_wire(item)
        if delta.text or delta.logprobs:
            return chunks.delta(index, delta.text, delta.logprobs)
        return ""  # ids whose text is still held back

    def closing() -> str:
        return chunks.usage(usage_of(exchange.answers, choices)) if usage else ""

    return await send_events(exchange, render, chunks.opening, closing, framing)

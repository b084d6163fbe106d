"""What chat and completion share: how a model is asked to choose its tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import msgpack
from pydantic import Field

from blip.kinds.base import TaskInput
from blip.kinds.grammar import Grammar
from blip.kinds.tools import CallPiece

#: Output tokens that are assumed when a request sets no limit, for placement only.
TYPICAL_OUTPUT_TOKENS = 256

#: A prompt token costs about this share of an output token: prefill is batched, decoding is not.
PREFILL_SHARE = 1 / 16

#: English text has about this many characters a token in common vocabularies.
CHARS_PER_TOKEN = 4

FinishReason = Literal["stop", "length", "tool_calls"]


class TextInput(TaskInput):
    """Sampling parameters, under OpenAI's names and with its meanings where it has them.

    ``generated`` are token ids that an earlier attempt has already delivered; the runtime
    continues after them as if it had made them itself.
    """

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] = Field(
        default_factory=list
    )
    seed: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    grammar: Grammar | None = None
    generated: list[int] = Field(default_factory=list)


def text_units(value: TextInput, prompt_chars: int) -> float:
    """Work of a text task in output tokens."""
    output = min(value.max_tokens or TYPICAL_OUTPUT_TOKENS, TYPICAL_OUTPUT_TOKENS * 4)
    return prompt_chars / CHARS_PER_TOKEN * PREFILL_SHARE + max(1, output - len(value.generated))


class TokenLogprob(NamedTuple):
    """One token with its log-probability (natural log) and the most likely alternatives.

    ``raw`` are the token's own bytes, which need not be whole UTF-8. ``top`` holds
    ``(token text, logprob, raw bytes)``, best first.
    """

    token: str
    logprob: float
    raw: bytes
    top: list[tuple[str, float, bytes]]


class Delta(NamedTuple):
    """One DATA payload of a text task: what was generated since the last one.

    ``ids`` are the token ids behind ``text`` and may run ahead of it while a character or a
    possible stop sequence is still incomplete. A gateway that has the ids of everything it
    delivered can have another node continue. ``calls`` are pieces of function calls.
    """

    text: str
    ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    calls: list[CallPiece] | None = None


class Finish(NamedTuple):
    """The DONE payload of a text task. ``text`` is what was held back until the end.

    ``stop`` is the stop sequence that ended it, None if none did.
    """

    reason: FinishReason
    text: str = ""
    ids: list[int] = []  # noqa: RUF012  (never mutated; a NamedTuple default, not a class attribute)
    logprobs: list[TokenLogprob] | None = None
    calls: list[CallPiece] | None = None
    stop: str | None = None


#: Fields that deltas and finishes had from the beginning; later ones travel only if they are set,
#: so that a gateway of another version reads what it knows.
_ALWAYS = {Delta: 3, Finish: 4}


def delta_to_wire(delta: Delta | Finish) -> bytes:
    """Encode a delta or a finish as a msgpack array."""
    least, size = _ALWAYS[type(delta)], len(delta)
    while size > least and delta[size - 1] is None:
        size -= 1
    packed: bytes = msgpack.packb(delta[:size])
    return packed


def delta_from_wire(payload: bytes | memoryview) -> Delta:
    """Decode a DATA payload. Raises ``ValueError`` or ``TypeError`` on anything else."""
    text, ids, logprobs, *more = msgpack.unpackb(payload)
    if not more:  # nearly all
        return Delta(text, ids, _logprobs(logprobs))
    return Delta(text, ids, _logprobs(logprobs), _calls(more[0]))


def finish_from_wire(payload: bytes | memoryview) -> Finish:
    """Decode a DONE payload. Raises ``ValueError`` or ``TypeError`` on anything else."""
    reason, text, ids, logprobs, *more = msgpack.unpackb(payload)
    calls, stop = [*more, None, None][:2]
    return Finish(reason, text, ids, _logprobs(logprobs), _calls(calls), stop)


def _calls(pieces: list[Any] | None) -> list[CallPiece] | None:
    return None if pieces is None else [CallPiece(*piece) for piece in pieces]


def _logprobs(rows: list[Any] | None) -> list[TokenLogprob] | None:
    if rows is None:
        return None
    return [
        TokenLogprob(token, logprob, raw, [(t, p, b) for t, p, b in top])
        for token, logprob, raw, top in rows
    ]

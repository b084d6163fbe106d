"""What Ollama's routes share: errors, names, durations and streams of lines."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from blip.errors import BlipError
from blip.gateway.dialect import Dialect
from blip.gateway.envelope import about
from blip.gateway.events import Framing
from blip.gateway.exchange import Exchange
from blip.gateway.mesh import Timing
from blip.gateway.text import safe

#: What Ollama's clients add to a name that has no tag.
_LATEST = ":latest"


class OllamaError(BaseModel):
    """The body of every error."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    error: str
    """What went wrong."""
    param: str | None
    """The request field at fault."""
    code: str
    """Stable, the same in every dialect; match on this."""
    hint: str | None
    details: dict[str, Any]
    request_id: str


def error_json(error: BlipError, request_id: str) -> str:
    """Return the body of ``error`` as JSON text on one line."""
    body = {"error": error.message, **about(error), "request_id": request_id}
    return safe(json.dumps(body, ensure_ascii=False))


DIALECT = Dialect(
    OllamaError,
    error_json,
    media="application/x-ndjson",
    streams="Unless stream is false. One object a line; the last one has done: true, or error.",
)


class Durations(BaseModel):
    """Where the time went, in nanoseconds, and the tokens that were used."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    total_duration: int
    """From the request until the end."""
    load_duration: int
    """Loading the model; 0 if it was loaded."""
    prompt_eval_count: int
    """Tokens of the prompt."""
    prompt_eval_duration: int
    """Until the first token came, without waiting and loading."""
    eval_count: int
    """Tokens of the answer."""
    eval_duration: int
    """From the first token until the end."""


def durations(timing: Timing, usage: dict[str, int]) -> Durations:
    """Return what was measured of a call that has ended."""
    total = timing.total or 0.0
    first = total if timing.first is None else timing.first
    return Durations(
        total_duration=nanoseconds(total),
        load_duration=nanoseconds(timing.load),
        prompt_eval_count=usage.get("prompt_tokens", 0),
        prompt_eval_duration=nanoseconds(first - timing.queue - timing.load),
        eval_count=usage.get("completion_tokens", 0),
        eval_duration=nanoseconds(total - first),
    )


def nanoseconds(seconds: float) -> int:
    """Return a duration as Ollama counts it, never below 0: clocks of two machines have a part."""
    return max(0, round(seconds * 1e9))


def served_name(exchange: Exchange, name: str) -> str:
    """Return the mesh's name of a model that Ollama's clients may call ``name:latest``."""
    bare = name.removesuffix(_LATEST)
    if bare == name or not bare:
        return name
    known = {model.name for model in exchange.gateway.mesh.models()}
    return bare if name not in known and bare in known else name


def framing(idle: str) -> Framing:
    """Return the framing of a stream of lines; ``idle`` is a line that adds nothing."""
    return Framing(
        media="application/x-ndjson",
        heartbeat=idle,
        end="",
        failed=lambda error, request_id: f"{error_json(error, request_id)}\n",
    )

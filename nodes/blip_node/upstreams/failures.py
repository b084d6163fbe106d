"""What an engine's refusals and accidents are in blip's words. Pure.

The question is always the same: would the same request do better elsewhere? A request that the
engine finds wrong is the client's error, with the engine's message. Everything else is retryable,
for another node may have another engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from blip.errors import (
    BlipError,
    ContextTooLong,
    InvalidRequest,
    NodeLost,
    PayloadTooLarge,
    Unavailable,
)

#: Of an engine's message so much is passed on; a page of HTML or a traceback is cut off here.
MAX_MESSAGE = 500

#: How engines say that a prompt is too long, where they give it no code of its own.
_TOO_LONG = (
    "maximum context length",
    "context length",
    "context size",
    "max_model_len",
    "longer than the model",
)

#: Longest Retry-After that is believed, in seconds.
MAX_RETRY_AFTER = 3600.0


def refused(engine: str, status: int, body: bytes, headers: Mapping[str, str]) -> BlipError:
    """Return the error for an answer whose status is not 200."""
    said = message_of(body)
    details = {"upstream": engine, "upstream_status": status}
    retry_after = retry_seconds(headers.get("Retry-After"), headers.get("Date"))
    if status in (400, 422):
        if _code(body) == "context_length_exceeded" or any(w in said.lower() for w in _TOO_LONG):
            return ContextTooLong(said or "the prompt is too long", details=details)
        why = said or f"the engine answered {status} without a reason"
        return InvalidRequest(why, param=_param(body), details=details)
    if status == 413:
        return PayloadTooLarge(said or "the request is too large for the engine", details=details)
    if status in (401, 403):
        text = f"upstream '{engine}' does not accept this node's API key ({status})"
        hint = f"Check upstreams.{engine}.api_key_env where the node runs."
        return Unavailable(text, hint=hint, details=details)
    text = f"upstream '{engine}' answered {status}" + (f": {said}" if said else "")
    return Unavailable(text, retry_after=retry_after, details=details)


def in_stream(engine: str, error: Any) -> BlipError:
    """Return the error for one that came in place of a chunk, when the status was sent already."""
    body = json.dumps({"error": error}).encode()
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and not isinstance(code, bool) else 500
    return refused(engine, status, body, {})


def unreachable(engine: str, error: BaseException) -> BlipError:
    """Return the error for a connection that was not made: nothing was asked yet."""
    return Unavailable(
        f"upstream '{engine}' cannot be reached: {plainly(error)}", details={"upstream": engine}
    )


def broken_off(engine: str, why: str) -> BlipError:
    """Return the error for an answer that ended before its end."""
    return NodeLost(f"upstream '{engine}' {why}", details={"upstream": engine})


def lied(engine: str, what: str) -> BlipError:
    """Return the error for an answer that is not what the API says."""
    return Unavailable(
        f"upstream '{engine}' {what}",
        hint=f"Is upstreams.{engine}.url the base URL of an OpenAI-compatible API?",
        details={"upstream": engine},
    )


def plainly(error: BaseException) -> str:
    """Write an exception of the HTTP client for people; many of them have no text."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def retry_seconds(value: str | None, date: str | None = None) -> float | None:
    """Read a Retry-After header: seconds, or a date, which counts from the answer's own ``Date``.

    None for what is neither, or for a date where the answer has none: clocks differ.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (
                parsedate_to_datetime(value) - parsedate_to_datetime(date or "")
            ).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER) if seconds == seconds else None


def message_of(body: bytes) -> str:
    """Return the message of an engine's error body, "" if it has none that is for people.

    OpenAI, vLLM, llama.cpp and Ollama nest it as ``error.message``; vLLM before 0.10 and SGLang
    have it at the top; FastAPI's own errors are a list at ``detail``.
    """
    answer = _json(body)
    error = answer.get("error", answer)
    for holder in (error, answer):
        if isinstance(holder, str):
            return _short(holder)
        if isinstance(holder, dict):
            for key in ("message", "msg", "detail"):
                said = holder.get(key)
                if isinstance(said, str) and said:
                    return _short(said)
                if isinstance(said, list) and said and isinstance(said[0], dict):
                    where = ".".join(map(str, said[0].get("loc", ())))
                    return _short(f"{where}: {said[0].get('msg', '')}".strip(": "))
    return ""


def _json(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _code(body: bytes) -> Any:
    error = _json(body).get("error")
    return error.get("code") if isinstance(error, dict) else None


def _param(body: bytes) -> str | None:
    error = _json(body).get("error")
    param = error.get("param") if isinstance(error, dict) else None
    return param if isinstance(param, str) else None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"

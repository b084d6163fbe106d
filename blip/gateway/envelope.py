"""How errors are answered; in OpenAI's envelope unless a dialect has another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from blip.errors import BlipError, InvalidRequest, NotFound

_encode = json.JSONEncoder(ensure_ascii=False).encode


class MethodNotAllowed(NotFound):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status = 405


class UnsupportedMediaType(InvalidRequest):
    """The body is declared to be something other than this route takes."""

    code = "unsupported_media_type"
    status = 415


class RangeNotSatisfiable(InvalidRequest):
    """The ``Range`` header asks for bytes that the file does not have."""

    code = "range_not_satisfiable"
    status = 416


class ExpectationFailed(InvalidRequest):
    """The ``Expect`` header asks for something other than ``100-continue``."""

    code = "expectation_failed"
    status = 417


class ErrorDetail(BaseModel):
    """What went wrong, and what to do next."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    message: str
    type: str
    param: str | None
    """The request field at fault."""
    code: str
    """Stable; match on this."""
    hint: str | None
    details: dict[str, Any]
    """Numbers and names behind the message, such as ``earliest_finish``; what is there depends
    on the code."""
    request_id: str


class ErrorEnvelope(BaseModel):
    """The body of every error."""

    error: ErrorDetail


def error_json(error: BlipError, request_id: str) -> str:
    """Return the envelope of ``error`` as JSON text on one line."""
    detail = {"message": error.message, "type": error.openai_type, **about(error)}
    return _encode({"error": {**detail, "request_id": request_id}})


def about(error: BlipError) -> dict[str, Any]:
    """Return what every dialect's envelope says of an error besides its message."""
    return {
        "param": error.param,
        "code": error.code,
        "hint": error.hint or None,
        "details": {str(key): plain(value) for key, value in error.details.items()},
    }


def plain(value: Any) -> Any:
    """Return what JSON has words for: details may come from a peer, and msgpack knows more."""
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return value.hex() if isinstance(value, bytes) else str(value)


def error_response(
    error: BlipError, request_id: str, write: Callable[[BlipError, str], str] = error_json
) -> web.Response:
    """Return the HTTP response for ``error``; ``write`` writes its body."""
    response = web.Response(
        text=write(error, request_id), status=error.status, content_type="application/json"
    )
    if error.retry_after is not None:
        # the header knows whole seconds only; rounding down would invite a second refusal
        response.headers["Retry-After"] = str(max(0, math.ceil(error.retry_after)))
    elif error.status >= 500 and not error.retryable:
        # OpenAI's clients send whatever fails with 5xx again, unless they are told not to
        response.headers["X-Should-Retry"] = "false"
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.details["allow"])
    return response

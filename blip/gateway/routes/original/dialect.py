"""What the faces of BitingLip share: its error envelope, and what stands around a result."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from blip.errors import BlipError
from blip.gateway.dialect import Dialect
from blip.gateway.envelope import about
from blip.gateway.events import Framing
from blip.gateway.exchange import Exchange
from blip.gateway.moments import iso
from blip.gateway.text import safe


class OriginalErrorDetail(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    code: str
    """blip's code in capitals: MODEL_NOT_FOUND."""
    message: str
    details: dict[str, Any]
    """Numbers behind the message, and the field at fault as 'field'."""
    hint: str | None
    param: str | None
    request_id: str
    timestamp: str


class OriginalError(BaseModel):
    """The body of every error."""

    error: OriginalErrorDetail


def error_json(error: BlipError, request_id: str) -> str:
    """Return the envelope of ``error`` as JSON text on one line."""
    known = about(error)
    field = {} if error.param is None else {"field": error.param}
    detail = {
        "code": error.code.upper(),
        "message": error.message,
        "details": {**known["details"], **field},
        "hint": known["hint"],
        "param": error.param,
        "request_id": request_id,
        "timestamp": iso(time.time()),
    }
    return safe(json.dumps({"error": detail}, ensure_ascii=False))


DIALECT = Dialect(
    OriginalError,
    error_json,
    streams="With stream: true. The data of each event; the last one has done, or error.",
)

FRAMING = Framing(
    end="", failed=lambda error, request_id: f"data: {error_json(error, request_id)}\n\n"
)


class Finished(BaseModel):
    """What stands around every result."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    task_id: str
    status: Literal["completed"] = "completed"
    processing_time: float
    """Seconds, from the request until the end."""
    worker_id: str
    """The node that served it."""
    created_at: str
    completed_at: str


def finished(exchange: Exchange) -> dict[str, Any]:
    """Return the fields of a :class:`Finished` for the exchange's calls, which have ended.

    Of several the first names the task and the worker; all are over when the last one is.
    """
    call = exchange.calls[0]
    now, took = time.time(), max(call.timing.total or 0.0 for call in exchange.calls)
    return {
        "task_id": call.task_id,
        "processing_time": took,
        "worker_id": call.node,
        "created_at": iso(now - took),
        "completed_at": iso(now),
    }

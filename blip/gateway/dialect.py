"""What differs between families of clients on every route: errors, and how a stream is declared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel

from blip.errors import BlipError
from blip.gateway.envelope import ErrorEnvelope, error_json


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one family of clients is spoken to."""

    #: The body of an error, and what writes it: JSON on one line, from an error and a request id.
    envelope: type[BaseModel]
    error: Callable[[BlipError, str], str]
    #: The media type of its streams, and a sentence about them.
    media: str = "text/event-stream"
    streams: str = "With stream: true. The data of each event."
    #: The header in which its clients look for the request's id, besides X-Request-ID.
    request_id: str | None = None


OPENAI = Dialect(
    ErrorEnvelope,
    error_json,
    streams="With stream: true. The data of each event; then data: [DONE].",
)

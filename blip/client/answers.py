"""What a gateway answers, as plain objects. Pure: bodies in, objects or errors out."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blip.errors import BlipError, InternalError, Unavailable, from_wire


class GatewayUnreachable(Unavailable):
    """Nothing answers at the gateway's address."""

    code = "gateway_unreachable"
    default_hint = "Start a mesh with `blip up`, or name its gateway with --url or BLIP_URL."


@dataclass(frozen=True, slots=True)
class Origin:
    """Who answered: the node's display name, the ids of request and task, where the time went.

    ``timing`` holds seconds by phase (``queue``, ``load``, ``first``, ``total``), as far as the
    gateway knew them when it sent the headers.
    """

    node: str = ""
    request_id: str = ""
    task_id: str = ""
    timing: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Origin:
        """Read the headers that blip's gateways send."""
        return cls(
            node=headers.get("X-Blip-Node", ""),
            request_id=headers.get("X-Request-ID", ""),
            task_id=headers.get("X-Blip-Task", ""),
            timing=read_timing(headers.get("X-Blip-Timing", "")),
        )


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model calls; ``arguments`` are JSON text."""

    id: str
    name: str
    arguments: str

    def parsed(self) -> Any:
        """Return the arguments as an object. Raises ``ValueError`` if the answer was cut off."""
        return json.loads(self.arguments)


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """The whole answer of a chat or a completion; ``usage`` counts tokens."""

    text: str
    finish_reason: str
    usage: Mapping[str, int]
    origin: Origin
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbeddingAnswer:
    """One vector a text, in the order of the texts."""

    vectors: list[list[float]]
    usage: Mapping[str, int]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: the bytes of its file, and the seed that paints it again."""

    file: bytes
    seed: int


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """The pictures of a request; ``size`` is written as ``64x64``, ``format`` as ``png``."""

    pictures: list[Picture]
    size: str
    format: str
    usage: Mapping[str, Any]
    origin: Origin


@dataclass(frozen=True, slots=True)
class EchoAnswer:
    """What the ``echo`` kind gave back: the bytes, or the text in UTF-8."""

    body: bytes
    origin: Origin


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of the mesh: what it is for, its context window in tokens, who has it."""

    id: str
    kinds: tuple[str, ...] = ()
    context: int | None = None
    nodes: tuple[str, ...] = ()
    #: Replicas that are loaded.
    ready: int = 0
    #: Names of the LoRAs and ControlNets that pictures may be painted with.
    loras: tuple[str, ...] = ()
    controlnets: tuple[str, ...] = ()


@dataclass(slots=True)
class Piece:
    """What one event of a text stream adds."""

    text: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, int] | None = None
    #: What is new in calls, as the event has it.
    calls: Sequence[Mapping[str, Any]] = ()


def read_timing(header: str) -> dict[str, float]:
    """Read ``queue=0.0010;total=0.2000``; what is no number is left out."""
    found = {}
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            continue
    return found


def error_from(status: int, body: bytes, headers: Mapping[str, str], where: str) -> BlipError:
    """Rebuild the error behind a response that is not a success."""
    envelope = _json_object(body).get("error")
    if not isinstance(envelope, dict):
        start = body[:200].decode("utf-8", "replace").strip()
        return InternalError(
            f"{where} answered with status {status} and no error envelope: {start!r}",
            hint="Is this really the address of a blip gateway?",
        )
    return error_from_envelope(envelope, headers)


def error_from_envelope(
    envelope: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> BlipError:
    """Rebuild the error in OpenAI's envelope; the ``code`` decides its class."""
    known = {"message", "type", "code", "param", "hint", "request_id", "details"}
    details = {key: value for key, value in envelope.items() if key not in known}
    if isinstance(envelope.get("details"), dict):
        details |= envelope["details"]
    for name in ("param", "hint"):
        if envelope.get(name):
            details[name] = envelope[name]
    try:
        details["retry_after"] = float((headers or {})["Retry-After"])
    except (KeyError, ValueError):
        pass  # absent, or the date form, which blip's gateways never send
    error = from_wire(str(envelope.get("code")), str(envelope.get("message")), details)
    if envelope.get("request_id"):
        error.details["request_id"] = envelope["request_id"]
    return error


def models_from(body: Any) -> list[ModelInfo]:
    """Read GET /v1/models."""
    return [
        ModelInfo(
            id=str(row["id"]),
            kinds=tuple(row.get("kinds", ())),
            context=row.get("context"),
            nodes=tuple(row.get("nodes", ())),
            ready=int(row.get("ready", 0)),
            loras=tuple(row.get("loras", ())),
            controlnets=tuple(row.get("controlnets", ())),
        )
        for row in body["data"]
    ]


def text_from(body: Any, origin: Origin) -> TextAnswer:
    """Read the answer of a chat or a completion."""
    choice = body["choices"][0]
    message = choice.get("message") or {}
    text = message["content"] if message else choice["text"]
    calls = tool_calls(
        [{"index": n, **call} for n, call in enumerate(message.get("tool_calls") or ())]
    )
    usage = body.get("usage") or {}
    return TextAnswer(text or "", choice["finish_reason"] or "", usage, origin, calls)


def tool_calls(pieces: Iterable[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    """Put calls together from their pieces, which the ``index`` tells apart."""
    calls: dict[int, ToolCall] = {}
    for piece in pieces:
        known = calls.get(piece["index"], ToolCall("", "", ""))
        function = piece.get("function") or {}
        calls[piece["index"]] = ToolCall(
            known.id or piece.get("id") or "",
            known.name or function.get("name") or "",
            known.arguments + (function.get("arguments") or ""),
        )
    return tuple(calls[index] for index in sorted(calls))


def piece_from(data: str) -> Piece:
    """Read one event of a chat or completion stream. Raises the error that an event reports."""
    event = json.loads(data)
    if isinstance(event.get("error"), dict):
        raise error_from_envelope(event["error"])
    piece = Piece(usage=event.get("usage"))
    for choice in event.get("choices", ()):
        delta = choice.get("delta")
        piece.text += (delta.get("content") if delta is not None else choice.get("text")) or ""
        piece.calls = [*piece.calls, *((delta or {}).get("tool_calls") or ())]
        piece.finish_reason = choice.get("finish_reason") or piece.finish_reason
    return piece


def vectors_from(body: Any, origin: Origin) -> EmbeddingAnswer:
    """Read POST /v1/embeddings, vectors as base64 (little-endian float32) or as numbers."""
    rows = sorted(body["data"], key=lambda row: int(row["index"]))
    return EmbeddingAnswer(
        [_vector(row["embedding"]) for row in rows], body.get("usage") or {}, origin
    )


def pictures_from(body: Any, origin: Origin) -> ImageAnswer:
    """Read the answer of an image route. Raises ``InternalError`` for what is not base64."""
    pictures = [Picture(picture_from(row["b64_json"]), int(row["seed"])) for row in body["data"]]
    return ImageAnswer(
        pictures, body["size"], body["output_format"], body.get("usage") or {}, origin
    )


def picture_from(text: str) -> bytes:
    """Return the file of a picture in base64. Raises ``InternalError`` for what is none."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InternalError(f"the gateway sent a picture that is not base64: {error}") from None


def _vector(value: Any) -> list[float]:
    if not isinstance(value, str):
        return [float(number) for number in value]
    try:
        raw = base64.b64decode(value, validate=True)
        return [number for (number,) in struct.iter_unpack("<f", raw)]
    except (binascii.Error, struct.error) as error:
        raise InternalError(f"the gateway sent an embedding that is not float32: {error}") from None


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}

"""Kinds that a plugin on a node defines: what all of them share. The rest only the plugin knows.

Input and answers travel as bytes with a media type and are looked into by nobody on the way but
the gateway, which holds the input against the plugin's JSON schema.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack

from blip.kinds.base import Kind, TaskInput

#: The media type of a JSON text, which is what a plugin answers unless it answers bytes.
JSON = "application/json"

#: What bytes are unless the plugin says better.
BINARY = "application/octet-stream"

#: Most bytes of one answer or part: what a link between node and gateway takes is 64 MiB, with the
#: message around it. More goes in parts.
MAX_BYTES = 48 * 1024 * 1024


class PluginInput(TaskInput):
    """A plugin's input: the text of a JSON object."""

    document: str


def plugin_kind(name: str) -> Kind:
    """Return a plugin's kind for the node, where its runtime says how much work a task was."""
    return Kind(name, PluginInput, lambda value: 1.0)


def measure(value: Any, field: str) -> float:
    """Return the work of an input: what its ``field`` says, 1 where it says nothing.

    A number counts as it is, a text, a list or an object by its length.
    """
    found = value.get(field) if field and isinstance(value, dict) else None
    if isinstance(found, int | float) and not isinstance(found, bool):
        return min(max(float(found), 0.0), 1e12) or 1.0
    return float(len(found)) or 1.0 if isinstance(found, str | list | dict) else 1.0


class Piece(NamedTuple):
    """A DATA or DONE payload with something of the answer in it; ``media`` says what it is."""

    media: str
    body: bytes | memoryview


class Progress(NamedTuple):
    """A DATA payload that says how far it is, from 0 to 1, and on what."""

    share: float
    text: str


#: The first element on the wire, which tells the two apart.
_PIECE, _PROGRESS = 0, 1


def piece_to_wire(piece: Piece | Progress) -> bytes:
    """Encode a payload as a msgpack array."""
    tag = _PIECE if isinstance(piece, Piece) else _PROGRESS
    packed: bytes = msgpack.packb((tag, *piece))
    return packed


def piece_from_wire(payload: bytes | memoryview) -> Piece | Progress:
    """Decode a payload. Raises ``ValueError`` or ``TypeError`` on anything else."""
    tag, first, second = msgpack.unpackb(payload)
    if tag == _PIECE and isinstance(first, str) and isinstance(second, bytes):
        return Piece(first, second)
    if tag == _PROGRESS and isinstance(first, float) and isinstance(second, str):
        return Progress(first, second)
    raise ValueError("neither a piece nor progress")

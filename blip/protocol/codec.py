"""Messages to frames and back.

One ZeroMQ message carries everything a loop tick has for one peer:

    frame 0    b"BLP" + version byte, then a msgpack array of headers
    frame 1..  payloads too large to stand in a header, in header order

A header is ``[type, seq, task, attempt, fields]``; a sixth element, 1, says that the message's
``payload`` field is the next frame. Arrays, not maps: 64 bytes against 108 for a typical header,
and cheaper to read.

Decoding trusts nothing: types are checked field by field and any violation is a
:class:`~blip.errors.RemoteProtocolError`, never another exception.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import msgpack

from blip.errors import PayloadTooLarge, RemoteProtocolError
from blip.protocol.messages import NUMBERS, TASK_ID_BYTES, TYPES, Message, Payload

MAGIC = b"BLP"
#: The version of this framing itself; what messages mean is negotiated in HELLO.
FRAMING = 1
PREFIX = MAGIC + bytes([FRAMING])

#: Payloads below this stay in the header: a frame costs more than copying a few kilobytes.
INLINE_LIMIT = 8 * 1024

#: Headers and payload of one message on a control link; also the socket's limit.
CONTROL_LIMIT = 1024 * 1024

#: The same on a data link: results are cut in pieces of 1 MiB, inputs arrive whole.
DATA_LIMIT = 64 * 1024 * 1024

#: Elements of one array or map, headers of one message included. msgpack allocates an array as
#: large as its header claims, so a few nested headers of five bytes each could ask for gigabytes.
ELEMENTS = 0xFFFF

#: Levels of arrays and maps inside a free-form field (details, INFO and STATS bodies).
DEPTH = 16


class Sequenced(NamedTuple):
    """A message and its place in its link."""

    seq: int
    message: Message


class Unknown(NamedTuple):
    """A well-formed header of a type this version does not know."""

    seq: int
    type: int
    task: bytes
    attempt: int


class Packed(NamedTuple):
    """One encoded message: its header, its payload if that is a frame of its own, their bytes."""

    header: bytes
    payload: Payload | None
    size: int


_Check = Callable[[Any], Any]


def _free(value: Any, depth: int = DEPTH) -> Any:
    """Check a free-form value: whatever JSON can say too, since that is where it ends up."""
    kind = type(value)
    if kind is float:
        if not math.isfinite(value):
            raise TypeError("not a finite number")
    elif kind is list or kind is dict:
        if not depth:
            raise TypeError("nested too deeply")
        if kind is dict and any(type(key) is not str for key in value):
            raise TypeError("a key that is no string")
        for each in value.values() if kind is dict else value:
            _free(each, depth - 1)
    elif kind not in (str, int, bool, types.NoneType):
        raise TypeError(f"a {kind.__name__} where only JSON's types belong")
    return value


def _of(annotation: Any) -> _Check:
    """Build the check for one field: returns the value, or raises TypeError."""
    if annotation is Any:
        return _free
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(annotation)
        if set(options) == {bytes, memoryview}:
            return _of(bytes)
        (inner,) = [option for option in options if option is not type(None)]
        check = _of(inner)
        return lambda value: None if value is None else check(value)
    if origin is list:
        (item,) = typing.get_args(annotation)
        check_item = _of(item)

        def check_list(value: Any) -> Any:
            if type(value) is not list:
                raise TypeError("not a list")
            return [check_item(each) for each in value]

        return check_list
    if origin is dict:
        key_type, value_type = typing.get_args(annotation)
        check_value = _of(value_type)

        def check_dict(value: Any) -> Any:
            if type(value) is not dict or any(type(key) is not key_type for key in value):
                raise TypeError("not a map")
            for each in value.values():
                check_value(each)
            return value

        return check_dict
    if annotation is float:

        def check_float(value: Any) -> Any:
            if type(value) is int:
                return float(value)
            if type(value) is not float or not math.isfinite(value):
                raise TypeError("not a finite number")
            return value

        return check_float
    if hasattr(annotation, "_fields"):
        return _tuple_check(annotation)

    def check_exact(value: Any) -> Any:
        if type(value) is not annotation:
            raise TypeError(f"not {annotation.__name__}")
        return value

    return check_exact


#: Types whose value is right when its type is; the others need a look inside.
_PLAIN = (int, str, bytes, bool)


def _tuple_check(cls: Any) -> _Check:
    hints = [typing.get_type_hints(cls)[name] for name in cls._fields]
    checks = [_of(hint) for hint in hints]
    least = len(checks) - len(cls._field_defaults)
    # The usual message is exactly as this version writes it: one comparison of types then stands
    # for most of the checks (5.1 -> 3.2 us for a SUBMIT).
    usual = tuple(bytes if hint == Payload else typing.get_origin(hint) or hint for hint in hints)
    floats = [at for at, hint in enumerate(hints) if hint is float]
    deep = [
        (at, check)
        for at, (hint, check) in enumerate(zip(hints, checks, strict=True))
        if hint not in _PLAIN and hint not in (float, Payload)
    ]
    isfinite = math.isfinite

    def check_tuple(value: Any) -> Any:
        if type(value) is not list or len(value) < least:
            raise TypeError(f"{cls.__name__} needs {least} fields")
        if tuple(map(type, value)) == usual:
            for at in floats:
                if not isfinite(value[at]):
                    raise TypeError("not a finite number")
            for at, check in deep:
                value[at] = check(value[at])
            return cls._make(value)
        # fields beyond those we know come from a newer peer and are ignored
        return cls(*[check(each) for check, each in zip(checks, value, strict=False)])

    return check_tuple


_CHECKS: dict[int, _Check] = {number: _tuple_check(cls) for number, cls in TYPES.items()}
_ABOUT_TASK = {number for number, cls in TYPES.items() if cls._fields[:2] == ("task", "attempt")}
#: Where the payload stands among the fields after task and attempt.
_PAYLOAD_AT = {
    cls: cls._fields.index("payload") - 2 for cls in TYPES.values() if "payload" in cls._fields
}

_pack: Callable[[Any], bytes] = msgpack.Packer(autoreset=True).pack


def pack(seq: int, message: Message, limit: int) -> Packed:
    """Encode one message.

    Raises :class:`~blip.errors.PayloadTooLarge` if it takes more than ``limit`` bytes: the socket
    at the other end would hang up without a word.
    """
    number = NUMBERS[type(message)]
    payload: Payload | None = None
    if number not in _ABOUT_TASK:
        header = _pack((number, seq, b"", 0, message))
    else:
        task, attempt, *fields = cast("tuple[Any, ...]", message)
        at = _PAYLOAD_AT.get(type(message))
        if at is not None and len(fields[at]) > INLINE_LIMIT:
            payload, fields[at] = fields[at], b""
            header = _pack((number, seq, task, attempt, fields, 1))
        else:
            header = _pack((number, seq, task, attempt, fields))
    size = len(header) if payload is None else len(header) + len(payload)
    if size > limit:
        raise PayloadTooLarge(
            f"a {type(message).__name__} of {size} bytes is over the link's {limit}",
            details={"size": size, "limit": limit},
        )
    return Packed(header, payload, size)


def join(batch: Iterable[Packed], limit: int) -> list[list[Payload]]:
    """Put encoded messages into as few ZeroMQ messages as ``limit`` bytes allow, in order."""
    out: list[list[Payload]] = []
    headers: list[bytes] = []
    payloads: list[Payload] = []
    total = 0
    for header, payload, size in batch:
        if headers and (total + size > limit or len(headers) == ELEMENTS):
            out.append([_head(headers), *payloads])
            headers, payloads, total = [], [], 0
        headers.append(header)
        if payload is not None:
            payloads.append(payload)
        total += size
    if headers:
        out.append([_head(headers), *payloads])
    return out


def encode(batch: Iterable[tuple[int, Message]], limit: int) -> list[list[Payload]]:
    """Encode ``(seq, message)`` pairs: :func:`pack` each, :func:`join` all."""
    return join([pack(seq, message, limit) for seq, message in batch], limit)


def _head(headers: list[bytes]) -> bytes:
    count = len(headers)
    array = bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return b"".join([PREFIX, array, *headers])


def decode(frames: Sequence[Payload]) -> list[Sequenced | Unknown]:
    """Decode one ZeroMQ message.

    Raises :class:`~blip.errors.RemoteProtocolError` on anything malformed; nothing of the message
    is delivered then.
    """
    if not frames or bytes(frames[0][:4]) != PREFIX:
        raise RemoteProtocolError("not a blip message, or of another framing version")
    packed = memoryview(frames[0])[len(PREFIX) :]
    # no array has more elements than the message has bytes
    elements = min(len(packed), ELEMENTS)
    try:
        rows = msgpack.unpackb(packed, max_array_len=elements, max_map_len=elements)
    except Exception as error:
        # msgpack raises half a dozen unrelated types on hostile bytes
        raise RemoteProtocolError(f"headers are not msgpack: {error}") from None
    if type(rows) is not list:
        raise RemoteProtocolError("headers are not an array")
    out: list[Sequenced | Unknown] = []
    used = 1
    for row in rows:
        try:
            if type(row) is not list:
                raise TypeError("not an array")
            number, seq, task, attempt, fields = row[:5]
            if type(number) is not int or type(seq) is not int or seq < 0:
                raise TypeError("type and seq are not numbers")
            if type(task) is not bytes or type(attempt) is not int or attempt < 0:
                raise TypeError("task and attempt are not an id and a number")
            if type(fields) is not list:
                raise TypeError("fields are not an array")
            payload = None
            if len(row) > 5 and type(row[5]) is int and row[5] == 1:
                payload = frames[used]
                used += 1
            check = _CHECKS.get(number)
            if check is None:
                out.append(Unknown(seq, number, task, attempt))
                continue
            if number in _ABOUT_TASK:
                if len(task) != TASK_ID_BYTES:
                    raise TypeError(f"a task id of {len(task)} bytes")
                fields = [task, attempt, *fields]
            message = check(fields)
            if payload is not None:
                if type(message) not in _PAYLOAD_AT:
                    raise TypeError("a payload where none belongs")
                message = message._replace(payload=payload)
            out.append(Sequenced(seq, message))
        except (TypeError, ValueError, IndexError) as error:
            raise RemoteProtocolError(f"malformed header: {error}") from None
    if used != len(frames):
        raise RemoteProtocolError(f"{len(frames) - used} frames belong to no header")
    return out

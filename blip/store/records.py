"""Maps as they lie in Redis: msgpack, checked in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from blip.errors import InternalError, InvalidRequest, PayloadTooLarge


def pack_map(value: Mapping[str, Any], *, limit: int, what: str) -> bytes:
    """Encode a map with text keys into at most ``limit`` bytes.

    Raises :class:`~blip.errors.InvalidRequest` if it holds what msgpack cannot carry there and
    back, and :class:`~blip.errors.PayloadTooLarge`; ``what`` names it in both.
    """
    try:
        packed: bytes = msgpack.packb(dict(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{what} cannot be stored: {error}") from None
    if len(packed) > limit:
        raise PayloadTooLarge(
            f"{what} is {len(packed)} bytes; at most {limit} are stored",
            details={"size": len(packed), "limit": limit},
        )
    try:
        unpack_map(packed, what=what)  # integer keys, for one, pack but do not unpack
    except InternalError as error:
        raise InvalidRequest(f"{what} cannot be stored: {error.details['reason']}") from None
    return packed


def unpack_map(packed: bytes, *, what: str) -> dict[str, Any]:
    """Decode what :func:`pack_map` made.

    Raises :class:`~blip.errors.InternalError` naming ``what`` for any other bytes: somebody else
    wrote there, or a newer blip did.
    """
    try:
        value = msgpack.unpackb(packed)
    except Exception as error:
        # msgpack raises half a dozen unrelated types on foreign bytes
        reason = f"not msgpack ({error})"
    else:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return value
        reason = "not a map with text keys"
    raise InternalError(
        f"{what} in Redis is corrupt: {reason}",
        hint="Delete it, and look for another program that writes to keys beginning with 'blip:'.",
        details={"reason": reason},
    )

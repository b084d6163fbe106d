"""Reading a snapshot's small files without trusting them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blip.errors import ModelLoadFailed

#: The largest JSON file worth reading: a tokenizer_config.json with 100,000 added tokens has
#: about 20 MB; more than this is no configuration but an attempt to fill the memory.
MAX_JSON_BYTES = 64 * 1024 * 1024


def parse_object(data: bytes | str, what: str) -> dict[str, Any]:
    """Parse a JSON object; ``what`` names it in the error.

    Raises :class:`~blip.errors.ModelLoadFailed`.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelLoadFailed(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelLoadFailed(f"{what} holds a JSON {type(value).__name__}, not an object")
    return value


def read_text(path: Path) -> str:
    """Read a small text file of a snapshot.

    Raises :class:`~blip.errors.ModelLoadFailed` when it is unreadable, too large or not UTF-8.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelLoadFailed(f"{path} is larger than {MAX_JSON_BYTES} bytes")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadFailed(f"{path} cannot be read: {error}") from None


def read_object(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """Read a JSON object of a snapshot; ``{}`` for a file that is not there but need not be.

    Raises :class:`~blip.errors.ModelLoadFailed`.
    """
    if missing_ok and not path.is_file():
        return {}
    return parse_object(read_text(path), str(path))


def positive(value: Any) -> int | None:
    """Return ``value`` if it is a sane count (1 to 2**48), else None."""
    sane = isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 1 << 48
    return value if sane else None

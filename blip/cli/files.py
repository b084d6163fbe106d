"""Files that a verb reads and writes, and the names of those that nobody named."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from blip.errors import ConfigError, InvalidRequest

#: Letters of a text that become the name of its file.
_NAME_LETTERS = 40


def read(path: Path | str) -> bytes:
    """Return the bytes of a file, of standard input for "-".

    Raises :class:`~blip.errors.InvalidRequest` with the reason.
    """
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from None


def read_if(path: Path | None) -> bytes | None:
    """Return the bytes of a file as :func:`read` does; None where none was named."""
    return None if path is None else read(path)


def write(path: Path, data: bytes) -> None:
    """Write a file, and the folder that it is in.

    Raises :class:`~blip.errors.InvalidRequest` with the reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from None


def format_of(out: Path | None, formats: Mapping[str, str], way_out: str = "") -> str | None:
    """Return the format that the ending of ``out`` says; None without a name, and for "-".

    ``formats`` are by ending. Raises :class:`~blip.errors.ConfigError` for other endings;
    ``way_out`` is what can be done besides using one of them.
    """
    if out is None or str(out) == "-":
        return None
    found = formats.get(out.suffix.lower())
    if found is None:
        raise ConfigError(
            f"--out: {out} has no ending that says what to write",
            param="--out",
            hint=f"Use one of {', '.join(formats)}{way_out}.",
        )
    return found


def named_by(text: str, otherwise: str, ending: str) -> Path:
    """Return the name for a file that a text became, in the current folder."""
    stem = re.sub(r"\W+", "-", text[:_NAME_LETTERS].lower()).strip("-") or otherwise
    return Path(f"{stem}.{ending}")


def free(path: Path) -> Path:
    """Return a path that no file has: this one, or one with a number before the ending."""
    found, number = path, 0
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found

"""How answers look: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return aligned columns; numbers stand right, everything else left."""
    lines = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    numeric = [
        len(lines) > 1 and all(_is_number(line[column]) for line in lines[1:])
        for column in range(len(header))
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def size(count: float | None) -> str:
    """Write bytes as people read them: ``23.6 GiB``; an empty string where it is not known."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Write a time as people read it: ``4.2 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def note(line: str) -> None:
    """Say something beside the answer, on stderr."""
    print(line, file=sys.stderr, flush=True)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)


def _is_number(text: str) -> bool:
    number = text.removesuffix("%").removesuffix("x").strip()
    return not number or number.replace(".", "", 1).replace("-", "", 1).isdigit()

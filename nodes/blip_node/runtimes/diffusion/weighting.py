"""Weights inside prompts: ``a (red:1.3) heart, [blurry]``. Pure.

The grammar is that of AUTOMATIC1111's web UI, which users write everywhere:

- ``(words)`` counts 1.1 times as much, ``((words))`` 1.21 times, ``[words]`` less by as much;
- ``(words:1.3)`` and ``[words:0.8]`` count as much as is said; around others, all are multiplied;
- ``\\(``, ``\\)``, ``\\[``, ``\\]`` and ``\\\\`` are the characters themselves;
- ``BREAK``, in capitals, begins a new part, which the text encoder reads by itself.

A bracket that is never closed counts until the end; one that closes nothing is text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from blip.errors import InvalidRequest

#: What one pair of parentheses does; brackets do the reverse.
STEP = 1.1

#: The most that a weight may be, all around one word multiplied. Twice is visible, ten times noise.
MAX_WEIGHT = 10.0

#: How deep brackets may nest: 1.1 to the power of 24 is as much as a weight may be.
MAX_DEPTH = 24

_TOKEN = re.compile(
    r"""
    \\[()\[\]\\]                            # an escaped character
    | :\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*[)\]]  # a weight, and the end that it is for
    | [()\[\]]
    | \s*\bBREAK\b\s*
    | [^\\()\[\]:B]+                        # text without anything of the above
    | .
    """,
    re.VERBOSE | re.DOTALL,
)

_OPENING = {"(": STEP, "[": 1 / STEP}
_PAIRS = {")": "(", "]": "["}


class Piece(NamedTuple):
    """Text that counts as a whole, and how much: 1 is as it stands."""

    text: str
    weight: float = 1.0


#: The parts between BREAKs, each a list of pieces.
Parts = list[list[Piece]]


class Weighted(NamedTuple):
    """A prompt that was read. ``explicit`` is whether it writes a weight as a number."""

    parts: Parts
    explicit: bool = False

    @property
    def plain(self) -> str | None:
        """The text, if nothing in it has a weight and there is one part only; else None."""
        if len(self.parts) > 1 or any(piece.weight != 1.0 for piece in self.parts[0]):
            return None
        return "".join(piece.text for piece in self.parts[0])


def parse(prompt: str, field: str = "prompt") -> Weighted:
    """Read a prompt.

    Raises :class:`~blip.errors.InvalidRequest` for weights that are out of bounds.
    """
    reader = _Reader(field)
    for match in _TOKEN.finditer(prompt):
        reader.take(match[0])
    return Weighted(reader.parts(), reader.explicit)


class _Reader:
    """Collects pieces. An open bracket is remembered with the number of pieces before it."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._pieces: list[Piece | None] = []  # None is a BREAK
        self._open: list[tuple[str, int]] = []
        self.explicit = False

    def take(self, token: str) -> None:
        if len(token) == 2 and token[0] == "\\":
            self._text(token[1])
        elif token in _OPENING:
            if len(self._open) == MAX_DEPTH:
                raise self._wrong(f"nests more than {MAX_DEPTH} brackets")
            self._open.append((token, len(self._pieces)))
        elif token[-1] in _PAIRS and self._opened(token[-1]):
            weight = float(token[1:-1]) if len(token) > 1 else None
            self._close(weight)
        elif token.strip() == "BREAK":
            self._pieces.append(None)
        else:
            self._text(token)

    def parts(self) -> Parts:
        while self._open:
            self._close(None)
        found: Parts = [[]]
        for piece in self._pieces:
            if piece is None:
                found.append([])
                continue
            if not 0 <= piece.weight <= MAX_WEIGHT:
                raise self._wrong(
                    f"gives {piece.text[:40]!r} a weight of {piece.weight:g}; weights are from 0 "
                    f"to {MAX_WEIGHT:g}"
                )
            weight = round(piece.weight, 9)  # ([x]) is x
            last = found[-1]
            if last and last[-1].weight == weight:
                last[-1] = Piece(last[-1].text + piece.text, weight)
            else:
                last.append(Piece(piece.text, weight))
        return found

    def _opened(self, end: str) -> bool:
        """Return whether the innermost open bracket is of this sort."""
        return bool(self._open) and self._open[-1][0] == _PAIRS[end]

    def _text(self, text: str) -> None:
        self._pieces.append(Piece(text))

    def _close(self, weight: float | None) -> None:
        bracket, start = self._open.pop()
        factor = _OPENING[bracket]
        if weight is not None:
            self.explicit = True
            factor = weight
        self._pieces[start:] = [
            piece and Piece(piece.text, piece.weight * factor) for piece in self._pieces[start:]
        ]

    def _wrong(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"'{self._field}' {what}.", param=self._field)

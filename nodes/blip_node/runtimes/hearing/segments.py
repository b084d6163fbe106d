"""How a window's tokens are cut into segments, and where the next window begins. Pure.

As OpenAI's ``transcribe`` does it (https://github.com/openai/whisper, whisper/transcribe.py): the
model writes a timestamp where a segment begins and where it ends. What comes after the last pair
was cut by the window's end, and is listened to again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Piece(NamedTuple):
    """Tokens of text, and where in the window they are heard, in seconds."""

    start: float
    end: float
    tokens: list[int]


class Cut(NamedTuple):
    """A window's pieces, and the seconds after which the next window begins."""

    pieces: list[Piece]
    advance: float


def cut(tokens: Sequence[int], first_stamp: int, step: float, seconds: float) -> Cut:
    """Cut a window's tokens at its timestamps.

    ``first_stamp`` is the id of the timestamp 0; the next ones are ``step`` seconds apart.
    ``seconds`` is what there is of the window.
    """
    stamps = [token >= first_stamp for token in tokens]
    pairs = [at for at in range(1, len(tokens)) if stamps[at - 1] and stamps[at]]

    def time(token: int) -> float:
        return min((token - first_stamp) * step, seconds)

    def piece(part: Sequence[int]) -> Piece:
        text = [token for token in part if token < first_stamp]
        return Piece(time(part[0]), time(part[-1]), text)

    if pairs:
        ends_alone = len(tokens) >= 2 and stamps[-2:] == [False, True]
        bounds = [0, *pairs, *([len(tokens)] if ends_alone else [])]
        parts = [tokens[low:high] for low, high in pairwise(bounds)]
        pieces = [piece(part) for part in parts if stamps[tokens.index(part[0])]]
        # one timestamp at the end: nobody speaks behind it
        advance = seconds if ends_alone else time(tokens[pairs[-1] - 1])
        return Cut(_spoken(pieces), advance if advance > 0 else seconds)
    start = time(tokens[0]) if tokens and stamps[0] else 0.0
    closing = [token for token in tokens[1:] if token >= first_stamp]
    end = max(start, time(closing[-1])) if closing else seconds
    text = [token for token in tokens if token < first_stamp]
    return Cut(_spoken([Piece(start, end, text)]), seconds)


def _spoken(pieces: list[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece.tokens]

"""Texts in pieces that are spoken one by one. Pure.

A voice reads a sentence better than a page, and whoever listens hears the first sentence while the
second is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

#: The longest piece, in characters: half a minute of speech. Attention over more costs memory by
#: its square, and SpeechT5 knows no more than 600 positions.
MAX_PIECE = 400

#: The end of a sentence: its marks, what closes around them, and the space after it. Chinese and
#: Japanese put none there.
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”）]*|\n\s*\n|।")

#: Words with a point that ends no sentence. Only such as nearly never end one.
_SHORT = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Mt|Jr|Sr|Gen|Col|Capt|Lt|Rev|Hon|vs|etc|cf|"
    r"e\.g|i\.e|approx|No|Nr|bzw|z\.B|d\.h|M|Mme|Sra|Dra)\.$"
)

#: Characters before such a point that are looked at: more than the longest of them has.
_TAIL = 12

#: Where a piece that is too long is cut, best first; at the worst in the middle of a word.
_CUTS = (re.compile(r"[;:]\s"), re.compile(r"[,、，]\s?"), re.compile(r"\s"))


def split(text: str, longest: int = MAX_PIECE) -> list[str]:
    """Return the sentences of a text, none longer than ``longest`` characters.

    Spaces and line breaks inside them are single spaces. What has neither letters nor digits, such
    as a line of dashes, is left out: the list may be empty.
    """
    pieces = (" ".join(piece.split()) for piece in _sentences(text))
    return [
        part
        for piece in pieces
        for part in _cut(piece, longest)
        if any(char.isalnum() for char in part)
    ]


def _sentences(text: str) -> Iterator[str]:
    begin = 0
    for end in _END.finditer(text):
        stop = end.end()
        if end.group() == "." and _SHORT.search(text[max(begin, stop - _TAIL) : stop]):
            continue
        yield text[begin:stop]
        begin = stop
    yield text[begin:]


def _cut(piece: str, longest: int) -> Iterator[str]:
    while len(piece) > longest:
        at = next(filter(None, (_last(cut, piece, longest) for cut in _CUTS)), longest)
        yield piece[:at].strip()
        piece = piece[at:].strip()
    if piece:
        yield piece


def _last(cut: re.Pattern[str], piece: str, longest: int) -> int:
    """Return where the last cut of a kind ends that leaves a piece of a fair length; 0 if none."""
    ends = [found.end() for found in cut.finditer(piece, 0, longest)]
    return ends[-1] if ends and ends[-1] >= longest // 4 else 0

"""``moderation``: texts and pictures in, a verdict on each out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

import msgpack
from pydantic import Field

from blip.kinds.base import Kind, TaskInput
from blip.kinds.text import CHARS_PER_TOKEN

#: OpenAI's categories, in its order. Models may have others besides.
CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)

#: A picture costs a classifier about as much as a text of this many tokens: 14 x 14 patches.
_PICTURE_TOKENS = 196

#: Letters of one text: the longest prompt that any route takes, and more. What is longer than the
#: model's window is judged piece by piece, and each piece is a pass.
MAX_LETTERS = 200_000


class ModerationInput(TaskInput):
    """What to judge: texts, or the files of pictures. A model takes one or the other."""

    texts: Annotated[list[Annotated[str, Field(max_length=MAX_LETTERS)]], Field(max_length=256)] = (
        Field(default_factory=list)
    )
    images: Annotated[list[bytes], Field(max_length=16)] = Field(default_factory=list)


def _units(value: ModerationInput) -> float:
    """Tokens, about."""
    letters = sum(map(len, value.texts))
    return 1 + len(value.texts) + letters / CHARS_PER_TOKEN + len(value.images) * _PICTURE_TOKENS


MODERATION = Kind("moderation", ModerationInput, _units)


class Verdict(NamedTuple):
    """What a model says of a text or a picture: scores from 0 to 1 of all that it judges.

    ``flagged`` are the categories that are at least as likely as its configuration allows.
    """

    scores: Mapping[str, float]
    flagged: list[str]


def verdicts_to_wire(verdicts: Iterable[Verdict]) -> bytes:
    """Encode the verdicts of a task, of texts before those of pictures, as a msgpack array."""
    packed: bytes = msgpack.packb([(dict(scores), flagged) for scores, flagged in verdicts])
    return packed


def verdicts_from_wire(payload: bytes | memoryview, count: int) -> list[Verdict]:
    """Decode the verdicts of a task on ``count`` texts and pictures.

    Raises ``ValueError`` or ``TypeError`` on anything else: nothing that is not a verdict on
    everything that was asked may pass for one.
    """
    rows = msgpack.unpackb(payload)
    if not isinstance(rows, list) or len(rows) != count:
        raise ValueError(f"not {count} verdicts")
    found = []
    for scores, flagged in rows:
        if not isinstance(scores, dict) or not isinstance(flagged, list) or not scores:
            raise TypeError("not a verdict")
        for name, score in scores.items():
            if not isinstance(name, str) or not isinstance(score, float):
                raise TypeError("not a score")
            if not (math.isfinite(score) and 0 <= score <= 1):
                raise ValueError(f"a score of {score}")
        if not set(flagged) <= set(scores):
            raise ValueError("a flag without a score")
        found.append(Verdict(scores, flagged))
    return found

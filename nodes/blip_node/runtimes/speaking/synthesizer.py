"""What a family of voices offers the engine, and which of its voices is meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from blip.errors import InvalidRequest
from blip.kinds.speech import SpeechInput

#: What the only voice of a model is called, and what means the first of several.
DEFAULT = "default"

#: OpenAI's voices. Its clients cannot but name one: they mean the first of ours, unless the model
#: has one of that name.
OPENAI = frozenset(
    {
        "alloy",
        "ash",
        "ballad",
        "cedar",
        "coral",
        "echo",
        "fable",
        "marin",
        "nova",
        "onyx",
        "sage",
        "shimmer",
        "verse",
    }
)

#: BitingLip's documents count voices from 0; there are none with more digits.
_COUNTED = re.compile(r"speaker_(\d{1,4})", re.ASCII)

#: Voices that an error lists; some models have hundreds.
_LISTED = 30


class Spoken(NamedTuple):
    """A sentence: samples (one channel of float32), and the tokens that it was made of."""

    samples: Any
    tokens: int


#: Says one sentence of a text: by its number from 0, what was read of it.
Say = Callable[[int, Any], Spoken]


class Synthesizer(Protocol):
    """A loaded model. All is called on one thread."""

    @property
    def rate(self) -> int:
        """Samples a second."""
        ...

    @property
    def voices(self) -> Sequence[str]:
        """Names; the first is the one for those who name none."""
        ...

    def read(self, sentence: str, *, lenient: bool) -> Any | None:
        """Return what the model makes sound of in a sentence; None if there is nothing.

        Raises :class:`~blip.errors.InvalidRequest` for what the voice has no sound for, unless
        ``lenient``. Quick: it is done for a whole text before anything is said.
        """
        ...

    def begin(self, wishes: SpeechInput, voice: str, look: Callable[[], None]) -> Say:
        """Return what says the sentences of one text with one of the voices.

        ``look`` is called between steps and raises what stops them. The same seed, voice, speed
        and sentence give the same samples on the same kind of device.
        """
        ...


def choose(voices: Sequence[str], asked: str | None) -> str:
    """Return the voice that is meant.

    Raises :class:`~blip.errors.InvalidRequest` listing those there are.
    """
    if asked is None:
        return voices[0]
    if asked in voices:
        return asked
    if asked == DEFAULT or asked in OPENAI:
        return voices[0]
    counted = _COUNTED.fullmatch(asked)
    if counted and int(counted[1]) < len(voices):
        return voices[int(counted[1])]
    listed = ", ".join(voices[:_LISTED])
    more = f", ... ({len(voices)} in all)" if len(voices) > _LISTED else ""
    raise InvalidRequest(
        f"'voice': this model has no voice '{asked}'.",
        hint=f"It has {listed}{more}.",
        param="voice",
        details={"voices": list(voices)},
    )


def unsayable(chars: Sequence[str], hint: str) -> InvalidRequest:
    """Return the error for letters or digits that a voice has no sound for."""
    shown = " ".join(dict.fromkeys(chars[:_LISTED]))
    return InvalidRequest(f"'input': this voice has no sound for {shown}", hint=hint, param="input")

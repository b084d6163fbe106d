"""What a sound is of: ``audio-classification`` and ``zero-shot-audio-classification``.

Named as transformers' pipelines are. Both answer with guesses, as pictures' classifications do:
see :func:`blip.kinds.vision.guesses_from_wire`. A unit is a second of sound.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from blip.kinds.base import Kind, TaskInput
from blip.kinds.pipelines import Activation
from blip.kinds.sounds import seconds_of
from blip.kinds.vision import Labels


class SoundInput(TaskInput):
    """A sound: the bytes of a file."""

    file: bytes


class AudioClassificationInput(SoundInput):
    """The ``top`` best of the model's own classes.

    ``activation`` makes scores of logits; None leaves it to the model's configuration.
    """

    top: Annotated[int, Field(ge=1, le=1000)] = 5
    activation: Activation | None = None


class ZeroShotAudioInput(SoundInput):
    """Labels of one's own. ``template`` makes a sentence of one, which stands where ``{}`` is."""

    labels: Annotated[Labels, Field(min_length=1)]
    template: Annotated[str, StringConstraints(min_length=2, max_length=256)] = (
        "This is a sound of {}."
    )


def _units(value: SoundInput) -> float:
    return seconds_of(value.file)


AUDIO_CLASSIFICATION = Kind("audio-classification", AudioClassificationInput, _units)
ZERO_SHOT_AUDIO = Kind("zero-shot-audio-classification", ZeroShotAudioInput, _units)

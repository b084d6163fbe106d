"""What a task can ask for. One module a kind; :data:`KINDS` is the registry.

A kind owns the shape of its input (a pydantic model, validated at the gateway and again on the
node), what travels back, and how much *work* a task is: ``units`` are what the broker's learned
rates count in.
"""

from __future__ import annotations

from blip.kinds.base import Kind, TaskInput, input_from_wire, input_to_wire
from blip.kinds.caption import CAPTION
from blip.kinds.chat import CHAT
from blip.kinds.completion import COMPLETION
from blip.kinds.echo import ECHO
from blip.kinds.embedding import EMBEDDING
from blip.kinds.image import IMAGE
from blip.kinds.moderation import MODERATION
from blip.kinds.pipelines import PIPELINES
from blip.kinds.rerank import RERANK
from blip.kinds.sound_classification import AUDIO_CLASSIFICATION, ZERO_SHOT_AUDIO
from blip.kinds.speech import SPEECH
from blip.kinds.transcription import TRANSCRIPTION, TRANSLATION
from blip.kinds.upscale import UPSCALE
from blip.kinds.video import VIDEO
from blip.kinds.vision import (
    DEPTH,
    DETECTION,
    IMAGE_CLASSIFICATION,
    IMAGE_FEATURES,
    SEGMENTATION,
)

#: Every built-in kind by name.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        CHAT,
        COMPLETION,
        EMBEDDING,
        RERANK,
        *PIPELINES,
        MODERATION,
        IMAGE,
        UPSCALE,
        VIDEO,
        TRANSCRIPTION,
        TRANSLATION,
        SPEECH,
        CAPTION,
        DETECTION,
        IMAGE_CLASSIFICATION,
        DEPTH,
        SEGMENTATION,
        IMAGE_FEATURES,
        AUDIO_CLASSIFICATION,
        ZERO_SHOT_AUDIO,
        ECHO,
    )
}

__all__ = ["KINDS", "Kind", "TaskInput", "input_from_wire", "input_to_wire"]

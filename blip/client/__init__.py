"""The Python SDK: :class:`Blip` blocks, :class:`AsyncBlip` does not; otherwise they are the same.

with Blip() as blip:
    print(blip.chat("smollm2", "What is the capital of France?").text)
"""

from __future__ import annotations

from blip.client.aio import AsyncBlip
from blip.client.answers import (
    EchoAnswer,
    EmbeddingAnswer,
    GatewayUnreachable,
    ImageAnswer,
    ModelInfo,
    Origin,
    Picture,
    TextAnswer,
)
from blip.client.connection import DEFAULT_URL
from blip.client.hearing_answers import HeardSegment, HeardWord, TranscriptAnswer
from blip.client.operations import Progress
from blip.client.stream import TextStream
from blip.client.sync import Blip, SyncTextStream
from blip.client.text import Messages

__all__ = [
    "DEFAULT_URL",
    "AsyncBlip",
    "Blip",
    "EchoAnswer",
    "EmbeddingAnswer",
    "GatewayUnreachable",
    "HeardSegment",
    "HeardWord",
    "ImageAnswer",
    "Messages",
    "ModelInfo",
    "Origin",
    "Picture",
    "Progress",
    "SyncTextStream",
    "TextAnswer",
    "TextStream",
    "TranscriptAnswer",
]

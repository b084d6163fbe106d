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
    ToolCall,
)
from blip.client.connection import DEFAULT_URL
from blip.client.hearing_answers import HeardSegment, HeardWord, TranscriptAnswer
from blip.client.kinds import TaskAnswer
from blip.client.operations import Progress
from blip.client.parts import picture
from blip.client.pipelines import PipelineAnswer, Ranked, RerankAnswer
from blip.client.safety import Verdict
from blip.client.speech import SpeechAnswer, SpeechStream
from blip.client.stream import TextStream
from blip.client.sync import Blip, SyncSpeechStream, SyncTextStream
from blip.client.text import Messages
from blip.client.upscale import UpscaleAnswer
from blip.client.videos import VideoAnswer, VideoProgress
from blip.client.vision_answers import (
    CaptionAnswer,
    DepthAnswer,
    Detection,
    DetectionAnswer,
    LabelAnswer,
    Segment,
    SegmentAnswer,
)

__all__ = [
    "DEFAULT_URL",
    "AsyncBlip",
    "Blip",
    "CaptionAnswer",
    "DepthAnswer",
    "Detection",
    "DetectionAnswer",
    "EchoAnswer",
    "EmbeddingAnswer",
    "GatewayUnreachable",
    "HeardSegment",
    "HeardWord",
    "ImageAnswer",
    "LabelAnswer",
    "Messages",
    "ModelInfo",
    "Origin",
    "Picture",
    "PipelineAnswer",
    "Progress",
    "Ranked",
    "RerankAnswer",
    "Segment",
    "SegmentAnswer",
    "SpeechAnswer",
    "SpeechStream",
    "SyncSpeechStream",
    "SyncTextStream",
    "TaskAnswer",
    "TextAnswer",
    "TextStream",
    "ToolCall",
    "TranscriptAnswer",
    "UpscaleAnswer",
    "Verdict",
    "VideoAnswer",
    "VideoProgress",
    "picture",
]

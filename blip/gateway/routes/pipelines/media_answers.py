"""What the pipelines that look and listen answer: transformers' shapes, files in base64."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from blip.gateway.exchange import Result
from blip.gateway.routes.pipelines.answers import PipelineAnswer, PipelineLabel, PipelineText
from blip.gateway.routes.vision import BoxView
from blip.gateway.upload import encode_file
from blip.kinds.speech import piece_from_wire
from blip.kinds.text import finish_from_wire
from blip.kinds.transcription import Segment, transcript_from_wire
from blip.kinds.vision import (
    depths_from_wire,
    detections_from_wire,
    features_from_wire,
    guesses_from_wire,
    segments_from_wire,
)


class PipelineObject(BaseModel):
    """One thing; its box is in pixels of the picture, upright, xmax and ymax outside."""

    score: float
    label: str
    box: BoxView


class PipelineObjects(PipelineAnswer):
    """The things in the picture, surest first."""

    results: list[list[PipelineObject]]


class PipelineDepth(BaseModel):
    """A gray PNG of 16 bits: a pixel stands for min + (max - min) * pixel / 65535."""

    depth: str
    min: float
    max: float
    width: int
    height: int


class PipelineDepths(PipelineAnswer):
    """How far away each pixel is."""

    results: list[PipelineDepth]


class PipelineSegment(BaseModel):
    """A part; its mask is a PNG of the picture's size, white where the part is."""

    score: float | None
    label: str
    mask: str


class PipelineSegments(PipelineAnswer):
    """The parts of the picture, largest first."""

    results: list[list[PipelineSegment]]


class PipelineChunk(BaseModel):
    """Some words that belong together, or one; from when to when it is said, in seconds."""

    text: str
    timestamp: tuple[float, float]


class PipelineTranscript(BaseModel):
    """What was said; chunks are null unless return_timestamps asks for them."""

    text: str
    chunks: list[PipelineChunk] | None


class PipelineTranscripts(PipelineAnswer):
    """What was said in the sound."""

    results: list[PipelineTranscript]


class PipelineSpeech(BaseModel):
    """A WAV file, and its samples a second."""

    audio: str
    sampling_rate: int


class PipelineSpeeches(PipelineAnswer):
    """The text, spoken."""

    results: list[PipelineSpeech]


# --- from what nodes send --------------------------------------------------------------------
# Each raises ValueError or TypeError for what cannot be read.


def labels(body: Any, result: Result) -> list[PipelineLabel]:
    """Read a classification."""
    return [PipelineLabel(**each._asdict()) for each in guesses_from_wire(result.answer.payload)]


def objects(body: Any, result: Result) -> list[PipelineObject]:
    """Read a detection."""
    found = detections_from_wire(result.answer.payload).found
    return [
        PipelineObject(
            label=each.label,
            score=each.score,
            box=BoxView(**dict(zip(("xmin", "ymin", "xmax", "ymax"), each.box, strict=True))),
        )
        for each in found[: getattr(body.parameters, "top_k", None)]
    ]


def depth(body: Any, result: Result) -> PipelineDepth:
    """Read depths."""
    found = depths_from_wire(result.answer.payload)
    return PipelineDepth(
        depth=encode_file(found.file),
        min=found.low,
        max=found.high,
        width=found.width,
        height=found.height,
    )


def segments(body: Any, result: Result) -> list[PipelineSegment]:
    """Read a segmentation."""
    found = segments_from_wire(result.answer.payload).segments
    return [
        PipelineSegment(score=each.score, label=each.label, mask=encode_file(each.mask))
        for each in found
    ]


def caption(body: Any, result: Result) -> PipelineText:
    """Read a caption."""
    return PipelineText(generated_text=finish_from_wire(result.answer.payload).text.strip())


def vectors(body: Any, result: Result) -> list[list[float]]:
    """Read features."""
    return features_from_wire(result.answer.payload).vectors


def transcript(body: Any, result: Result) -> PipelineTranscript:
    """Read what was said."""
    found = transcript_from_wire(result.answer.payload)
    asked = body.parameters.return_timestamps
    chunks = _chunks(found.segments, words=asked == "word") if asked else None
    return PipelineTranscript(text=found.text, chunks=chunks)


def _chunks(found: list[Segment], *, words: bool) -> list[PipelineChunk]:
    if not words:
        return [PipelineChunk(text=each.text, timestamp=_times(each)) for each in found]
    spoken = (word for each in found for word in each.words or ())
    return [PipelineChunk(text=word.text, timestamp=_times(word)) for word in spoken]


def _times(said: Any) -> tuple[float, float]:
    return round(said.start, 3), round(said.end, 3)


def speech(body: Any, result: Result) -> PipelineSpeech:
    """Read a file."""
    pieces = [*(piece_from_wire(part).data for part in result.parts), result.answer.payload]
    return PipelineSpeech(
        audio=encode_file(b"".join(pieces)),
        sampling_rate=result.answer.usage.get("sample_rate", 0),
    )

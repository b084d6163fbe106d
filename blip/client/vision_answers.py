"""What models that see answer, as plain objects. Pure: bodies in, objects or errors out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blip.client.answers import Origin, picture_from


@dataclass(frozen=True, slots=True)
class CaptionAnswer:
    """What a model says of a picture; ``usage`` counts tokens."""

    text: str
    finish_reason: str
    usage: Mapping[str, int]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Detection:
    """One thing: ``box`` is left, top, right and bottom in pixels."""

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class DetectionAnswer:
    """What was found in a picture of that size, surest first."""

    objects: list[Detection]
    width: int
    height: int
    origin: Origin


@dataclass(frozen=True, slots=True)
class LabelAnswer:
    """Names of a picture with their scores, surest first."""

    labels: list[tuple[str, float]]
    origin: Origin


@dataclass(frozen=True, slots=True)
class DepthAnswer:
    """Distances: ``file`` is a gray PNG of 16 bits, from ``low`` (0) to ``high`` (65535)."""

    file: bytes
    low: float
    high: float
    width: int
    height: int
    origin: Origin


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a picture: ``mask`` is a PNG, white where the part is; ``area`` in pixels."""

    label: str
    score: float | None
    area: int
    mask: bytes


@dataclass(frozen=True, slots=True)
class SegmentAnswer:
    """The parts of a picture of that size, largest first."""

    segments: list[Segment]
    mode: str
    width: int
    height: int
    origin: Origin


def caption_from(body: Any, origin: Origin) -> CaptionAnswer:
    """Read the answer of /v1/vision/caption."""
    return CaptionAnswer(body["text"], body["finish_reason"], body.get("usage") or {}, origin)


def detections_from(body: Any, origin: Origin) -> DetectionAnswer:
    """Read the answer of /v1/vision/detect."""
    objects = [
        Detection(
            row["label"],
            row["score"],
            (row["box"]["xmin"], row["box"]["ymin"], row["box"]["xmax"], row["box"]["ymax"]),
        )
        for row in body["objects"]
    ]
    return DetectionAnswer(objects, body["width"], body["height"], origin)


def labels_from(body: Any, origin: Origin) -> LabelAnswer:
    """Read the answer of /v1/vision/classify."""
    return LabelAnswer([(row["label"], row["score"]) for row in body["labels"]], origin)


def depth_from(body: Any, origin: Origin) -> DepthAnswer:
    """Read the answer of /v1/vision/depth. Raises ``InternalError`` for what is not base64."""
    file = picture_from(body["b64_json"])
    return DepthAnswer(file, body["min"], body["max"], body["width"], body["height"], origin)


def segments_from(body: Any, origin: Origin) -> SegmentAnswer:
    """Read the answer of /v1/vision/segment. Raises ``InternalError`` for what is not base64."""
    segments = [
        Segment(row["label"], row["score"], row["area"], picture_from(row["b64_json"]))
        for row in body["segments"]
    ]
    return SegmentAnswer(segments, body["mode"], body["width"], body["height"], origin)

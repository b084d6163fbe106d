"""What is seen in a picture: ``detection``, ``image-classification``, ``depth``, ``segmentation``,
``image-feature-extraction``.

A kind each, for a model is made for one of them. All take one picture and look at it once, so a
unit is a picture. Results are msgpack; masks and depths are files in it, never base64.
"""

from __future__ import annotations

import math
import struct
from typing import Annotated, Any, Literal, NamedTuple

import msgpack
from pydantic import Field, StringConstraints

from blip.kinds.base import Kind, TaskInput

#: Labels of one request; each is a text that the model reads beside the picture.
MAX_LABELS = 256

#: What a depth picture's brightest pixel is: it is written with 16 bits.
DEPTH_LEVELS = 65_535

Label = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Labels = Annotated[list[Label], Field(max_length=MAX_LABELS)]
Threshold = Annotated[float, Field(ge=0, le=1)]

#: How a picture is cut up: a class for every pixel, single things, or both.
SegmentMode = Literal["semantic", "instance", "panoptic"]


class VisionInput(TaskInput):
    """A picture: the bytes of a file."""

    image: bytes


class DetectionInput(VisionInput):
    """What to look for: the model's own classes, or ``labels`` for a model that reads them."""

    labels: Labels = Field(default_factory=list)
    threshold: Threshold | None = None


class ClassificationInput(VisionInput):
    """The ``top`` best of the model's own classes, or of ``labels`` for a model that reads them.

    ``template`` makes a sentence of a label, which stands where ``{}`` is.
    """

    labels: Labels = Field(default_factory=list)
    template: Annotated[str, StringConstraints(max_length=256)] | None = None
    top: Annotated[int, Field(ge=1, le=1000)] = 5


class DepthInput(VisionInput):
    """Nothing else to say."""


class SegmentationInput(VisionInput):
    """``mode`` is left to the model where it is None; it counts for models that know several."""

    mode: SegmentMode | None = None
    threshold: Threshold | None = None


class ImageFeaturesInput(VisionInput):
    """With ``pool`` one vector for the whole picture, else one for each of its patches."""

    pool: bool = False


def _units(value: VisionInput) -> float:
    return 1.0


DETECTION = Kind("detection", DetectionInput, _units)
IMAGE_CLASSIFICATION = Kind("image-classification", ClassificationInput, _units)
DEPTH = Kind("depth", DepthInput, _units)
SEGMENTATION = Kind("segmentation", SegmentationInput, _units)
IMAGE_FEATURES = Kind("image-feature-extraction", ImageFeaturesInput, _units)


class Guess(NamedTuple):
    """A label, and how sure the model is of it, from 0 to 1."""

    label: str
    score: float


class Box(NamedTuple):
    """Where something is, in pixels of the upright picture; right and bottom lie outside."""

    left: float
    top: float
    right: float
    bottom: float


class Found(NamedTuple):
    """One thing in a picture."""

    label: str
    score: float
    box: Box


class Detections(NamedTuple):
    """The DONE payload of a detection: the size of the upright picture, surest things first."""

    width: int
    height: int
    found: list[Found]


class Depths(NamedTuple):
    """The DONE payload of a depth task.

    ``file`` is a gray PNG of 16 bits and the picture's size: a pixel is
    ``low + (high - low) * pixel / 65535`` in the model's own unit.
    """

    width: int
    height: int
    low: float
    high: float
    file: bytes


class Segment(NamedTuple):
    """A part of a picture. ``mask`` is a PNG of its size, white where the part is.

    ``score`` is None where the model says none; ``area`` is in pixels.
    """

    label: str
    score: float | None
    area: int
    mask: bytes


class Segments(NamedTuple):
    """The DONE payload of a segmentation, largest part first."""

    width: int
    height: int
    mode: SegmentMode
    segments: list[Segment]


class Features(NamedTuple):
    """The DONE payload of a feature extraction: vectors as rows of little-endian float32."""

    rows: int
    values: bytes

    @property
    def vectors(self) -> list[list[float]]:
        """The vectors as numbers."""
        size = len(self.values) // 4 // self.rows
        return [list(row) for row in struct.iter_unpack(f"<{size}f", self.values)]


def to_wire(result: list[Guess] | Detections | Depths | Segments | Features) -> bytes:
    """Encode a result as a msgpack array."""
    packed: bytes = msgpack.packb(result)
    return packed


def guesses_from_wire(payload: bytes | memoryview) -> list[Guess]:
    """Decode a classification. Raises ``ValueError`` or ``TypeError`` on anything else."""
    return [Guess(label, _finite(score)) for label, score in msgpack.unpackb(payload)]


def detections_from_wire(payload: bytes | memoryview) -> Detections:
    """Decode a detection. Raises ``ValueError`` or ``TypeError`` on anything else."""
    width, height, rows = msgpack.unpackb(payload)
    found = [Found(label, _finite(score), Box(*map(_finite, box))) for label, score, box in rows]
    return Detections(width, height, found)


def depths_from_wire(payload: bytes | memoryview) -> Depths:
    """Decode a depth. Raises ``ValueError`` or ``TypeError`` on anything else."""
    width, height, low, high, file = msgpack.unpackb(payload)
    return Depths(width, height, _finite(low), _finite(high), bytes(file))


def segments_from_wire(payload: bytes | memoryview) -> Segments:
    """Decode a segmentation. Raises ``ValueError`` or ``TypeError`` on anything else."""
    width, height, mode, rows = msgpack.unpackb(payload)
    segments = [
        Segment(label, None if score is None else _finite(score), area, bytes(mask))
        for label, score, area, mask in rows
    ]
    return Segments(width, height, mode, segments)


def features_from_wire(payload: bytes | memoryview) -> Features:
    """Decode a feature extraction. Raises ``ValueError`` or ``TypeError`` on anything else."""
    return features_of(msgpack.unpackb(payload))


def features_of(found: Any) -> Features:
    """Check rows and their values. Raises ``ValueError`` or ``TypeError`` for what are none."""
    count, values = found
    if count < 1 or not values or len(values) % (4 * count):
        raise ValueError(f"{len(values)} bytes are no {count} vectors")
    return Features(count, bytes(values))


def _finite(number: Any) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{number} is no number to go on with")
    return float(number)

"""``POST /v1/vision/...``: what is in a picture, in words, boxes, distances and masks. Ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import InvalidRequest, RuntimeFailed
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.form import File, FormRequest
from blip.gateway.mesh import Answer
from blip.gateway.routes.failures import TASK_FAILURES, TEXT_FAILURES
from blip.gateway.sampling import MaxTokens, ModelName, Seed, Temperature, TopP, wishes
from blip.gateway.text import Usage, usage_of
from blip.gateway.upload import encode_file
from blip.kinds import Kind
from blip.kinds.caption import CAPTION, CaptionInput
from blip.kinds.pictures import check_picture
from blip.kinds.text import FinishReason, finish_from_wire
from blip.kinds.vision import (
    DEPTH,
    DETECTION,
    IMAGE_CLASSIFICATION,
    MAX_LABELS,
    SEGMENTATION,
    ClassificationInput,
    DepthInput,
    DetectionInput,
    SegmentationInput,
    SegmentMode,
    VisionInput,
    depths_from_wire,
    detections_from_wire,
    guesses_from_wire,
    segments_from_wire,
)

Threshold = Annotated[float, Field(ge=0, le=1)]
OneLabel = Annotated[str, Field(min_length=1, max_length=256)]
Labels = (
    Annotated[str, Field(max_length=64 * 1024)]
    | Annotated[list[OneLabel], Field(max_length=MAX_LABELS)]
)

_LABELS = (
    """What to look for, for models that read it: a list, or in a form one text with commas."""
)
_THRESHOLD = """Leave out what the model is less sure of than this."""


# --- requests --------------------------------------------------------------------------------


class PictureRequest(FormRequest):
    """A picture to look at: a form with a file, or JSON with base64."""

    files: ClassVar[Mapping[str, File]] = {
        "image": File(
            "The picture: PNG, JPEG or WebP. In JSON as base64, bare or as a data: URL.",
            required=True,
        )
    }
    json_too: ClassVar[bool] = True

    model: ModelName
    """A name from GET /v1/models."""

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for a picture that cannot be."""
        super().check(at)
        image = self.upload("image")
        if image is not None:
            check_picture(image, "image")

    @property
    def picture(self) -> bytes:
        """The file."""
        return self.upload("image") or b""


class CaptionRequest(PictureRequest):
    """A picture to say something about."""

    prompt: Annotated[str, Field(max_length=32_000)] | None = None
    """What the caption continues; of a chat model, the question."""
    max_tokens: MaxTokens | None = None
    """Most tokens of the caption; 64 by default."""
    temperature: Temperature | None = None
    """0, the default, takes the likeliest token always."""
    top_p: TopP | None = None
    """Sample from the likeliest tokens that make up this much probability; 1 by default."""
    seed: Seed | None = None
    """Makes sampling repeatable, as far as devices agree."""

    def task(self) -> CaptionInput:
        """Return the input of the task."""
        sampling = wishes(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        )
        return CaptionInput(image=self.picture, prompt=self.prompt or "", **sampling)


class DetectRequest(PictureRequest):
    """A picture to find things in."""

    labels: Annotated[Labels | None, Field(description=_LABELS)] = None
    threshold: Annotated[Threshold | None, Field(description=_THRESHOLD)] = None

    def task(self) -> DetectionInput:
        """Return the input of the task."""
        return DetectionInput(
            image=self.picture, labels=split(self.labels), threshold=self.threshold
        )


class ClassifyRequest(PictureRequest):
    """A picture to name."""

    labels: Annotated[Labels | None, Field(description=_LABELS)] = None
    template: Annotated[str, Field(max_length=256)] | None = None
    """The sentence around each label, {} in its place; "a photo of {}" by default."""
    top: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Answers, best first; 5 by default."""

    def task(self) -> ClassificationInput:
        """Return the input of the task."""
        labels = split(self.labels)
        top = self.top or max(5, len(labels))
        return ClassificationInput(
            image=self.picture, labels=labels, template=self.template, top=top
        )


class DepthRequest(PictureRequest):
    """A picture to measure."""

    def task(self) -> DepthInput:
        """Return the input of the task."""
        return DepthInput(image=self.picture)


class SegmentRequest(PictureRequest):
    """A picture to cut up."""

    mode: SegmentMode | None = None
    """semantic (a class for every pixel), instance (single things) or panoptic (both); the
    richest that the model knows by default."""
    threshold: Annotated[Threshold | None, Field(description=_THRESHOLD)] = None

    def task(self) -> SegmentationInput:
        """Return the input of the task."""
        return SegmentationInput(image=self.picture, mode=self.mode, threshold=self.threshold)


def split(labels: str | list[str] | None, field: str = "labels") -> list[str]:
    """Return the labels of a request; in one text they are set off by commas, or a JSON list.

    ``field`` is what they are called there.

    Raises :class:`~blip.errors.InvalidRequest` for too many or too long ones.
    """
    if not isinstance(labels, str):
        return labels or []
    if labels.startswith("["):
        try:
            listed = json.loads(labels)
        except ValueError as error:
            raise InvalidRequest(f"'{field}' is no JSON list: {error}.", param=field) from None
        found = [str(each) for each in listed if each]
    else:
        found = [label for each in labels.split(",") if (label := each.strip())]
    if len(found) > MAX_LABELS or any(len(label) > 256 for label in found):
        raise InvalidRequest(
            f"'{field}': {MAX_LABELS} of 256 characters are the most.", param=field
        )
    return found


# --- answers ---------------------------------------------------------------------------------


class Caption(BaseModel):
    """What the model says of the picture."""

    model: str
    text: str
    finish_reason: FinishReason
    usage: Usage


class BoxView(BaseModel):
    """Edges in pixels of the picture, upright; xmax and ymax lie outside."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class DetectedObject(BaseModel):
    """One thing, and how sure the model is of it."""

    label: str
    score: float
    box: BoxView


class DetectedObjects(BaseModel):
    """What was found, surest first, in a picture of that size."""

    model: str
    width: int
    height: int
    objects: list[DetectedObject]


class PictureLabel(BaseModel):
    """A name for the picture, and how sure the model is of it."""

    label: str
    score: float


class PictureLabels(BaseModel):
    """Names for the picture, surest first."""

    model: str
    labels: list[PictureLabel]


class DepthMap(BaseModel):
    """A gray PNG of 16 bits: a pixel stands for min + (max - min) * pixel / 65535.

    The unit is the model's own: metres for some, for others a number that grows as things are
    nearer.
    """

    model: str
    width: int
    height: int
    min: float
    max: float
    b64_json: str


class PictureSegment(BaseModel):
    """One part: its mask is a PNG of the picture's size, white where the part is."""

    label: str
    score: float | None
    area: int
    b64_json: str


class PictureSegments(BaseModel):
    """The parts of a picture, largest first."""

    model: str
    width: int
    height: int
    mode: SegmentMode
    segments: list[PictureSegment]


# --- handlers --------------------------------------------------------------------------------


async def caption(exchange: Exchange, body: CaptionRequest) -> web.StreamResponse:
    """Say in words what a picture shows.

    Captioners continue the prompt, if there is one; chat models that see answer it.
    """
    answer = await _answer(exchange, CAPTION, body.model, body.task())
    finish = finish_from_wire(answer.payload)
    return _json(
        Caption(
            model=body.model,
            text=finish.text.strip(),
            finish_reason=finish.reason,
            usage=usage_of([answer], 1),
        )
    )


async def detect(exchange: Exchange, body: DetectRequest) -> web.StreamResponse:
    """Find things in a picture, each with a box around it.

    Most models know classes of their own; some, such as OWL-ViT and Grounding DINO, look for the
    labels of the request.
    """
    answer = await _answer(exchange, DETECTION, body.model, body.task())
    result = _read(detections_from_wire, answer)
    objects = [
        DetectedObject(
            label=each.label,
            score=each.score,
            box=BoxView(
                xmin=each.box.left, ymin=each.box.top, xmax=each.box.right, ymax=each.box.bottom
            ),
        )
        for each in result.found
    ]
    return _json(
        DetectedObjects(model=body.model, width=result.width, height=result.height, objects=objects)
    )


async def classify(exchange: Exchange, body: ClassifyRequest) -> web.StreamResponse:
    """Name a picture.

    Most models know classes of their own; some, such as CLIP and SigLIP, choose among the labels of
    the request.
    """
    answer = await _answer(exchange, IMAGE_CLASSIFICATION, body.model, body.task())
    labels = [PictureLabel(**each._asdict()) for each in _read(guesses_from_wire, answer)]
    return _json(PictureLabels(model=body.model, labels=labels))


async def depth(exchange: Exchange, body: DepthRequest) -> web.StreamResponse:
    """Tell how far away each pixel of a picture is.

    With Accept: image/png the answer is the picture itself, min and max in its text chunks.
    """
    answer = await _answer(exchange, DEPTH, body.model, body.task())
    result = _read(depths_from_wire, answer)
    if "image/png" in exchange.request.headers.get("Accept", ""):
        return web.Response(body=result.file, content_type="image/png")
    return _json(
        DepthMap(
            model=body.model,
            width=result.width,
            height=result.height,
            min=result.low,
            max=result.high,
            b64_json=encode_file(result.file),
        )
    )


async def segment(exchange: Exchange, body: SegmentRequest) -> web.StreamResponse:
    """Cut a picture up into the things that it shows, a mask each."""
    answer = await _answer(exchange, SEGMENTATION, body.model, body.task())
    result = _read(segments_from_wire, answer)
    segments = [
        PictureSegment(
            label=each.label, score=each.score, area=each.area, b64_json=encode_file(each.mask)
        )
        for each in result.segments
    ]
    return _json(
        PictureSegments(
            model=body.model,
            width=result.width,
            height=result.height,
            mode=result.mode,
            segments=segments,
        )
    )


async def _answer(
    exchange: Exchange, kind: Kind, model: str, task: CaptionInput | VisionInput
) -> Answer:
    exchange.start(kind, model, [task])
    ((_, answer),) = await exchange.results()
    return answer


def _read(decode: Any, answer: Answer) -> Any:
    try:
        return decode(answer.payload)
    except (ValueError, TypeError) as error:
        raise RuntimeFailed(f"The node sent a result that cannot be read: {error}.") from None


def _json(view: BaseModel) -> web.Response:
    return web.Response(text=view.model_dump_json(), content_type="application/json")


def _operation(
    name: str,
    handler: Any,
    summary: str,
    body: type[PictureRequest],
    answer: type[BaseModel],
    example: Mapping[str, str],
    **more: Any,
) -> Operation:
    return Operation(
        "POST",
        f"/v1/vision/{name}",
        handler,
        summary,
        "vision",
        body=body,
        answer=answer,
        task=True,
        example={**example, "image": "@picture.png"},
        errors=TEXT_FAILURES if name == "caption" else TASK_FAILURES,
        **more,
    )


OPERATIONS = (
    _operation(
        "caption",
        caption,
        "Caption a picture",
        CaptionRequest,
        Caption,
        {"model": "toy-caption"},
    ),
    _operation(
        "detect",
        detect,
        "Find things in a picture",
        DetectRequest,
        DetectedObjects,
        {"model": "owlv2", "labels": "a cat,a remote control"},
    ),
    _operation(
        "classify",
        classify,
        "Name a picture",
        ClassifyRequest,
        PictureLabels,
        {"model": "clip", "labels": "a cat,a dog"},
    ),
    _operation(
        "depth",
        depth,
        "Measure a picture",
        DepthRequest,
        DepthMap,
        {"model": "depth-anything"},
        media={"image/png": "The gray PNG of 16 bits, if Accept asks for it."},
    ),
    _operation(
        "segment",
        segment,
        "Cut up a picture",
        SegmentRequest,
        PictureSegments,
        {"model": "segformer"},
    ),
)

"""``image``: a prompt, and maybe a picture to start from, in; one picture out.

One task makes one picture. Several of one request are tasks with seeds of their own, so that they
may run on several devices, slow ones and fast ones.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgpack
from pydantic import Field, StringConstraints, model_validator

from blip.kinds.base import Kind, TaskInput
from blip.kinds.pictures import PictureFormat

#: Sides of a picture in pixels. Below 16 no model has anything to work on; the largest is the
#: limit of what is decoded, see :data:`blip.kinds.pictures.MAX_PIXELS`.
MIN_SIDE, MAX_SIDE = 16, 4096

#: Schedulers are trained for 1000 steps and gain nothing after 100.
MAX_STEPS = 500

#: What is assumed of a request that leaves size or steps to its model, before and after it ran,
#: so that what the broker learns from such requests holds for the next of them.
TYPICAL_MEGAPIXELS = 0.5
TYPICAL_STEPS = 30

#: How much of the steps an image-to-image task takes if it does not say; diffusers' default.
TYPICAL_STRENGTH = 0.8

#: How far a LoRA may be turned up, either way. Beyond 2 hardly any paints more than noise; some
#: that are meant as sliders go to 5 and more.
MAX_LORA_WEIGHT = 10.0

#: LoRAs of one request; each makes every layer that it changes slower.
MAX_LORAS = 8

#: How much longer a step takes with a ControlNet, which is half a denoiser run beside it.
CONTROLLED = 1.4

Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]
AdditionName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
LoraWeight = Annotated[float, Field(ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ControlWeight = Annotated[float, Field(ge=0, le=2)]


class Lora(TaskInput):
    """A LoRA of the model's configuration, and how much of it: 1 is what it was trained to be."""

    name: AdditionName
    weight: LoraWeight = 1.0


class Control(TaskInput):
    """What the picture's shapes are to follow: a ControlNet, and a picture for it.

    ``type`` is a name of the model's configuration, such as ``canny``. ``image`` is the bytes of a
    picture that the map is made of, or, without ``preprocess``, of the map itself. It counts by
    ``weight``, from the share ``start`` of the steps until ``end``.
    """

    type: AdditionName
    image: bytes
    weight: ControlWeight = 1.0
    start: Share = 0.0
    end: Share = 1.0
    preprocess: bool = True

    @model_validator(mode="after")
    def _order(self) -> Control:
        if self.start >= self.end:
            raise ValueError("start must be below end")
        return self


class ImageInput(TaskInput):
    """What to paint. What is None is left to the model's pipeline.

    With ``image`` (the bytes of a file) it starts from that picture and keeps the less of it the
    higher ``strength`` is; with ``mask`` too, it changes only what that marks (see
    docs/images.md). ``previews`` is how many unfinished pictures are sent on the way, ``progress``
    whether every step is told. ``quality`` is the encoder's, from 0 to 100; PNG has none.
    """

    prompt: Annotated[str, StringConstraints(max_length=32_000)] = ""
    negative_prompt: Annotated[str, StringConstraints(max_length=32_000)] = ""
    width: Side | None = None
    height: Side | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    scheduler: Annotated[str, StringConstraints(max_length=64)] | None = None
    image: bytes | None = None
    mask: bytes | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    loras: Annotated[list[Lora], Field(max_length=MAX_LORAS)] = Field(default_factory=list)
    control: Control | None = None
    previews: Annotated[int, Field(ge=0, le=16)] = 0
    progress: bool = False
    format: PictureFormat = "png"
    quality: Annotated[int, Field(ge=0, le=100)] | None = None


def _units(value: ImageInput) -> float:
    """Steps times megapixels, twice that with guidance: then every step runs the model twice."""
    megapixels = TYPICAL_MEGAPIXELS
    if value.width and value.height:
        megapixels = value.width * value.height / 1e6
    steps = float(value.steps or TYPICAL_STEPS)
    if value.image is not None:
        steps *= value.strength or TYPICAL_STRENGTH
    guided = value.guidance_scale is None or value.guidance_scale > 1
    if value.control is not None:
        steps *= CONTROLLED
    return max(1.0, steps) * megapixels * (2 if guided else 1)


IMAGE = Kind("image", ImageInput, _units)


class Step(NamedTuple):
    """One DATA payload of an image task. The DONE payload is the picture's file itself.

    ``step`` of ``steps`` are done; ``preview`` is the file of what it looks like so far, in the
    task's format.
    """

    step: int
    steps: int
    preview: bytes | None = None


def step_to_wire(step: Step) -> bytes:
    """Encode a step as a msgpack array."""
    packed: bytes = msgpack.packb(step)
    return packed


def step_from_wire(payload: bytes | memoryview) -> Step:
    """Decode a DATA payload. Raises ``ValueError`` or ``TypeError`` on anything else."""
    step, steps, preview = msgpack.unpackb(payload)
    return Step(step, steps, preview)

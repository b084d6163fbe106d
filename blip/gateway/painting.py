"""What all image requests share: how a picture is asked for."""

from __future__ import annotations

import random
import re
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

from blip.errors import InvalidRequest
from blip.gateway.fields import Ignored, Refused
from blip.gateway.form import FormRequest
from blip.gateway.guides import Guide, Loras, lora_tasks
from blip.gateway.picture_file import PictureFileRequest
from blip.kinds.image import (
    MAX_SIDE,
    MAX_STEPS,
    MIN_SIDE,
    Control,
    ImageInput,
)
from blip.kinds.pictures import MAX_PIXELS

#: Pictures of one request, as OpenAI has it.
MAX_PICTURES = 10

#: Unfinished pictures of one stream, as OpenAI has it.
MAX_PARTIAL = 3

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class PaintRequest(PictureFileRequest):
    """Fields that mean the same in all image requests."""

    n: Annotated[int, Field(ge=1, le=MAX_PICTURES)] | None = None
    """Pictures; 1 by default. Each is a task of its own, with seed + its number."""
    size: Annotated[str, Field(max_length=16)] | None = None
    """Width and height, such as 512x512; what the model was made for by default, or with auto."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Denoising steps: more take longer and come out finer. Ours, not OpenAI's."""
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    """How closely to follow the prompt. Ours, not OpenAI's."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed gives the same picture. Ours, not OpenAI's."""
    scheduler: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """How noise is taken away: euler, dpm++2m-karras, ...; an unknown one gets a list of all.
    Ours, not OpenAI's."""
    loras: Loras | None = None
    """LoRAs of the model to use, with weights: [{"name": "ink", "weight": 0.8}]. In a form, as
    JSON text. Ours, not OpenAI's."""
    control: Guide | None = None
    """A picture whose shapes to follow, with a ControlNet of the model. In a form, as JSON text,
    with the file control_image. Ours, not OpenAI's."""
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL)] | None = None
    """Unfinished pictures in a stream."""
    progress: bool | None = None
    """Whether a stream tells every step. Ours, not OpenAI's."""

    user: Annotated[str | None, Ignored()] = None
    safety_identifier: Annotated[str | None, Ignored()] = None
    moderation: Annotated[Any, Ignored()] = None
    quality: Annotated[Any, Refused("Set 'steps'.", "auto", "standard")] = None
    background: Annotated[Any, Refused("Models here paint no alpha.", "auto", "opaque")] = None
    style: Annotated[Any, Refused("Say it in the prompt.")] = None
    complexity: Annotated[Any, Refused("Set 'steps'.")] = None
    svg: Annotated[Any, Refused("Models here paint pixels.")] = None
    frame_count: Annotated[Any, Refused("Models here paint single pictures.", 1, "1")] = None
    frame_duration_ms: Annotated[Any, Refused("Models here paint single pictures.")] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        self.dimensions()
        _ = self.guide  # decoded here, and once
        if not self.stream and (self.partial_images or self.progress):
            name = "partial_images" if self.partial_images else "progress"
            raise InvalidRequest(f"'{name}' needs 'stream': true.", param=at + name)

    @cached_property
    def guide(self) -> Control | None:
        """What shapes to follow. Raises :class:`~blip.errors.InvalidRequest`."""
        upload = self.upload("control_image") if isinstance(self, FormRequest) else None
        if self.control is not None:
            return self.control.task(upload)
        if upload is not None:
            raise InvalidRequest(
                "'control_image' needs 'control' to say what to do with it.",
                hint="""Add -F 'control={"type": "canny"}'.""",
                param="control",
            )
        return None

    def dimensions(self) -> tuple[int, int] | None:
        """Return width and height; None where they are left to the model.

        Raises :class:`~blip.errors.InvalidRequest`.
        """
        return parse_size(self.size)

    def tasks(self, **fields: Any) -> list[ImageInput]:
        """Return one task a picture. ``fields`` are the kind's own; None leaves one out.

        Without a seed one is drawn here: a task that moves to another node paints the same, and
        the answer can say how to have it again.
        """
        size = self.dimensions()
        if size is not None:
            fields |= {"width": size[0], "height": size[1]}
        seed = random.getrandbits(31) if self.seed is None else self.seed
        fields |= {
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "scheduler": self.scheduler,
            "loras": lora_tasks(self.loras),
            "control": self.guide,
            "format": self.format,
            "quality": self.file_quality,
            "previews": self.partial_images if self.stream else None,
            "progress": self.progress if self.stream else None,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return [ImageInput(seed=nth_seed(seed, number), **given) for number in range(self.n or 1)]


def parse_size(size: str | None) -> tuple[int, int] | None:
    """Return width and height of ``512x512``; None for None and ``auto``.

    Raises :class:`~blip.errors.InvalidRequest`.
    """
    if size in (None, "auto"):
        return None
    found = _SIZE.fullmatch(size or "")
    width, height = map(int, found.groups()) if found else (0, 0)
    small, large = min(width, height), max(width, height)
    if small < MIN_SIDE or large > MAX_SIDE or width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"'size' is {size!r}; it is written as 512x512, with sides from {MIN_SIDE} "
            f"to {MAX_SIDE}.",
            param="size",
        )
    return width, height


def nth_seed(seed: int, number: int) -> int:
    """Return the seed of a request's picture; after the last seed comes the first again."""
    return (seed + number + 2**63) % 2**64 - 2**63

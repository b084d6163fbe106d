"""What an image request may have beside its prompt: LoRAs, and a picture whose shapes to follow."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from blip.errors import InvalidRequest
from blip.gateway.fields import Request
from blip.gateway.upload import decode_file
from blip.kinds.image import (
    MAX_LORA_WEIGHT,
    MAX_LORAS,
    AdditionName,
    Control,
    ControlWeight,
    Lora,
    Share,
)
from blip.kinds.pictures import check_picture


def _parsed(value: Any) -> Any:
    """Read JSON text, which is how a form writes what is no plain value."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("expected JSON, such as in a request without files") from None


class LoraRequest(Request):
    """A LoRA of the model, and how much of it."""

    name: AdditionName
    """A name from the model's configuration."""
    weight: Annotated[float, Field(ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT)] = 1.0
    """1 is as it was trained, 0 is without."""


class ControlRequest(Request):
    """A ControlNet of the model, and the picture that it follows."""

    type: AdditionName
    """A name from the model's configuration, such as canny, depth or scribble."""
    image: str | None = None
    """The picture in base64, or a data: URL. In a form send the file control_image instead."""
    weight: ControlWeight = 1.0
    """How closely to follow it; 0 is not at all."""
    start: Share = 0.0
    """The share of the steps from which on it counts."""
    end: Share = 1.0
    """The share of the steps until which it counts."""
    preprocess: bool = True
    """Whether to make the map (its edges, say) of the picture; false takes it as the map."""

    def task(self, upload: bytes | None = None) -> Control:
        """Return it for a task; ``upload`` is the picture where it came as a file.

        Raises :class:`~blip.errors.InvalidRequest` naming the field.
        """
        if self.start >= self.end:
            raise InvalidRequest(
                "'control.start' must be below 'control.end'.", param="control.start"
            )
        field = "control.image" if upload is None else "control_image"
        if upload is not None and self.image is not None:
            raise InvalidRequest(
                "'control_image' and 'control.image' are the same; send one.", param=field
            )
        if upload is None and not self.image:
            raise InvalidRequest("'control.image' is missing.", param=field)
        data = decode_file(self.image or "", field) if upload is None else upload
        check_picture(data, field)
        rest = self.model_dump(exclude={"image"}, exclude_unset=True)
        return Control(image=data, **rest)


#: The fields of a request. In a form they are JSON text.
Loras = Annotated[
    Annotated[list[LoraRequest], Field(max_length=MAX_LORAS)], BeforeValidator(_parsed)
]
Guide = Annotated[ControlRequest, BeforeValidator(_parsed)]


def lora_tasks(loras: list[LoraRequest] | None) -> list[Lora] | None:
    """Return LoRAs for a task."""
    return [Lora(name=lora.name, weight=lora.weight) for lora in loras] if loras else None

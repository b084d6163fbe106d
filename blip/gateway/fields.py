"""Fields of request bodies: those that count, those that are ignored, those that are refused.

Every field that OpenAI documents is known here. One that would change the answer and that blip
does not support is refused by name; dropping it silently would give a wrong answer that looks
right. One that changes nothing about the answer is accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from blip.errors import UnsupportedField


class Refused:
    """Marks a field as accepted only when it asks for nothing: null or one of ``harmless``."""

    def __init__(self, hint: str, *harmless: object) -> None:
        self.hint = hint
        self.harmless = harmless

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        allowed: list[object] = [None, *self.harmless]
        return {"description": f"Not supported. {self.hint}", "enum": allowed}


class Ignored:
    """Marks a field as accepted and without effect."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "description": "Accepted and ignored."}


class Request(BaseModel):
    """A body, or an object inside one. No coercion: the string "1" is not a number.

    A docstring below a field is its description in the OpenAPI document.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    #: How it is sent.
    media: ClassVar[str] = "application/json"
    refused: ClassVar[Mapping[str, Refused]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Collect the refused fields once a class, so that a request costs one set operation."""
        cls.refused = {
            name: mark
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, Refused)
        }

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.UnsupportedField` if a refused field asks for something.

        ``at`` is where this object stands in the body, ending in a dot.
        """
        for name in self.model_fields_set & self.refused.keys():
            value = getattr(self, name)
            mark = self.refused[name]
            if value is not None and value not in mark.harmless:
                raise UnsupportedField(
                    f"'{at}{name}' is not supported and would change the answer.",
                    hint=mark.hint,
                    param=at + name,
                )

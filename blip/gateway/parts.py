"""Content in parts, as Responses and Messages have it: text is read, other types are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NoReturn

from pydantic import ConfigDict

from blip.errors import InvalidRequest, UnsupportedField
from blip.gateway.fields import Request


class Typed(Request):
    """An object whose ``type`` says which other fields it has.

    Fields of types that are not supported need not be known: the type is what is refused. Those of
    supported types must be.
    """

    model_config = ConfigDict(extra="allow")

    #: What the dialect calls such an object.
    noun: ClassVar[str] = "parts"
    #: The way out of a type that is not supported.
    hint: ClassVar[str] = "Send text only."

    def refuse_type(self, given: str, at: str) -> NoReturn:
        """Raise :class:`~blip.errors.UnsupportedField` for a type that is not supported."""
        raise UnsupportedField(
            f"'{at}type': {self.noun} of type '{given}' are not supported.",
            hint=self.hint,
            param=at + "type",
        )

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for fields that nobody knows."""
        super().check(at)
        for name in self.model_extra or ():
            raise InvalidRequest(
                f"'{at}{name}' is not a field of this request.",
                hint="Leave it out; GET /docs lists the fields.",
                param=at + name,
            )


class Part(Typed):
    """A part of a message."""

    #: Types that are read, and which of their fields is the text.
    texts: ClassVar[Mapping[str, str]] = {"text": "text"}

    type: str
    text: str | None = None

    def plain(self, at: str) -> str:
        """Return the text. ``at`` is where the part stands in the body, ending in a dot."""
        name = self.texts.get(self.type)
        if name is None:
            self.refuse_type(self.type, at)
        self.check(at)
        text: str | None = getattr(self, name)
        if text is None:
            raise InvalidRequest(f"'{at}{name}' is missing from this part.", param=at + name)
        return text


def paragraphs(content: str | list[Part], at: str) -> str:
    """Return the text of a content; several parts become paragraphs. ``at`` is the content's."""
    if isinstance(content, str):
        return content
    return "\n".join(part.plain(f"{at}.{index}.") for index, part in enumerate(content))

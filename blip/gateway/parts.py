"""Content in parts, as Responses and Messages have it: text and pictures; others are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple, NoReturn

from pydantic import ConfigDict

from blip.errors import InvalidRequest, UnsupportedField
from blip.gateway.fields import Request
from blip.kinds.chat import MAX_MESSAGE_PICTURES, ChatPicture


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

    def picture(self, at: str) -> bytes | None:
        """Return the file of a part that is a picture, None for all others.

        Raises :class:`~blip.errors.InvalidRequest` for what is no picture.
        """
        return None

    def piece(self, at: str) -> str | bytes:
        """Return the text, or the file of the picture."""
        found = self.picture(at)
        return self.plain(at) if found is None else found


class Content(NamedTuple):
    """What a message says, as models get it: see :class:`blip.kinds.chat.ChatMessage`."""

    text: str
    pictures: list[ChatPicture]

    def introduced(self, text: str) -> Content:
        """Return this with a text before its first, on the same line."""
        moved = [
            picture.model_copy(update={"at": picture.at + len(text)}) for picture in self.pictures
        ]
        return Content(text + self.text, moved)

    def followed(self, more: Content) -> Content:
        """Return this and then that, as one."""
        moved = [
            picture.model_copy(update={"at": picture.at + len(self.text) + 1})
            for picture in more.pictures
        ]
        return Content(f"{self.text}\n{more.text}", [*self.pictures, *moved])


def joined(pieces: Iterable[str | bytes], at: str) -> Content:
    """Put the pieces of a message together: texts become paragraphs, pictures keep their places.

    ``at`` is the content's place. Raises :class:`~blip.errors.InvalidRequest` for too many.
    """
    texts: list[str] = []
    pictures: list[ChatPicture] = []
    for piece in pieces:
        if isinstance(piece, str):
            texts.append(piece)
        else:
            pictures.append(ChatPicture(data=piece, at=len("\n".join(texts))))
    if len(pictures) > MAX_MESSAGE_PICTURES:
        raise InvalidRequest(
            f"'{at}' has {len(pictures)} pictures; {MAX_MESSAGE_PICTURES} are the most of one "
            "message.",
            param=at,
        )
    return Content("\n".join(texts), pictures)


def contents(content: str | list[Part], at: str) -> Content:
    """Return the text and the pictures of a content. ``at`` is the content's place."""
    if isinstance(content, str):
        return Content(content, [])
    pieces = (part.piece(f"{at}.{index}.") for index, part in enumerate(content))
    return joined(pieces, at)

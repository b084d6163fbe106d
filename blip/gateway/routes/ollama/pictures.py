"""Pictures as Ollama has them: a list beside the text."""

from __future__ import annotations

from collections.abc import Sequence

from blip.gateway.parts import joined
from blip.gateway.upload import decode_picture
from blip.kinds.chat import ChatPicture


def pictures_of(images: Sequence[str] | None, at: str) -> list[ChatPicture]:
    """Return the pictures of a message, all before its text; ``at`` is the list's place.

    Raises :class:`~blip.errors.InvalidRequest` naming the one that is none.
    """
    files = [decode_picture(image, f"{at}.{index}") for index, image in enumerate(images or ())]
    return joined(files, at).pictures

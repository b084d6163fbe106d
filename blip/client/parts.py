"""Parts of a message: pictures beside text, for models that see."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

#: How files of pictures begin. What begins otherwise is left to the gateway to refuse.
_STARTS = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "image/webp",
}


def picture(file: bytes) -> dict[str, Any]:
    """Return a picture, the bytes of a PNG, JPEG or WebP file, as a part of a message.

    ``blip.chat(model, [{"role": "user", "content": ["What is this?", picture(file)]}])``
    """
    media = next((name for start, name in _STARTS.items() if file.startswith(start)), None)
    text = base64.b64encode(file).decode()
    url = f"data:{media or 'application/octet-stream'};base64,{text}"
    return {"type": "image_url", "image_url": {"url": url}}


def with_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message whose content, where it is a list, has its bare texts as parts."""
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return message
    parts = [{"type": "text", "text": each} if isinstance(each, str) else each for each in content]
    return {**message, "content": parts}

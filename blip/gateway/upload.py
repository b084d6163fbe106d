"""Files inside JSON: base64, bare or as a ``data:`` URL (RFC 2397). Nothing is ever fetched."""

from __future__ import annotations

import base64
import binascii
import re

from blip.errors import InvalidRequest, UnsupportedField
from blip.kinds.pictures import check_picture
from blip.protocol.messages import Payload

#: What stands before the content: ``data:image/png;base64,``.
_DATA = re.compile(r"data:[^,;]{0,200}(?:;[^,;]{0,200})*;base64,", re.IGNORECASE)

#: Whatever else has a scheme: ``https:``, ``file:``, a ``data:`` URL that is not base64.
_URL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def encode_file(content: Payload) -> str:
    """Return a file in base64, as it stands in an answer."""
    return base64.b64encode(content).decode()


def decode_file(text: str, field: str) -> bytes:
    """Return the content of a file in ``field``.

    Raises :class:`~blip.errors.UnsupportedField` for a URL that would have to be fetched (a
    gateway that fetched what strangers name would open its network to them), and
    :class:`~blip.errors.InvalidRequest` for what is not base64.
    """
    start = _DATA.match(text)
    if start is None and _URL.match(text):
        raise UnsupportedField(
            f"'{field}': files are not fetched from elsewhere.",
            hint="Send the file itself: as base64, or as data:image/png;base64,...",
            param=field,
        )
    content = text[start.end() :] if start is not None else text
    try:
        # line breaks are common in base64, and no harm
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            f"'{field}' is not base64: {error}.",
            hint="Send the file as base64, or as data:image/png;base64,...",
            param=field,
        ) from None


def decode_picture(text: str, field: str) -> bytes:
    """Return the file of a picture in ``field``; its header has been looked at.

    Raises :class:`~blip.errors.InvalidRequest`, also for what is no picture or too large a one.
    """
    data = decode_file(text, field)
    check_picture(data, field)
    return data

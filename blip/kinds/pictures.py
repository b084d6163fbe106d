"""What the first bytes of a picture say: its format and size. Nothing is decoded here.

A gateway asks this of everything it is sent, so that a picture that would fill a node's memory
once decoded is refused for its header, before anything is done with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

from blip.errors import InvalidRequest

PictureFormat = Literal["png", "jpeg", "webp"]

#: Most pixels of a picture that is taken or made: 4096 x 4096, which decoded to RGB floats is
#: 200 MB. Models make a quarter of that at most.
MAX_PIXELS = 1 << 24

_PNG = b"\x89PNG\r\n\x1a\n"

#: Start-of-frame markers of JPEG; the others between 0xC0 and 0xCF are tables.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

#: JPEG markers without a length: TEM, restarts and start of image.
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


class Header(NamedTuple):
    """What a picture says of itself; ``width`` and ``height`` are pixels, before any turning."""

    format: PictureFormat
    width: int
    height: int


def read_header(data: bytes | memoryview) -> Header | None:
    """Return the header of a PNG, JPEG or WebP picture; None for everything else."""
    view = memoryview(data)
    start = bytes(view[:12])
    try:
        if start.startswith(_PNG):
            length, chunk, width, height = struct.unpack_from(">I4sII", view, 8)
            found = Header("png", width, height) if (length, chunk) == (13, b"IHDR") else None
        elif start.startswith(b"\xff\xd8"):
            found = _jpeg(view)
        elif start[:4] == b"RIFF" and start[8:] == b"WEBP":
            found = _webp(view)
        else:
            return None
    except (struct.error, IndexError):
        return None
    return found if found is not None and found.width and found.height else None


def _jpeg(view: memoryview) -> Header | None:
    for marker, at in _segments(view):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", view, at + 3)
            return Header("jpeg", width, height)
    return None


def _segments(view: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the marker and the place of the length of each segment before the pixels."""
    at = 2
    while True:
        while view[at] == 0xFF:  # any number of fill bytes may stand before a marker
            at += 1
        marker = view[at]
        at += 1
        if marker == 0xDA or view[at - 2] != 0xFF:
            return
        if marker in _BARE:
            continue
        yield marker, at
        (length,) = struct.unpack_from(">H", view, at)
        at += max(2, length)


def _webp(view: memoryview) -> Header | None:
    kind = bytes(view[12:16])
    if kind == b"VP8X":
        width = int.from_bytes(view[24:27], "little") + 1
        height = int.from_bytes(view[27:30], "little") + 1
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", view, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", view, 26))
    else:
        return None
    return Header("webp", width, height) if len(view) >= 30 else None


def check_picture(data: bytes | memoryview, field: str) -> Header:
    """Return the header of a picture that a request carries in ``field``.

    Raises :class:`~blip.errors.InvalidRequest` naming the field for what is no picture of a known
    format, or has too many pixels.
    """
    header = read_header(data)
    if header is None:
        raise InvalidRequest(
            f"'{field}' is not a PNG, JPEG or WebP picture.",
            hint="Convert it; the file's content counts, not its name."
            if data
            else "The file is empty.",
            param=field,
        )
    if header.width * header.height > MAX_PIXELS:
        raise InvalidRequest(
            f"'{field}' has {header.width} x {header.height} pixels; {MAX_PIXELS} are the most.",
            hint="Scale it down.",
            param=field,
            details={"pixels": header.width * header.height, "limit": MAX_PIXELS},
        )
    return header


def check_mask(mask: Header, image: Header) -> None:
    """Raise :class:`~blip.errors.InvalidRequest` if a mask cannot be of the size of its image.

    Sides may be swapped: cameras write pictures lying down and say so in a tag.
    """
    if sorted((mask.width, mask.height)) != sorted((image.width, image.height)):
        raise wrong_mask((mask.width, mask.height), (image.width, image.height))


def wrong_mask(mask: tuple[int, int], image: tuple[int, int]) -> InvalidRequest:
    """Return the error for a mask of another size than its image."""
    return InvalidRequest(
        f"'mask' has {mask[0]} x {mask[1]} pixels, 'image' has {image[0]} x {image[1]}.",
        hint="Both must have the same size.",
        param="mask",
    )

"""How large a picture becomes, and whether that can be had."""

from __future__ import annotations

from PIL import Image

from blip.errors import InvalidRequest
from blip.kinds.pictures import MAX_PIXELS
from blip.kinds.upscale import UpscaleInput


def target_size(
    model: str, factor: int, wishes: UpscaleInput, source: Image.Image
) -> tuple[int, int]:
    """Return the size of the result of a model that makes sides ``factor`` times as long.

    Raises :class:`~blip.errors.InvalidRequest` if it cannot be had.
    """
    scale = factor if wishes.scale is None else wishes.scale
    if scale > factor:
        raise InvalidRequest(
            f"'scale' is {scale:g}; {model} makes sides {factor} times as long.",
            hint=f"Ask for {factor} at most; what comes out may be sent again.",
            param="scale",
        )
    made = source.width * source.height * factor**2
    if made > MAX_PIXELS:
        raise InvalidRequest(
            f"'image' has {source.width} x {source.height} pixels, {factor} times as long "
            f"each way that is {made}; {MAX_PIXELS} are the most.",
            hint="Send a part of it, or a smaller one.",
            param="image",
            details={"pixels": made, "limit": MAX_PIXELS},
        )
    width, height = (max(1, round(side * scale)) for side in source.size)
    return width, height

"""The maps that ControlNets follow, made of pictures: edges, strokes, tiles. Pure.

Only what needs no model of its own. A picture here is what Pillow calls RGB; so is a map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
from PIL import Image, ImageFilter, ImageOps

#: Canny's smoothing before gradients, in pixels; 1.4 is what his paper and OpenCV's 5x5 kernel
#: amount to.
_SIGMA = 1.4

#: Gradients above the first are edges, those above the second too where they touch one. In units of
#: OpenCV's Sobel gradient of 8-bit pixels, and the values that most ControlNets were trained with.
HIGH, LOW = 200.0, 100.0

#: A stroke of a drawing is what is darker than this.
_INK = 128

#: Standard deviation of the blur, in parts of the picture's shorter side.
_BLUR = 1 / 50

#: How much smaller a tile map knows its picture: enough to lose detail, not shapes.
_TILE = 4

#: Which pixels around one are its neighbours along a gradient, by the gradient's direction in
#: eighths of a turn: (down, right).
_AHEAD = ((0, 1), (1, 1), (1, 0), (1, -1))


def canny(picture: Image.Image) -> Image.Image:
    """Return the edges, white on black: smoothing, Sobel, thinning, hysteresis.

    J. Canny, "A computational approach to edge detection", 1986.
    """
    grey = numpy.asarray(
        picture.convert("L").filter(ImageFilter.GaussianBlur(_SIGMA)), dtype="float32"
    )
    framed = numpy.pad(grey, 1, mode="edge")
    right, down = _sobel(framed)
    strength = numpy.hypot(right, down)
    thin = _thinned(strength, right, down)
    edges = _connected(thin >= HIGH, thin >= LOW)
    return Image.fromarray(edges.astype("uint8") * 255).convert("RGB")


def _sobel(framed: Any) -> tuple[Any, Any]:
    """Return the gradients to the right and down of a picture with a frame of one pixel."""
    rows = framed[:-2] + 2 * framed[1:-1] + framed[2:]
    columns = framed[:, :-2] + 2 * framed[:, 1:-1] + framed[:, 2:]
    return rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]


def _thinned(strength: Any, right: Any, down: Any) -> Any:
    """Return the gradient where it is the largest along its own direction, else 0."""
    eighths = numpy.round(numpy.arctan2(down, right) / (numpy.pi / 4)).astype(int) % 4
    framed = numpy.pad(strength, 1)
    height, width = strength.shape
    kept = numpy.zeros_like(strength)
    for direction, (dy, dx) in enumerate(_AHEAD):
        ahead = framed[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = framed[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        # of two that are equal the one behind counts, so that a ramp leaves one line
        best = (eighths == direction) & (strength > behind) & (strength >= ahead)
        kept[best] = strength[best]
    return kept


def _connected(sure: Any, maybe: Any) -> Any:
    """Return what is sure, and what may be and touches it, over any number of pixels."""
    found = sure & maybe
    edge = numpy.argwhere(found)
    height, width = found.shape
    steps = numpy.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])
    while len(edge):
        near = (edge[:, None, :] + steps).reshape(-1, 2)
        inside = ((near >= 0) & (near < (height, width))).all(1)
        y, x = near[inside].T
        new = maybe[y, x] & ~found[y, x]
        fresh = numpy.zeros_like(found)
        fresh[y[new], x[new]] = True
        found |= fresh
        edge = numpy.argwhere(fresh)
    return found


def scribble(picture: Image.Image) -> Image.Image:
    """Return the strokes of a dark drawing on light ground, white on black."""
    grey = picture.convert("L")
    return grey.point(lambda value: 255 if value < _INK else 0).convert("RGB")


def invert(picture: Image.Image) -> Image.Image:
    """Return the negative in grey: line art on white becomes light lines on black."""
    return ImageOps.invert(picture.convert("L")).convert("RGB")


def blur(picture: Image.Image) -> Image.Image:
    """Return the picture out of focus."""
    return picture.filter(ImageFilter.GaussianBlur(max(1.0, min(picture.size) * _BLUR)))


def tile(picture: Image.Image) -> Image.Image:
    """Return the picture without its detail, which the model is to paint anew."""
    small = tuple(max(1, side // _TILE) for side in picture.size)
    return picture.resize((small[0], small[1]), Image.Resampling.BOX).resize(
        picture.size, Image.Resampling.BICUBIC
    )


def grey(picture: Image.Image) -> Image.Image:
    """Return the picture without its colours, for models that colour it."""
    return picture.convert("L").convert("RGB")


#: By the name that a ControlNet has in the configuration.
MAKERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "canny": canny,
    "scribble": scribble,
    "lineart": invert,
    "invert": invert,
    "blur": blur,
    "tile": tile,
    "gray": grey,
    "grey": grey,
    "recolor": grey,
}

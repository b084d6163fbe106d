"""The maps that are made of pictures for ControlNets."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from PIL import Image, ImageDraw

from blip_node.runtimes.diffusion.maps import MAKERS, canny


def square(ink: int = 40, ground: int = 240) -> Image.Image:
    picture = Image.new("RGB", (64, 48), (ground,) * 3)
    ImageDraw.Draw(picture).rectangle((16, 12, 47, 35), fill=(ink,) * 3)
    return picture


def values(picture: Image.Image) -> Any:
    return numpy.asarray(picture.convert("L"), dtype=int)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("size", [(64, 48), (1, 1), (3, 200)])
def test_a_map_is_a_picture_of_the_same_size(name: str, size: tuple[int, int]) -> None:
    made = MAKERS[name](square().resize(size))
    assert (made.size, made.mode) == (size, "RGB")


def test_canny_draws_the_outline_thin_and_closed() -> None:
    edges = values(canny(square())) > 0
    assert set(numpy.unique(values(canny(square())))) == {0, 255}
    rows, columns = edges.any(1).nonzero()[0], edges.any(0).nonzero()[0]
    assert abs(numpy.array([rows[0], rows[-1]]) - (12, 35)).max() <= 1
    assert abs(numpy.array([columns[0], columns[-1]]) - (16, 47)).max() <= 1
    assert edges[24].sum() == 2  # one line on the left, one on the right
    assert edges[:, 32].sum() == 2
    assert not edges[18:30, 22:42].any()
    # who starts inside cannot get out: paint spreads from the middle, not over edges
    filled = Image.fromarray(edges.astype("uint8") * 255)
    ImageDraw.floodfill(filled, (32, 24), 128)
    assert values(filled)[0, 0] == 0


def test_canny_needs_contrast_and_follows_weak_edges_from_strong_ones() -> None:
    assert not values(canny(square(200, 210))).any()
    assert not values(canny(Image.new("RGB", (32, 32), (90, 90, 90)))).any()
    # a bar whose contrast falls from left to right: its edge goes on where alone it would not
    ground = numpy.full((40, 120), 200.0)
    ground[20:] -= numpy.linspace(120, 0, 120)
    edges = values(canny(Image.fromarray(ground.astype("uint8")).convert("RGB"))) > 0
    found = edges[18:22].any(0).nonzero()[0]
    assert found[0] <= 2
    alone = canny(Image.fromarray(ground[:, found[-1] - 20 :].astype("uint8")).convert("RGB"))
    assert not values(alone).any()
    assert found[-1] < 110  # and ends where there is next to nothing


def test_strokes_and_negatives() -> None:
    drawing = Image.new("L", (32, 32), 250)
    ImageDraw.Draw(drawing).line((4, 16, 28, 16), fill=60, width=3)
    ImageDraw.Draw(drawing).line((4, 24, 28, 24), fill=180, width=3)  # pencil, too light
    strokes = values(MAKERS["scribble"](drawing.convert("RGB")))
    assert set(numpy.unique(strokes)) == {0, 255}
    assert (strokes[16, 8:24] == 255).all()
    assert (strokes[24] == 0).all()
    assert (values(MAKERS["lineart"](drawing.convert("RGB"))) == 255 - values(drawing)).all()


def test_less_detail_and_less_colour() -> None:
    noise = numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype="uint8")
    picture = Image.fromarray(noise)
    for name in ("tile", "blur"):
        soft = numpy.asarray(MAKERS[name](picture), dtype=float)
        assert soft.std() < noise.std() / 2
        assert abs(soft.mean() - noise.mean()) < 5
    grey = numpy.asarray(MAKERS["recolor"](picture))
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 0] == values(picture)).all()

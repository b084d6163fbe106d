"""``depth``: how far away each pixel of a picture is."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from typing import Any

import numpy
from PIL import Image, PngImagePlugin

from blip.kinds.vision import DEPTH_LEVELS, DepthInput, Depths, to_wire
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.sight.classify import no_numbers
from blip_node.runtimes.sight.loading import load_seeing, to_model


def load(spec: LoadSpec, architecture: str, report: Callable[[float], None]) -> Any:
    """Load a depth estimator."""
    auto = "AutoModelForDepthEstimation"
    return Depth(*load_seeing(spec, auto, "AutoImageProcessor", report))


class Depth:
    """A model that tells distances, each in a unit of its own."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        self._read = processor.post_process_depth_estimation
        self._told = frozenset(inspect.signature(self._read).parameters)

    def __call__(self, wishes: DepthInput, picture: Image.Image) -> bytes:
        """Return the depths; see :class:`~blip_node.runtimes.sight.engine.Task`."""
        inputs = to_model(self._model, self._processor(images=picture, return_tensors="pt"))
        output = self._model(**inputs)
        if not output.predicted_depth.isfinite().all():
            raise no_numbers()
        # processors that pad pictures cut the margin off again, if they are told the size
        size = [(picture.height, picture.width)]
        sizes = {name: size for name in ("source_sizes", "target_sizes") if name in self._told}
        values = self._read(output, **sizes)[0]["predicted_depth"].float()
        low, high = values.min().item(), values.max().item()
        levels = (values - low) / (high - low or 1.0) * DEPTH_LEVELS
        gray = levels.round().cpu().numpy().astype(numpy.uint16)
        return to_wire(Depths(picture.width, picture.height, low, high, _file(gray, low, high)))


def _file(gray: Any, low: float, high: float) -> bytes:
    """Write a PNG of 16 bits that says itself what its darkest and brightest pixels mean."""
    facts = PngImagePlugin.PngInfo()
    facts.add_text("min", repr(low))
    facts.add_text("max", repr(high))
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "PNG", pnginfo=facts)
    return file.getvalue()

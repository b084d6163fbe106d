"""``segmentation``: a picture cut up into the things that it shows."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from blip.errors import ModelLoadFailed, UnsupportedField
from blip.kinds.vision import Segment, SegmentationInput, SegmentMode, Segments, to_wire
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.sight.classify import no_numbers
from blip_node.runtimes.sight.loading import load_seeing, to_model

#: Below this score a thing is left out, unless a request says otherwise; transformers' default.
THRESHOLD = 0.5

#: From the richest answer to the plainest: what a model does where a request does not say.
_MODES: tuple[SegmentMode, ...] = ("panoptic", "instance", "semantic")


def load(spec: LoadSpec, architecture: str, report: Callable[[float], None]) -> Any:
    """Load a segmenter."""
    if architecture.startswith("OneFormer"):
        raise ModelLoadFailed(
            f"model '{spec.model}': OneFormer has to be told its task in words, which blip does not"
        )
    auto = "AutoModelForUniversalSegmentation"
    if architecture.endswith("ForSemanticSegmentation"):
        auto = "AutoModelForSemanticSegmentation"
    elif architecture.endswith("ForInstanceSegmentation") and "MaskFormer" not in architecture:
        auto = "AutoModelForInstanceSegmentation"
    return Segmenter(spec.model, *load_seeing(spec, auto, "AutoImageProcessor", report))


class Segmenter:
    """A model that cuts up pictures in one or several of the modes."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self._name, self._model, self._processor = name, model, processor
        able = _MODES
        if type(model).__name__.endswith("ForSemanticSegmentation"):
            able = ("semantic",)  # processors are shared with models that do more
        self._modes = [mode for mode in able if hasattr(processor, _method(mode))]
        if not self._modes:
            raise ModelLoadFailed(f"model '{name}': nothing reads what its head computes")

    def __call__(self, wishes: SegmentationInput, picture: Image.Image) -> bytes:
        """Return the parts; see :class:`~blip_node.runtimes.sight.engine.Task`."""
        mode = wishes.mode or self._modes[0]
        if mode not in self._modes:
            raise UnsupportedField(
                f"'mode': {self._name} does {' and '.join(self._modes)} segmentation, not {mode}.",
                param="mode",
            )
        inputs = to_model(self._model, self._processor(images=picture, return_tensors="pt"))
        output = self._model(**inputs)
        logits = output.logits if "logits" in output else output.class_queries_logits
        if not logits.isfinite().all():
            raise no_numbers()
        size = [(picture.height, picture.width)]
        read = getattr(self._processor, _method(mode))
        if mode == "semantic":
            parts = self._classes(read(output, target_sizes=size)[0])
        else:
            threshold = THRESHOLD if wishes.threshold is None else wishes.threshold
            parts = self._things(read(output, threshold=threshold, target_sizes=size)[0])
        parts.sort(key=lambda part: -part.area)
        return to_wire(Segments(picture.width, picture.height, mode, parts))

    def _classes(self, numbers: Tensor) -> list[Segment]:
        """Return a part for each class that there is."""
        names = self._model.config.id2label
        return [
            _segment(str(names.get(number, number)), None, numbers == number)
            for number in numbers.unique().tolist()
            if number >= 0
        ]

    def _things(self, result: Any) -> list[Segment]:
        """Return a part for each thing that there is."""
        names = self._model.config.id2label
        return [
            _segment(
                str(names.get(each["label_id"], each["label_id"])),
                float(each["score"]),
                result["segmentation"] == each["id"],
            )
            for each in result["segments_info"]
        ]


def _method(mode: SegmentMode) -> str:
    return f"post_process_{mode}_segmentation"


def _segment(label: str, score: float | None, inside: Tensor) -> Segment:
    file = io.BytesIO()
    white = (inside.cpu().numpy() * 255).astype("uint8")
    Image.fromarray(white).save(file, "PNG")
    return Segment(label, score, int(inside.sum()), file.getvalue())

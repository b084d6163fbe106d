"""``detection``: what is where in a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from blip.kinds.vision import Box, DetectionInput, Detections, Found, to_wire
from blip_node.models.abilities import LABEL_FINDERS
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.sight.classify import need_labels, no_numbers, refuse_labels
from blip_node.runtimes.sight.loading import load_seeing, to_model

#: Below these scores things are left out, unless a request says otherwise: what transformers'
#: own pipelines take. Models that read labels are far less sure of everything.
THRESHOLD, OPEN_THRESHOLD = 0.5, 0.1


def load(spec: LoadSpec, architecture: str, report: Callable[[float], None]) -> Any:
    """Load a detector of fixed classes, or one that reads what to look for."""
    if architecture.endswith(LABEL_FINDERS):
        auto = "AutoModelForZeroShotObjectDetection"
        return AnyLabels(spec.model, *load_seeing(spec, auto, "AutoProcessor", report))
    auto = "AutoModelForObjectDetection"
    return FixedClasses(spec.model, *load_seeing(spec, auto, "AutoImageProcessor", report))


class FixedClasses:
    """A model with classes of its own."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self._name, self._model, self._processor = name, model, processor

    def __call__(self, wishes: DetectionInput, picture: Image.Image) -> bytes:
        """Return what was found; see :class:`~blip_node.runtimes.sight.engine.Task`."""
        refuse_labels(self._name, wishes.labels)
        inputs = to_model(self._model, self._processor(images=picture, return_tensors="pt"))
        output = self._model(**inputs)
        if not (output.logits.isfinite().all() and output.pred_boxes.isfinite().all()):
            raise no_numbers()
        (result,) = self._processor.post_process_object_detection(
            output,
            threshold=THRESHOLD if wishes.threshold is None else wishes.threshold,
            target_sizes=[(picture.height, picture.width)],
        )
        names = self._model.config.id2label
        labels = [names[number] for number in result["labels"].tolist()]
        return _packed(picture, labels, result)


class AnyLabels:
    """A model that looks for the labels of each request."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self._name, self._model, self._processor = name, model, processor

    def __call__(self, wishes: DetectionInput, picture: Image.Image) -> bytes:
        """Return what was found; see :class:`~blip_node.runtimes.sight.engine.Task`."""
        need_labels(self._name, wishes.labels)
        inputs = self._processor(
            text=[wishes.labels], images=picture, truncation=True, return_tensors="pt"
        )
        inputs = to_model(self._model, inputs)
        output = self._model(**inputs)
        if not output.pred_boxes.isfinite().all():  # scores may be minus infinity
            raise no_numbers()
        (result,) = self._processor.post_process_grounded_object_detection(
            output,
            threshold=OPEN_THRESHOLD if wishes.threshold is None else wishes.threshold,
            target_sizes=[(picture.height, picture.width)],
            text_labels=[wishes.labels],
        )
        return _packed(picture, result["text_labels"], result)


def _packed(picture: Image.Image, labels: list[str], result: Any) -> bytes:
    scores, boxes = result["scores"].float(), result["boxes"].float()
    width, height = picture.size
    edges = boxes.new_tensor([width, height, width, height])
    boxes = boxes.clamp(min=0).minimum(edges)  # models draw a little over the edge
    found = [
        Found(str(label), score, Box(*box))
        for label, score, box in zip(labels, scores.tolist(), boxes.tolist(), strict=True)
    ]
    found.sort(key=lambda each: -each.score)
    return to_wire(Detections(width, height, found))

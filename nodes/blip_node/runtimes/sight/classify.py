"""``image-classification``: which of the model's classes, or of the request's, a picture is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from blip.errors import InvalidRequest, RuntimeFailed, UnsupportedField
from blip.kinds.vision import ClassificationInput, Guess, to_wire
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.sight.loading import load_seeing, to_model

#: The sentence that CLIP and its kin were trained to find with a picture.
TEMPLATE = "a photo of {}"


def load(spec: LoadSpec, architecture: str, report: Callable[[float], None]) -> Any:
    """Load a classifier of fixed classes, or one that compares pictures with texts."""
    if architecture.endswith("ForImageClassification"):
        auto, processor = "AutoModelForImageClassification", "AutoImageProcessor"
        return FixedClasses(spec.model, *load_seeing(spec, auto, processor, report))
    auto = "AutoModelForZeroShotImageClassification"
    return AnyLabels(spec.model, *load_seeing(spec, auto, "AutoProcessor", report))


class FixedClasses:
    """A model with classes of its own."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self._name, self._model, self._processor = name, model, processor

    def __call__(self, wishes: ClassificationInput, picture: Image.Image) -> bytes:
        """Return the best classes; see :class:`~blip_node.runtimes.sight.engine.Task`."""
        refuse_labels(self._name, wishes.labels)
        if wishes.template is not None:
            raise _lonely_template()
        inputs = to_model(self._model, self._processor(images=picture, return_tensors="pt"))
        logits = self._model(**inputs).logits[0].float()
        config = self._model.config
        # several classes may hold at once, or one of them does
        many = config.problem_type == "multi_label_classification" or config.num_labels == 1
        scores = logits.sigmoid() if many else logits.softmax(-1)
        return to_wire(_best(scores, [config.id2label[n] for n in range(len(scores))], wishes.top))


class AnyLabels:
    """A model that compares a picture with the labels of each request."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self._name, self._model, self._processor = name, model, processor
        # SigLIP was trained with a sigmoid a pair, and on texts of full length
        self._pairs = model.config.model_type.startswith("siglip")

    def __call__(self, wishes: ClassificationInput, picture: Image.Image) -> bytes:
        """Return the best labels; see :class:`~blip_node.runtimes.sight.engine.Task`."""
        need_labels(self._name, wishes.labels)
        template = TEMPLATE if wishes.template is None else wishes.template
        if "{}" not in template:
            raise InvalidRequest("'template' has no {}, where the label stands.", param="template")
        inputs = self._processor(
            text=[template.replace("{}", label) for label in wishes.labels],
            images=picture,
            padding="max_length" if self._pairs else True,
            truncation=True,
            return_tensors="pt",
        )
        output = self._model(**to_model(self._model, inputs))
        logits = output.logits_per_image[0].float()
        scores = logits.sigmoid() if self._pairs else logits.softmax(-1)
        return to_wire(_best(scores, wishes.labels, wishes.top))


def need_labels(name: str, labels: list[str]) -> None:
    """Raise unless there are labels, for a model that has none of its own."""
    if not labels:
        raise InvalidRequest(
            f"'labels' are missing: {name} has no classes of its own.",
            hint="Say what to look for: labels=cat,dog",
            param="labels",
        )


def refuse_labels(name: str, labels: list[str]) -> None:
    """Raise if there are labels, for a model that reads none."""
    if labels:
        raise UnsupportedField(
            f"'labels': {name} has classes of its own, and reads no others.",
            hint="Leave them out, or choose a model such as CLIP or OWL-ViT.",
            param="labels",
        )


def _lonely_template() -> InvalidRequest:
    return InvalidRequest("'template' needs 'labels'.", param="template")


def _best(scores: Tensor, labels: list[str], top: int) -> list[Guess]:
    if not scores.isfinite().all():
        raise no_numbers()
    best = scores.topk(min(top, len(labels)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Guess(str(labels[index]), score) for index, score in pairs]


def no_numbers() -> RuntimeFailed:
    """Return the error for a model that computed NaN or infinity."""
    return RuntimeFailed(
        "the model computed NaN or infinity",
        hint="If it was loaded in float16, load it in bfloat16 or float32.",
    )

"""What a snapshot of transformers can serve, by the name of its architecture. Pure.

The first row that fits counts. A row is for a *head*: what comes out of the model, not its family,
so new families of a known head are served without a change here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

#: Encoders that number positions from ``pad_token_id + 1``: fairseq's habit.
OFFSET_POSITIONS = frozenset(
    {"camembert", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)

#: Encoders of text whose architecture is called ``XModel``, as it would be in vision and audio.
TEXT_ENCODERS = OFFSET_POSITIONS | {
    "albert",
    "bert",
    "convbert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "eurobert",
    "mobilebert",
    "modernbert",
    "nomic_bert",
    "rembert",
    "roformer",
    "squeezebert",
}


class Head(NamedTuple):
    """Architectures whose name ends in one of ``names``, and the kinds that they serve.

    With ``types`` the model type must be among them, too, and with ``part`` the configuration must
    have a part of that name. ``words`` is how an error names them.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    words: str
    types: frozenset[str] = frozenset()
    part: str = ""


#: The part of a configuration that only models with eyes have.
_EYES = "vision_config"

#: Models that say something about a picture without being able to talk about it.
_CAPTIONERS = (
    "BlipForConditionalGeneration",
    "Blip2ForConditionalGeneration",
    "GitForCausalLM",
    "VisionEncoderDecoderModel",
)

#: Models that compare a picture with texts.
COMPARERS = ("CLIPModel", "SiglipModel", "Siglip2Model", "AlignModel", "MetaClip2Model")

#: Detectors that are told what to look for.
LABEL_FINDERS = (
    "OwlViTForObjectDetection",
    "Owlv2ForObjectDetection",
    "GroundingDinoForObjectDetection",
)

_SEGMENTERS = (
    "ForSemanticSegmentation",
    "ForInstanceSegmentation",
    "ForUniversalSegmentation",
    "DetrForSegmentation",
)

HEADS: tuple[Head, ...] = (
    Head(_CAPTIONERS, ("caption",), "captioners of pictures"),
    Head(
        ("ForConditionalGeneration",), ("chat", "caption"), "language models that see", part=_EYES
    ),
    Head(("ForImageClassification", *COMPARERS), ("image-classification",), "image classifiers"),
    Head(("ForObjectDetection",), ("detection",), "object detectors"),
    Head(("ForDepthEstimation",), ("depth",), "depth estimators"),
    Head(_SEGMENTERS, ("segmentation",), "image segmenters"),
    Head(("ForCausalLM", "LMHeadModel"), ("chat", "completion"), "causal language models"),
    Head(("ForMaskedLM",), ("embedding",), "text encoders"),
    Head(("",), ("embedding",), "text encoders", TEXT_ENCODERS),
)


def abilities(
    architecture: str, model_type: str, config: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Return the kinds that a model can serve; none if blip has no runtime for it.

    ``config`` is all of its configuration, for the rows that look at its parts.
    """
    for head in HEADS:
        if (
            architecture.endswith(head.names)
            and (not head.types or model_type in head.types)
            and (not head.part or head.part in (config or {}))
        ):
            return head.kinds
    return ()


def sees(config: Mapping[str, Any]) -> bool:
    """Tell by its configuration whether a language model reads pictures, too.

    Such a model chats through another runtime than one of text alone.
    """
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    able = abilities(architecture, str(config.get("model_type", "")), config)
    return {"chat", "caption"} <= set(able)


def served() -> str:
    """Return what blip runs, for errors: ``causal language models (chat, completion), ...``."""
    rows = {head.words: head.kinds for head in HEADS}
    said = [f"{words} ({', '.join(kinds)})" for words, kinds in rows.items()]
    return ", ".join(said)

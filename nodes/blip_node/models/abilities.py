"""What a snapshot of transformers can serve, by the name of its architecture. Pure.

The first row that fits counts. A row is for a *head*: what comes out of the model, not its family,
so new families of a known head are served without a change here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

#: Encoders of sound whose classifiers are called as those of text are.
SOUND_ENCODERS = frozenset(
    {
        "data2vec-audio",
        "hubert",
        "sew",
        "sew-d",
        "unispeech",
        "unispeech-sat",
        "wav2vec2",
        "wav2vec2-bert",
        "wav2vec2-conformer",
        "wavlm",
    }
)

#: Encoders of pictures whose architecture is called ``XModel``. Masked autoencoders are not among
#: them: they look at parts of a picture that they choose by chance.
PICTURE_ENCODERS = frozenset(
    {
        "beit",
        "clip_vision_model",
        "convnext",
        "convnextv2",
        "cvt",
        "data2vec-vision",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_convnext",
        "dinov3_vit",
        "efficientnet",
        "focalnet",
        "hiera",
        "ijepa",
        "levit",
        "mobilenet_v1",
        "mobilenet_v2",
        "mobilevit",
        "mobilevitv2",
        "poolformer",
        "pvt",
        "pvt_v2",
        "regnet",
        "resnet",
        "segformer",
        "siglip_vision_model",
        "swin",
        "swinv2",
        "vit",
        "vit_msn",
    }
)

#: Encoders of text that also read where on a page it stands.
PAGE_ENCODERS = frozenset({"bros", "layoutlm", "layoutlmv2", "layoutlmv3", "lilt", "markuplm"})

#: Models that write a text of a text, by what they were made for. ``ForConditionalGeneration``
#: says nothing: models of sound and of pictures are called so, too.
WRITERS = frozenset(
    {
        "bart",
        "bigbird_pegasus",
        "encoder-decoder",
        "fsmt",
        "led",
        "longt5",
        "m2m_100",
        "marian",
        "mbart",
        "mt5",
        "mvp",
        "nllb-moe",
        "pegasus",
        "pegasus_x",
        "plbart",
        "prophetnet",
        "switch_transformers",
        "t5",
        "t5gemma",
        "umt5",
    }
)

Config = Mapping[str, Any]


def labels_of(config: Config) -> tuple[str, ...]:
    """Return the names of a head's labels; transformers saves none of two nameless ones."""
    named = config.get("id2label")
    if isinstance(named, Mapping) and named:
        return tuple(map(str, named.values()))
    count = config.get("num_labels")
    return tuple(f"LABEL_{at}" for at in range(count if isinstance(count, int) else 2))


def _scores(config: Config) -> bool:
    return len(labels_of(config)) == 1


def _infers(config: Config) -> bool:
    return any(label.lower().startswith("entail") for label in labels_of(config))


def _has_eyes(config: Config) -> bool:
    return "vision_config" in config


class Head(NamedTuple):
    """Architectures whose name ends in one of ``names``, and the kinds that they serve.

    With ``types`` the model type must be among them, too, and it must not be among ``without``;
    ``fits`` looks at the configuration. ``words`` is how an error names them. What is in ``also``
    is served where the model's ``kinds`` ask for it.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    words: str
    types: frozenset[str] = frozenset()
    also: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()
    fits: Callable[[Config], bool] | None = None


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

_SEQUENCES = ("ForSequenceClassification",)
_NOT_TEXT = SOUND_ENCODERS | PAGE_ENCODERS
_TOKENS = ("feature-extraction",)
#: Only where it is asked for: what labels mean to a moderator stands nowhere in the files.
_MODERATION = ("moderation",)

HEADS: tuple[Head, ...] = (
    Head(_CAPTIONERS, ("caption",), "captioners of pictures"),
    Head(
        ("ForConditionalGeneration",),
        ("chat", "caption"),
        "language models that see",
        fits=_has_eyes,
    ),
    Head(
        ("ForImageClassification",),
        ("image-classification",),
        "image classifiers",
        also=_MODERATION,
    ),
    Head(COMPARERS, ("image-classification",), "image classifiers"),
    Head(("ForObjectDetection",), ("detection",), "object detectors"),
    Head(("ForDepthEstimation",), ("depth",), "depth estimators"),
    Head(("ForImageSuperResolution",), ("upscale",), "super-resolution models"),
    Head(_SEGMENTERS, ("segmentation",), "image segmenters"),
    Head(("Model",), ("image-feature-extraction",), "encoders of pictures", PICTURE_ENCODERS),
    Head(("ForAudioClassification",), ("audio-classification",), "classifiers of sounds"),
    Head(_SEQUENCES, ("audio-classification",), "classifiers of sounds", SOUND_ENCODERS),
    Head(
        ("ClapModel",),
        ("zero-shot-audio-classification",),
        "models that compare sounds with texts",
    ),
    Head(("WhisperForConditionalGeneration",), ("transcription", "translation"), "Whisper"),
    Head(("ForCTC",), ("transcription",), "speech recognisers with a CTC head"),
    Head(("VitsModel", "SpeechT5ForTextToSpeech"), ("speech",), "speech models"),
    # the hidden states of a language model are embeddings too, if someone asks for them
    Head(
        ("ForCausalLM", "LMHeadModel"),
        ("chat", "completion"),
        "causal language models",
        also=("embedding", *_TOKENS),
    ),
    Head(
        _SEQUENCES,
        ("rerank",),
        "cross-encoders",
        without=_NOT_TEXT,
        fits=_scores,
        also=("text-classification", *_MODERATION),
    ),
    Head(
        _SEQUENCES,
        ("text-classification", "zero-shot-classification"),
        "models of inference",
        without=_NOT_TEXT,
        fits=_infers,
        also=_MODERATION,
    ),
    Head(
        _SEQUENCES,
        ("text-classification",),
        "text classifiers",
        without=_NOT_TEXT,
        also=_MODERATION,
    ),
    Head(
        ("ForTokenClassification",),
        ("token-classification",),
        "token classifiers",
        without=_NOT_TEXT,
    ),
    Head(
        ("ForQuestionAnswering",),
        ("question-answering",),
        "finders of answers",
        without=_NOT_TEXT | {"vilt", "blip", "fuyu"},
    ),
    Head(
        ("ForConditionalGeneration", "MTModel", "EncoderDecoderModel"),
        ("text2text-generation",),
        "sequence-to-sequence models of text",
        WRITERS,
    ),
    Head(("ForMaskedLM",), ("embedding", "fill-mask"), "masked language models", also=_TOKENS),
    Head(("",), ("embedding",), "text encoders", TEXT_ENCODERS, also=_TOKENS),
)


def head_of(architecture: str, model_type: str, config: Config) -> Head | None:
    """Return the row that fits a model; None if blip has no runtime for it."""
    for head in HEADS:
        if (
            architecture.endswith(head.names)
            and (not head.types or model_type in head.types)
            and model_type not in head.without
            and (head.fits is None or head.fits(config))
        ):
            return head
    return None


def abilities(architecture: str, model_type: str, config: Config) -> tuple[str, ...]:
    """Return the kinds that a model can serve; none if blip has no runtime for it."""
    head = head_of(architecture, model_type, config)
    return head.kinds if head is not None else ()


def sees(config: Config) -> bool:
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

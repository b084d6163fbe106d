"""Which transformers class loads a model, and which heads serve its kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blip.errors import ModelLoadFailed
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.heads.engine import Head, HeadEngine, reader_of
from blip_node.runtimes.heads.reader import Reader, Row
from blip_node.runtimes.heads.sequences import Inference, Labels, Relevance
from blip_node.runtimes.heads.spans import Spans
from blip_node.runtimes.heads.tokens import Entities, Features, Masks, Wish
from blip_node.runtimes.loading import load_pretrained, read_config

#: The ends of architectures' names, and the ``Auto`` classes that load them.
CLASSES = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}


def architecture_of(spec: LoadSpec) -> str:
    """Return the name of a snapshot's architecture, "" where it has none."""
    names = read_config(Path(spec.path)).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def masked(spec: LoadSpec) -> bool:
    """Return whether a snapshot is a masked language model, and not one made to embed."""
    ours = architecture_of(spec).endswith("ForMaskedLM")
    return ours and not (Path(spec.path) / "modules.json").is_file()


def load_heads(spec: LoadSpec, report: Callable[[float], None]) -> HeadEngine:
    """Load a model with a head and all kinds that this can serve.

    Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
    """
    architecture = architecture_of(spec)
    ending = next((each for each in CLASSES if architecture.endswith(each)), None)
    if ending is None:
        raise ModelLoadFailed(f"model '{spec.model}': {architecture} has no head that blip knows")
    model, tokenizer = load_pretrained(spec, CLASSES[ending], report, unused=())
    reader = reader_of(model, tokenizer, spec)
    heads: dict[str, Head]
    if ending == "ForTokenClassification":
        heads = {"token-classification": Entities(reader, model, tokenizer)}
    elif ending == "ForQuestionAnswering":
        heads = {"question-answering": Spans(reader)}
    else:
        heads = _classifiers(reader, model.config)
    return _warmed(HeadEngine(model, tokenizer, spec, heads), reader, heads)


def fill_masks(model: Any, tokenizer: Any, spec: LoadSpec) -> HeadEngine:
    """Return what fills the masks of a loaded masked language model."""
    reader = reader_of(model, tokenizer, spec)
    head = Masks(reader)
    engine = HeadEngine(model, tokenizer, spec, {"fill-mask": head})
    engine.warm(Row(head, reader.read(0, "a")[0], Wish([], 1, [])))
    return engine


def extract_features(model: Any, tokenizer: Any, spec: LoadSpec) -> HeadEngine:
    """Return what shows the hidden states of a loaded encoder."""
    reader = reader_of(model, tokenizer, spec)
    head = Features(reader)
    engine = HeadEngine(model, tokenizer, spec, {"feature-extraction": head})
    engine.warm(Row(head, reader.read(0, "a")[0]))
    return engine


def _classifiers(reader: Reader, config: Any) -> dict[str, Head]:
    if config.num_labels == 1:
        one = Relevance(reader, config)
        return {"rerank": one, "text-classification": Labels(reader, config)}
    heads: dict[str, Head] = {"text-classification": Labels(reader, config)}
    if any(str(name).lower().startswith("entail") for name in config.id2label.values()):
        heads["zero-shot-classification"] = Inference(reader, config)
    return heads


def _warmed(engine: HeadEngine, reader: Reader, heads: Mapping[str, Head]) -> HeadEngine:
    head = next(iter(heads.values()))
    encoding, _ = reader.read(0, "a", "a" if isinstance(head, Relevance | Spans) else None)
    engine.warm(Row(head, encoding))
    return engine

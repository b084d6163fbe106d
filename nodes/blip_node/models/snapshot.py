"""What a model is and what it needs, from its small files alone: quick, and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.errors import ConfigError, ModelLoadFailed
from blip_node.models import gguf, hub, package, pipeline, weights
from blip_node.models.abilities import OFFSET_POSITIONS, abilities, sees, served
from blip_node.models.files import positive, read_object
from blip_node.models.spec import (
    Builtin,
    Hub,
    Local,
    ModelSpec,
    Package,
    Upstream,
    parse_source,
)

#: Where configurations keep the length of the context; the first that is there counts.
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)

#: What a text model is taken to stand when it does not say: recurrent and ALiBi models have no
#: hard limit and were mostly trained on this.
DEFAULT_CONTEXT = 2048

#: A GGUF file is converted to this dtype: half the size of float32, with its range.
CONVERTED_DTYPE = "BF16"


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a model before it is loaded.

    ``counts`` are stored elements by safetensors dtype; ``context`` is in tokens; ``dimensions``
    is the length of an embedding; ``cache_elements`` are the numbers that one token leaves in a
    key-value cache, ``activations`` those that live at once while a picture is painted. A model
    that is not ``on_disk`` yet has only its name, source and configured kinds.
    """

    name: str
    source: str
    kinds: tuple[str, ...] = ()
    on_disk: bool = True
    path: str = ""
    architecture: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    context: int | None = None
    dimensions: int | None = None
    cache_elements: int = 0
    activations: int = 0
    #: Whether :func:`~blip_node.models.prepare.prepare` has to convert it first.
    convert: bool = False
    #: Whether its runtime takes one task at a time, where others of its kinds batch them.
    serial: bool = False

    @property
    def parameters(self) -> int:
        """Number of weights as stored; packed (quantised) formats count their packed numbers."""
        return sum(self.counts.values())

    @property
    def bytes(self) -> int:
        """Bytes of the weights as stored (of a GGUF: as they will be stored once converted)."""
        return weights.stored_bytes(self.counts)

    def load_bytes(self, dtype: str = "auto", device: str = "cuda") -> int:
        """Return the bytes that the weights take on a device in a dtype."""
        return weights.loaded_bytes(self.counts, self._dtype(dtype, device))

    def cache_bytes(self, tokens: int, dtype: str = "auto", device: str = "cuda") -> int:
        """Return the bytes of a key-value cache of that many tokens."""
        per_element = weights.loaded_bytes({"F32": 1}, self._dtype(dtype, device))
        return tokens * self.cache_elements * per_element

    def activation_bytes(self, dtype: str = "auto", device: str = "cuda") -> int:
        """Return the bytes that a task of this model takes beside the weights."""
        return weights.loaded_bytes({"F32": self.activations}, self._dtype(dtype, device))

    def _dtype(self, dtype: str, device: str) -> str:
        return weights.load_dtype(dtype, weights.main_dtype(self.counts), device)


def describe(spec: ModelSpec, cache: Path | None = None) -> Description:
    """Describe a model from headers and configuration; ``cache`` is the Hugging Face cache.

    Raises :class:`~blip.errors.ModelLoadFailed` when the files are not there, corrupt, or of a
    model that blip has no runtime for, and :class:`~blip.errors.ConfigError` when the spec asks
    for what the model cannot do.
    """
    match parse_source(spec.source, spec.name):
        case Builtin():
            return Description(spec.name, spec.source, spec.kinds or ("echo",))
        case Upstream():  # who offers it has asked its engine: the spec says all that is known
            return Description(spec.name, spec.source, spec.kinds or (), context=spec.context)
    path = locate(spec, cache)
    if path is None:
        return Description(spec.name, spec.source, spec.kinds or (), on_disk=False)
    try:
        found = _describe_gguf(spec, path) if path.suffix == ".gguf" else _describe(spec, path)
    except ModelLoadFailed as error:
        raise ModelLoadFailed(f"model '{spec.name}': {error.message}", hint=error.hint) from None
    return found


def locate(spec: ModelSpec, cache: Path | None = None) -> Path | None:
    """Return the model's folder or ``.gguf`` file; None for a hub model that is not on disk.

    Raises :class:`~blip.errors.ModelLoadFailed` when there is nothing at a path or in a package.
    """
    match parse_source(spec.source, spec.name):
        case Hub() as source:
            return hub.cached(source, cache or hub.default_cache())
        case Package() as source:
            return package.find_package(source)
        case Local(path):
            return _locate_local(spec, path)
        case _:
            return None


def _locate_local(spec: ModelSpec, path: Path) -> Path:
    if path.suffix == ".gguf" and path.is_file():
        return path.absolute()
    if not path.is_dir():
        raise ModelLoadFailed(
            f"model '{spec.name}': there is no folder or .gguf file {path}",
            hint=f"For a Hugging Face model write hf:{spec.source}."
            if spec.source.count("/") == 1 and not path.is_absolute()
            else "",
        )
    ggufs = sorted(path.glob("*.gguf"))
    if (path / "config.json").is_file() or pipeline.is_pipeline(path) or not ggufs:
        return path.absolute()
    if len(ggufs) > 1:
        raise ModelLoadFailed(
            f"model '{spec.name}': {path} holds {len(ggufs)} .gguf files",
            hint=f"Name one of them: {', '.join(str(file) for file in ggufs)}.",
        )
    return ggufs[0].absolute()


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that is about text (multimodal models nest it)."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def context_of(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence, in tokens, that a configuration allows; None if it is silent."""
    config = text_config(config)
    length = next((n for n in (positive(config.get(key)) for key in _CONTEXT_KEYS) if n), None)
    if length is not None and config.get("model_type") in OFFSET_POSITIONS:
        length -= (config.get("pad_token_id") or 0) + 1
    return length


def fit_context(asked: int | None, own: int | None, model: str) -> int | None:
    """Return the context to use: the asked one if the model's own allows it.

    Raises :class:`~blip.errors.ConfigError` when it does not.
    """
    if asked is not None and own is not None and asked > own:
        raise ConfigError(
            f"model '{model}': context is set to {asked} tokens, the model allows {own}",
            param="context",
        )
    return asked or own


def sequence_limit(folder: Path, config: Mapping[str, Any]) -> int | None:
    """Return the longest text an embedding model takes, as its own files say."""
    said = read_object(folder / "sentence_bert_config.json", missing_ok=True)
    limits = [n for n in (positive(said.get("max_seq_length")), context_of(config)) if n]
    return min(limits, default=None)


def has_chat_template(folder: Path) -> bool:
    """Return whether a folder carries a chat template, in any of the places it may be."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    return bool(read_object(folder / "tokenizer_config.json", missing_ok=True).get("chat_template"))


def _describe_pipeline(spec: ModelSpec, folder: Path) -> Description:
    architecture = pipeline.class_name(folder)
    return Description(
        spec.name,
        spec.source,
        _kinds(spec, ("image",), architecture),
        path=str(folder),
        architecture=architecture,
        counts=weights.total_counts(pipeline.shards(folder)),
        activations=pipeline.activation_elements(folder),
    )


def _describe(spec: ModelSpec, folder: Path) -> Description:
    if pipeline.is_pipeline(folder):
        return _describe_pipeline(spec, folder)
    config = read_object(folder / "config.json")
    counts = weights.total_counts(weights.shards(folder))
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    model_type = str(config.get("model_type", ""))
    if (folder / "modules.json").is_file():
        able: tuple[str, ...] = ("embedding",)
    else:
        able = abilities(architecture, model_type, config)
    if "chat" in able and not has_chat_template(folder):
        able = tuple(kind for kind in able if kind != "chat")
    embeds = able == ("embedding",)
    limit = sequence_limit(folder, config) if embeds else context_of(config)
    return Description(
        spec.name,
        spec.source,
        _kinds(spec, able, architecture or model_type or "(unnamed)"),
        path=str(folder),
        architecture=architecture,
        counts=counts,
        context=fit_context(spec.context, limit, spec.name),
        dimensions=positive(text_config(config).get("hidden_size")) if embeds else None,
        cache_elements=0 if embeds else _cache_elements(text_config(config)),
        serial=sees(config),
    )


def _describe_gguf(spec: ModelSpec, path: Path) -> Description:
    header = gguf.read_header(path)
    if (positive(header.metadata.get("split.count")) or 1) > 1:
        raise ModelLoadFailed(
            f"{path} is one of several parts",
            hint="Join them first: llama-gguf-split --merge first-part.gguf whole.gguf.",
        )
    able: tuple[str, ...] = ("completion",)
    if header.metadata.get("tokenizer.chat_template"):
        able = ("chat", "completion")
    heads = positive(header.of_model("attention.head_count"))
    shape = {
        "num_hidden_layers": header.of_model("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.of_model("attention.head_count_kv"),
        "head_dim": header.of_model("attention.key_length"),
        "hidden_size": header.of_model("embedding_length"),
    }
    own = positive(header.of_model("context_length"))
    return Description(
        spec.name,
        spec.source,
        _kinds(spec, able, header.architecture or "(unnamed)"),
        path=str(path),
        architecture=header.architecture,
        counts={CONVERTED_DTYPE: header.parameters},
        context=fit_context(spec.context, own, spec.name),
        cache_elements=_cache_elements(shape),
        convert=True,
    )


def _kinds(spec: ModelSpec, able: tuple[str, ...], architecture: str) -> tuple[str, ...]:
    """Return what the model will serve: what it is able to, narrowed by the spec."""
    if not able:
        raise ModelLoadFailed(
            f"blip has no runtime for the architecture {architecture}",
            hint=f"It runs {served()} and diffusers pipelines (image).",
        )
    if spec.kinds is None:
        return able
    # the hidden states of a language model are embeddings too, if someone asks for them
    lacking = set(spec.kinds) - set(able) - ({"embedding"} if "completion" in able else set())
    if lacking:
        wanted = sorted(lacking)[0]
        textual = {"completion", "caption"} & set(able)
        why = " (it has no chat template)" if wanted == "chat" and textual else ""
        raise ConfigError(
            f"model '{spec.name}' ({architecture}) cannot serve {wanted}{why}; it can serve "
            f"{', '.join(able)}",
            param="kinds",
        )
    return spec.kinds


def _cache_elements(config: Mapping[str, Any]) -> int:
    """Return the keys and values that one token leaves in all layers; 0 if it cannot be told."""
    layers = positive(config.get("num_hidden_layers") or config.get("n_layer"))
    heads = positive(config.get("num_attention_heads") or config.get("n_head"))
    hidden = positive(config.get("hidden_size") or config.get("n_embd"))
    if not (layers and heads and hidden):
        return 0
    head_dim = positive(config.get("head_dim")) or hidden // heads
    return 2 * layers * (positive(config.get("num_key_value_heads")) or heads) * head_dim

"""What a model is and what it needs, from its small files alone: quick, and without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blip.errors import ConfigError, ModelLoadFailed
from blip_node.models import additions, ctranslate, gguf, hub, package, pipeline, piper, weights
from blip_node.models.abilities import OFFSET_POSITIONS, abilities, head_of, sees, served
from blip_node.models.description import Description
from blip_node.models.files import positive, read_object
from blip_node.models.means import OF_PIPELINES, PLAIN
from blip_node.models.spec import (
    Builtin,
    Hub,
    Local,
    ModelSpec,
    Package,
    Plugin,
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

#: Pixels of a tile of a picture that is enlarged: the square of
#: :data:`blip_node.runtimes.upscaling.tiles.TILE`, which needs numpy to be read.
_TILE_PIXELS = 256 * 256

#: A GGUF file is converted to this dtype: half the size of float32, with its range.
CONVERTED_DTYPE = "BF16"


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
        case Plugin(place):
            return _describe_plugin(spec, place)
    path = locate(spec, cache)
    if path is None:
        return Description(spec.name, spec.source, spec.kinds or (), on_disk=False)
    if spec.runtime == "llama.cpp" and path.suffix != ".gguf":
        raise ConfigError(
            f"model '{spec.name}': llama.cpp runs .gguf files, and {spec.source} is none",
            hint="Name a .gguf file, or leave 'runtime' out.",
            param="runtime",
        )
    try:
        whisper = ctranslate.find(folders(spec, path))
        if whisper is not None:
            found = _describe_ctranslate(spec, whisper)
        else:
            found = _SINGLE_FILES.get(path.suffix, _describe)(spec, path)
    except ModelLoadFailed as error:
        raise ModelLoadFailed(f"model '{spec.name}': {error.message}", hint=error.hint) from None
    return found


def locate(spec: ModelSpec, cache: Path | None = None) -> Path | None:
    """Return the model's folder or single file; None for a hub model that is not on disk.

    Raises :class:`~blip.errors.ModelLoadFailed` when there is nothing at a path or in a package.
    """
    match parse_source(spec.source, spec.name):
        case Hub() as source:
            return hub.cached(source, cache or hub.default_cache())
        case Package(others=()) as source:
            return package.find_package(source)
        case Package() as source:
            parts = package.part_folders(source)
            found = ctranslate.find(parts)
            if found is None:
                raise ModelLoadFailed(
                    f"model '{spec.name}': the packages of {spec.source} together are no model"
                )
            return found.folder
        case Local(path):
            return _locate_local(spec, path)
        case _:
            return None


def folders(spec: ModelSpec, path: Path) -> list[Path]:
    """Return the folders that a model's files are in; ``path`` is what :func:`locate` found."""
    source = parse_source(spec.source, spec.name)
    if isinstance(source, Package) and source.others:
        return package.part_folders(source)
    return [path] if path.is_dir() else []


def _locate_local(spec: ModelSpec, path: Path) -> Path:
    if path.suffix in _SINGLE_FILES and path.is_file():
        return path.absolute()
    if not path.is_dir():
        raise ModelLoadFailed(
            f"model '{spec.name}': there is no folder, .gguf or .onnx file {path}",
            hint=f"For a Hugging Face model write hf:{spec.source}."
            if spec.source.count("/") == 1 and not path.is_absolute()
            else "",
        )
    files = sorted(path.glob("*.gguf")) or piper.voice_files(path)
    if (path / "config.json").is_file() or pipeline.is_pipeline(path) or not files:
        return path.absolute()
    if len(files) > 1:
        raise ModelLoadFailed(
            f"model '{spec.name}': {path} holds {len(files)} {files[0].suffix} files",
            hint=f"Name one of them: {', '.join(str(file) for file in files)}.",
        )
    return files[0].absolute()


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


def _describe_plugin(spec: ModelSpec, place: str) -> Description:
    # what plugins are made of knows what is loaded, and that knows this package
    from blip_node.plugins.describe import describe_plugin

    try:
        card = describe_plugin(place)
    except ModelLoadFailed as error:
        raise ModelLoadFailed(f"model '{spec.name}': {error.message}", hint=error.hint) from None
    return Description(
        spec.name,
        spec.source,
        (card.kind.name,),
        plugin=card.kind,
        slots=card.slots,
        memory=card.memory,
    )


def _describe_pipeline(spec: ModelSpec, folder: Path) -> Description:
    architecture = pipeline.class_name(folder)
    counts = pipeline.component_counts(folder)
    sizes = [weights.stored_bytes(each) for each in counts.values()]
    added = additions.files(spec.loras, spec.controlnets)
    return Description(
        spec.name,
        spec.source,
        _kinds(spec, pipeline.kinds(architecture), architecture),
        path=str(folder),
        architecture=architecture,
        counts=weights.summed(counts.values()),
        added=weights.total_counts(added),
        activations=pipeline.activation_elements(folder),
        largest_share=max(sizes) / max(1, sum(sizes)),
        tile_share=pipeline.tile_share(folder),
        pipeline=True,
    )


def _describe(spec: ModelSpec, folder: Path) -> Description:
    if pipeline.is_pipeline(folder):
        return _describe_pipeline(spec, folder)
    _check_means(spec)
    config = read_object(folder / "config.json")
    counts = weights.total_counts(weights.shards(folder))
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    model_type = str(config.get("model_type", ""))
    head = head_of(architecture, model_type, config)
    able, also = (head.kinds, head.also) if head is not None else ((), ())
    if (folder / "modules.json").is_file() and "rerank" not in able:
        able, also = ("embedding",), ("feature-extraction",)
    if "chat" in able and not has_chat_template(folder):
        able = tuple(kind for kind in able if kind != "chat")
    if "translation" in able and not _translates(folder, config):
        able = tuple(kind for kind in able if kind != "translation")
    embeds, writes = "embedding" in able, bool({"chat", "completion"} & set(able))
    limit = context_of(config) if writes else sequence_limit(folder, config)
    return Description(
        spec.name,
        spec.source,
        _kinds(spec, able, architecture or model_type or "(unnamed)", also),
        path=str(folder),
        architecture=architecture,
        counts=counts,
        context=fit_context(spec.context, limit, spec.name),
        dimensions=positive(text_config(config).get("hidden_size")) if embeds else None,
        cache_elements=_cache_elements(text_config(config)) if writes else 0,
        activations=_tile_elements(config) if able == ("upscale",) else 0,
        slots=1 if sees(config) else None,
    )


def _check_means(spec: ModelSpec) -> None:
    """Raise :class:`~blip.errors.ConfigError` for means that only pipelines know."""
    asked = [
        name for name in OF_PIPELINES if getattr(spec.means, name) not in ("auto", PLAIN[name])
    ]
    asked += ["compile"] if spec.means.compile else []
    if asked:
        raise ConfigError(
            f"model '{spec.name}': {asked[0]} is for pipelines of diffusers, and this is none",
            hint="Leave it out; 'quantization' makes models of every sort smaller.",
            param=asked[0],
        )


def _check_bits(spec: ModelSpec, what: str) -> None:
    """Raise :class:`~blip.errors.ConfigError` if fewer bits are asked of what has them fixed."""
    if spec.means.quantization not in ("none", "auto"):
        raise ConfigError(
            f"model '{spec.name}': {what}",
            hint="Leave 'quantization' out, and choose the file with the bits you want.",
            param="quantization",
        )


def _translates(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether a Whisper model knows more than English."""
    said = read_object(folder / "generation_config.json", missing_ok=True).get("is_multilingual")
    if isinstance(said, bool):
        return said
    return (positive(config.get("vocab_size")) or 0) >= ctranslate.MULTILINGUAL


def _describe_ctranslate(spec: ModelSpec, files: ctranslate.Files) -> Description:
    variables = ctranslate.read_header(files)
    ctranslate.shape_of(variables)  # says what is missing before anything is converted
    architecture = "WhisperForConditionalGeneration"
    able = abilities(architecture, "whisper", {})
    if not ctranslate.is_multilingual(files, variables):
        able = tuple(kind for kind in able if kind != "translation")
    return Description(
        spec.name,
        spec.source,
        _kinds(spec, able, architecture),
        path=str(files.folder),
        architecture=architecture,
        counts=ctranslate.counts(variables),
        convert=True,
    )


def _tile_elements(config: Mapping[str, Any]) -> int:
    """Return the numbers that live at once while a tile of a picture is enlarged.

    Eight hidden states of each pixel, between the layers of a block, and the attention of a window
    of eight by eight in a few heads.
    """
    hidden = positive(config.get("embed_dim")) or positive(config.get("hidden_size")) or 180
    return _TILE_PIXELS * (8 * hidden + 6 * 64)


def _describe_gguf(spec: ModelSpec, path: Path) -> Description:
    _check_means(spec)
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
    packed = spec.runtime == "llama.cpp"
    if packed:
        _check_bits(spec, "a GGUF file that llama.cpp runs is quantised already")
    return Description(
        spec.name,
        spec.source,
        _kinds(spec, able, header.architecture or "(unnamed)", ("embedding",)),
        path=str(path),
        architecture=header.architecture,
        counts={CONVERTED_DTYPE: header.parameters},
        context=fit_context(spec.context, own, spec.name),
        cache_elements=_cache_elements(shape),
        quantizes=not packed,
        packed=path.stat().st_size if packed else 0,
        convert=True,
    )


def _describe_piper(spec: ModelSpec, path: Path) -> Description:
    _check_means(spec)
    _check_bits(spec, "a voice of Piper runs as it was exported, and is not quantised here")
    voice = piper.read_voice(path)
    return Description(
        spec.name,
        spec.source,
        _kinds(spec, ("speech",), "piper"),
        path=str(path),
        architecture=f"piper {voice.language}".rstrip(),
        # all but a few kilobytes of such a file are weights, and voices are stored in float32
        counts={"F32": path.stat().st_size // 4},
        quantizes=False,
    )


#: Models that are one file, by its ending; every other is a folder.
_SINGLE_FILES: Mapping[str, Callable[[ModelSpec, Path], Description]] = {
    ".gguf": _describe_gguf,
    ".onnx": _describe_piper,
}


def _kinds(
    spec: ModelSpec, able: tuple[str, ...], architecture: str, also: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return what the model will serve: what it is able to, narrowed by the spec.

    What is in ``also`` it serves if the spec says so.
    """
    if not able:
        raise ModelLoadFailed(
            f"blip has no runtime for the architecture {architecture}",
            hint=f"It runs {served()}, diffusers pipelines (image, video) and voices of Piper "
            "(speech).",
        )
    if spec.kinds is None:
        return able
    lacking = set(spec.kinds) - set(able) - set(also)
    if lacking:
        wanted = sorted(lacking)[0]
        textual = {"completion", "caption"} & set(able)
        why = " (it has no chat template)" if wanted == "chat" and textual else ""
        raise ConfigError(
            f"model '{spec.name}' ({architecture}) cannot serve {wanted}{why}; it can serve "
            f"{', '.join((*able, *also))}",
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

"""What runs models: one module a kind. Importing this imports none of them, nor torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from blip.errors import ConfigError
from blip_node.runtimes.base import Job, LoadSpec, Outcome, Runtime

#: Where the runtime of each kind lives, as ``module:class``; imported when it is asked for.
RUNTIMES: dict[str, str] = {
    "chat": "blip_node.runtimes.text:TextRuntime",
    "completion": "blip_node.runtimes.text:TextRuntime",
    "embedding": "blip_node.runtimes.embedding:EmbeddingRuntime",
    "fill-mask": "blip_node.runtimes.embedding:EmbeddingRuntime",
    "feature-extraction": "blip_node.runtimes.embedding:EmbeddingRuntime",
    "rerank": "blip_node.runtimes.pipelines:PipelineRuntime",
    "text-classification": "blip_node.runtimes.pipelines:PipelineRuntime",
    "zero-shot-classification": "blip_node.runtimes.pipelines:PipelineRuntime",
    "token-classification": "blip_node.runtimes.pipelines:PipelineRuntime",
    "question-answering": "blip_node.runtimes.pipelines:PipelineRuntime",
    "text2text-generation": "blip_node.runtimes.text2text:Text2TextRuntime",
    "image": "blip_node.runtimes.image:ImageRuntime",
    "transcription": "blip_node.runtimes.transcription:TranscriptionRuntime",
    "translation": "blip_node.runtimes.transcription:TranscriptionRuntime",
    "speech": "blip_node.runtimes.speech:SpeechRuntime",
    "caption": "blip_node.runtimes.vision_text:VisionTextRuntime",
    "detection": "blip_node.runtimes.vision:VisionRuntime",
    "image-classification": "blip_node.runtimes.vision:VisionRuntime",
    "depth": "blip_node.runtimes.vision:VisionRuntime",
    "segmentation": "blip_node.runtimes.vision:VisionRuntime",
    "image-feature-extraction": "blip_node.runtimes.vision:VisionRuntime",
    "audio-classification": "blip_node.runtimes.sound:SoundRuntime",
    "zero-shot-audio-classification": "blip_node.runtimes.sound:SoundRuntime",
    "video": "blip_node.runtimes.video:VideoRuntime",
    "upscale": "blip_node.runtimes.upscale:UpscaleRuntime",
    "moderation": "blip_node.runtimes.moderation:ModerationRuntime",
    "echo": "blip_node.runtimes.echo:EchoRuntime",
}

#: Where a language model that sees has another runtime for a kind than one of text alone.
SEEING: dict[str, str] = {"chat": RUNTIMES["caption"]}

#: The runtime of every kind of an upstream's models.
UPSTREAM = "blip_node.runtimes.openai:OpenAIRuntime"

#: The runtime of every kind that a plugin defines.
PLUGIN = "blip_node.runtimes.plugin:PluginRuntime"


def runtime_for(
    kinds: Iterable[str], *, upstream: bool = False, plugin: bool = False, sees: bool = False
) -> type[Runtime]:
    """Return the runtime class that serves all of a model's kinds. Imports no torch.

    ``upstream`` says that an engine of somebody else's runs the model, ``plugin`` that a plugin
    does, ``sees`` that it reads pictures beside text (see
    :func:`blip_node.models.abilities.sees`).

    Raises :class:`~blip.errors.ConfigError` for a kind without a runtime, or for kinds that no
    single runtime serves together.
    """
    if upstream:
        return _runtime(UPSTREAM)
    if plugin:
        return _runtime(PLUGIN)
    wanted = sorted(set(kinds))
    unknown = [kind for kind in wanted if kind not in RUNTIMES]
    if unknown or not wanted:
        raise ConfigError(
            f"there is no runtime for the kind {unknown[0]!r}" if unknown else "no kind was given",
            param="kinds",
            hint=f"Kinds with a runtime: {', '.join(sorted(RUNTIMES))}.",
        )
    table = RUNTIMES | SEEING if sees else RUNTIMES
    places = {table[kind] for kind in wanted}
    if len(places) > 1:
        raise ConfigError(
            f"one replica cannot serve {' and '.join(wanted)}",
            param="kinds",
            hint="Name the model twice, once for each.",
        )
    return _runtime(places.pop())


def _runtime(place: str) -> type[Runtime]:
    module, _, name = place.partition(":")
    runtime: type[Runtime] = getattr(importlib.import_module(module), name)
    return runtime


__all__ = ["RUNTIMES", "SEEING", "Job", "LoadSpec", "Outcome", "Runtime", "runtime_for"]

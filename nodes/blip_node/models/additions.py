"""What an image model may be used with besides its own weights: LoRAs and ControlNets.

One that is missing or broken must not take its model with it: it is told to those who ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from blip.errors import BlipError, ModelLoadFailed
from blip_node.models import hub, weights
from blip_node.models.spec import Hub, Local, parse_source

#: What diffusers calls the weights of a LoRA that it saves, and those of its own models.
LORA_FILE = "pytorch_lora_weights.safetensors"
_OWN = "diffusion_pytorch_model"

#: Names and sources, as in the configuration.
Sources = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Addition:
    """One of them. ``path`` is a file or a folder on this machine; ``error`` says why it is not."""

    name: str
    path: str = ""
    error: str = ""


def prepare(sources: Sources, *, download: bool = False) -> tuple[Addition, ...]:
    """Return where each one is; hub repositories are downloaded if ``download`` allows it."""
    return tuple(_prepare(name, source, download) for name, source in sources)


def _prepare(name: str, source: str, download: bool) -> Addition:
    try:
        path = locate(name, source)
        parsed = parse_source(source, name)
        if path is None and download and isinstance(parsed, Hub):
            path = hub.download(parsed, hub.default_cache(), lambda share: None)
    except BlipError as error:
        return Addition(name, error=error.message)
    if path is None:
        return Addition(name, error=f"{source} is not on this node's disk")
    return Addition(name, str(path))


def locate(name: str, source: str) -> Path | None:
    """Return the file or folder of a source; None for a hub repository that is not on disk.

    Raises :class:`~blip.errors.ConfigError` for a source that is none, and ``ModelLoadFailed``
    where there is nothing at a path.
    """
    parsed = parse_source(source, name)
    if isinstance(parsed, Hub):
        return hub.cached(parsed, hub.default_cache())
    if not isinstance(parsed, Local):
        raise ModelLoadFailed(f"{source} is neither a file nor a folder nor hf:org/name")
    if not parsed.path.exists():
        raise ModelLoadFailed(f"there is no {parsed.path}")
    return parsed.path.absolute()


def lora_file(path: Path) -> Path:
    """Return the safetensors file of a LoRA: ``path`` itself, or the one in that folder.

    Raises :class:`~blip.errors.ModelLoadFailed` for pickles, and for folders with several.
    """
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelLoadFailed(f"{path.name} is no safetensors file, and blip reads no others")
        return path
    found = sorted(path.glob("*.safetensors"))
    named = [file for file in found if file.name == LORA_FILE] or found
    if len(named) != 1:
        what = f"{len(named)} safetensors files" if named else "no safetensors file"
        raise ModelLoadFailed(f"{path} has {what}; name the one")
    return named[0]


def files(loras: Sources, controlnets: Sources) -> list[Path]:
    """Return the weights' files of those that are on disk and sound: they take memory, too."""
    found: list[Path] = []
    for name, source in loras:
        found += _sound(name, source, lambda path: [lora_file(path)])
    for name, source in controlnets:
        found += _sound(name, source, lambda path: weights.shards(path, _OWN))
    return found


def _sound(name: str, source: str, choose: Callable[[Path], list[Path]]) -> list[Path]:
    try:
        path = locate(name, source)
        chosen: list[Path] = [] if path is None else choose(path)
        for file in chosen:
            weights.element_counts(file)
    except BlipError:
        return []  # it is told when somebody asks for it
    return chosen

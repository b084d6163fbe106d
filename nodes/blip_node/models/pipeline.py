"""What a diffusers pipeline's folder holds: ``model_index.json`` and a folder a component."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from blip.errors import ModelLoadFailed
from blip_node.models import weights
from blip_node.models.files import positive, read_object

INDEX = "model_index.json"

#: Pipelines that make a picture of nothing but a text, by the name in ``model_index.json``. They
#: are diffusers' ``AutoPipelineForText2Image``, less those that want a control image or another
#: model beside them. A list, because asking diffusers takes seconds and an agent imports no torch.
TEXT_TO_IMAGE = frozenset(
    {
        "AuraFlowPipeline",
        "ChromaPipeline",
        "CogView3PlusPipeline",
        "CogView4Pipeline",
        "Flux2KleinPipeline",
        "Flux2Pipeline",
        "FluxKontextPipeline",
        "FluxPipeline",
        "HunyuanDiTPipeline",
        "Kandinsky3Pipeline",
        "KandinskyV22CombinedPipeline",
        "KolorsPipeline",
        "LatentConsistencyModelPipeline",
        "Lumina2Pipeline",
        "LuminaPipeline",
        "OvisImagePipeline",
        "PixArtAlphaPipeline",
        "PixArtSigmaPipeline",
        "QwenImagePipeline",
        "SanaPipeline",
        "StableDiffusion3Pipeline",
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "ZImagePipeline",
    }
)


class Film(NamedTuple):
    """What a video pipeline does not say itself.

    ``fps`` is what its models were trained at; ``grain`` what the sides of a frame are multiples
    of at least, in pixels; ``still`` the pipeline that begins with a picture, with the same
    weights, where there is one, and ``still_if`` the setting of the pipeline that says that these
    weights were trained for it, where not all are.
    """

    fps: int
    grain: int = 8
    still: str = ""
    still_if: str = ""


#: Pipelines that make a video of nothing but a text, by the name in ``model_index.json``.
TEXT_TO_VIDEO: dict[str, Film] = {
    "AnimateDiffPipeline": Film(8),
    "CogVideoXPipeline": Film(8),
    "HunyuanVideoPipeline": Film(15, 16),
    "LTXPipeline": Film(25, 32, "LTXImageToVideoPipeline"),
    "MochiPipeline": Film(30),
    "TextToVideoSDPipeline": Film(8),
    # Wan 2.2 of 5 B parameters does both, and tells each frame its own time for that
    "WanPipeline": Film(16, 16, "WanImageToVideoPipeline", "expand_timesteps"),
}

#: Pipelines that enlarge a picture, by the name in ``model_index.json``.
UPSCALERS = frozenset({"StableDiffusionLatentUpscalePipeline", "StableDiffusionUpscalePipeline"})

#: Side of the largest square that they enlarge. They were trained on that; attention over more
#: takes memory by the square of its pixels.
UPSCALED_SIDE = 512

#: Components that do the denoising; one of them says the size that the model was made for.
DENOISERS = ("unet", "transformer")

_LIBRARIES = ("diffusers", "transformers")

#: Side in pixels of the pictures of models that do not say theirs: what current ones are made for.
DEFAULT_SIDE = 1024

#: Side in pixels of the tiles that diffusers' decoders work in unless told otherwise.
TILE_SIDE = 512

#: Tensors of the widest layer that live at the same time while a decoder paints at full size: its
#: input, its output, and one between the two.
_LIVE_TENSORS = 3


def is_pipeline(folder: Path) -> bool:
    """Return whether a folder is that of a diffusers pipeline."""
    return (folder / INDEX).is_file()


def class_name(folder: Path) -> str:
    """Return the pipeline's class, as its index says.

    Raises :class:`~blip.errors.ModelLoadFailed` for one that makes neither pictures
    nor videos of text, and enlarges none.
    """
    name = str(read_object(folder / INDEX).get("_class_name", ""))
    if not any(name in known for known in (TEXT_TO_IMAGE, TEXT_TO_VIDEO, UPSCALERS)):
        raise ModelLoadFailed(
            f"blip has no runtime for the pipeline {name or '(unnamed)'}",
            hint="It runs text-to-image and text-to-video pipelines of diffusers, such as "
            "StableDiffusionXLPipeline, FluxPipeline or WanPipeline.",
        )
    return name


def kinds(architecture: str) -> tuple[str, ...]:
    """Return what a pipeline of that class serves."""
    if architecture in UPSCALERS:
        return ("upscale",)
    return ("video",) if architecture in TEXT_TO_VIDEO else ("image",)


def shards(folder: Path) -> list[Path]:
    """Return the safetensors files of all components.

    Raises :class:`~blip.errors.ModelLoadFailed` saying which component lacks what.
    """
    return [file for files in _component_shards(folder).values() for file in files]


def component_counts(folder: Path) -> dict[str, dict[str, int]]:
    """Return the elements of each component by dtype. Raises as :func:`shards` does."""
    return {name: weights.total_counts(files) for name, files in _component_shards(folder).items()}


def _component_shards(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name, (library, _) in sorted(_components(folder).items()):
        if not (folder / name / "config.json").is_file():
            continue  # tokenizers, schedulers and image processors have no weights
        stem = "model" if library == "transformers" else "diffusion_pytorch_model"
        if library not in _LIBRARIES and any((folder / name).glob("model.*")):
            stem = "model"  # safety checkers are of a pipeline's module, and of transformers' sort
        found[name] = weights.shards(folder / name, stem)
    if not found:
        raise ModelLoadFailed(f"{folder / INDEX} names no component with weights")
    return found


def _components(folder: Path) -> dict[str, tuple[str, str]]:
    """Return (library, class) of each component that is there by its name, which is its folder."""
    found = {}
    for name, value in read_object(folder / INDEX).items():
        pair = isinstance(value, list) and len(value) == 2
        if pair and all(isinstance(word, str) for word in value) and "/" not in name:
            found[name] = (value[0], value[1])
    return found


def native_side(folder: Path) -> int:
    """Return the side in pixels of the square pictures that the model was made for."""
    for name in DENOISERS:
        config = read_object(folder / name / "config.json", missing_ok=True)
        size = config.get("sample_size")
        cells = positive(size[0] if isinstance(size, list) and size else size)
        if cells:
            return cells * decoder_scale(_decoder(folder))
    return DEFAULT_SIDE


def decoder_scale(config: Mapping[str, Any]) -> int:
    """Return how many pixels of a side a latent's cell becomes."""
    for key in ("block_out_channels", "encoder_block_out_channels"):
        blocks = config.get(key)
        if isinstance(blocks, list) and blocks:
            return 1 << min(len(blocks) - 1, 8)
    return 8


def upscale_factor(name: str, decoder: Mapping[str, Any]) -> int:
    """Return how many times longer a pipeline of :data:`UPSCALERS` makes the sides of a picture.

    One works on latents twice as large, the other takes the picture's pixels for latents.
    """
    return 2 if name == "StableDiffusionLatentUpscalePipeline" else decoder_scale(decoder)


def largest_side(folder: Path) -> int:
    """Return the side in pixels of the largest squares that memory is planned for."""
    name = str(read_object(folder / INDEX).get("_class_name", ""))
    if name in UPSCALERS:
        return UPSCALED_SIDE * upscale_factor(name, _decoder(folder))
    return native_side(folder)


def activation_elements(folder: Path) -> int:
    """Return the numbers that live at once while one picture of the largest size is decoded.

    That is the peak of most pipelines: the decoder works at full size where the denoiser works on
    latents of a sixty-fourth of it.
    """
    decoder = _decoder(folder)
    blocks = decoder.get("block_out_channels") or decoder.get("decoder_block_out_channels")
    widths = blocks[:2] if isinstance(blocks, list) else [decoder.get("base_dim")]
    width = max((n for n in map(positive, widths) if n), default=256)
    return largest_side(folder) ** 2 * width * _LIVE_TENSORS


def tile_share(folder: Path) -> float:
    """Return what of :func:`activation_elements` is left when the decoder works in tiles."""
    return min(1.0, (TILE_SIDE / largest_side(folder)) ** 2)


def _decoder(folder: Path) -> dict[str, Any]:
    return read_object(folder / "vae" / "config.json", missing_ok=True)


def wants_no_checker(folder: Path) -> bool:
    """Return whether the index leaves a safety checker out that its class could have."""
    index = json.loads((folder / INDEX).read_text("utf-8"))
    return bool(index.get("safety_checker", True) == [None, None])

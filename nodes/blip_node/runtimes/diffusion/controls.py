"""ControlNets: a picture whose shapes the painting follows. Loaded once with the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
from PIL import Image

from blip.errors import BlipError, InvalidRequest, ModelLoadFailed
from blip.kinds.image import Control
from blip_node.models.additions import Addition
from blip_node.runtimes.diffusion import maps, pictures
from blip_node.runtimes.loading import is_out_of_memory

log = logging.getLogger(__name__)

#: Which classes there are, and the denoiser's class that each one is half of.
CLASSES: dict[str, str] = {
    "ControlNetModel": "UNet2DConditionModel",
    "FluxControlNetModel": "FluxTransformer2DModel",
    "SD3ControlNetModel": "SD3Transformer2DModel",
}

#: Settings in which a ControlNet must be as its denoiser is: widths of what goes from one to the
#: other.
_SHARED: dict[str, tuple[str, ...]] = {
    "ControlNetModel": (
        "block_out_channels",
        "layers_per_block",
        "cross_attention_dim",
        "addition_embed_type",
        "projection_class_embeddings_input_dim",
    ),
    "FluxControlNetModel": (
        "num_attention_heads",
        "attention_head_dim",
        "joint_attention_dim",
        "pooled_projection_dim",
    ),
    "SD3ControlNetModel": (
        "num_attention_heads",
        "attention_head_dim",
        "joint_attention_dim",
        "pooled_projection_dim",
        "caption_projection_dim",
    ),
}


#: Settings of ControlNets that are told more than a map: which of several sorts it is, or a mask.
_SPECIAL = ("num_mode", "extra_conditioning_channels")


class Controls:
    """The ControlNets of one pipeline, by the sort of map that each follows.

    They are on ``device`` and stay there, also where the pipeline's own parts come and go.
    """

    def __init__(self, pipe: Any, additions: Sequence[Addition], model: str, device: str) -> None:
        self._model = model
        self._nets: dict[str, Any] = {}
        self._errors: dict[str, str] = {}
        for addition in additions:
            try:
                self._nets[addition.name] = _load(pipe, addition).to(device)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reason = error.message if isinstance(error, BlipError) else str(error)
                self._errors[addition.name] = reason
                log.warning("model '%s': the ControlNet '%s': %s", model, addition.name, reason)

    def net(self, control: Control) -> Any:
        """Return the ControlNet for a request.

        Raises :class:`~blip.errors.InvalidRequest` with those that there are.
        """
        name = control.type
        if name in self._nets:
            return self._nets[name]
        known = ", ".join(sorted(self._nets))
        hint = (
            f"It has {known}."
            if known
            else "It has none; a node's owner names them in the model's configuration."
        )
        if name in self._errors:
            message = f"'{name}' cannot be used with {self._model}: {self._errors[name]}."
        else:
            message = f"{self._model} has no ControlNet called '{name}'."
        raise InvalidRequest(f"'control.type': {message}", hint=hint, param="control.type")


def make_map(control: Control, size: tuple[int, int]) -> Image.Image:
    """Return the map of a request at the size of what is painted.

    Raises :class:`~blip.errors.InvalidRequest` for a picture that cannot be read, and for sorts
    of maps that only another model could make.
    """
    make = maps.MAKERS.get(control.type)
    if control.preprocess and make is None:
        raise InvalidRequest(
            f"'control.preprocess': blip makes no '{control.type}' map of a picture.",
            hint="Send the map itself with preprocess: false. It makes "
            f"{', '.join(sorted(maps.MAKERS))}.",
            param="control.preprocess",
        )
    picture = pictures.open_source(control.image, "control.image")
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    return make(picture) if control.preprocess and make is not None else picture


def arguments(
    control: Control, picture: Image.Image, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a pipeline with these parameters is told of a ControlNet's map."""
    found: dict[str, Any] = {
        "control_image" if "control_image" in parameters else "image": picture,
        "controlnet_conditioning_scale": control.weight,
    }
    if control.start > 0 or control.end < 1:
        for name, value in (("start", control.start), ("end", control.end)):
            if f"control_guidance_{name}" not in parameters:
                raise InvalidRequest(
                    f"'control.{name}': this model's ControlNets count in all steps.",
                    param=f"control.{name}",
                )
            found[f"control_guidance_{name}"] = value
    return found


def _load(pipe: Any, addition: Addition) -> Any:
    if addition.error:
        raise ModelLoadFailed(addition.error)
    folder = Path(addition.path)
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        name = str(config.get("_class_name"))
    except (OSError, ValueError, AttributeError) as error:
        raise ModelLoadFailed(f"{folder} has no config.json that can be read") from error
    if name not in CLASSES:
        raise ModelLoadFailed(f"it is a {name}; blip runs {', '.join(sorted(CLASSES))}")
    special = [key for key in _SPECIAL if config.get(key)]
    if special:
        raise ModelLoadFailed(f"it wants more than a map ({special[0]}), which blip does not send")
    denoiser: Any = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if type(denoiser).__name__ != CLASSES[name]:
        raise ModelLoadFailed(
            f"it is a {name}, made for a {CLASSES[name]}; the model has a {type(denoiser).__name__}"
        )
    net = getattr(diffusers, name).from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=denoiser.dtype
    )
    for key in _SHARED[name]:
        own, its = _plain(denoiser.config.get(key)), _plain(net.config.get(key))
        if own != its:
            raise ModelLoadFailed(
                f"it was made for a model of another architecture: {key} is {its}, not {own}"
            )
    widths = net.config.get("conditioning_embedding_out_channels")
    if widths is not None and 1 << (len(widths) - 1) != pipe.vae_scale_factor:
        raise ModelLoadFailed(
            f"it was made for a model of another architecture: its maps shrink by "
            f"{1 << (len(widths) - 1)}, not {pipe.vae_scale_factor}"
        )
    return net.eval()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

"""A loaded text-to-image pipeline: from jobs to pictures, one after the other."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

import blip
from blip.errors import InvalidRequest, UnsupportedField
from blip.kinds.image import IMAGE, ImageInput
from blip_node.models.pipeline import native_side
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.diffusion import controls, pictures, schedulers
from blip_node.runtimes.diffusion.conditioning import condition
from blip_node.runtimes.diffusion.loading import load_pipeline
from blip_node.runtimes.diffusion.loras import Loras
from blip_node.runtimes.diffusion.steps import Between, Watch
from blip_node.runtimes.lane import Lane

#: Sides of pictures are multiples of this at least: a denoiser halves its latents several times.
_GRAIN = 8

#: Below this side, in pixels, a model is a toy; pipelines that round sizes to those they were
#: trained for ("resolution binning") know none so small.
_SMALLEST_BINNED = 256


@dataclass(frozen=True, slots=True)
class _Canvas:
    """What is painted on: the size, and what is there before, if anything."""

    size: tuple[int, int]
    source: Image.Image | None = None
    mask: Image.Image | None = None


class Engine:
    """Paints on one thread. Weights are shared by text-to-image, image-to-image and inpainting."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._model = spec.model
        self._lane = Lane("blip-paint")
        self._pipe = self._lane.first(lambda: load_pipeline(spec, report))
        self._between = Between(self._pipe, streamed=spec.means.offload == "group")
        self._side = native_side(Path(spec.path))
        self._grain = _grain(self._pipe)
        self._loras = self._lane.first(lambda: Loras(self._pipe, spec.loras, spec.model))
        self._controls = self._lane.first(
            lambda: controls.Controls(self._pipe, spec.controlnets, spec.model, spec.device)
        )
        #: By what they do, and the ControlNet that they do it with.
        self._derived: dict[tuple[str, str], Any] = {}
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Paint one job; see :meth:`blip_node.runtimes.image.ImageRuntime.run`."""
        return await self._lane.run(job, self._paint)

    def close(self) -> None:
        """Stop after the current step, and the thread with it."""
        self._lane.close()

    # --- on the thread ----------------------------------------------------------------------

    def _paint(self, job: Job) -> Outcome:
        wishes: ImageInput = job.input
        pipe = copy.copy(self._pipeline(wishes))
        canvas = self._canvas(wishes)
        watch = Watch(job, canvas.size, self._lane)
        watch.look()
        pipe.scheduler = schedulers.fresh(self._pipe.scheduler, wishes.scheduler)
        # LoRAs change what prompts become, too
        with self._loras.active(wishes.loras), self._between.looking(watch.look):
            return self._paint_with(pipe, wishes, canvas, watch)

    def _paint_with(self, pipe: Any, wishes: ImageInput, canvas: _Canvas, watch: Watch) -> Outcome:
        seed = random.getrandbits(32) if wishes.seed is None else wishes.seed
        parameters = inspect.signature(pipe.__call__).parameters
        arguments = _arguments(type(pipe).__name__, parameters, wishes)
        conditioning = condition(pipe, type(self._pipe).__name__, wishes)
        arguments |= conditioning.arguments
        arguments |= self._size_arguments(parameters, canvas)
        if wishes.control is not None:
            shapes = controls.make_map(wishes.control, canvas.size)
            arguments |= controls.arguments(wishes.control, shapes, parameters)
            watch.look()
        arguments |= watch.arguments(pipe, parameters)
        # made on the CPU, noise is the same whatever the device
        generator = torch.Generator("cpu").manual_seed(seed)
        pixels = pipe(**arguments, generator=generator, output_type="np").images[0]
        watch.look()
        picture = pictures.to_picture(pixels)
        if canvas.source is not None and canvas.mask is not None:
            # what is not marked stays as it was, to the pixel; decoders do not give it back so
            picture = Image.composite(picture, canvas.source, canvas.mask)
        facts = self._facts(wishes, pipe, arguments, seed)
        file = pictures.encode(picture, wishes.format, wishes.quality, facts)
        return Outcome(
            file,
            usage={
                "prompt_tokens": conditioning.tokens,
                "width": picture.width,
                "height": picture.height,
                "steps": watch.done,
            },
            units=IMAGE.units(wishes),
        )

    def _pipeline(self, wishes: ImageInput) -> Any:
        """Return the pipeline for what is asked. Raises ``InvalidRequest`` if there is none."""
        if wishes.image is None and wishes.mask is not None:
            raise InvalidRequest("'mask' needs an 'image' to mask.", param="mask")
        auto, what, field = diffusers.AutoPipelineForText2Image, "text-to-image", "control"
        if wishes.image is not None:
            auto, what, field = diffusers.AutoPipelineForImage2Image, "image-to-image", "image"
        if wishes.mask is not None:
            auto, what, field = diffusers.AutoPipelineForInpainting, "inpainting", "mask"
        if wishes.image is None and wishes.control is None:
            return self._pipe
        key, extra = (what, ""), {}
        if wishes.control is not None:
            key, what = (what, wishes.control.type), f"{what} with a ControlNet"
            extra = {"controlnet": self._controls.net(wishes.control)}
        if key not in self._derived:
            try:
                derived = auto.from_pipe(self._pipe, **extra)
            except ValueError as error:
                raise UnsupportedField(
                    f"'{field}': {self._model} ({type(self._pipe).__name__}) knows no {what}.",
                    hint=f"Choose another model, or leave '{field}' out.",
                    param=field,
                ) from error
            derived.set_progress_bar_config(disable=True)
            self._derived[key] = derived
        return self._derived[key]

    def _canvas(self, wishes: ImageInput) -> _Canvas:
        width, height = wishes.width, wishes.height
        asked = (width or height or self._side, height or width or self._side)
        if wishes.image is None:
            return _Canvas(self._checked(asked))
        source = pictures.open_source(wishes.image)
        mask = None if wishes.mask is None else pictures.open_mask(wishes.mask, source.size)
        given = width is not None or height is not None
        size = self._checked(asked) if given else self._fitted(source.size)
        source = source.resize(size, Image.Resampling.LANCZOS)
        if mask is not None:
            mask = mask.resize(size, Image.Resampling.NEAREST)
        return _Canvas(size, source, mask)

    def _checked(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return a size as it was asked for; raises ``InvalidRequest`` if it cannot be painted."""
        if all(side % self._grain == 0 for side in size):
            return size
        near = tuple(max(1, round(side / self._grain)) * self._grain for side in size)
        raise InvalidRequest(
            f"'size': {self._model} paints sides that are multiples of {self._grain} pixels, "
            f"{size[0]}x{size[1]} is not.",
            hint=f"The nearest is {near[0]}x{near[1]}.",
            param="size",
        )

    def _fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return a size near that of a picture, with no more pixels than the model was made for."""
        scale = min(1.0, self._side / (size[0] * size[1]) ** 0.5)
        width, height = (
            max(1, int(side * scale / self._grain + 1e-6)) * self._grain for side in size
        )
        return width, height

    def _size_arguments(self, parameters: Mapping[str, Any], canvas: _Canvas) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "width" in parameters:  # some image-to-image pipelines take the picture's own
            found |= {"width": canvas.size[0], "height": canvas.size[1]}
        if canvas.source is not None:
            found["image"] = canvas.source
        if canvas.mask is not None:
            found["mask_image"] = canvas.mask
        if "use_resolution_binning" in parameters and self._side < _SMALLEST_BINNED:
            found["use_resolution_binning"] = False
        return found

    def _facts(
        self, wishes: ImageInput, pipe: Any, arguments: Mapping[str, Any], seed: int
    ) -> dict[str, str | int | float]:
        """Return what goes into the file, so that it can be painted again."""
        facts: dict[str, str | int | float] = {
            "prompt": wishes.prompt,
            "negative_prompt": wishes.negative_prompt,
            "seed": seed,
            "scheduler": wishes.scheduler or type(pipe.scheduler).__name__,
            "model": self._model,
            "Software": f"blip {blip.__version__}",
        }
        if wishes.loras:
            facts["loras"] = ", ".join(f"{lora.name}:{lora.weight:g}" for lora in wishes.loras)
        if (control := wishes.control) is not None:
            facts["control"] = f"{control.type}:{control.weight:g}"
        names = {"num_inference_steps": "steps", "guidance_scale": "guidance_scale"}
        for argument, name in (names | {"strength": "strength"}).items():
            if argument in arguments:
                facts[name] = arguments[argument]
        return {name: value for name, value in facts.items() if value != ""}


def _grain(pipe: Any) -> int:
    """Return what sides must be multiples of: the decoder's scale times the denoiser's patch."""
    scale = int(getattr(pipe, "vae_scale_factor", _GRAIN))
    config = getattr(getattr(pipe, "transformer", None), "config", {})
    patch = config.get("patch_size") or 1
    patch = patch if isinstance(patch, int) else max(patch)
    if hasattr(pipe, "_unpack_latents") or "all_patch_size" in config:
        patch = max(patch, 2)
    return max(_GRAIN, scale * patch)


def _arguments(pipeline: str, parameters: Mapping[str, Any], wishes: ImageInput) -> dict[str, Any]:
    """Return a pipeline's arguments but for prompts, size, pictures and callbacks.

    What is not asked for is spelled out with the pipeline's own default where it has a number, so
    that it can be told. Raises ``UnsupportedField`` for what the pipeline has no argument for.
    """
    found: dict[str, Any] = {}
    asked = {
        "num_inference_steps": ("steps", wishes.steps),
        "guidance_scale": ("guidance_scale", wishes.guidance_scale),
        "strength": ("strength", wishes.strength),
    }
    for argument, (field, value) in asked.items():
        if argument not in parameters:
            if value is not None and not (field == "strength" and wishes.image is None):
                raise UnsupportedField(f"'{field}': {pipeline} has none.", param=field)
            continue
        default = parameters[argument].default
        value = default if value is None else value
        if isinstance(value, int | float):
            found[argument] = value
    if wishes.negative_prompt:
        _check_negative(pipeline, parameters, found)
    steps, strength = found.get("num_inference_steps", 1), found.get("strength", 1.0)
    if int(steps * strength) < 1:
        raise InvalidRequest(
            f"'strength' {strength:g} of {steps} steps leaves no step to do.",
            hint=f"Ask for more steps, or a strength of at least {1 / steps:.2g}.",
            param="strength",
        )
    return found


def _check_negative(pipeline: str, parameters: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise if a negative prompt would be without effect."""
    true = parameters.get("true_cfg_scale")
    if "negative_prompt" not in parameters or (true is not None and true.default <= 1):
        raise UnsupportedField(
            f"'negative_prompt': {pipeline} is guided without one.", param="negative_prompt"
        )
    if found.get("guidance_scale", 2.0) <= 1:
        raise InvalidRequest(
            "'negative_prompt' is without effect unless 'guidance_scale' is above 1.",
            param="negative_prompt",
        )

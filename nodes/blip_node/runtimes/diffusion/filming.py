"""A loaded text-to-video pipeline: from jobs to videos, one after the other."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from PIL import Image, ImageOps

import blip
from blip.errors import InvalidRequest, UnsupportedField
from blip.kinds.image import Step, step_to_wire
from blip.kinds.video import MAX_FRAMES, MAX_VIDEO_PIXELS, VIDEO, VideoInput
from blip_node.models import pipeline
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.diffusion import films, pictures, prompts, schedulers
from blip_node.runtimes.diffusion.loading import load_pipeline
from blip_node.runtimes.diffusion.steps import Between, Watch
from blip_node.runtimes.lane import Lane

#: Where pipelines keep how many pixels of a side, and how many frames, a latent becomes.
_SPATIAL = (
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
    "vae_scale_factor",
)
_TEMPORAL = (
    "vae_scale_factor_temporal",
    "vae_temporal_compression_ratio",
    "vae_temporal_scale_factor",
)

#: Frames and size of models that say neither in their pipeline's signature nor in their
#: configuration.
_FRAMES = 16
_SIDE = 256


class Reel(NamedTuple):
    """What is filmed on: pixels, frames, and frames a second."""

    width: int
    height: int
    frames: int
    fps: int


class Camera:
    """Films on one thread."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._model = spec.model
        self._lane = Lane("blip-film")
        self._name = pipeline.class_name(Path(spec.path))
        self._film = pipeline.TEXT_TO_VIDEO[self._name]
        known = {self._name}
        self._pipe = self._lane.first(lambda: load_pipeline(spec, report, self._name, known))
        self._between = Between(self._pipe, streamed=spec.means.offload == "group")
        self._still: Any = None
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Make one video; see :meth:`blip_node.runtimes.video.VideoRuntime.run`."""
        return await self._lane.run(job, self._make)

    def close(self) -> None:
        """Stop after the current step, and the thread with it."""
        self._lane.close()

    # --- on the thread ----------------------------------------------------------------------

    def _make(self, job: Job) -> Outcome:
        wishes: VideoInput = job.input
        format = films.chosen_format(wishes.format)  # told before minutes of work, not after
        base = self._pipeline(wishes)
        parameters = inspect.signature(base.__call__).parameters
        reel = self._reel(base, parameters, wishes)
        watch = Watch(job, (reel.width, reel.height), self._lane)
        watch.look()
        pipe = copy.copy(base)
        pipe.scheduler = schedulers.fresh(self._pipe.scheduler, wishes.scheduler)
        tokens = prompts.check(pipe, wishes.prompt, "prompt")
        prompts.check(pipe, wishes.negative_prompt, "negative_prompt")
        seed = random.getrandbits(32) if wishes.seed is None else wishes.seed
        arguments = _arguments(self._name, parameters, wishes, reel)
        facts = self._facts(wishes, pipe, arguments, reel, seed)
        if wishes.image is not None:
            source = pictures.open_source(wishes.image, "input_reference")
            arguments["image"] = ImageOps.fit(
                source, (reel.width, reel.height), Image.Resampling.LANCZOS
            )
        arguments |= watch.arguments(pipe, parameters)
        if wishes.progress and job.writable:
            job.emit(step_to_wire(Step(0, int(arguments["num_inference_steps"]))))
        # made on the CPU, noise is the same whatever the device
        generator = torch.Generator("cpu").manual_seed(seed)
        with self._between.looking(watch.look):
            made = pipe(**arguments, generator=generator, output_type="np").frames[0]
        watch.look()
        frames = films.to_frames(made)
        del made
        file = films.encode(frames, reel.fps, format, facts, watch.look)
        count, height, width, _ = frames.shape
        done = wishes.model_copy(
            update={"width": width, "height": height, "num_frames": count, "steps": watch.done}
        )
        return Outcome(
            file,
            usage={
                "prompt_tokens": tokens,
                "width": width,
                "height": height,
                "frames": count,
                "fps": reel.fps,
                "steps": watch.done,
            },
            units=VIDEO.units(done) if watch.done else VIDEO.units(wishes),
        )

    def _pipeline(self, wishes: VideoInput) -> Any:
        """Return the pipeline for what is asked. Raises ``UnsupportedField`` if there is none."""
        if wishes.image is None:
            return self._pipe
        film = self._film
        if not film.still or (film.still_if and not self._pipe.config.get(film.still_if)):
            raise UnsupportedField(
                f"'input_reference': {self._model} ({self._name}) begins with no picture.",
                hint="Choose another model, or leave the picture out.",
                param="input_reference",
            )
        if self._still is None:
            self._still = getattr(diffusers, film.still).from_pipe(self._pipe)
            self._still.set_progress_bar_config(disable=True)
            # the same encoder reads the same prompt; but Wan's second class needs ftfy for it
            self._still.encode_prompt = self._pipe.encode_prompt
        return self._still

    def _reel(self, pipe: Any, parameters: Mapping[str, Any], wishes: VideoInput) -> Reel:
        """Return what to film on. Raises ``InvalidRequest`` for what cannot be filmed on."""
        native = _native_size(pipe, parameters)
        width, height = wishes.width or native[0], wishes.height or native[1]
        grain = _grain(pipe, self._film.grain)
        if width % grain or height % grain:
            near = [max(1, round(side / grain)) * grain for side in (width, height)]
            raise InvalidRequest(
                f"'size': {self._model} films sides that are multiples of {grain} pixels, "
                f"{width}x{height} is not.",
                hint=f"The nearest is {near[0]}x{near[1]}.",
                param="size",
            )
        fps = wishes.fps or self._film.fps
        frames = self._frames(pipe, parameters, wishes, fps)
        pixels = width * height * frames
        if pixels > MAX_VIDEO_PIXELS:
            raise InvalidRequest(
                f"{frames} frames of {width}x{height} are {pixels} pixels; {MAX_VIDEO_PIXELS} are "
                "the most.",
                hint="Ask for a shorter or a smaller video.",
                param="size",
                details={"pixels": pixels, "limit": MAX_VIDEO_PIXELS},
            )
        return Reel(width, height, frames, fps)

    def _frames(
        self, pipe: Any, parameters: Mapping[str, Any], wishes: VideoInput, fps: int
    ) -> int:
        """Return how many frames: as asked, or the nearest that there can be to the seconds."""
        grain = next((int(getattr(pipe, name)) for name in _TEMPORAL if hasattr(pipe, name)), 1)
        if wishes.num_frames is not None:
            asked = float(wishes.num_frames)
        elif wishes.seconds is not None:
            asked = wishes.seconds * fps
        else:
            return _native_frames(pipe, parameters)
        # the first frame is a latent of its own, each further one of them becomes several
        near = max(0, round((asked - 1) / grain)) * grain + 1
        if wishes.num_frames is not None and near != wishes.num_frames:
            raise InvalidRequest(
                f"'num_frames': {self._model} films {grain} times any number of frames, plus 1; "
                f"{wishes.num_frames} is not.",
                hint=f"The nearest is {near}.",
                param="num_frames",
            )
        if near > MAX_FRAMES:
            raise InvalidRequest(
                f"{wishes.seconds:g} seconds of {fps} frames are {near} frames; {MAX_FRAMES} are "
                "the most.",
                hint="Ask for fewer seconds, or for a lower 'fps'.",
                param="seconds",
            )
        return near

    def _facts(
        self,
        wishes: VideoInput,
        pipe: Any,
        arguments: Mapping[str, Any],
        reel: Reel,
        seed: int,
    ) -> dict[str, str | int | float]:
        """Return what goes into the file, so that it can be made again."""
        facts: dict[str, str | int | float] = {
            "prompt": wishes.prompt,
            "negative_prompt": wishes.negative_prompt,
            "seed": seed,
            "scheduler": wishes.scheduler or type(pipe.scheduler).__name__,
            "num_frames": reel.frames,
            "fps": reel.fps,
            "model": self._model,
            "Software": f"blip {blip.__version__}",
            "steps": arguments["num_inference_steps"],
        }
        if "guidance_scale" in arguments:
            facts["guidance_scale"] = arguments["guidance_scale"]
        return {name: value for name, value in facts.items() if value != ""}


def _grain(pipe: Any, least: int) -> int:
    """Return what sides must be multiples of: the decoder's scale times the denoiser's patch."""
    scale = next((int(getattr(pipe, name)) for name in _SPATIAL if hasattr(pipe, name)), 8)
    config = getattr(getattr(pipe, "transformer", None), "config", {})
    patch = config.get("patch_size") or 1
    patch = patch if isinstance(patch, int) else max(patch)
    return max(least, scale * patch)


def _native_size(pipe: Any, parameters: Mapping[str, Any]) -> tuple[int, int]:
    """Return the width and height that the model was made for."""
    sides = [parameters[name].default for name in ("width", "height")]
    if all(isinstance(side, int) for side in sides):
        return sides[0], sides[1]
    if hasattr(pipe, "default_width"):
        return pipe.default_width, pipe.default_height
    scale = next((int(getattr(pipe, name)) for name in _SPATIAL if hasattr(pipe, name)), 8)
    denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    config = getattr(denoiser, "config", {})
    square = config.get("sample_size")
    if isinstance(square, list | tuple) and len(square) == 2:
        return square[1] * scale, square[0] * scale
    width, height = (config.get(name) or square for name in ("sample_width", "sample_height"))
    if isinstance(width, int) and isinstance(height, int):
        return width * scale, height * scale
    return _SIDE, _SIDE


def _native_frames(pipe: Any, parameters: Mapping[str, Any]) -> int:
    default = parameters["num_frames"].default
    config = getattr(getattr(pipe, "transformer", None), "config", {})
    return int(default or config.get("sample_frames") or _FRAMES)


def _arguments(
    name: str, parameters: Mapping[str, Any], wishes: VideoInput, reel: Reel
) -> dict[str, Any]:
    """Return a pipeline's arguments but for pictures and callbacks.

    Raises ``UnsupportedField`` for what the pipeline has no argument for.
    """
    found: dict[str, Any] = {
        "prompt": wishes.prompt,
        "width": reel.width,
        "height": reel.height,
        "num_frames": reel.frames,
    }
    if "frame_rate" in parameters:  # LTX is told how fast things move
        found["frame_rate"] = reel.fps
    for argument, value in (
        ("num_inference_steps", wishes.steps),
        ("guidance_scale", wishes.guidance_scale),
    ):
        value = parameters[argument].default if value is None else value
        if isinstance(value, int | float):
            found[argument] = value
    if wishes.negative_prompt:
        true = parameters.get("true_cfg_scale")
        if true is not None and true.default <= 1:
            raise UnsupportedField(
                f"'negative_prompt': {name} is guided without one.", param="negative_prompt"
            )
        if found.get("guidance_scale", 2.0) <= 1:
            raise InvalidRequest(
                "'negative_prompt' is without effect unless 'guidance_scale' is above 1.",
                param="negative_prompt",
            )
        found["negative_prompt"] = wishes.negative_prompt
    return found

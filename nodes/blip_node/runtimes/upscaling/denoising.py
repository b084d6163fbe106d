"""A loaded pipeline of diffusers that enlarges pictures by denoising, one after the other.

The whole picture is denoised at once: what tiles were made of apart would not fit together.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy
import torch
from PIL import Image

import blip
from blip.errors import InvalidRequest
from blip.kinds.image import Step, step_to_wire
from blip.kinds.upscale import UPSCALE, UpscaleInput
from blip_node.models.pipeline import UPSCALED_SIDE, UPSCALERS, upscale_factor
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.diffusion import pictures, prompts, schedulers
from blip_node.runtimes.diffusion.loading import load_pipeline
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.upscaling.sizes import target_size

#: Most pixels of a source.
MOST_PIXELS = UPSCALED_SIDE**2

#: Sides are filled up to multiples of this: a decoder's scale of 8, and a denoiser that halves
#: three times.
_GRAIN = 64


class Engine:
    """Enlarges on one thread."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._name = spec.model
        self._lane = Lane("blip-upscale")
        self._pipe = self._lane.first(
            lambda: load_pipeline(spec, report, "DiffusionPipeline", UPSCALERS)
        )
        decoder = {"block_out_channels": list(self._pipe.vae.config.block_out_channels)}
        #: How many times longer the sides become.
        self._scale = upscale_factor(type(self._pipe).__name__, decoder)
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Enlarge one picture; see :meth:`blip_node.runtimes.upscale.UpscaleRuntime.run`."""
        return await self._lane.run(job, self._enlarge)

    def close(self) -> None:
        """Stop after the current step, and the thread with it."""
        self._lane.close()

    # --- on the thread ----------------------------------------------------------------------

    def _enlarge(self, job: Job) -> Outcome:
        wishes: UpscaleInput = job.input
        source = pictures.open_source(wishes.image)
        if source.width * source.height > MOST_PIXELS:
            raise InvalidRequest(
                f"'image' has {source.width} x {source.height} pixels; {self._name} takes "
                f"{MOST_PIXELS} at most.",
                hint="Send a part of it, or choose a model such as Swin2SR, which takes more.",
                param="image",
                details={"pixels": source.width * source.height, "limit": MOST_PIXELS},
            )
        target = target_size(self._name, self._scale, wishes, source)
        tokens = prompts.check(self._pipe, wishes.prompt, "prompt")
        prompts.check(self._pipe, wishes.negative_prompt, "negative_prompt")
        seed = random.getrandbits(32) if wishes.seed is None else wishes.seed
        pipe = copy.copy(self._pipe)
        pipe.scheduler = schedulers.fresh(self._pipe.scheduler, None)
        done = 0

        def after_step(index: int, time: Any, latents: Any) -> None:
            nonlocal done
            self._lane.look(job)
            done = index + 1
            if wishes.progress and job.writable:
                job.emit(step_to_wire(Step(done, len(pipe.scheduler.timesteps))))

        asked = {"num_inference_steps": wishes.steps, "guidance_scale": wishes.guidance_scale}
        made = pipe(
            prompt=wishes.prompt,
            negative_prompt=wishes.negative_prompt or None,
            image=_padded(source),
            # made on the CPU, noise is the same whatever the device
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
            callback=after_step,
            **{name: value for name, value in asked.items() if value is not None},
        ).images[0]
        self._lane.look(job)
        picture = pictures.to_picture(
            made[: source.height * self._scale, : source.width * self._scale]
        )
        if picture.size != target:
            picture = picture.resize(target, Image.Resampling.LANCZOS)
        facts: dict[str, str | int | float] = {
            "prompt": wishes.prompt,
            "negative_prompt": wishes.negative_prompt,
            "seed": seed,
            "model": self._name,
            "scale": picture.width / source.width,
            "Software": f"blip {blip.__version__}",
        }
        said = {name: value for name, value in facts.items() if value != ""}
        usage = {
            "prompt_tokens": tokens,
            "width": picture.width,
            "height": picture.height,
            "steps": done,
        }
        file = pictures.encode(picture, wishes.format, wishes.quality, said)
        return Outcome(file, usage=usage, units=UPSCALE.units(wishes))


def _padded(source: Image.Image) -> Image.Image:
    """Return a picture filled up to what the model's layers can halve, mirrored at its edges."""
    short = [(0, -side % _GRAIN) for side in (source.height, source.width)]
    return Image.fromarray(numpy.pad(numpy.asarray(source), [*short, (0, 0)], mode="symmetric"))

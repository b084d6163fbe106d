"""A loaded super-resolution model: from jobs to enlarged pictures, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch
from PIL import Image

import blip
from blip.errors import ModelLoadFailed, UnsupportedField
from blip.kinds.image import Step, step_to_wire
from blip.kinds.upscale import UPSCALE, UpscaleInput
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.diffusion import pictures
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.loading import load_model
from blip_node.runtimes.upscaling.sizes import target_size
from blip_node.runtimes.upscaling.tiles import Canvas

#: Heads that transformers computes as their paper says. In Swin2SR's for a scale of 1 it adds the
#: result to the pictures as they are, where the paper adds it to what it subtracted a mean from.
_UPSAMPLERS = ("pixelshuffle", "pixelshuffle_aux", "pixelshuffledirect", "nearest+conv")

#: What only models that denoise are told.
_OF_DENOISERS = frozenset({"prompt", "negative_prompt", "steps", "guidance_scale", "seed"})


class Engine:
    """Enlarges on one thread."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._name = spec.model
        self._lane = Lane("blip-upscale")
        self._model = self._lane.first(lambda: _load(spec, report))
        #: How many times longer the sides become, and what they must be multiples of inside.
        self._scale = int(self._model.config.upscale)
        self._window = int(self._model.config.window_size)
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Enlarge one picture; see :meth:`blip_node.runtimes.upscale.UpscaleRuntime.run`."""
        return await self._lane.run(job, self._enlarge)

    def close(self) -> None:
        """Stop after the current tile, and the thread with it."""
        self._lane.close()

    # --- on the thread ----------------------------------------------------------------------

    def _enlarge(self, job: Job) -> Outcome:
        wishes: UpscaleInput = job.input
        source = pictures.open_source(wishes.image)
        for field in sorted(_OF_DENOISERS):
            if getattr(wishes, field) not in (None, ""):
                raise UnsupportedField(
                    f"'{field}': {self._name} is no diffusion model, and reads none.",
                    hint="Leave it out.",
                    param=field,
                )
        target = target_size(self._name, self._scale, wishes, source)
        pixels = numpy.asarray(source, dtype="float32") / 255
        canvas = Canvas(source.height, source.width, self._scale)
        for done in canvas.fill(pixels, self._tile):
            self._lane.look(job)
            if wishes.progress and job.writable:
                job.emit(step_to_wire(Step(done, len(canvas))))
        picture = pictures.to_picture(canvas.result())
        if picture.size != target:
            picture = picture.resize(target, Image.Resampling.LANCZOS)
        facts: dict[str, str | int | float] = {
            "model": self._name,
            "scale": picture.width / source.width,
            "Software": f"blip {blip.__version__}",
        }
        file = pictures.encode(picture, wishes.format, wishes.quality, facts)
        usage = {"width": picture.width, "height": picture.height, "steps": len(canvas)}
        return Outcome(file, usage=usage, units=UPSCALE.units(wishes))

    def _tile(self, pixels: Any) -> Any:
        """Enlarge one tile, float [height, width, 3] from 0 to 1."""
        height, width = pixels.shape[:2]
        # the model knows whole windows only; mirrored as its own image processor does it
        short = [(0, -side % self._window) for side in (height, width)]
        padded = numpy.pad(pixels, [*short, (0, 0)], mode="symmetric")
        batch = torch.from_numpy(padded).permute(2, 0, 1)[None]
        with torch.no_grad():
            out = self._model(batch.to(self._model.device, self._model.dtype)).reconstruction[0]
        made = out.float().permute(1, 2, 0).cpu().numpy()
        return made[: height * self._scale, : width * self._scale]


def _load(spec: LoadSpec, report: Callable[[float], None]) -> Any:
    model = load_model(spec, "AutoModelForImageToImage", report, unused=())
    config = model.config
    if config.upsampler not in _UPSAMPLERS or config.num_channels != 3:
        raise ModelLoadFailed(
            f"model '{spec.model}': blip does not run its head ({config.upsampler or 'denoising'}, "
            f"{config.num_channels} channels)",
            hint="It runs Swin2SR models that enlarge RGB pictures.",
        )
    return model

"""A loaded model that sees, and its thread: from a picture to what is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from blip.errors import ModelLoadFailed
from blip.kinds.vision import VisionInput
from blip_node.models.abilities import abilities
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.diffusion.pictures import open_source
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.loading import read_config
from blip_node.runtimes.sight import classify, depth, detect, features, segment


class Task(Protocol):
    """What a model does with a picture. It belongs to the lane's thread."""

    def __call__(self, wishes: VisionInput, picture: Image.Image) -> bytes:
        """Return the result as it travels. Raises :class:`~blip.errors.BlipError`."""
        ...


#: What loads the task of each kind.
LOADERS: dict[str, Callable[[LoadSpec, str, Callable[[float], None]], Task]] = {
    "image-classification": classify.load,
    "detection": detect.load,
    "depth": depth.load,
    "segmentation": segment.load,
    "image-feature-extraction": features.load,
}


class Engine:
    """Looks at pictures on one thread, one after the other."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._lane = Lane("blip-see")
        self._task = self._lane.first(lambda: _load(spec, report))
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Look at one picture; see :meth:`blip_node.runtimes.vision.VisionRuntime.run`."""
        return await self._lane.run(job, self._see)

    def close(self) -> None:
        """Stop the thread."""
        self._lane.close()

    def _see(self, job: Job) -> Outcome:
        wishes: VisionInput = job.input
        picture = open_source(wishes.image)
        self._lane.look(job)
        with torch.inference_mode():
            payload = self._task(wishes, picture)
        self._lane.look(job)
        size = {"width": picture.width, "height": picture.height}
        return Outcome(payload, usage=size, units=job.kind.units(wishes))


def _load(spec: LoadSpec, report: Callable[[float], None]) -> Task:
    try:
        config = read_config(Path(spec.path))
        architecture = str(config["architectures"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise ModelLoadFailed(
            f"model '{spec.model}': its config.json does not say what it is"
        ) from None
    for kind in abilities(architecture, str(config.get("model_type", "")), config):
        if kind in LOADERS:
            return LOADERS[kind](spec, architecture, report)
    raise ModelLoadFailed(f"model '{spec.model}': {architecture} finds nothing in pictures")

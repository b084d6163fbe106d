"""What happens between two steps of a painting: a look at the client, a word to it, a preview."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from blip.errors import BlipError
from blip.kinds.image import ImageInput, Step, step_to_wire
from blip_node.runtimes.base import Job
from blip_node.runtimes.diffusion.pictures import encode, to_picture
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.watched import Watched

log = logging.getLogger(__name__)


def preview_steps(previews: int, steps: int) -> frozenset[int]:
    """Return after how many steps to send previews, evenly spread; never after the last."""
    points = (round(steps * number / (previews + 1)) for number in range(1, previews + 1))
    return frozenset(point for point in points if 0 < point < steps)


class Watch:
    """Is called after every step of one task.

    Raising is how a pipeline is stopped: it works with all of them, and leaves them usable.
    ``lane`` knows whether the model is being unloaded.
    """

    def __init__(self, job: Job, size: tuple[int, int], lane: Lane) -> None:
        self._job = job
        self._wishes: ImageInput = job.input
        self._size = size
        self._lane = lane
        self._points: frozenset[int] | None = None
        #: Steps that were done.
        self.done = 0

    def arguments(self, pipe: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that have a pipeline with these parameters call it."""
        if "callback_on_step_end" in parameters:
            return {"callback_on_step_end": self._after_step}
        if "callback" in parameters:  # the older way; a few pipelines know only that

            def after_step(index: int, time: Any, latents: Any) -> None:
                self._note(pipe, index, latents)

            return {"callback": after_step, "callback_steps": 1}
        return {}

    def look(self) -> None:
        """Raise :class:`~blip.errors.Cancelled` or ``WorkerCrashed`` if this need not go on."""
        self._lane.look(self._job)

    def _after_step(self, pipe: Any, index: int, time: Any, tensors: Any) -> Any:
        self._note(pipe, index, tensors.get("latents"))
        return tensors

    def _note(self, pipe: Any, index: int, latents: Any) -> None:
        self.look()
        self.done = index + 1
        wishes = self._wishes
        # parts can be left out: nobody waits for them who does not read
        if not (wishes.progress or wishes.previews) or not self._job.writable:
            return
        steps = int(getattr(pipe, "num_timesteps", 0) or len(pipe.scheduler.timesteps))
        if self._points is None:
            self._points = preview_steps(wishes.previews, steps)
        preview = None
        if self.done in self._points and latents is not None:
            preview = self._preview(pipe, latents)
        if preview is not None or wishes.progress:
            self._job.emit(step_to_wire(Step(self.done, steps, preview)))

    def _preview(self, pipe: Any, latents: Any) -> bytes | None:
        try:
            picture = decode(pipe, latents, self._size)
        except BlipError:  # whoever looks within the decoder
            raise
        except Exception as error:
            # a preview is a courtesy: the picture itself may still come out right
            log.warning("no preview of %s: %s", type(pipe).__name__, error)
            return None
        return encode(picture, self._wishes.format, self._wishes.quality) if picture else None


class Between:
    """Looks within what a pipeline does before and after its steps, which calls nobody back.

    Prompts are looked at encoder by encoder, latents decoded block by block: of a video, or
    in tiles, blocks are many. The weights' hooks of ``streamed`` ones must not be disturbed within.
    """

    def __init__(self, pipe: Any, *, streamed: bool) -> None:
        self._vae: Any = getattr(pipe, "vae", None)
        modules = [
            part
            for name, part in pipe.components.items()
            if name.startswith("text_encoder") and part is not None
        ]
        decoder = getattr(self._vae, "decoder", None)
        if decoder is not None:
            modules += [decoder, *(getattr(decoder, "up_blocks", None) or ())]
        self._watched = Watched([] if streamed else modules)

    @contextmanager
    def looking(self, look: Callable[[], None]) -> Iterator[None]:
        """Have ``look`` called until the end of the context; what it raises leaves no trace."""
        dtype = getattr(self._vae, "dtype", None)
        try:
            with self._watched.by(look):
                yield
        except BaseException:
            # pipelines decode in float32 where half precision overflows, and go back at the end
            if dtype is not None and self._vae.dtype != dtype:
                self._vae.to(dtype=dtype)
            raise


def decode(pipe: Any, latents: Any, size: tuple[int, int]) -> Image.Image | None:
    """Decode the first of a pipeline's latents as they are; None for shapes that are not known."""
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return None
    latents = latents[:1]
    if latents.ndim == 3 and hasattr(pipe, "_unpack_latents"):
        latents = pipe._unpack_latents(latents, size[1], size[0], pipe.vae_scale_factor)
    framed = latents.ndim == 5  # a picture is a film of one frame to some
    if latents.ndim not in (4, 5):
        return None
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if framed and (mean is None or std is None):
        return None
    if mean is not None and std is not None:  # by channel
        shape = (1, -1) + (1,) * (latents.ndim - 2)
        scaled = latents * torch.tensor(std).view(shape).to(latents)
        latents = scaled / (config.get("scaling_factor") or 1.0)
        latents = latents + torch.tensor(mean).view(shape).to(latents)
    else:
        latents = latents / config.get("scaling_factor", 1.0) + (config.get("shift_factor") or 0.0)
    # such decoders overflow in half precision; their pipelines do the same before the end
    upcast = vae.dtype == torch.float16 and config.get("force_upcast")
    if upcast:
        vae.to(dtype=torch.float32)
    try:
        with torch.no_grad():
            pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0][0]
        pixels = pixels[:, 0] if framed else pixels
    finally:
        if upcast:
            vae.to(dtype=torch.float16)
    pixels = (pixels.float() / 2 + 0.5).clamp(0, 1).nan_to_num(0.0)
    return to_picture(pixels.permute(1, 2, 0).cpu().numpy())

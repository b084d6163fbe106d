"""``upscale``: a picture with more pixels, made tile by tile or step by step on one thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from blip_node.models.pipeline import is_pipeline
from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.upscaling import denoising
    from blip_node.runtimes.upscaling.engine import Engine


class UpscaleRuntime:
    """The face of what enlarges pictures that needs no torch: of
    :class:`~blip_node.runtimes.upscaling.engine.Engine`, and of another for diffusers' pipelines.
    """

    kinds: ClassVar[tuple[str, ...]] = ("upscale",)
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "blip_node.runtimes.upscale",
        "blip_node.runtimes.upscaling.engine",
    )

    _engine: Engine | denoising.Engine | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the model and start its thread.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        if is_pipeline(Path(spec.path)):
            from blip_node.runtimes.upscaling import denoising

            self._engine = denoising.Engine(spec, report)
        else:
            from blip_node.runtimes.upscaling.engine import Engine

            self._engine = Engine(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Enlarge one picture: the payload is its file.

        Sends a step after each tile, or step, if asked to.

        Raises ``InvalidRequest``, ``UnsupportedField``, ``ContextTooLong``, ``Cancelled``,
        ``NoCapacity``, ``RuntimeFailed`` or ``WorkerCrashed``.
        """
        assert self._engine is not None, "run before load"
        return await self._engine.run(job)

    def close(self) -> None:
        """Stop the thread."""
        if self._engine is not None:
            self._engine.close()

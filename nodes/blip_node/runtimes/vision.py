"""What is in a picture: ``detection``, ``image-classification``, ``depth``, ``segmentation``,
``image-feature-extraction``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.sight.engine import Engine


class VisionRuntime:
    """The face of :class:`~blip_node.runtimes.sight.engine.Engine` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = (
        "detection",
        "image-classification",
        "depth",
        "segmentation",
        "image-feature-extraction",
    )
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.image_processing_auto",
        "transformers.models.auto.processing_auto",
        "blip_node.runtimes.vision",
        "blip_node.runtimes.sight.engine",
    )

    _engine: Engine | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the model, by the one kind that its architecture is made for.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.sight.engine import Engine

        self._engine = Engine(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Look at one picture; the payload is a result of :mod:`blip.kinds.vision`.

        Raises ``InvalidRequest``, ``UnsupportedField``, ``Cancelled``, ``NoCapacity``,
        ``RuntimeFailed`` or ``WorkerCrashed``.
        """
        assert self._engine is not None, "run before load"
        return await self._engine.run(job)

    def close(self) -> None:
        """Stop the thread."""
        if self._engine is not None:
            self._engine.close()

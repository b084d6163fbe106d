"""``image``: one picture a task, painted step by step on one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.diffusion.engine import Engine


class ImageRuntime:
    """The face of :class:`~blip_node.runtimes.diffusion.engine.Engine` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "diffusers",
        "diffusers.pipelines.auto_pipeline",
        "blip_node.runtimes.image",
        "blip_node.runtimes.diffusion.engine",
    )

    _engine: Engine | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the pipeline and start its thread.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.diffusion.engine import Engine

        self._engine = Engine(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Paint one picture: the payload is its file. Sends steps and previews if asked to.

        Raises ``InvalidRequest``, ``UnsupportedField``, ``ContextTooLong``, ``Cancelled``,
        ``NoCapacity``, ``RuntimeFailed`` or ``WorkerCrashed``.
        """
        assert self._engine is not None, "run before load"
        return await self._engine.run(job)

    def close(self) -> None:
        """Stop the thread."""
        if self._engine is not None:
            self._engine.close()

"""``video``: one video a task, made step by step on one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.diffusion.filming import Camera


class VideoRuntime:
    """The face of :class:`~blip_node.runtimes.diffusion.filming.Camera` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = ("video",)
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "diffusers",
        "blip_node.runtimes.video",
        "blip_node.runtimes.diffusion.filming",
    )

    _camera: Camera | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the pipeline and start its thread.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.diffusion.filming import Camera

        self._camera = Camera(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Make one video: the payload is its file. Tells every step if asked to.

        Raises ``InvalidRequest``, ``UnsupportedField``, ``ContextTooLong``, ``Cancelled``,
        ``NoCapacity``, ``RuntimeFailed`` or ``WorkerCrashed``.
        """
        assert self._camera is not None, "run before load"
        return await self._camera.run(job)

    def close(self) -> None:
        """Stop the thread."""
        if self._camera is not None:
            self._camera.close()

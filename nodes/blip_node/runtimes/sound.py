"""``audio-classification`` and ``zero-shot-audio-classification``: what a sound is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.hearing.sorting import Engine


class SoundRuntime:
    """The face of :class:`~blip_node.runtimes.hearing.sorting.Engine` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = ("audio-classification", "zero-shot-audio-classification")
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.feature_extraction_auto",
        "blip_node.runtimes.sound",
        "blip_node.runtimes.hearing.sorting",
    )

    _engine: Engine | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the model, by what its architecture is made for.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.hearing.sorting import Engine

        self._engine = Engine(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Name one sound: the payload is a list of :class:`blip.kinds.vision.Guess`.

        Raises ``InvalidRequest``, ``Cancelled``, ``NoCapacity``, ``RuntimeFailed`` or
        ``WorkerCrashed``.
        """
        assert self._engine is not None, "run before load"
        return await self._engine.run(job)

    def close(self) -> None:
        """Stop the thread."""
        if self._engine is not None:
            self._engine.close()

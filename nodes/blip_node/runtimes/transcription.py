"""``transcription`` and ``translation``: one sound a task, listened to on one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.hearing.engine import Engine


class TranscriptionRuntime:
    """The face of :class:`~blip_node.runtimes.hearing.engine.Engine` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = ("transcription", "translation")
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.whisper.modeling_whisper",
        "blip_node.runtimes.transcription",
        "blip_node.runtimes.hearing.engine",
    )

    _engine: Engine | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the model and listen to a moment of silence with it.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.hearing.engine import Engine

        self._engine = Engine(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Write down what is said: the payload is a :class:`blip.kinds.transcription.Transcript`.

        Sends segments as they are found if asked to. Raises ``InvalidRequest``,
        ``UnsupportedField``, ``ContextTooLong``, ``Cancelled``, ``NoCapacity``, ``RuntimeFailed``
        or ``WorkerCrashed``.
        """
        assert self._engine is not None, "run before load"
        return await self._engine.run(job)

    def close(self) -> None:
        """Stop the thread."""
        if self._engine is not None:
            self._engine.close()

"""``speech``: texts to audio files, the sentences of concurrent jobs in turn on one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.speaking.engine import Engine


class SpeechRuntime:
    """The face of :class:`~blip_node.runtimes.speaking.engine.Engine` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = ("speech",)
    # no onnxruntime: the voices that need it need no torch, and are the fewer
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.models.vits.modeling_vits",
        "soundfile",
        "soxr",
        "blip_node.runtimes.speech",
        "blip_node.runtimes.speaking.engine",
    )

    _engine: Engine | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the voice and start its thread.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.speaking.engine import Engine

        self._engine = Engine(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Speak a text: parts and payload are its file, piece by piece.

        Raises ``InvalidRequest``, ``Cancelled``, ``NoCapacity``, ``RuntimeFailed`` or
        ``WorkerCrashed``.
        """
        assert self._engine is not None, "run before load"
        return await self._engine.run(job)

    def close(self) -> None:
        """Stop the thread."""
        if self._engine is not None:
            self._engine.close()

"""``caption``, and ``chat`` with models that see: pictures and text in, text out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.sight.narrator import Narrator


class VisionTextRuntime:
    """The face of :class:`~blip_node.runtimes.sight.narrator.Narrator` that needs no torch.

    Chat with models of text alone is :class:`~blip_node.runtimes.text.TextRuntime`'s;
    :func:`blip_node.runtimes.runtime_for` chooses.
    """

    kinds: ClassVar[tuple[str, ...]] = ("caption", "chat")
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.processing_auto",
        "transformers.models.auto.image_processing_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.blip.modeling_blip",
        "blip_node.runtimes.vision_text",
        "blip_node.runtimes.sight.narrator",
    )

    _narrator: Narrator | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the model and start its thread.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.sight.narrator import Narrator

        self._narrator = Narrator(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Write one answer: of a chat a ``Delta`` a token, and the ``Finish`` in the outcome.

        Raises ``InvalidRequest``, ``UnsupportedField``, ``ContextTooLong``, ``Cancelled``,
        ``NoCapacity``, ``RuntimeFailed`` or ``WorkerCrashed``.
        """
        assert self._narrator is not None, "run before load"
        return await self._narrator.run(job)

    def close(self) -> None:
        """Stop the thread."""
        if self._narrator is not None:
            self._narrator.close()

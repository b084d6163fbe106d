"""``moderation``: a classifier of texts, or of pictures, whose labels are categories."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.moderator import Moderator


class ModerationRuntime:
    """The face of :class:`~blip_node.runtimes.moderator.Moderator` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = ("moderation",)
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.auto.image_processing_auto",
        "transformers.models.bert.modeling_bert",
        "blip_node.runtimes.moderation",
        "blip_node.runtimes.moderator",
    )

    _moderator: Moderator | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the classifier, and judge something with it.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.moderator import Moderator

        self._moderator = Moderator(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Judge a job's texts or pictures: the payload is their verdicts.

        Raises ``InvalidRequest``, ``Cancelled``, ``NoCapacity``, ``RuntimeFailed`` or
        ``WorkerCrashed``.
        """
        assert self._moderator is not None, "run before load"
        return await self._moderator.run(job)

    def close(self) -> None:
        """Stop the thread."""
        if self._moderator is not None:
            self._moderator.close()

"""``text2text-generation``: summaries, translations, and whatever else is written of a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.writer import Writer


class Text2TextRuntime:
    """The face of :class:`~blip_node.runtimes.writer.Writer` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = ("text2text-generation",)
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.t5.modeling_t5",
        "transformers.models.bart.modeling_bart",
        "blip_node.runtimes.text2text",
        "blip_node.runtimes.writer",
    )

    _writer: Writer | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the model and write a token with it.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.writer import Writer

        self._writer = Writer(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Write something of each of a job's texts; a cancelled one stops within a token.

        Raises ``InvalidRequest``, ``ContextTooLong``, ``Cancelled``, ``NoCapacity``,
        ``RuntimeFailed`` or ``WorkerCrashed``.
        """
        assert self._writer is not None, "run before load"
        return await self._writer.run(job)

    def close(self) -> None:
        """Stop the thread."""
        if self._writer is not None:
            self._writer.close()

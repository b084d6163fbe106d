"""``rerank`` and transformers' tasks that read: labels, entities, answers within a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.heads.engine import HeadEngine


class PipelineRuntime:
    """The face of :class:`~blip_node.runtimes.heads.engine.HeadEngine` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = (
        "rerank",
        "text-classification",
        "zero-shot-classification",
        "token-classification",
        "question-answering",
    )
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.bert.modeling_bert",
        "transformers.models.roberta.modeling_roberta",
        "transformers.models.xlm_roberta.modeling_xlm_roberta",
        "blip_node.runtimes.pipelines",
        "blip_node.runtimes.heads.loaded",
    )

    _engine: HeadEngine | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the model and compute a text with it.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.heads.loaded import load_heads

        self._engine = load_heads(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Compute a job's texts, in common batches with those of others.

        Raises ``InvalidRequest``, ``ContextTooLong``, ``Cancelled``, ``NoCapacity``,
        ``RuntimeFailed`` or ``WorkerCrashed``.
        """
        assert self._engine is not None, "run before load"
        return await self._engine.run(job)

    def close(self) -> None:
        """Stop the inference thread."""
        if self._engine is not None:
            self._engine.close()

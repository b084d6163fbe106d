"""``embedding``: texts to vectors, with the texts of concurrent jobs in common batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.encoder import Encoder


class EmbeddingRuntime:
    """The face of :class:`~blip_node.runtimes.encoder.Encoder` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = ("embedding",)
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.bert.modeling_bert",
        "transformers.models.xlm_roberta.modeling_xlm_roberta",
        "transformers.models.qwen3.modeling_qwen3",
        "blip_node.runtimes.embedding",
        "blip_node.runtimes.encoder",
    )

    _encoder: Encoder | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the model and encode a text with it.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.encoder import Encoder

        self._encoder = Encoder(spec, report)

    async def run(self, job: Job) -> Outcome:
        """Encode a job's texts: rows of little-endian float32, in the order of the texts.

        Raises ``InvalidRequest``, ``ContextTooLong``, ``Cancelled``, ``NoCapacity``,
        ``RuntimeFailed`` or ``WorkerCrashed``.
        """
        assert self._encoder is not None, "run before load"
        return await self._encoder.run(job)

    def close(self) -> None:
        """Stop the inference thread."""
        if self._encoder is not None:
            self._encoder.close()

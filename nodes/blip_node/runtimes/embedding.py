"""``embedding``, and what else text encoders can: fill masks, show what each token became.

The texts of concurrent jobs are computed in common batches. A masked language model is loaded once
for all three: without its head it is the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.encoder import Encoder
    from blip_node.runtimes.heads.engine import HeadEngine


class EmbeddingRuntime:
    """The face of :class:`~blip_node.runtimes.encoder.Encoder` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = ("embedding", "fill-mask", "feature-extraction")
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
        "blip_node.runtimes.heads.loaded",
    )

    _encoder: Encoder | None = None
    _masks: HeadEngine | None = None
    _features: HeadEngine | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the model and encode a text with it.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.encoder import Encoder
        from blip_node.runtimes.heads import loaded
        from blip_node.runtimes.loading import load_pretrained

        masked = loaded.masked(spec)
        kind = "AutoModelForMaskedLM" if masked else "AutoModel"
        model, tokenizer = load_pretrained(spec, kind, report)
        encoder = model.base_model if masked else model
        self._encoder = Encoder(spec, report, (encoder, tokenizer))
        try:
            self._features = loaded.extract_features(encoder, tokenizer, spec)
            if masked:
                self._masks = loaded.fill_masks(model, tokenizer, spec)
        except BaseException:
            self.close()
            raise

    async def run(self, job: Job) -> Outcome:
        """Compute a job's texts; embeddings are rows of little-endian float32, in their order.

        Raises ``InvalidRequest``, ``ContextTooLong``, ``Cancelled``, ``NoCapacity``,
        ``RuntimeFailed`` or ``WorkerCrashed``.
        """
        engines = {"fill-mask": self._masks, "feature-extraction": self._features}
        engine = engines.get(job.kind.name, self._encoder)
        assert engine is not None, "run before load"
        return await engine.run(job)

    def close(self) -> None:
        """Stop the inference threads."""
        for engine in (self._encoder, self._masks, self._features):
            if engine is not None:
                engine.close()

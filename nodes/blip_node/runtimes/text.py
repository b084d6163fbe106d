"""``chat`` and ``completion``: one replica of a causal language model serves both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from blip_node.runtimes.base import Job, LoadSpec, Outcome

if TYPE_CHECKING:
    from blip_node.runtimes.decoding.engine import Engine


class TextRuntime:
    """The face of :class:`~blip_node.runtimes.decoding.engine.Engine` that needs no torch."""

    kinds: ClassVar[tuple[str, ...]] = ("chat", "completion")
    preload: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
        "transformers.models.mistral.modeling_mistral",
        "transformers.models.qwen2.modeling_qwen2",
        "transformers.models.qwen3.modeling_qwen3",
        "blip_node.runtimes.text",
        "blip_node.runtimes.decoding.engine",
    )

    _engine: Engine | None = None

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the model, try two steps with it, and start its inference thread.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.runtimes.decoding.engine import Engine

        self._engine = Engine(spec, report)

    @property
    def batched(self) -> bool:
        """Whether requests are decoded together in one forward pass; some models cannot be."""
        assert self._engine is not None, "asked before load"
        return self._engine.batched

    async def run(self, job: Job) -> Outcome:
        """Decode one answer: a ``Delta`` a token, and the ``Finish`` in the outcome.

        Raises ``InvalidRequest``, ``ContextTooLong``, ``Cancelled``, ``NoCapacity``,
        ``RuntimeFailed`` or ``WorkerCrashed``.
        """
        assert self._engine is not None, "run before load"
        return await self._engine.run(job)

    def close(self) -> None:
        """Stop the inference thread."""
        if self._engine is not None:
            self._engine.close()

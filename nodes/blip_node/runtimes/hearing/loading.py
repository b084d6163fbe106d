"""Loading a model of speech, with what turns samples into its input and ids into text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.loading import load_model, load_part

#: Weights that a checkpoint may lack: what only training uses, and positions that are computed.
_UNUSED = ("masked_spec_embed", "proj_out.weight")


class Loaded(NamedTuple):
    """A model in evaluation mode, its feature extractor and its tokenizer."""

    model: Any
    extractor: Any
    tokenizer: Any


def load_speech(spec: LoadSpec, auto_class: str, report: Callable[[float], None]) -> Loaded:
    """Load a snapshot onto ``spec.device`` in ``spec.dtype``, by a transformers ``Auto`` class.

    See :func:`blip_node.runtimes.loading.load_model`, also for what is raised.
    """
    extractor = load_part(spec, "AutoFeatureExtractor")
    tokenizer = load_part(spec, "AutoTokenizer")
    report(0.1)
    return Loaded(load_model(spec, auto_class, report, unused=_UNUSED), extractor, tokenizer)


def on_model(model: Any, inputs: Any) -> dict[str, Any]:
    """Return an extractor's tensors where the model is; numbers in its dtype."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }

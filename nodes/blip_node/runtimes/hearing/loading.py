"""Loading a model of speech, with what turns samples into its input and ids into text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from blip.errors import ModelLoadFailed
from blip_node.models import weights
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.loading import load_failure

#: Weights that a checkpoint may lack: what only training uses, and positions that are computed.
_UNUSED = ("masked_spec_embed", "proj_out.weight")


class Loaded(NamedTuple):
    """A model in evaluation mode, its feature extractor and its tokenizer."""

    model: Any
    extractor: Any
    tokenizer: Any


def load_speech(spec: LoadSpec, auto_class: str, report: Callable[[float], None]) -> Loaded:
    """Load a snapshot onto ``spec.device`` in ``spec.dtype``, by a transformers ``Auto`` class.

    Only safetensors on this disk are read and none of the snapshot's code is run. Raises
    :class:`~blip.errors.ModelLoadFailed` with the reason, or ``NoCapacity`` when it does not fit.
    """
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    folder = Path(spec.path)
    trusted: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        stored = weights.main_dtype(weights.total_counts(weights.shards(folder)))
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, **trusted)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **trusted)
        report(0.1)
        if not spec.device.startswith("cpu"):
            trusted["device_map"] = spec.device  # straight to the device, not through CPU memory
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype=getattr(torch, weights.load_dtype(spec.dtype, stored, spec.device)),
            use_safetensors=True,
            output_loading_info=True,
            **trusted,
        )
    except Exception as error:
        raise load_failure(spec, error) from error
    missing = sorted(k for k in info["missing_keys"] if not k.endswith(_UNUSED))
    if missing:
        # transformers would go on with random numbers in their place
        raise ModelLoadFailed(
            f"model '{spec.model}': its files lack {len(missing)} of the weights that "
            f"{type(model).__name__} needs ({missing[0]}, ...)"
        )
    report(0.9)
    return Loaded(model.eval(), extractor, tokenizer)

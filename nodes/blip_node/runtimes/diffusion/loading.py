"""Loading a diffusers pipeline from a folder."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from blip.errors import ModelLoadFailed
from blip_node.models import pipeline, weights
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.loading import load_failure


def load_pipeline(
    spec: LoadSpec,
    report: Callable[[float], None],
    cls: str = "AutoPipelineForText2Image",
    known: Container[str] = pipeline.TEXT_TO_IMAGE,
) -> Any:
    """Load a pipeline onto ``spec.device`` in ``spec.dtype``.

    ``cls`` is the class of diffusers that loads it, ``known`` those that may come out. Only
    safetensors on this disk are read and none of the snapshot's code is run. Raises
    :class:`~blip.errors.ModelLoadFailed` with the reason, or ``NoCapacity`` when it does not fit.
    """
    import diffusers
    import torch
    import transformers

    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    folder = Path(spec.path)
    options: dict[str, Any] = {}
    try:
        if pipeline.wants_no_checker(folder):
            options["safety_checker"] = None
        stored = weights.main_dtype(weights.total_counts(pipeline.shards(folder)))
        report(0.1)
        pipe = getattr(diffusers, cls).from_pretrained(
            folder,
            dtype=getattr(torch, weights.load_dtype(spec.dtype, stored, spec.device)),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
        report(0.7)
        pipe.to(spec.device)
    except Exception as error:
        raise load_failure(spec, error) from error
    if type(pipe).__name__ not in known:
        raise ModelLoadFailed(f"model '{spec.model}': blip does not run {type(pipe).__name__}")
    pipe.set_progress_bar_config(disable=True)
    report(0.9)
    return pipe

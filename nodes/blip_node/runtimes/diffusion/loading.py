"""Loading a diffusers pipeline from a folder."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from blip.errors import ModelLoadFailed
from blip_node.models import pipeline, weights
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.loading import load_failure
from blip_node.runtimes.quantizing import quantizer


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
        if spec.means.quantization != "none":
            options["quantization_config"] = _quantization(spec, folder)
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
        _place(pipe, spec)
    except Exception as error:
        raise load_failure(spec, error) from error
    if type(pipe).__name__ not in known:
        raise ModelLoadFailed(f"model '{spec.model}': blip does not run {type(pipe).__name__}")
    pipe.set_progress_bar_config(disable=True)
    _make_lean(pipe, spec)
    report(0.9)
    return pipe


def _quantization(spec: LoadSpec, folder: Path) -> Any:
    """Return how components are quantised: denoisers and encoders, whose weights are matrices."""
    import diffusers

    there = pipeline.component_counts(folder)
    mapping = {
        name: quantizer(spec, diffusers=not name.startswith("text_encoder"))
        for name in there
        if name in pipeline.DENOISERS or name.startswith("text_encoder")
    }
    return diffusers.PipelineQuantizationConfig(quant_mapping=mapping)


def _place(pipe: Any, spec: LoadSpec) -> None:
    """Put a pipeline on its device: all of it, or what is needed at the moment."""
    import torch

    gpu = not spec.device.startswith("cpu")
    if spec.means.offload == "model" and gpu:
        pipe.enable_model_cpu_offload(device=spec.device)
    elif spec.means.offload == "group" and gpu:
        pipe.enable_group_offload(
            onload_device=torch.device(spec.device), offload_type="leaf_level", use_stream=True
        )
    elif spec.means.quantization == "none":
        pipe.to(spec.device)
    else:
        # bitsandbytes has put what it made where it belongs, and forbids to move it
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module) and not _is_fixed(component):
                component.to(spec.device)


def _is_fixed(component: Any) -> bool:
    return bool(getattr(component, "is_loaded_in_8bit", False)) or bool(
        getattr(component, "is_loaded_in_4bit", False)
    )


def _make_lean(pipe: Any, spec: LoadSpec) -> None:
    """Trade time for memory, or start-up time for speed, as the means say."""
    means = spec.means
    if means.vae_tiling == "on" and hasattr(pipe.vae, "enable_tiling"):
        pipe.vae.enable_tiling()
    if means.attention_slicing == "on":
        pipe.enable_attention_slicing()
    if means.compile:
        for name in pipeline.DENOISERS:
            if getattr(pipe, name, None) is not None:
                getattr(pipe, name).compile(dynamic=True)

"""Loading through transformers, and what its failures mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blip.errors import BlipError, ModelLoadFailed, NoCapacity, RuntimeFailed, WorkerCrashed
from blip_node.models import weights
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.quantizing import quantizer

#: Weights that a checkpoint may lack: heads that encoders without one have and nobody uses.
_UNUSED = ("pooler.",)


def load_pretrained(
    spec: LoadSpec,
    auto_class: str,
    report: Callable[[float], None],
    *,
    unused: Sequence[str] = _UNUSED,
) -> tuple[Any, Any]:
    """Load a snapshot's model, as :func:`load_model` does, and its tokenizer."""
    tokenizer = load_tokenizer(spec)
    report(0.1)
    return load_model(spec, auto_class, report, unused=unused), tokenizer


def load_model(
    spec: LoadSpec,
    auto_class: str,
    report: Callable[[float], None],
    *,
    unused: Sequence[str] = _UNUSED,
) -> Any:
    """Load a snapshot's model, by the name of a transformers ``Auto`` class.

    It is on ``spec.device`` in ``spec.dtype``, in evaluation mode. Only safetensors on this disk
    are read and none of the snapshot's code is run. ``unused`` are parts of the names of weights
    that may be missing. Raises :class:`~blip.errors.ModelLoadFailed` with the reason, or
    ``NoCapacity`` when it does not fit.
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
        if spec.means.quantization != "none":
            trusted["quantization_config"] = quantizer(spec)
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
    missing = sorted(k for k in info["missing_keys"] if not any(u in k for u in unused))
    if missing:
        # transformers would go on with random numbers in their place
        raise ModelLoadFailed(
            f"model '{spec.model}': its files lack {len(missing)} of the weights that "
            f"{type(model).__name__} needs ({missing[0]}, ...)"
        )
    report(0.9)
    return model.eval()


def load_tokenizer(spec: LoadSpec) -> Any:
    """Load a snapshot's tokenizer.

    Raises :class:`~blip.errors.ModelLoadFailed` if there is none that blip can use.
    """
    import transformers

    try:
        found = transformers.AutoTokenizer.from_pretrained(
            Path(spec.path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise load_failure(spec, error) from error
    if getattr(found, "backend_tokenizer", None) is None:
        raise ModelLoadFailed("its tokenizer has no tokenizer.json form, which blip needs")
    return found


def load_failure(spec: LoadSpec, error: Exception) -> BlipError:
    """Return what an exception while loading is to whoever wants the model."""
    if is_out_of_memory(error):
        return NoCapacity(f"model '{spec.model}' does not fit on {spec.device}: {_reason(error)}")
    hint = error.hint if isinstance(error, BlipError) else ""
    return ModelLoadFailed(f"model '{spec.model}': {_reason(error)}", hint=hint)


def failure(error: Exception) -> BlipError:
    """Return what an exception out of a model's computation is to the one who asked for it."""
    if isinstance(error, BlipError):
        return error
    if is_out_of_memory(error):
        return NoCapacity(f"the device ran out of memory: {_reason(error)}")
    if is_fatal(error):
        return WorkerCrashed(f"the device failed: {_reason(error)}")
    return RuntimeFailed(f"the model failed: {_reason(error)}")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out, on the device or on the host."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def is_fatal(error: Exception) -> bool:
    """Return whether the device is lost to this process: after a CUDA error every call fails."""
    import torch

    lost = getattr(torch, "AcceleratorError", None)  # since torch 2.8
    return lost is not None and isinstance(error, lost) and not is_out_of_memory(error)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a snapshot's ``config.json``, which ``from_pretrained`` has already accepted."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return config


def _reason(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if it says nothing."""
    if isinstance(error, BlipError):
        return error.message
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__

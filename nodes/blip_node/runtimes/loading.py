"""Loading through transformers, and what its failures mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from blip.errors import BlipError, ModelLoadFailed, NoCapacity, RuntimeFailed, WorkerCrashed
from blip_node.models import weights
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.quantizing import quantized, quantizer

#: Weights that a checkpoint may lack: heads that encoders without one have and nobody uses.
_UNUSED = ("pooler.",)

#: Files that may hold a vocabulary, whatever class reads it.
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)

#: What is said to ``from_pretrained`` of everything: nothing is downloaded, no code is run.
TRUSTED: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load_pretrained(
    spec: LoadSpec,
    cls: str,
    report: Callable[[float], None],
    *,
    unused: Sequence[str] = _UNUSED,
) -> tuple[Any, Any]:
    """Load a snapshot's model, as :func:`load_model` does, and its tokenizer."""
    tokenizer = load_tokenizer(spec)
    report(0.1)
    return load_model(spec, cls, report, unused=unused), tokenizer


def load_model(
    spec: LoadSpec,
    cls: str,
    report: Callable[[float], None],
    *,
    folder: Path | None = None,
    unused: Sequence[str] = _UNUSED,
    quantise: bool = True,
) -> Any:
    """Load a model by the name of a class of transformers, which may be an ``Auto`` one.

    It is on ``spec.device`` in ``spec.dtype``, quantised as ``spec.means`` say, in evaluation mode.
    It comes from the snapshot, or from ``folder``. Only safetensors on this disk are read and none
    of the snapshot's code is run. ``unused`` are parts of the names of weights that may be
    missing; ``quantise`` is False for a small part that stays as it is. Raises
    :class:`~blip.errors.ModelLoadFailed` with the reason, also for a model that cannot be
    quantised and was to be, or ``NoCapacity`` when it does not fit.
    """
    return load_partly(spec, cls, report, folder=folder, unused=unused, quantise=quantise)[0]


def load_partly(
    spec: LoadSpec,
    cls: str,
    report: Callable[[float], None],
    *,
    folder: Path | None = None,
    unused: Sequence[str] = _UNUSED,
    quantise: bool = True,
) -> tuple[Any, frozenset[str]]:
    """Load a model as :func:`load_model` does; also return which ``unused`` weights are missing.

    In their place it has random numbers.
    """
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    folder = folder or Path(spec.path)
    options = dict(TRUSTED)
    quantise = quantise and spec.means.quantization != "none"
    try:
        stored = weights.main_dtype(weights.total_counts(weights.shards(folder)))
        if quantise:
            options["quantization_config"] = quantizer(spec)
        if not spec.device.startswith("cpu"):
            options["device_map"] = spec.device  # straight to the device, not through CPU memory
        model, info = getattr(transformers, cls).from_pretrained(
            folder,
            dtype=getattr(torch, weights.load_dtype(spec.dtype, stored, spec.device)),
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        if quantise and _not_quantised(error):
            raise _cannot_quantise(spec) from error
        raise load_failure(spec, error) from error
    absent = frozenset(k for k in info["missing_keys"] if any(u in k for u in unused))
    missing = sorted(set(info["missing_keys"]) - absent)
    if missing:
        # transformers would go on with random numbers in their place
        raise ModelLoadFailed(
            f"model '{spec.model}': its files lack {len(missing)} of the weights that "
            f"{type(model).__name__} needs ({missing[0]}, ...)"
        )
    if quantise and not quantized(model):
        raise _cannot_quantise(spec)
    report(0.9)
    return model.eval(), absent


def _not_quantised(error: Exception) -> bool:
    """Return whether weights could be read and not be converted, which transformers has logged."""
    return isinstance(error, RuntimeError) and "conversion of the weights" in str(error)


def _cannot_quantise(spec: LoadSpec) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"model '{spec.model}': quantization '{spec.means.quantization}' is not possible for "
        "models of its architecture",
        hint="Set 'quantization' to none.",
    )


def load_part(spec: LoadSpec, cls: Any, **options: Any) -> Any:
    """Load what stands beside a snapshot's weights: a processor, a tokenizer.

    ``cls`` is a class of transformers or its name, ``options`` go to its ``from_pretrained``.
    Raises :class:`~blip.errors.ModelLoadFailed` with the reason, also for a tokenizer whose
    vocabulary is missing: transformers makes an empty one in its place.
    """
    import transformers

    folder = Path(spec.path)
    own = getattr(transformers, cls) if isinstance(cls, str) else cls
    try:
        found = own.from_pretrained(folder, **TRUSTED, **options)
    except Exception as error:
        if own.__name__.endswith("Tokenizer") and not _has_vocabulary(folder, ()):
            raise _no_vocabulary(spec, ("tokenizer.json, or what its class reads",)) from error
        raise load_failure(spec, error) from error
    tokenizer = getattr(found, "tokenizer", found)  # processors have one
    names = getattr(tokenizer, "vocab_files_names", None)
    if names and not _has_vocabulary(folder, names.values()):
        raise _no_vocabulary(spec, names.values())
    return found


def _has_vocabulary(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / name).is_file() for name in (*_VOCABULARIES, *names))


def _no_vocabulary(spec: LoadSpec, names: Iterable[str]) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"model '{spec.model}': the vocabulary of its tokenizer is missing ({', '.join(names)})",
        hint="Put the file beside its weights, as it was published.",
    )


def load_tokenizer(spec: LoadSpec) -> Any:
    """Load a snapshot's tokenizer.

    Raises :class:`~blip.errors.ModelLoadFailed` if there is none that blip can use.
    """
    found = load_part(spec, "AutoTokenizer")
    check_tokenizer(spec, found)
    return found


def check_tokenizer(spec: LoadSpec, tokenizer: Any) -> None:
    """Raise :class:`~blip.errors.ModelLoadFailed` for a tokenizer of Python code alone.

    What reads and writes text here works on the form that the tokenizers library has of one.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelLoadFailed(
            f"model '{spec.model}': its tokenizer has no tokenizer.json form, which blip needs"
        )


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

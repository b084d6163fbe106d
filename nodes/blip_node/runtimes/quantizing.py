"""Fewer bits a weight, made while a model is loaded, by the libraries that do it well."""

from __future__ import annotations

import importlib.util
from typing import Any

from blip.errors import ModelLoadFailed
from blip_node.models.means import GPU_FORMATS, LIBRARIES, library_for
from blip_node.runtimes.base import LoadSpec


def check(spec: LoadSpec) -> str:
    """Return the library that quantises a model as its means say.

    Raises :class:`~blip.errors.ModelLoadFailed` where none is installed, or none computes with
    that format on the device.
    """
    wanted = spec.means.quantization
    if wanted in GPU_FORMATS and spec.device.startswith("cpu"):
        raise ModelLoadFailed(
            f"quantization '{wanted}' needs a GPU", hint="Set it to 'int8', 'none' or 'auto'."
        )
    names = LIBRARIES[wanted]
    found = library_for(wanted, [name for name in names if importlib.util.find_spec(name)])
    if found is None:
        raise ModelLoadFailed(
            f"quantization '{wanted}' needs {' or '.join(names)}, which is not installed",
            hint=f"pip install {names[0]}, or set 'quantization' to none.",
        )
    return found


def quantized(model: Any) -> bool:
    """Return whether any weight of a loaded model was quantised."""
    names = ("torchao.", "bitsandbytes.")
    return any(
        type(tensor).__module__.startswith(names)
        for parameter in model.parameters()
        for tensor in (parameter, parameter.data)
    )


def quantizer(spec: LoadSpec, *, diffusers: bool = False) -> Any:
    """Return what ``from_pretrained`` takes as ``quantization_config``.

    transformers and diffusers have classes of the same names and arguments; ``diffusers`` says
    whose. Raises :class:`~blip.errors.ModelLoadFailed` as :func:`check` does.
    """
    if diffusers:
        import diffusers as library
    else:
        import transformers as library
    if check(spec) == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return library.TorchAoConfig(Int8WeightOnlyConfig(version=2))
    import torch

    if spec.means.quantization == "int8":
        return library.BitsAndBytesConfig(load_in_8bit=True)
    return library.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )

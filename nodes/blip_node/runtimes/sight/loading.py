"""Loading models with eyes: the weights, and what turns pictures and texts into their inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from blip.errors import ModelLoadFailed
from blip_node.models import weights
from blip_node.models.files import read_object
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.loading import load_failure

#: Weights that a checkpoint may lack: heads that only pooled features are made with.
_UNUSED = ("pooler.",)

#: What transformers calls the part of a processor that reads videos.
_VIDEOS = "video_processor"


def load_seeing(
    spec: LoadSpec, auto_class: str, processor_class: str, report: Callable[[float], None]
) -> tuple[Any, Any]:
    """Load a snapshot's model and its processor; see :func:`load_partly`."""
    model, processor, _ = load_partly(spec, auto_class, processor_class, report)
    return model, processor


def load_partly(
    spec: LoadSpec, auto_class: str, processor_class: str, report: Callable[[float], None]
) -> tuple[Any, Any, frozenset[str]]:
    """Load a snapshot's model and its processor, by the names of transformers' ``Auto`` classes.

    Also returns the names of weights that the files lack and hardly any task uses: there the model
    has random numbers. It is on ``spec.device`` in ``spec.dtype``, in evaluation mode. Only
    safetensors on this disk are read and none of the snapshot's code is run. Raises
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
        processor = _processor(folder, processor_class, trusted)
        report(0.1)
        if not spec.device.startswith("cpu"):
            trusted["device_map"] = spec.device
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype=getattr(torch, weights.load_dtype(spec.dtype, stored, spec.device)),
            use_safetensors=True,
            output_loading_info=True,
            **trusted,
        )
    except Exception as error:
        raise load_failure(spec, error) from error
    unused = frozenset(key for key in info["missing_keys"] if any(u in key for u in _UNUSED))
    missing = sorted(set(info["missing_keys"]) - unused)
    if missing:
        # transformers would go on with random numbers in their place
        raise ModelLoadFailed(
            f"model '{spec.model}': its files lack {len(missing)} of the weights that "
            f"{type(model).__name__} needs ({missing[0]}, ...)"
        )
    report(0.9)
    return model.eval(), processor, unused


def _processor(folder: Path, auto_class: str, trusted: dict[str, Any]) -> Any:
    import transformers
    from transformers.models.auto.processing_auto import processor_class_from_name
    from transformers.utils import is_torchvision_available

    auto = getattr(transformers, auto_class)
    if auto_class == "AutoProcessor" and not is_torchvision_available():
        found = processor_class_from_name(_processor_name(folder))
        if found is not None and _VIDEOS in found.get_attributes():
            return without_videos(found).from_pretrained(folder, **trusted)
    return auto.from_pretrained(folder, **trusted)


def _processor_name(folder: Path) -> str:
    """Return the name of the class that prepares a model's inputs, as its files say."""
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        name = read_object(folder / file, missing_ok=True).get("processor_class")
        if isinstance(name, str):
            return name
    return ""


def without_videos(processor: Any) -> Any:
    """Return the class of a processor, less its part for videos.

    That part needs torchvision, which nothing else does: without it, models such as Qwen-VL
    could not be loaded even for pictures.
    """

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in processor.get_attributes() if name != _VIDEOS]

    # under the name by which it is looked up and saved
    own = {"get_attributes": classmethod(get_attributes), "__module__": processor.__module__}
    return type(processor.__name__, (processor,), own)


def to_model(model: Any, inputs: Any) -> Any:
    """Return a processor's tensors on the model's device; numbers of pixels in its dtype."""
    return inputs.to(model.device, model.dtype)

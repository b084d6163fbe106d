"""Loading models with eyes: the weights, and what turns pictures and texts into their inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from blip_node.models.files import read_object
from blip_node.runtimes import loading
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.loading import load_part

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

    Also returns the names of weights that the files lack and hardly any task uses. See
    :func:`blip_node.runtimes.loading.load_partly`, also for what is raised.
    """
    processor = _processor(spec, processor_class)
    report(0.1)
    model, absent = loading.load_partly(spec, auto_class, report)
    return model, processor, absent


def _processor(spec: LoadSpec, auto_class: str) -> Any:
    from transformers.models.auto.processing_auto import processor_class_from_name
    from transformers.utils import is_torchvision_available

    if auto_class != "AutoProcessor" or is_torchvision_available():
        return load_part(spec, auto_class)
    found = processor_class_from_name(_processor_name(Path(spec.path)))
    if found is None or _VIDEOS not in found.get_attributes():
        return load_part(spec, auto_class)
    return load_part(spec, without_videos(found))


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

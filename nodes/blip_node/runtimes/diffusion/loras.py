"""LoRAs: small changes to a model's weights, loaded once with it and turned on by the task."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blip.errors import BlipError, InvalidRequest, UnsupportedField
from blip.kinds.image import Lora
from blip_node.models.additions import Addition, lora_file
from blip_node.runtimes.loading import is_out_of_memory

log = logging.getLogger(__name__)

#: What stands behind a layer's name in the keys of a LoRA's file, in the forms that diffusers
#: brings all of them to.
_MARKS = (
    ".lora_A.",
    ".lora_B.",
    ".lora_magnitude_vector",
    ".lora.down.",
    ".lora.up.",
    ".lora_linear_layer.",
    "_lora.",
)


class Loras:
    """The LoRAs of one pipeline. Used on the thread that paints, between pictures."""

    def __init__(self, pipe: Any, additions: Sequence[Addition], model: str) -> None:
        self._pipe = pipe
        self._model = model
        #: What the pipeline calls each: its own names must not have dots.
        self._adapters: dict[str, str] = {}
        self._errors: dict[str, str] = {}
        for number, addition in enumerate(additions):
            try:
                self._load(addition, f"lora_{number}")
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reason = error.message if isinstance(error, BlipError) else _said(error)
                self._errors[addition.name] = reason
                log.warning("model '%s': the LoRA '%s': %s", model, addition.name, reason)
            else:
                self._adapters[addition.name] = f"lora_{number}"
        if self._adapters:
            pipe.disable_lora()

    def check(self, wanted: Sequence[Lora]) -> None:
        """Raise :class:`~blip.errors.InvalidRequest` unless all of them can be used together."""
        names = [lora.name for lora in wanted]
        for name in names:
            if name in self._errors:
                raise InvalidRequest(
                    f"'loras': '{name}' cannot be used with {self._model}: {self._errors[name]}.",
                    hint=self._known(),
                    param="loras",
                )
            if name not in self._adapters:
                raise InvalidRequest(
                    f"'loras': {self._model} has no LoRA called '{name}'.",
                    hint=self._known(),
                    param="loras",
                )
            if names.count(name) > 1:
                raise InvalidRequest(f"'loras' names '{name}' twice.", param="loras")

    def _known(self) -> str:
        if not self._adapters:
            return "It has none; a node's owner names them in the model's configuration."
        return f"It has {', '.join(sorted(self._adapters))}."

    @contextmanager
    def active(self, wanted: Sequence[Lora]) -> Iterator[None]:
        """Have the pipeline, and all that share its weights, use these; afterwards none."""
        self.check(wanted)
        chosen = {self._adapters[lora.name]: lora.weight for lora in wanted if lora.weight}
        if not chosen:
            yield
            return
        try:
            self._pipe.set_adapters(list(chosen), list(chosen.values()))
            self._pipe.enable_lora()
            yield
        finally:
            self._pipe.disable_lora()

    def _load(self, addition: Addition, adapter: str) -> None:
        with warnings.catch_warnings():
            # peft tells that there are several adapters, which is what we want
            warnings.simplefilter("ignore", UserWarning)
            self._load_quietly(addition, adapter)

    def _load_quietly(self, addition: Addition, adapter: str) -> None:
        if addition.error:
            raise InvalidRequest(addition.error)
        pipe = self._pipe
        if not hasattr(pipe, "load_lora_weights"):
            raise UnsupportedField(f"{type(pipe).__name__} takes no LoRA")
        file = lora_file(Path(addition.path))
        try:
            pipe.load_lora_weights(
                str(file.parent),
                weight_name=file.name,
                adapter_name=adapter,
                use_safetensors=True,
                local_files_only=True,
            )
            self._check_layers(file, adapter)
        except Exception as error:
            self._forget(adapter)
            if "size mismatch" in str(error):
                raise InvalidRequest(
                    "it was made for a model of another architecture: its layers have other sizes"
                ) from error
            raise

    def _check_layers(self, file: Path, adapter: str) -> None:
        """Raise unless every layer in the file is in the model: diffusers leaves out the rest."""
        said = self._pipe.lora_state_dict(
            str(file.parent), weight_name=file.name, use_safetensors=True, local_files_only=True
        )
        state = said[0] if isinstance(said, tuple) else said
        asked = {_layer(key) for key in state if "lora" in key and "alpha" not in key}
        if not asked:
            raise InvalidRequest("it has no layers of a LoRA in it")
        found = 0
        for component in self._pipe.components.values():
            if hasattr(component, "named_modules"):
                found += sum(
                    adapter in getattr(module, "lora_A", ())
                    for _, module in component.named_modules()
                )
        if found < len(asked):
            raise InvalidRequest(
                f"it was made for a model of another architecture: {len(asked) - found} of its "
                f"{len(asked)} layers are not in this one"
            )

    def _forget(self, adapter: str) -> None:
        try:
            self._pipe.delete_adapters(adapter)
        except Exception as error:  # it was never there, in whole or in part
            log.debug("no %s to delete: %s", adapter, error)


def _layer(key: str) -> str:
    """Return the layer that a key of a LoRA's weights belongs to."""
    for mark in _MARKS:
        if mark in key:
            return key.partition(mark)[0]
    return key


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__

"""``image-feature-extraction``: a picture as vectors, one a patch or one for all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from blip.errors import UnsupportedField
from blip.kinds.vision import Features, ImageFeaturesInput, to_wire
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.sight.classify import no_numbers
from blip_node.runtimes.sight.loading import load_partly, to_model


def load(spec: LoadSpec, architecture: str, report: Callable[[float], None]) -> Any:
    """Load an encoder of pictures."""
    model, processor, missing = load_partly(spec, "AutoModel", "AutoImageProcessor", report)
    return Encoder(spec.model, model, processor, pools=not missing)


class Encoder:
    """A model whose hidden states are asked for."""

    def __init__(self, name: str, model: Any, processor: Any, *, pools: bool) -> None:
        self._name, self._model, self._processor = name, model, processor
        #: Whether the files have what its pooled output is made with.
        self._pools = pools

    def __call__(self, wishes: ImageFeaturesInput, picture: Image.Image) -> bytes:
        """Return the vectors; see :class:`~blip_node.runtimes.sight.engine.Task`."""
        inputs = to_model(self._model, self._processor(images=picture, return_tensors="pt"))
        output = self._model(**inputs)
        found = self._pooled(output) if wishes.pool else _rows(output.last_hidden_state)
        if not found.isfinite().all():
            raise no_numbers()
        values = found.float().cpu().contiguous().numpy().astype("<f4").tobytes()
        return to_wire(Features(len(found), values))

    def _pooled(self, output: Any) -> Tensor:
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is None or not self._pools:
            raise UnsupportedField(
                f"'pool': {self._name} has no pooling layer.",
                hint="Leave it out; the first vector, or the mean of all, is what many use.",
                param="pool",
            )
        return pooled.reshape(1, -1)


def _rows(states: Tensor) -> Tensor:
    """Return [1, rows, size] as [rows, size], and a convolution's [1, size, height, width] too."""
    if states.dim() == 4:
        states = states.flatten(2).transpose(1, 2)
    return states[0]

"""What is known of a model before it is loaded, and what it will take of a device. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blip.protocol.messages import PluginKind
from blip_node.models import weights
from blip_node.models.means import BITS, GROUP_SHARE, Means


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a model before it is loaded.

    ``counts`` are stored elements by safetensors dtype; ``context`` is in tokens; ``dimensions``
    is the length of an embedding; ``cache_elements`` are the numbers that one token leaves in a
    key-value cache, ``activations`` those that live at once while a picture is painted. A model
    that is not ``on_disk`` yet has only its name, source and configured kinds.
    """

    name: str
    source: str
    kinds: tuple[str, ...] = ()
    on_disk: bool = True
    path: str = ""
    architecture: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    context: int | None = None
    dimensions: int | None = None
    cache_elements: int = 0
    activations: int = 0
    #: Of a pipeline: the largest component's share of the weights, and what of ``activations`` is
    #: left when its decoder works in tiles.
    largest_share: float = 1.0
    tile_share: float = 1.0
    pipeline: bool = False
    #: Of a pipeline: weights of LoRAs and ControlNets, which stay as they are and where they are
    #: whatever is done to the others.
    added: Mapping[str, int] = field(default_factory=dict)
    #: Whether fewer bits a weight can be made of it.
    quantizes: bool = True
    #: Bytes of weights that are computed as they are stored: a GGUF file's, in llama.cpp.
    packed: int = 0
    #: Tasks that it runs at once, where that is not what others of its kinds do.
    slots: int | None = None
    #: Of a plugin: its kind, and the device memory it asks for.
    plugin: PluginKind | None = None
    memory: int = 0
    #: Whether :func:`~blip_node.models.prepare.prepare` has to convert it first.
    convert: bool = False

    @property
    def parameters(self) -> int:
        """Number of weights as stored; packed (quantised) formats count their packed numbers."""
        return sum(self.counts.values()) + sum(self.added.values())

    @property
    def bytes(self) -> int:
        """Bytes of the weights as stored (of a GGUF: as they will be stored once converted)."""
        return weights.stored_bytes(self.counts) + weights.stored_bytes(self.added)

    def load_bytes(
        self, dtype: str = "auto", device: str = "cuda", means: Means | None = None
    ) -> int:
        """Return the bytes that the weights take on a device in a dtype, by settled ``means``."""
        if self.packed:
            return self.packed
        loaded = self._dtype(dtype, device)
        size, added = (weights.loaded_bytes(each, loaded) for each in (self.counts, self.added))
        if means is None:
            return size + added
        if means.quantization != "none":
            size = min(size, sum(self.counts.values()) * BITS[means.quantization] // 8)
        if means.offload != "none":
            share = self.largest_share * (GROUP_SHARE if means.offload == "group" else 1.0)
            size = round(size * share)
        return size + added

    def cache_bytes(self, tokens: int, dtype: str = "auto", device: str = "cuda") -> int:
        """Return the bytes of a key-value cache of that many tokens."""
        dtype = "float16" if self.packed else dtype  # llama.cpp's own choice
        per_element = weights.loaded_bytes({"F32": 1}, self._dtype(dtype, device))
        return tokens * self.cache_elements * per_element

    def activation_bytes(
        self, dtype: str = "auto", device: str = "cuda", means: Means | None = None
    ) -> int:
        """Return the bytes that a task of this model takes beside the weights."""
        tiled = means is not None and means.vae_tiling == "on"
        elements = round(self.activations * self.tile_share) if tiled else self.activations
        return weights.loaded_bytes({"F32": elements}, self._dtype(dtype, device))

    def _dtype(self, dtype: str, device: str) -> str:
        return weights.load_dtype(dtype, weights.main_dtype(self.counts), device)

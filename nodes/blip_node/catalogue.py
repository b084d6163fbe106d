"""The models that this node offers, and why some of them cannot be had at the moment."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator

from blip.errors import BlipError, ModelNotFound
from blip.protocol import messages
from blip_node.footprints import Footprints
from blip_node.gauge import CONTEXT_BYTES
from blip_node.models.snapshot import Description, describe
from blip_node.models.spec import Fileless, ModelSpec, parse_source
from blip_node.runtimes.decoding.capacity import cache_tokens

log = logging.getLogger(__name__)

#: Tasks that a replica runs at once where nothing is configured, by kind. Text is batched: a pass
#: for 32 rows takes little longer than for one, until their attention costs what the weights do;
#: an embedding batches what it has; images are painted one by one, and looked at
#: one by one, too, also by chat models that see; an echo waits.
SLOTS = {
    "chat": 32,
    "completion": 32,
    "embedding": 16,
    "image": 1,
    "caption": 1,
    "detection": 1,
    "image-classification": 1,
    "depth": 1,
    "segmentation": 1,
    "echo": 256,
}

#: What a replica takes besides its weights, as a share of them (activations, allocator slack).
OVERHEAD = 0.1

#: What a worker takes on a CPU before the weights count: pages of its libraries that it is the
#: first to touch, and its threads. 31 to 35 MiB were measured with models of a megabyte.
CPU_BYTES = 32 * 1024 * 1024

#: How long a model whose load failed is left alone, unless its configuration changes.
RETRY_AFTER = 30.0


class Entry:
    """One model of this node."""

    def __init__(
        self, spec: ModelSpec, description: Description, footprints: Footprints | None = None
    ) -> None:
        self.spec = spec
        self._footprints = footprints or Footprints()
        self.description = description
        self.kinds = description.kinds
        usual = 1 if description.serial else min((SLOTS.get(k, 1) for k in self.kinds), default=1)
        self.slots = spec.slots or usual
        #: Why it could not be loaded, and until when that is taken as final.
        self.error: BlipError | None = None
        self.retry_at = 0.0

    def load_bytes(self, *, gpu: bool) -> int:
        """Bytes of the weights on a device of that sort."""
        return self.description.load_bytes(self.spec.dtype, "cuda" if gpu else "cpu")

    @property
    def weightless(self) -> bool:
        """Whether there is no model behind it, and so nothing that takes device memory."""
        return isinstance(parse_source(self.spec.source, self.spec.name), Fileless)

    def memory(self, *, gpu: bool) -> int:
        """Device memory that a replica is expected to take, in bytes: measured, if it ever was."""
        if self.weightless:
            return 0
        known = self._footprints.expected(self.spec, self.slots, gpu=gpu)
        return self._estimate(gpu=gpu) if known is None else known

    def measured(self, size: int, *, gpu: bool) -> None:
        """A replica took ``size`` bytes at its peak so far."""
        if not self.weightless:
            self._footprints.measured(self.spec, self.slots, size, gpu=gpu)

    def ended(self, size: int, *, gpu: bool) -> None:
        """A replica that had work has ended; ``size`` bytes were its peak."""
        if not self.weightless:
            self._footprints.ended(self.spec, self.slots, size, gpu=gpu)

    def outgrown(self, had: int, *, gpu: bool) -> int:
        """Memory ran out where ``had`` bytes were free; return what it is believed to need now."""
        thought = self.memory(gpu=gpu)
        return self._footprints.outgrown(self.spec, self.slots, thought, had, gpu=gpu)

    def _estimate(self, *, gpu: bool) -> int:
        """What headers and configuration say, 0 if they are not here yet."""
        if not self.description.on_disk:
            return 0
        cache = 0
        if "chat" in self.kinds or "completion" in self.kinds:
            tokens = cache_tokens(self.slots, self.description.context)
            device = "cuda" if gpu else "cpu"
            cache = self.description.cache_bytes(tokens, self.spec.dtype, device)
        if "image" in self.kinds:  # one task at a time, whatever the slots
            device = "cuda" if gpu else "cpu"
            cache = self.description.activation_bytes(self.spec.dtype, device)
        base = CONTEXT_BYTES if gpu else CPU_BYTES
        return int(self.load_bytes(gpu=gpu) * (1 + OVERHEAD)) + cache + base

    def broken(self, error: BlipError, now: float) -> None:
        """Remember why it could not be loaded: it is told once, not found out once a request."""
        self.error = error
        self.retry_at = now + RETRY_AFTER

    def advert(self, now: float, *, gpu: bool) -> messages.Model:
        """Describe it for an advert of a node that has GPUs, or none."""
        waiting = self.error is not None and now < self.retry_at
        return messages.Model(
            self.spec.name,
            list(self.kinds),
            self.memory(gpu=gpu),
            self.load_bytes(gpu=gpu),
            self.slots,
            self.spec.context or self.description.context,
            self.error.message if self.error is not None and waiting else "",
            self.retry_at - now if waiting else 0.0,
            parameters=self.description.parameters,
            min_replicas=self.spec.min_replicas,
            max_replicas=self.spec.max_replicas or 0,
        )


class Catalogue:
    """The models of this node by name, and what they were measured to take."""

    def __init__(self, footprints: Footprints | None = None) -> None:
        self.footprints = footprints or Footprints()
        self._entries: dict[str, Entry] = {}
        #: Models that cannot be offered as they are, and why.
        self.rejected: dict[str, BlipError] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def adverts(self, now: float, *, gpu: bool) -> list[messages.Model]:
        """Describe every model, those that cannot be offered with their reason and no kind."""
        rejected = [
            messages.Model(name, [], error=error.message) for name, error in self.rejected.items()
        ]
        return [entry.advert(now, gpu=gpu) for entry in self] + rejected

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> Entry | None:
        """Return a model by name."""
        return self._entries.get(name)

    def find(self, name: str) -> Entry:
        """Return a model by name.

        Raises :class:`~blip.errors.ModelNotFound` with near names, or the reason why a model that
        is configured cannot be offered.
        """
        entry = self._entries.get(name)
        if entry is not None:
            return entry
        if name in self.rejected:
            raise self.rejected[name]
        near = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.4)
        guess = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ModelNotFound(
            f"this node has no model '{name}'{guess}", param="model", details={"near": near}
        )

    def add(self, specs: Iterable[ModelSpec]) -> None:
        """Describe models and offer them; blocking (it reads headers), so call it in a thread.

        A model that cannot be described is rejected with its reason, and harms no other. The
        first of two with one name wins: what is configured is added before what is found.
        """
        for spec in specs:
            if spec.name in self._entries:
                continue
            try:
                description = describe(spec)
            except BlipError as error:
                log.warning("%s", error.message)
                self.rejected[spec.name] = error
                continue
            if description.kinds:
                self._entries[spec.name] = Entry(spec, description, self.footprints)
            else:
                log.warning("model '%s' is not on disk and has no configured kinds", spec.name)

    def withdraw(self, name: str, error: BlipError | None = None) -> None:
        """Offer a model no more; with an ``error`` it stays listed, with that as the reason."""
        self._entries.pop(name, None)
        self.rejected.pop(name, None)
        if error is not None:
            self.rejected[name] = error

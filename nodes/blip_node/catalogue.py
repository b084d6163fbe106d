"""The models that this node offers, and why some of them cannot be had at the moment."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from blip.errors import BlipError
from blip.protocol import messages
from blip_node.models.snapshot import Description, describe
from blip_node.models.spec import ModelSpec

log = logging.getLogger(__name__)

#: Tasks that a replica runs at once where nothing is configured, by kind. Text interleaves whole
#: sequences, so more slots slow each of them; an embedding batches what it has; an echo waits.
SLOTS = {"chat": 4, "completion": 4, "embedding": 16, "echo": 256}

#: Key-value cache that a text slot is assumed to need, in tokens, whatever its context allows: a
#: 128k window is rarely filled, and reserving it would leave no model fitting anywhere.
CACHE_TOKENS = 2048

#: What a replica takes besides its weights, as a share of them (activations, allocator slack).
OVERHEAD = 0.1

#: How long a model whose load failed is left alone, unless its configuration changes.
RETRY_AFTER = 30.0


class Entry:
    """One model of this node."""

    def __init__(self, spec: ModelSpec, description: Description) -> None:
        self.spec = spec
        self.description = description
        self.kinds = description.kinds
        self.slots = spec.slots or min((SLOTS.get(kind, 1) for kind in self.kinds), default=1)
        #: Why it could not be loaded, and until when that is taken as final.
        self.error: BlipError | None = None
        self.retry_at = 0.0

    def load_bytes(self, *, gpu: bool) -> int:
        """Bytes of the weights on a device of that sort."""
        return self.description.load_bytes(self.spec.dtype, "cuda" if gpu else "cpu")

    def memory(self, *, gpu: bool) -> int:
        """Device memory that a replica is expected to take, in bytes."""
        cache = 0
        if "chat" in self.kinds or "completion" in self.kinds:
            tokens = min(self.description.context or CACHE_TOKENS, CACHE_TOKENS)
            device = "cuda" if gpu else "cpu"
            cache = self.slots * self.description.cache_bytes(tokens, self.spec.dtype, device)
        return int(self.load_bytes(gpu=gpu) * (1 + OVERHEAD)) + cache

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
        )


class Catalogue:
    """The models of this node by name."""

    def __init__(self) -> None:
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
                self._entries[spec.name] = Entry(spec, description)
            else:
                log.warning("model '%s' is not on disk and has no configured kinds", spec.name)

    def withdraw(self, name: str, error: BlipError | None = None) -> None:
        """Offer a model no more; with an ``error`` it stays listed, with that as the reason."""
        self._entries.pop(name, None)
        self.rejected.pop(name, None)
        if error is not None:
            self.rejected[name] = error

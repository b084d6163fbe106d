"""The models that this node offers, and why some of them cannot be had at the moment."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

from blip.errors import BlipError, ConfigError, ModelNotFound
from blip.protocol import messages
from blip_node.footprints import Footprints
from blip_node.gauge import CONTEXT_BYTES
from blip_node.models.description import Description
from blip_node.models.means import LIBRARIES, Ground, Means, settle
from blip_node.models.snapshot import describe
from blip_node.models.spec import Fileless, ModelSpec, parse_source
from blip_node.runtimes.decoding.capacity import cache_tokens

log = logging.getLogger(__name__)

#: Tasks that a replica runs at once where nothing is configured, by kind; 1 of those not named,
#: whose pictures and sounds are made or looked at one by one. Text is batched: a pass for 32 rows
#: takes little longer than for one, until their attention costs what the weights do. What is one
#: pass over a text is batched as well; texts are judged one by one, and more slots spare the way to
#: the next; of two texts one is spoken while the other's audio is taken;
#: an echo waits.
SLOTS = {
    "chat": 32,
    "completion": 32,
    **dict.fromkeys(
        (
            "embedding",
            "rerank",
            "text-classification",
            "zero-shot-classification",
            "token-classification",
            "fill-mask",
            "feature-extraction",
            "question-answering",
        ),
        16,
    ),
    "moderation": 8,
    "speech": 2,
    "echo": 256,
}

#: What a replica takes besides its weights, as a share of them (activations, allocator slack).
OVERHEAD = 0.1

#: What a worker takes on a CPU before the weights count: pages of its libraries that it is the
#: first to touch, and its threads. 31 to 35 MiB were measured with models of a megabyte.
CPU_BYTES = 32 * 1024 * 1024

#: Most bytes of all schemas of a node's plugins: its advert must fit a control link with room for
#: everything else.
MAX_SCHEMA_BYTES = 256 * 1024

#: How long a model whose load failed is left alone, unless its configuration changes.
RETRY_AFTER = 30.0


class Entry:
    """One model of this node."""

    def __init__(
        self, spec: ModelSpec, description: Description, footprints: Footprints | None = None
    ) -> None:
        self._configured = spec
        #: As it is loaded here: nothing about how it is made to fit is left open.
        self.spec = replace(spec, means=spec.means.plain())
        self._ground = Ground(None, False)
        self._footprints = footprints or Footprints()
        self.description = description
        self.kinds = description.kinds
        own = description.slots or min((SLOTS.get(kind, 1) for kind in self.kinds), default=1)
        self.slots = spec.slots or own
        #: Why it could not be loaded, and until when that is taken as final.
        self.error: BlipError | None = None
        self.retry_at = 0.0

    def load_bytes(self, *, gpu: bool) -> int:
        """Bytes of the weights on a device of that sort."""
        return self.description.load_bytes(self.spec.dtype, _device(gpu), self.spec.means)

    def settle(self, ground: Ground) -> None:
        """Choose how it is made to fit, by what is known of this node's devices and of itself."""
        self._ground = ground
        described = self.description
        if self.weightless or not described.on_disk or not described.quantizes:
            return

        def need(means: Means) -> int:
            spec = replace(self._configured, means=means)
            known = self._footprints.expected(spec, self.slots, gpu=ground.gpu)
            return self._estimate(means, gpu=ground.gpu) if known is None else known

        means = settle(self._configured.means, ground, need, pipeline=self.description.pipeline)
        if means != self.spec.means:
            log.info("model '%s' is loaded with %s", self.spec.name, means)
            self.spec = replace(self._configured, means=means)

    @property
    def weightless(self) -> bool:
        """Whether there is no model behind it, and so nothing that takes device memory."""
        source = parse_source(self.spec.source, self.spec.name)
        return isinstance(source, Fileless) and not self.description.memory

    def memory(self, *, gpu: bool) -> int:
        """Device memory that a replica is expected to take, in bytes: measured, if it ever was."""
        if self.weightless:
            return 0
        known = self._footprints.expected(self.spec, self.slots, gpu=gpu)
        return self._estimate(self.spec.means, gpu=gpu) if known is None else known

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
        need = self._footprints.outgrown(self.spec, self.slots, thought, had, gpu=gpu)
        self.settle(self._ground)
        return need

    def _estimate(self, means: Means, *, gpu: bool) -> int:
        """What headers and configuration say, 0 if they are not here yet."""
        if not self.description.on_disk:
            return 0
        cache = self.description.memory
        if "chat" in self.kinds or "completion" in self.kinds:
            tokens = cache_tokens(self.slots, self.description.context)
            cache = self.description.cache_bytes(tokens, self.spec.dtype, _device(gpu))
        if {"image", "video", "upscale"} & set(
            self.kinds
        ):  # one task at a time, whatever the slots
            cache = self.description.activation_bytes(self.spec.dtype, _device(gpu), means)
        base = CONTEXT_BYTES if gpu else CPU_BYTES
        weights = self.description.load_bytes(self.spec.dtype, _device(gpu), means)
        return int(weights * (1 + OVERHEAD)) + cache + base

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
            loras=[name for name, _ in self.spec.loras],
            controlnets=[name for name, _ in self.spec.controlnets],
        )


@functools.cache
def _libraries() -> frozenset[str]:
    """Return which libraries that quantise are installed, without importing them."""
    names = {name for several in LIBRARIES.values() for name in several}
    return frozenset(name for name in names if importlib.util.find_spec(name) is not None)


def _device(gpu: bool) -> str:
    return "cuda" if gpu else "cpu"


class Catalogue:
    """The models of this node by name, and what they were measured to take."""

    def __init__(self, footprints: Footprints | None = None) -> None:
        self.footprints = footprints or Footprints()
        self._entries: dict[str, Entry] = {}
        self._ground = Ground(None, False)
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
            if (clash := self._clash(description)) is not None:
                log.warning("%s", clash.message)
                self.rejected[spec.name] = clash
                continue
            if description.kinds:
                entry = self._entries[spec.name] = Entry(spec, description, self.footprints)
                entry.settle(self._ground)
            else:
                log.warning("model '%s' is not on disk and has no configured kinds", spec.name)

    def settle(self, room: int | None, *, gpu: bool) -> None:
        """Take note of the largest device, in bytes, and settle how models are made to fit it."""
        found = Ground(room, gpu, _libraries())
        if found != self._ground:
            self._ground = found
            for entry in self:
                entry.settle(found)

    @property
    def kinds(self) -> list[messages.PluginKind]:
        """The kinds that plugins define, by name."""
        found = {each.description.plugin for each in self}
        return sorted(kind for kind in found if kind is not None)

    def _clash(self, new: Description) -> BlipError | None:
        """Return why a plugin cannot be offered beside those that are."""
        if new.plugin is None or new.plugin in self.kinds:
            return None
        if any(kind.name == new.plugin.name for kind in self.kinds):
            return ConfigError(
                f"model '{new.name}': another plugin of this node defines a kind "
                f"'{new.plugin.name}' that is not the same",
                param="source",
            )
        size = sum(
            len(kind.input_schema + kind.output_schema) for kind in [*self.kinds, new.plugin]
        )
        if size > MAX_SCHEMA_BYTES:
            return ConfigError(
                f"model '{new.name}': with this plugin the schemas of the node's kinds take {size} "
                f"bytes; {MAX_SCHEMA_BYTES} are the most",
                param="source",
            )
        return None

    def withdraw(self, name: str, error: BlipError | None = None) -> None:
        """Offer a model no more; with an ``error`` it stays listed, with that as the reason."""
        self._entries.pop(name, None)
        self.rejected.pop(name, None)
        if error is not None:
            self.rejected[name] = error

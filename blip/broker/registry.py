"""Which nodes there are, how alive they are, and what gateways have not been told yet.

A node is heard of in this order::

    hello        advert        3 s quiet       10 s silent      60 s
    ────► JOINED ────► READY ◄────────► SUSPECT ────► LOST ────► GONE
                              any word

:data:`TRANSITIONS` is that drawing as a table, and the only place where a status changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from blip.errors import ConfigError
from blip.protocol.messages import Advert, Device, Model, NodeEntry, Nodes, Replica


class Status(StrEnum):
    """How alive a node is."""

    #: It said HELLO and has not stated its capacity yet.
    JOINED = "joined"
    #: Attempts are placed on it.
    READY = "ready"
    #: Quiet: keeps what it has, gets nothing new.
    SUSPECT = "suspect"
    #: Its leases are revoked; a word from it heals it, but what it had stays revoked.
    LOST = "lost"
    #: No longer in the registry.
    GONE = "gone"


class Event(StrEnum):
    """What can happen to a node."""

    HELLO = "hello"
    #: A HELLO of a newer incarnation.
    RESTART = "restart"
    ADVERT = "advert"
    #: Any other sign of life.
    WORD = "word"
    QUIET = "quiet"
    SILENT = "silent"
    FORGOTTEN = "forgotten"
    #: The transport says that nothing reaches it.
    UNREACHABLE = "unreachable"
    GOODBYE = "goodbye"


_J, _R, _S, _L, _G = Status.JOINED, Status.READY, Status.SUSPECT, Status.LOST, Status.GONE

#: ``TRANSITIONS[status][event]``; every pair is listed, so nothing happens by omission.
TRANSITIONS: dict[Status, dict[Event, Status]] = {
    _J: {
        Event.HELLO: _J,
        Event.RESTART: _J,
        Event.ADVERT: _R,
        Event.WORD: _J,
        Event.QUIET: _J,
        Event.SILENT: _L,
        Event.FORGOTTEN: _G,
        Event.UNREACHABLE: _L,
        Event.GOODBYE: _G,
    },
    _R: {
        Event.HELLO: _R,
        Event.RESTART: _J,
        Event.ADVERT: _R,
        Event.WORD: _R,
        Event.QUIET: _S,
        Event.SILENT: _L,
        Event.FORGOTTEN: _G,
        Event.UNREACHABLE: _L,
        Event.GOODBYE: _G,
    },
    _S: {
        Event.HELLO: _R,
        Event.RESTART: _J,
        Event.ADVERT: _R,
        Event.WORD: _R,
        Event.QUIET: _S,
        Event.SILENT: _L,
        Event.FORGOTTEN: _G,
        Event.UNREACHABLE: _L,
        Event.GOODBYE: _G,
    },
    _L: {
        Event.HELLO: _J,  # it must state its capacity afresh
        Event.RESTART: _J,
        Event.ADVERT: _R,
        Event.WORD: _L,
        Event.QUIET: _L,
        Event.SILENT: _L,
        Event.FORGOTTEN: _G,
        Event.UNREACHABLE: _L,
        Event.GOODBYE: _G,
    },
}


@dataclass(frozen=True, slots=True)
class Liveness:
    """Seconds of silence until a node is suspect, lost and forgotten.

    ``stall_after``: ticks come more often than this. A longer gap means that this very process
    slept (a suspended laptop, a busy machine) and heard nobody; the rest of the gap is not held
    against the nodes.
    """

    suspect_after: float = 3.0
    lost_after: float = 10.0
    forget_after: float = 60.0
    stall_after: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.suspect_after <= self.lost_after <= self.forget_after:
            raise ConfigError(
                "liveness must be 0 < suspect_after <= lost_after <= forget_after, not "
                f"{self.suspect_after}, {self.lost_after}, {self.forget_after}"
            )
        if not self.stall_after > 0:
            raise ConfigError("liveness 'stall_after' must be above 0")


class Admission(StrEnum):
    """What became of a HELLO."""

    NEW = "new"
    #: The same incarnation again, over a new connection.
    RETURNED = "returned"
    #: A newer incarnation: what the older one held is void.
    SUPERSEDED = "superseded"
    #: An older incarnation than the one we know; answer GOODBYE(superseded).
    REJECTED = "rejected"


class Hearing(StrEnum):
    """What became of an advert."""

    ACCEPTED = "accepted"
    #: Not newer than the last one.
    STALE = "stale"
    #: From a stranger; answer GOODBYE(unknown_epoch).
    UNKNOWN = "unknown"


class Change(NamedTuple):
    """A node's status changed."""

    node: NodeRecord
    before: Status
    after: Status


@dataclass(slots=True, eq=False)
class NodeRecord:
    """What the broker knows of one node. Only the registry writes it."""

    id: str
    incarnation: int
    name: str
    host: str
    endpoints: list[str]
    heard: float
    status: Status = Status.JOINED
    #: The last advert; kept over a restart of the node until the new incarnation states its own.
    advert: Advert | None = None
    #: Number of the last advert of this incarnation.
    number: int = -1
    #: The advert as of the last change that gateways are told, and when that was.
    told: Advert | None = None
    told_at: float = 0.0

    @property
    def placeable(self) -> bool:
        """Whether anything new may be placed here."""
        return self.status is Status.READY and self.advert is not None and not self.advert.draining

    @property
    def connected(self) -> bool:
        """Whether it is there, be it quiet or still starting."""
        return self.status is not Status.LOST


#: A reading of free memory within this share of the whole, and this many bytes, is no news.
MEMORY_TOLERANCE = 0.02
MEMORY_NOISE = 64 * 1024 * 1024

#: Gateways get a node's figures at least this often while they move at all. In degraded mode they
#: place by them, and dashboards show them. At 1,000 nodes that is 200 entries a second to each
#: gateway, a fifth of what passing on every advert would cost; status and replicas go at once.
REFRESH = 5.0

#: Nodes that are gone stay listed, so that a gateway which was away for long learns of it; one
#: that missed more than this many gets the whole table again.
GONE_LIMIT = 1024

#: A NODES message stays below this many bytes, half of what a control link carries.
PAGE_BYTES = 512 * 1024


class Registry:
    """Nodes by id.

    The scheduler is the only caller of what changes nodes; anyone may read. ``version`` rises
    with each change that gateways should hear of, and :meth:`changes` tells what happened since.
    """

    def __init__(self, liveness: Liveness | None = None, refresh: float = REFRESH) -> None:
        self.liveness = liveness or Liveness()
        self.refresh = refresh
        #: 0 is the cursor of a gateway that was told nothing yet.
        self.version = 1
        self._nodes: dict[str, NodeRecord] = {}
        #: Version of each node's last change, oldest change first; of gone nodes too.
        self._log: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        #: Changes up to here have been dropped from the log.
        self._floor = 0
        self._ticked: float | None = None
        #: Seconds for which this process slept before its last tick, deaf to everyone.
        self.stalled = 0.0

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._nodes

    def get(self, node_id: str) -> NodeRecord | None:
        """Return the node, or None."""
        return self._nodes.get(node_id)

    def nodes(self) -> list[NodeRecord]:
        """Return every node, in no particular order."""
        return list(self._nodes.values())

    # --- what happens to nodes --------------------------------------------------------------

    def hello(
        self,
        node_id: str,
        incarnation: int,
        name: str,
        host: str,
        endpoints: list[str],
        now: float,
    ) -> Admission:
        """Admit a node, or reject an incarnation older than the one we know."""
        node = self._nodes.get(node_id)
        if node is None:
            self._nodes[node_id] = NodeRecord(node_id, incarnation, name, host, endpoints, now)
            return Admission.NEW
        if incarnation < node.incarnation:
            return Admission.REJECTED
        superseded = incarnation > node.incarnation
        news = superseded or (node.name, node.host, node.endpoints) != (name, host, endpoints)
        node.incarnation, node.name, node.host, node.endpoints = incarnation, name, host, endpoints
        node.heard = now
        if superseded:
            node.number = -1
        news |= self._apply(node, Event.RESTART if superseded else Event.HELLO)
        if news:
            self._touch(node, now)
        return Admission.SUPERSEDED if superseded else Admission.RETURNED

    def advert(self, node_id: str, advert: Advert, now: float) -> Hearing:
        """Take a node's statement of its capacity."""
        node = self._nodes.get(node_id)
        if node is None:
            return Hearing.UNKNOWN
        if advert.number <= node.number:
            return Hearing.STALE
        node.number = advert.number
        node.advert = advert
        node.heard = now
        changed = self._apply(node, Event.ADVERT)
        told = node.told
        if (
            changed
            or told is None
            or _matters(told, advert)
            # Slices leave out the number, which always differs, and the attempts.
            or (now - node.told_at >= self.refresh and told[1:5] != advert[1:5])
        ):
            self._touch(node, now)
        return Hearing.ACCEPTED

    def heard(self, node_id: str, now: float) -> list[Change]:
        """Note a sign of life other than HELLO and ADVERT."""
        node = self._nodes.get(node_id)
        if node is None:
            return []
        node.heard = now
        return self._happen(node, Event.WORD, now)

    def unreachable(self, node_id: str, now: float) -> list[Change]:
        """Note that the transport cannot reach it: lost at once."""
        node = self._nodes.get(node_id)
        return [] if node is None else self._happen(node, Event.UNREACHABLE, now)

    def goodbye(self, node_id: str, now: float) -> list[Change]:
        """Let a node leave in good order."""
        node = self._nodes.get(node_id)
        return [] if node is None else self._happen(node, Event.GOODBYE, now)

    def tick(self, now: float) -> list[Change]:
        """Draw the consequences of silence. Returns every step, in order."""
        limits = self.liveness
        stalled = 0.0
        if self._ticked is not None:
            stalled = max(0.0, now - self._ticked - limits.stall_after)
        self._ticked, self.stalled = now, stalled
        changes: list[Change] = []
        for node in list(self._nodes.values()):
            if stalled:
                node.heard = min(now, node.heard + stalled)
            silence = now - node.heard
            if silence < limits.suspect_after:
                continue
            changes += self._happen(node, Event.QUIET, now)
            if silence >= limits.lost_after:
                changes += self._happen(node, Event.SILENT, now)
            if silence >= limits.forget_after:
                changes += self._happen(node, Event.FORGOTTEN, now)
        return changes

    # --- what gateways are told -------------------------------------------------------------

    def changes(self, since: int) -> tuple[list[Nodes], int]:
        """Return what a gateway that was told up to ``since`` does not know, and a new cursor.

        0 asks for the whole table: ``reset`` is then set on the first message. Each node appears
        at most once, as it is now. Usually one message or none; more when one would be too large
        for a control link. Attempts are left out of adverts: they are no gateway's business.
        """
        reset = since <= 0 or since < self._floor or since > self.version
        names: list[str] = []
        for node_id, version in reversed(self._log.items()):
            if version <= since and not reset:
                break
            names.append(node_id)
        names.reverse()
        pages: list[Nodes] = [Nodes(True, [], [])] if reset else []
        room = 0 if not pages else PAGE_BYTES
        for node_id in names:
            node = self._nodes.get(node_id)
            # One that came back and has not stated its capacity yet is still gone to others.
            advert = None if node is None else node.advert
            if advert is None and reset:
                continue
            weight = 64 if advert is None else _weight(advert)
            if room < weight and (not pages or pages[-1].nodes or pages[-1].gone):
                pages.append(Nodes(False, [], []))
                room = PAGE_BYTES
            room -= weight
            if node is None or advert is None:
                pages[-1].gone.append(node_id)
            else:
                pages[-1].nodes.append(_entry(node, advert))
        return pages, self.version

    # --- inside -----------------------------------------------------------------------------

    def _apply(self, node: NodeRecord, event: Event) -> bool:
        before = node.status
        node.status = TRANSITIONS[before][event]
        return node.status is not before

    def _happen(self, node: NodeRecord, event: Event, now: float) -> list[Change]:
        before = node.status
        if not self._apply(node, event):
            return []
        if node.status is Status.GONE:
            del self._nodes[node.id]
            self._bury(node.id)
        else:
            self._touch(node, now)
        return [Change(node, before, node.status)]

    def _touch(self, node: NodeRecord, now: float) -> None:
        """Mark a node as news, unless gateways do not know it yet: it has no advert."""
        if node.advert is None:
            return
        node.told, node.told_at = node.advert, now
        self.version += 1
        self._log.pop(node.id, None)
        self._gone.pop(node.id, None)
        self._log[node.id] = self.version

    def _bury(self, node_id: str) -> None:
        if self._log.pop(node_id, None) is None:
            return  # gateways never knew it
        self.version += 1
        self._log[node_id] = self._gone[node_id] = self.version
        if len(self._gone) > GONE_LIMIT:
            oldest = next(iter(self._gone))
            self._floor = self._gone.pop(oldest)
            del self._log[oldest]


def _entry(node: NodeRecord, advert: Advert) -> NodeEntry:
    # A restarted node that has not stated its capacity yet can take nothing: suspect, to others.
    status = Status.SUSPECT if node.status is Status.JOINED else node.status
    return NodeEntry(
        node.id,
        node.incarnation,
        node.name,
        node.host,
        node.endpoints,
        status.value,
        advert._replace(running=[]),
    )


def _weight(advert: Advert) -> int:
    """Estimate the bytes of an entry on the wire, on the high side."""
    parts = len(advert.devices) + len(advert.models) + len(advert.replicas)
    names = sum(len(model.name) + len(model.error) for model in advert.models)
    names += sum(len(replica.model) + len(replica.error) for replica in advert.replicas)
    schemas = sum(len(kind.input_schema) + len(kind.output_schema) + 512 for kind in advert.kinds)
    return 512 + 128 * parts + 4 * names + schemas


def _matters(old: Advert, new: Advert) -> bool:
    """Whether a gateway would act or display differently, figures that only flicker aside."""
    return (
        old.draining != new.draining
        or len(old.devices) != len(new.devices)
        or any(_device_matters(a, b) for a, b in zip(old.devices, new.devices, strict=True))
        or old.kinds != new.kinds
        or (old.models != new.models and _models(old.models) != _models(new.models))
        or (old.replicas != new.replicas and _replicas(old.replicas) != _replicas(new.replicas))
    )


def _device_matters(old: Device, new: Device) -> bool:
    tolerance = max(MEMORY_NOISE, MEMORY_TOLERANCE * new.memory_total)
    return (
        (old.id, old.kind, old.name, old.memory_total, old.health, old.state)
        != (new.id, new.kind, new.name, new.memory_total, new.health, new.state)
        or abs(old.memory_free - new.memory_free) > tolerance
        or not 0.9 <= (new.speed or 1e-9) / (old.speed or 1e-9) <= 1.1
    )


def _models(models: list[Model]) -> list[Model]:
    return [model._replace(retry_in=0.0) for model in models]


def _replicas(replicas: list[Replica]) -> list[tuple[str, str, str, int, str]]:
    return [(r.model, r.device, r.state, r.slots, r.error) for r in replicas]

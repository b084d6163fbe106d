"""Where a model could run.

A *site* is one model on one device: a replica, or the place for one. A *candidate* is a site as
seen by one kind of task, since a model may chat at one rate and embed at another. All candidates
for a (kind, model) form a *group*, and a group keeps them on three shelves, each sorted by a
number that changes only when something happens, not as time passes:

``open``
    warm (loaded, or loading) with a slot free; by seconds a unit, as crowded as they are now.
``full``
    warm, every slot taken; by the time at which one is free.
``cold``
    not loaded; by what loading it costs.

So a decision looks at the best few of each shelf and stops as soon as the rest cannot win,
instead of weighing every device of the mesh. :mod:`blip.broker.index` writes these records,
:mod:`blip.broker.quotes` reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from blip.broker.ledger import Account, Key
from blip.broker.rates import DeviceKey
from blip.broker.registry import NodeRecord
from blip.protocol.messages import Device, Model

#: What a task asks for: ``(kind, model)``.
Lane = tuple[str, str]

#: Seconds that an attempt is assumed to take where none of ours has run yet.
TYPICAL = 1.0


class State(StrEnum):
    """What is at a site."""

    COLD = "cold"
    #: Being loaded, or about to be because of a lease that we granted.
    LOADING = "loading"
    READY = "ready"


@dataclass(slots=True, eq=False)
class DeviceRecord:
    """A device as the scheduler sees it."""

    node: NodeRecord
    info: Device
    #: By model; ``warm`` are those that are not cold.
    sites: dict[str, Site] = field(default_factory=dict)
    warm: dict[str, Site] = field(default_factory=dict)
    #: How many of its sites have attempts on them.
    busy: int = 0
    #: Bytes promised to loads under way, and those of replicas that are being unloaded.
    reserved: int = 0
    leaving: int = 0
    #: When a lease of ours last caused a model to be loaded.
    loaded_at: float = -math.inf
    #: Whether it fails requirements that were asked lately; see :meth:`Demand.bars`.
    verdicts: dict[str, bool] = field(default_factory=dict)
    #: The ticket that waits for this device to drain, and when it is done if all goes well.
    claim: Key | None = None
    claim_ends: float = 0.0

    @property
    def key(self) -> DeviceKey:
        """Node and device id."""
        return self.node.id, self.info.id

    @property
    def soundness(self) -> float:
        """The chance that an attempt gets through: the device's health, from 1 to just above 0."""
        return min(1.0, max(self.info.health, 0.01))

    @property
    def free(self) -> int:
        """Bytes that are free and not promised to a load under way."""
        return self.info.memory_free - self.reserved


@dataclass(slots=True, eq=False)
class Fleet:
    """All replicas of one model, over the whole mesh."""

    model: str
    #: How many are loaded, being loaded or about to be.
    warm: int = 0
    #: How many the mesh keeps loaded, and the most it loads (0: no limit), as nodes last said.
    least: int = 0
    most: int = 0
    #: A load that was ordered to reach ``least`` has this long to show up.
    ordered_until: float = -math.inf

    @property
    def full(self) -> bool:
        """Whether no further replica may be loaded."""
        return 0 < self.most <= self.warm


@dataclass(slots=True, eq=False)
class Site:
    """One model on one device."""

    device: DeviceRecord
    model: Model
    account: Account
    fleet: Fleet
    candidates: list[Candidate] = field(default_factory=list)
    state: State = State.COLD
    slots: int = 1
    #: Bytes on the device: of the replica, or what one would need.
    memory: int = 0
    #: Seconds that loading takes, and when a load under way is done.
    load: float = 0.0
    ready_at: float = 0.0
    #: A lease of ours causes the load, and no advert has shown it yet. ``victims`` are the idle
    #: replicas that make room for it; those are ``doomed`` meanwhile.
    pending: bool = False
    victims: tuple[Site, ...] = ()
    doomed: bool = False
    #: Its node keeps the replica, whatever needs its room.
    pinned: bool = False
    #: Tickets planned here, and the seconds they would take.
    tickets: int = 0
    planned: float = 0.0
    #: The node refused an attempt: nothing more until then. 0 for never.
    barred_until: float = 0.0
    #: When a slot is free if none is now, before the tickets planned here.
    free_at: float = 0.0
    #: When an attempt last came or went.
    last_used: float = 0.0
    #: When the node last said something, and the seconds that attempts take here.
    observed_at: float = 0.0
    typical: float = TYPICAL
    #: Whether the account has attempts, as counted in ``device.busy``.
    busy: bool = False
    #: Other replicas at work on the device when its candidates were last sorted, or fewer.
    neighbours: int = 0
    #: Whether anything may be placed here: the node is ready, the device healthy, ...
    eligible: bool = False
    #: Dropped: nothing will ever run here again.
    gone: bool = False

    @property
    def stays(self) -> bool:
        """Whether the replica must not be evicted: pinned, or one of the least there may be."""
        return self.pinned or self.fleet.warm <= self.fleet.least

    @property
    def queue(self) -> float:
        """Seconds until the tickets that are planned here have started."""
        return self.planned / self.slots

    def slowdown(self, crowding: float) -> float:
        """How many times slower than alone one more attempt would run here.

        Attempts of one replica share a batch, where each slows each other by ``crowding``;
        replicas share the device and take turns.
        """
        load = len(self.account.ends) + self.account.external
        batch = load if load < self.slots else self.slots - 1
        return (1 + crowding * batch) * (1 + self.device.busy - self.busy)


@dataclass(slots=True, eq=False)
class Candidate:
    """A site as seen by one kind of task."""

    site: Site
    kind: str
    group: Group
    #: Whether the settings let this kind use this kind of device.
    allowed: bool
    #: Predicted seconds a unit, alone; ``step`` is the same, coarsely, which makes near equals on
    #: the open shelf take turns; ``weight`` is that with what neighbours cost and are made to pay.
    rate: float = 0.0
    step: float = 0.0
    weight: float = 0.0
    shelf: list[Entry] | None = None
    entry: Entry | None = None
    #: Why it is on no shelf, in words; "" while it is on one.
    barrier: str = ""


#: Sort key, a number that is unique and makes equals take turns, candidate.
Entry = tuple[float, int, Candidate]


@dataclass(slots=True, eq=False)
class Group:
    """Every candidate for one (kind, model), and the shelves of those that could be chosen."""

    kind: str
    model: str
    fleet: Fleet
    members: dict[DeviceKey, Candidate] = field(default_factory=dict)
    #: Those on no shelf: nothing may be placed there, and each knows why.
    off: dict[Candidate, None] = field(default_factory=dict)
    open: list[Entry] = field(default_factory=list)
    full: list[Entry] = field(default_factory=list)
    cold: list[Entry] = field(default_factory=list)
    #: ``open``, ``full`` and ``cold``, by number.
    shelves: tuple[list[Entry], ...] = ()
    _fastest: float | None = None

    def __post_init__(self) -> None:
        self.shelves = (self.open, self.full, self.cold)

    @property
    def fastest(self) -> float:
        """The least seconds a unit among the members: no prediction is below it."""
        if self._fastest is None:
            self._fastest = min((c.rate for c in self.members.values()), default=0.0)
        return self._fastest

    def changed_rate(self, old: float, new: float) -> None:
        """Keep ``fastest`` right when a member's rate changed, or (infinite) it went."""
        if self._fastest is None or new < self._fastest or old <= self._fastest:
            self._fastest = None

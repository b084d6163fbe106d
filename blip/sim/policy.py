"""What decides where attempts run: the interface between a simulated mesh and its policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from blip.protocol.messages import Advert, Order
from blip.sim.arrivals import Task
from blip.sim.machine import Key
from blip.sim.node import Node
from blip.sim.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Request:
    """An attempt that wants a device. ``left`` is what is left of its deadline, 0 for none."""

    task: Task
    attempt: int
    exclude: tuple[str, ...] = ()
    left: float = 0.0

    @property
    def key(self) -> Key:
        """Task and attempt."""
        return self.task.number, self.attempt


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended: an outcome as RELEASE names it, and what was really done."""

    request: Request
    outcome: str
    units: float = 0.0
    run: float = 0.0
    load: float = 0.0


class World(Protocol):
    """What a policy can see and do."""

    scenario: Scenario
    #: By id; only an oracle looks inside.
    nodes: dict[str, Node]

    def grant(self, key: Key, node: str, device: str) -> None:
        """Run an attempt there."""

    def deny(self, key: Key, code: str) -> None:
        """Run it nowhere: its task has failed."""

    def recall(self, key: Key) -> None:
        """Ask for an attempt back unless it has begun; it is then placed anew."""

    def order(self, node: str, order: Order) -> None:
        """Have a node load or unload a model."""


@dataclass(eq=False)
class Policy:
    """Decides. Every method is called as news reaches it, which is later than it happened."""

    #: Whether it knows and acts without delay.
    instant: ClassVar[bool] = False
    #: Whether nodes let wait whatever they are given; real ones refuse what is too much.
    patient: ClassVar[bool] = True
    #: Whether gateways stop a task when its deadline passes, as blip's do.
    stops_late: ClassVar[bool] = True
    #: Seconds between two ticks; 0 for none.
    every: ClassVar[float] = 0.0

    world: World
    #: Wall-clock seconds that each decision took.
    decisions: list[float] = field(default_factory=list)

    def joined(self, node: Node, now: float) -> None:
        """A node says hello."""

    def left(self, node: Node, how: str, now: float) -> None:
        """A node says ``goodbye``, or is ``unreachable``."""

    def advert(self, node: Node, advert: Advert, now: float) -> None:
        """A node has advertised."""

    def place(self, request: Request, now: float) -> None:
        """An attempt wants a device."""
        raise NotImplementedError

    def ended(self, ended: Ended, now: float) -> None:
        """An attempt is over, or is no longer wanted."""

    def tick(self, now: float) -> None:
        """Time has passed."""

"""What routes see of the mesh: calls, models and nodes. The dispatcher implements it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from blip.kinds import Kind, TaskInput
from blip.protocol.messages import NodeEntry, Order, Ordered, Payload


@dataclass(slots=True)
class Timing:
    """Where a task's time went, in seconds; None for what has not happened yet.

    ``queue`` counts waiting at the broker and on the node, ``load`` loading the model, ``first``
    from the request until the first part of the answer, ``total`` until the end.
    """

    queue: float = 0.0
    load: float = 0.0
    first: float | None = None
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended well: the DONE payload and what the node says was used."""

    payload: Payload
    usage: dict[str, int]
    units: float


class Call(Protocol):
    """One task under way. Always end it: exhaust it, or ``cancel()``."""

    @property
    def task_id(self) -> str:
        """The task's id, 32 hex digits."""
        ...

    #: Display name of the node that serves it, once one has accepted; else "".
    node: str
    timing: Timing

    def parts(self) -> AsyncIterator[list[Payload]]:
        """Yield the DATA payloads as they come, all that are pending at once, until the end.

        Consuming is what grants the node further credit. Raises the task's
        :class:`~blip.errors.BlipError`.
        """
        ...

    async def answer(self) -> Answer:
        """Wait for the end. Raises the task's :class:`~blip.errors.BlipError`."""
        ...

    async def started(self) -> None:
        """Wait for the first part or the end, whichever comes first; raises as ``answer``.

        A route that streams awaits this before it sends its status line, so that an error which
        comes first is still a proper HTTP error.
        """
        ...

    def cancel(self) -> None:
        """Stop the task; idempotent, and a no-op once it has ended."""
        ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that at least one connected node can run."""

    name: str
    kinds: tuple[str, ...]
    #: Context window in tokens: the smallest among its nodes; None where it has none.
    context: int | None
    #: Names of the nodes that have it, and how many replicas are loaded.
    nodes: tuple[str, ...]
    ready: int
    #: Names of the LoRAs and ControlNets that all of its nodes have for it.
    loras: tuple[str, ...] = ()
    controlnets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task in flight, or one that has just ended, as ``blip ps`` shows it."""

    id: str
    kind: str
    model: str
    state: str
    node: str
    attempt: int
    #: Seconds since it was submitted.
    age: float
    error: str = ""
    #: The device of the current attempt, "" while it has none.
    device: str = ""
    priority: int = 5


@dataclass(frozen=True, slots=True)
class TaskStory:
    """What is known about how a task came to run where it ran; see :mod:`blip.gateway.stories`."""

    decisions: list[dict[str, Any]]
    #: Whose part is missing, if any; a sentence.
    note: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """One dependency of the gateway. ``required`` ones decide ``/readyz``."""

    name: str
    ok: bool
    detail: str
    required: bool


@dataclass(frozen=True, slots=True)
class Options:
    """What a route may say about a call besides its input."""

    tenant: str = ""
    priority: int = 5
    #: Seconds until the task fails with ``deadline_exceeded``; None for the gateway's default. It
    #: ends what takes absurdly long and says nothing about when the answer is of use.
    timeout: float | None = None
    #: Seconds until the answer is of no use any more; None for never. The broker plans with it:
    #: what cannot be done by then is refused at once with ``deadline_unreachable``.
    deadline: float | None = None
    #: What the device must be: see :mod:`blip.protocol.constraints`, in its checked form.
    require: Mapping[str, Any] = field(default_factory=dict)
    #: Shows in logs next to the task's id.
    request_id: str = ""


class Mesh(Protocol):
    """The mesh as a gateway sees it. What is not a coroutine is in memory: it waits for nobody."""

    def call(self, kind: Kind, model: str, value: TaskInput, options: Options) -> Call:
        """Start a task.

        Raises :class:`~blip.errors.ModelNotFound` (with near names) at once when no node serves
        that model for that kind, :class:`~blip.errors.NoNode` when none is connected,
        :class:`~blip.errors.Unavailable` while the gateway drains.
        """
        ...

    def models(self) -> list[ServedModel]:
        """Every model the mesh serves, by name."""
        ...

    def nodes(self) -> list[NodeEntry]:
        """Every node the gateway knows, by name, with its last advert."""
        ...

    def tasks(self) -> list[TaskView]:
        """Tasks in flight first, oldest first; then those that ended lately, newest first."""
        ...

    def order(self, node: NodeEntry, order: Order) -> AsyncGenerator[Ordered, None]:
        """Give a node an order and yield what it says, to the end: ``done`` or ``failed``.

        Never raises: a node that is lost, or silent, has failed. The order's number is set here.
        Leaving early does not call the order off.
        """
        ...

    async def why(self, task: bytes) -> TaskStory:
        """Tell what was decided about a task, its id in bytes. Never raises for an unknown one."""
        ...

    async def health(self) -> list[Health]:
        """Look at everything this gateway depends on."""
        ...

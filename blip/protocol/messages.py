"""Every message of the protocol, as it stands on the wire.

A message is a named tuple whose fields are in wire order. Those about a task begin with ``task``
and ``attempt``. New fields go to the end, with a default: an older peer ignores what it does not
know, a newer one fills in what is missing. Renaming a field is free, moving one breaks the wire;
``tests/vectors`` holds the bytes.

Times are seconds, sizes are bytes. Durations travel, points in time never do: clocks differ.
"""

from __future__ import annotations

from typing import Any, NamedTuple

#: A task's id: the gateway's random prefix and a counter. 16 bytes on the wire.
TASK_ID_BYTES = 16

#: Large or opaque bytes: a frame of its own on the wire when it pays, see the codec.
Payload = bytes | memoryview


# --- what adverts are made of ---------------------------------------------------------------


class Device(NamedTuple):
    """A GPU, or the CPU, of a node. ``None`` means that the hardware does not tell."""

    id: str
    kind: str
    name: str
    memory_total: int
    memory_free: int
    utilization: float | None = None
    temperature: float | None = None
    power: float | None = None
    #: Speed relative to other devices, a prior until rates are learned.
    speed: float = 1.0
    #: Bytes a second from disk to the device, measured by loads; None before the first.
    load_bandwidth: float | None = None
    #: 1 healthy to 0 unusable.
    health: float = 1.0
    #: Seconds since the sample was taken.
    age: float = 0.0
    #: ``ready``; or ``yielding`` to its owner, ``draining``, ``cordoned``: takes nothing new.
    state: str = "ready"
    #: Why it is not ready, or not wholly healthy; a sentence.
    reason: str = ""
    #: Bytes that this node's workers use, that others use, and that are promised to loads.
    ours: int | None = None
    foreign: int | None = None
    reserved: int = 0
    #: What else was measured, for people: see docs/capacity.md. What is not known is absent.
    metrics: dict[str, Any] = {}  # noqa: RUF012
    #: What the micro-benchmark measured, once: see docs/capacity.md. Empty before.
    benchmark: dict[str, float] = {}  # noqa: RUF012


class Replica(NamedTuple):
    """A model on a device. ``state`` is one of ``loading``, ``ready``, ``stopping``, ``failed``."""

    model: str
    device: str
    state: str
    slots: int
    active: int = 0
    queued: int = 0
    memory: int = 0
    #: Of loading, 0 to 1.
    progress: float = 1.0
    #: Seconds the load took, or has taken so far.
    load_seconds: float = 0.0
    error: str = ""
    #: Stays, whatever needs its room.
    pinned: bool = False
    #: Seconds since it last had work, and until it is unloaded for that; None: it stays.
    idle: float = 0.0
    unload_in: float | None = None


class Model(NamedTuple):
    """A model that a node can run, loaded or not."""

    name: str
    kinds: list[str]
    #: Device memory it needs, in bytes; 0 for none.
    memory: int = 0
    #: Bytes read from disk to load it.
    load_bytes: int = 0
    slots: int = 1
    #: Context window in tokens, where the kind has one.
    context: int | None = None
    #: Why it cannot be loaded here, if that is known.
    error: str = ""
    #: Seconds before a load may be tried again after ``error``.
    retry_in: float = 0.0
    #: Number of weights, 0 if that is not known: what quantisation would make of it.
    parameters: int = 0
    #: Replicas that the mesh keeps loaded, and the most it loads; 0 for no such wish.
    min_replicas: int = 0
    max_replicas: int = 0
    #: Names of the LoRAs and ControlNets that it may be asked for with.
    loras: list[str] = []  # noqa: RUF012
    controlnets: list[str] = []  # noqa: RUF012


class PluginKind(NamedTuple):
    """A kind of task that a plugin of this node defines. Schemas are texts of JSON."""

    name: str
    #: What its input is, and its answer, "" if that is not told.
    input_schema: str
    output_schema: str = ""
    #: The input's field that says how much work it is, "" for none: see :mod:`blip.kinds.plugin`.
    units: str = ""
    #: What it does, in a sentence.
    about: str = ""
    #: Whether its answers come in parts.
    streams: bool = False


class Running(NamedTuple):
    """An attempt that a node holds, queued or running."""

    task: bytes
    attempt: int
    #: Whether a worker has begun with it; until then it can be taken back.
    begun: bool = True


class Lease(NamedTuple):
    """A lease as its gateway reports it to a broker that forgot it."""

    task: bytes
    attempt: int
    node: str
    device: str
    model: str
    kind: str
    units: float
    age: float


# --- links ----------------------------------------------------------------------------------


class Hello(NamedTuple):
    """The dialling side introduces itself; always sequence number 0."""

    role: str
    id: str
    incarnation: int
    low: int
    high: int
    #: Counts this dialler's greetings; WELCOME repeats it, so that late ones are told apart.
    greeting: int = 0
    name: str = ""
    #: Identifies the machine, so that peers on one machine can use its faster sockets.
    host: str = ""
    endpoints: list[str] = []  # noqa: RUF012  (defaults of a NamedTuple are never mutated)
    features: list[str] = []  # noqa: RUF012
    #: What a gateway holds; a broker that restarted adopts them.
    leases: list[Lease] = []  # noqa: RUF012


class Welcome(NamedTuple):
    """The listening side accepts and says how the link is run."""

    version: int
    id: str
    #: The listener's incarnation: a new one means that everything before is forgotten.
    epoch: int
    heartbeat: float
    suspect_after: float
    lost_after: float
    greeting: int = 0


class Goodbye(NamedTuple):
    """The link ends, for a reason with a stable code and a sentence a person can act on."""

    code: str
    text: str


class Ping(NamedTuple):
    """Are you there?"""

    nonce: int


class Pong(NamedTuple):
    """Yes."""

    nonce: int


class Info(NamedTuple):
    """Who are you? An empty body asks, any other answers."""

    body: dict[str, Any]


class Stats(NamedTuple):
    """What have you counted? An empty body asks, any other answers."""

    body: dict[str, Any]


# --- capacity -------------------------------------------------------------------------------


class Advert(NamedTuple):
    """A node's full statement of its capacity; the node's heartbeat. Never a delta."""

    number: int
    draining: bool
    devices: list[Device]
    models: list[Model]
    replicas: list[Replica]
    running: list[Running]
    #: Free-form facts that tasks may ask for.
    labels: dict[str, str] = {}  # noqa: RUF012
    #: Kinds that plugins of this node define; the built-in ones every peer knows.
    kinds: list[PluginKind] = []  # noqa: RUF012


class NodeEntry(NamedTuple):
    """A node as gateways are told of it. ``status`` is ``ready``, ``suspect`` or ``lost``."""

    id: str
    incarnation: int
    name: str
    host: str
    endpoints: list[str]
    status: str
    advert: Advert


class Nodes(NamedTuple):
    """The broker's node table: all of it after WELCOME (``reset``), then what changed."""

    reset: bool
    nodes: list[NodeEntry]
    gone: list[str]


# --- placement ------------------------------------------------------------------------------


class Place(NamedTuple):
    """Find a device for this attempt. ``deadline`` is in seconds from now; 0 for none."""

    task: bytes
    attempt: int
    kind: str
    model: str
    units: float
    priority: int = 5
    deadline: float = 0.0
    tenant: str = ""
    exclude: list[str] = []  # noqa: RUF012
    #: What the device must be: see :mod:`blip.protocol.constraints`.
    require: dict[str, Any] = {}  # noqa: RUF012


class Grant(NamedTuple):
    """A lease: run it there. The three costs are the broker's prediction, in seconds."""

    task: bytes
    attempt: int
    node: str
    incarnation: int
    device: str
    wait: float = 0.0
    service: float = 0.0
    load: float = 0.0


class Deny(NamedTuple):
    """No lease, and why: ``code`` is one of :mod:`blip.errors`."""

    task: bytes
    attempt: int
    code: str
    text: str
    details: dict[str, Any] = {}  # noqa: RUF012


class Release(NamedTuple):
    """A lease is over.

    ``outcome``: ``done``, ``failed``, ``refused``, ``recalled``, ``cancelled``, ``lost``.
    """

    task: bytes
    attempt: int
    outcome: str
    #: Work really done, in the kind's units, and the seconds it ran; both feed the learned rates.
    units: float = 0.0
    run: float = 0.0
    load: float = 0.0


class Move(NamedTuple):
    """Take this attempt back, unless it has begun, and place it anew: a device idles for it."""

    task: bytes
    attempt: int
    node: str
    device: str


class Why(NamedTuple):
    """What was decided about this task, and why? ``attempt`` 0 asks for all of them."""

    task: bytes
    attempt: int


class Story(NamedTuple):
    """The decisions about a task, oldest first, as :mod:`blip.broker.decisions` writes them."""

    task: bytes
    attempt: int
    decisions: list[dict[str, Any]]


# --- operations -----------------------------------------------------------------------------


class Order(NamedTuple):
    """Do this on your node: ``load``, ``unload``, ``cordon``, ``uncordon``, ``drain``.

    ``number`` is the sender's own, for the answers. An empty ``device`` means the whole node,
    and for ``load`` that the node chooses one.
    """

    number: int
    verb: str
    device: str = ""
    model: str = ""
    options: dict[str, Any] = {}  # noqa: RUF012


class Ordered(NamedTuple):
    """How an order goes: ``running`` any number of times, then ``done`` or ``failed``."""

    number: int
    state: str
    #: One of the error codes if it failed.
    code: str = ""
    text: str = ""
    details: dict[str, Any] = {}  # noqa: RUF012


# --- attempts -------------------------------------------------------------------------------


class Submit(NamedTuple):
    """Run this attempt. ``expires_in`` counts from its arrival; ``window`` is the first credit."""

    task: bytes
    attempt: int
    kind: str
    model: str
    device: str
    expires_in: float
    window: int
    payload: Payload


class Accept(NamedTuple):
    """The node has taken the attempt. DATA and DONE say as much, and may come without it."""

    task: bytes
    attempt: int
    ahead: int = 0


class Refuse(NamedTuple):
    """The node will not run it; ``code`` is a :class:`~blip.protocol.attempt.Refusal`."""

    task: bytes
    attempt: int
    code: str
    text: str
    details: dict[str, Any] = {}  # noqa: RUF012


class Data(NamedTuple):
    """A part of the result; ``part`` counts from 0 within the attempt."""

    task: bytes
    attempt: int
    part: int
    payload: Payload


class Credit(NamedTuple):
    """The receiver grants this many further bytes of DATA."""

    task: bytes
    attempt: int
    size: int


class Done(NamedTuple):
    """The attempt succeeded; terminal. ``parts`` DATA messages went before."""

    task: bytes
    attempt: int
    parts: int
    usage: dict[str, int]
    units: float
    #: Seconds in the node's queue, loading the model, until the first part, and running.
    queue: float
    load: float
    first: float
    run: float
    payload: Payload


class Fail(NamedTuple):
    """The attempt failed; terminal. ``code`` is one of :mod:`blip.errors`."""

    task: bytes
    attempt: int
    code: str
    text: str
    details: dict[str, Any] = {}  # noqa: RUF012


class Cancel(NamedTuple):
    """Stop this attempt (to a node) or withdraw this ticket (to a broker). Idempotent."""

    task: bytes
    attempt: int


class Recall(NamedTuple):
    """Give this attempt back, if no worker has begun with it; REFUSE(recalled) says so."""

    task: bytes
    attempt: int


class Cancelled(NamedTuple):
    """The attempt has stopped; terminal."""

    task: bytes
    attempt: int


Message = (
    Hello
    | Welcome
    | Goodbye
    | Ping
    | Pong
    | Info
    | Stats
    | Advert
    | Nodes
    | Place
    | Grant
    | Deny
    | Release
    | Move
    | Why
    | Story
    | Order
    | Ordered
    | Submit
    | Accept
    | Refuse
    | Data
    | Credit
    | Done
    | Fail
    | Cancel
    | Cancelled
    | Recall
)

#: The number of each message on the wire. Numbers are never reused.
TYPES: dict[int, type[Message]] = {
    1: Hello,
    2: Welcome,
    3: Goodbye,
    4: Ping,
    5: Pong,
    6: Info,
    7: Stats,
    10: Advert,
    11: Nodes,
    20: Place,
    21: Grant,
    22: Deny,
    23: Release,
    24: Move,
    25: Why,
    26: Story,
    27: Order,
    28: Ordered,
    30: Submit,
    31: Accept,
    32: Refuse,
    33: Data,
    34: Credit,
    35: Done,
    36: Fail,
    37: Cancel,
    38: Cancelled,
    39: Recall,
}
NUMBERS: dict[type[Message], int] = {cls: number for number, cls in TYPES.items()}

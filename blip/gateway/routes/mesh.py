"""``GET /v1/mesh`` and ``GET /v1/tasks``: who is there, and what they are doing."""

from __future__ import annotations

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.protocol.messages import NodeEntry


class View(BaseModel):
    """Reads its fields from the attributes of a protocol message."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)


class DeviceView(View):
    """A GPU, or the CPU, of a node. Null is what the hardware does not tell."""

    id: str
    kind: str
    name: str
    memory_total: int
    """Bytes."""
    memory_free: int
    utilization: float | None
    """0 to 1."""
    temperature: float | None
    """Degrees Celsius."""
    power: float | None
    """Watts."""
    speed: float
    """Relative to other devices."""
    load_bandwidth: float | None
    """Bytes a second from disk to the device, as measured by loads."""
    health: float
    """1 healthy to 0 unusable."""
    age: float
    """Seconds since the sample was taken."""


class ReplicaView(View):
    """A model that is loaded on a device, or is being loaded."""

    model: str
    device: str
    state: str
    """loading, ready, stopping or failed."""
    slots: int
    active: int
    queued: int
    memory: int
    """Bytes."""
    progress: float
    """Of loading, 0 to 1."""
    load_seconds: float
    error: str


class NodeModelView(View):
    """A model that a node can run, loaded or not."""

    name: str
    kinds: list[str]
    memory: int
    """Bytes of device memory."""
    context: int | None
    error: str
    """Why it cannot be loaded there, if that is known."""


class NodeView(View):
    """A node, as of its last advert."""

    id: str
    name: str
    status: str
    """ready, suspect or lost."""
    draining: bool
    devices: list[DeviceView]
    models: list[NodeModelView]
    replicas: list[ReplicaView]
    running: int
    """Attempts that it holds, queued or running."""


class MeshView(BaseModel):
    """Every node that this gateway knows, by name."""

    nodes: list[NodeView]


class TaskEntry(View):
    """A task in flight, or one that has just ended."""

    id: str
    kind: str
    model: str
    state: str
    node: str
    attempt: int
    age: float
    """Seconds since it was submitted."""
    error: str


class TaskList(BaseModel):
    """Tasks in flight, oldest first; then those that ended lately, newest first."""

    tasks: list[TaskEntry]


def _node(entry: NodeEntry) -> NodeView:
    advert = entry.advert
    return NodeView(
        id=entry.id,
        name=entry.name,
        status=entry.status,
        draining=advert.draining,
        devices=[DeviceView.model_validate(device) for device in advert.devices],
        models=[NodeModelView.model_validate(model) for model in advert.models],
        replicas=[ReplicaView.model_validate(replica) for replica in advert.replicas],
        running=len(advert.running),
    )


async def nodes(exchange: Exchange) -> web.StreamResponse:
    """Show nodes, their devices, and the models loaded on them."""
    view = MeshView(nodes=[_node(entry) for entry in exchange.gateway.mesh.nodes()])
    return web.Response(text=view.model_dump_json(), content_type="application/json")


async def tasks(exchange: Exchange) -> web.StreamResponse:
    """Show tasks of this gateway: those in flight, and those that ended lately."""
    found = exchange.gateway.mesh.tasks()
    view = TaskList(tasks=[TaskEntry.model_validate(task) for task in found])
    return web.Response(text=view.model_dump_json(), content_type="application/json")


OPERATIONS = (
    Operation("GET", "/v1/mesh", nodes, "Show the mesh", "mesh", answer=MeshView),
    Operation("GET", "/v1/tasks", tasks, "Show tasks", "mesh", answer=TaskList),
)

"""``GET /v1/mesh``: who is there, with what, and what is loaded."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.protocol.messages import NodeEntry
from blip.protocol.names import unique_names


class View(BaseModel):
    """Reads its fields from the attributes of a message."""

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
    state: str
    """ready; or yielding to its owner, draining, cordoned: then it takes nothing new."""
    reason: str
    """Why it is not ready, or not wholly healthy."""
    ours: int | None
    """Bytes that this node's workers use."""
    foreign: int | None
    """Bytes that other programs use."""
    reserved: int
    """Bytes that are promised to loads under way."""
    metrics: dict[str, Any]
    """What else was measured; what is not known is absent."""
    benchmark: dict[str, float]
    """What the micro-benchmark measured, once; empty before."""


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
    pinned: bool
    """Stays, whatever needs its room."""
    idle: float
    """Seconds since it last had work."""
    unload_in: float | None
    """Seconds until it is unloaded for lack of work; null: it stays."""


class NodeModelView(View):
    """A model that a node can run, loaded or not."""

    name: str
    kinds: list[str]
    memory: int
    """Bytes of device memory."""
    context: int | None
    error: str
    """Why it cannot be loaded there, if that is known."""
    retry_in: float
    """Seconds before a load may be tried again after that."""
    parameters: int
    """Number of weights; 0 if that is not known."""
    min_replicas: int
    """Replicas that the mesh keeps loaded."""
    max_replicas: int
    """The most that it loads; 0 for no limit."""
    loras: list[str]
    """Names of the LoRAs that this node has for it."""
    controlnets: list[str]
    """Names of the ControlNets that this node has for it."""


class NodeView(View):
    """A node, as of its last advert."""

    id: str
    name: str
    unique_name: str
    """The name; where several nodes have it, with the end of the id: rig-1#3f2a."""
    status: str
    """ready, suspect or lost."""
    draining: bool
    labels: dict[str, str]
    """Free-form facts that tasks may ask for."""
    devices: list[DeviceView]
    models: list[NodeModelView]
    replicas: list[ReplicaView]
    running: int
    """Attempts that it holds, queued or running."""


class MeshView(BaseModel):
    """Every node that this gateway knows, by name."""

    nodes: list[NodeView]


def _node(entry: NodeEntry, unique_name: str) -> NodeView:
    advert = entry.advert
    return NodeView(
        id=entry.id,
        name=entry.name,
        unique_name=unique_name,
        status=entry.status,
        draining=advert.draining,
        labels=advert.labels,
        devices=[DeviceView.model_validate(device) for device in advert.devices],
        models=[NodeModelView.model_validate(model) for model in advert.models],
        replicas=[ReplicaView.model_validate(replica) for replica in advert.replicas],
        running=len(advert.running),
    )


async def nodes(exchange: Exchange) -> web.StreamResponse:
    """Show nodes, their devices, and the models loaded on them."""
    found = exchange.gateway.mesh.nodes()
    names = unique_names(found)
    view = MeshView(nodes=[_node(entry, names[entry.id]) for entry in found])
    return web.Response(text=view.model_dump_json(), content_type="application/json")


OPERATIONS = (Operation("GET", "/v1/mesh", nodes, "Show the mesh", "mesh", answer=MeshView),)

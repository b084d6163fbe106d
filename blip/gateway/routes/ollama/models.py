"""``GET /api/tags``, ``POST /api/show``, ``GET /api/ps``, ``GET /api/version``: what there is."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict

import blip
from blip.errors import InvalidRequest, ModelNotFound
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Request
from blip.gateway.mesh import ServedModel
from blip.gateway.moments import iso
from blip.gateway.routes.ollama.dialect import DIALECT, served_name
from blip.gateway.sampling import ModelName
from blip.protocol.messages import Model, NodeEntry, Replica

#: What Ollama calls the kinds that its API has a route for.
_CAPABILITIES = {"chat": "completion", "completion": "completion", "embedding": "embedding"}


class Details(BaseModel):
    """What is known of a model; of format, family and quantization a gateway knows nothing."""

    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: list[str] = []
    parameter_size: str = ""
    quantization_level: str = ""


class Tag(BaseModel):
    """A model that at least one connected node can run."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    model: str
    modified_at: str
    """When this gateway started: models have no birthday that a mesh would know."""
    size: int
    """Bytes read from disk to load it; 0 if no node has said."""
    digest: str = ""
    details: Details


class Tags(BaseModel):
    """Every model that chats, completes or embeds, by name."""

    models: list[Tag]


class Loaded(BaseModel):
    """A model that is loaded somewhere; its replicas are taken together."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    model: str
    size: int
    """Bytes of memory that all its replicas take."""
    size_vram: int
    """Bytes of that on GPUs."""
    digest: str = ""
    details: Details
    expires_at: str | None = None
    """When the last replica goes if nobody asks for it; null if one stays."""
    context_length: int | None = None


class LoadedModels(BaseModel):
    """Every model that is loaded, by name."""

    models: list[Loaded]


class ShowRequest(Request):
    """Which model."""

    model: ModelName | None = None
    """A name from GET /api/tags; :latest may stand behind it."""
    name: ModelName | None = None
    """The older name of model."""
    verbose: Annotated[Any, Ignored()] = None
    options: Annotated[Any, Ignored()] = None
    system: Annotated[Any, Ignored()] = None
    template: Annotated[Any, Ignored()] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` where no model is named."""
        super().check(at)
        if self.model is None and self.name is None:
            raise InvalidRequest("'model' is missing.", param="model")


class ShowAnswer(BaseModel):
    """What is known of a model. Its template and licence lie on its nodes."""

    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    details: Details
    model_info: dict[str, str | int]
    capabilities: list[str]
    modified_at: str


class VersionAnswer(BaseModel):
    """The version of blip; not one of Ollama's."""

    version: str


async def tags(exchange: Exchange) -> web.StreamResponse:
    """List every model that chats, completes or embeds, in Ollama's shape."""
    mesh = exchange.gateway.mesh
    nodes = mesh.nodes()
    modified_at = iso(exchange.gateway.started)
    found = [
        Tag(
            name=model.name,
            model=model.name,
            modified_at=modified_at,
            size=max((each.load_bytes for each in _adverts(nodes, model.name)), default=0),
            details=_details(nodes, model.name),
        )
        for model in mesh.models()
        if not _CAPABILITIES.keys().isdisjoint(model.kinds)
    ]
    return web.Response(text=Tags(models=found).model_dump_json(), content_type="application/json")


async def running(exchange: Exchange) -> web.StreamResponse:
    """List every model that is loaded, in Ollama's shape."""
    mesh = exchange.gateway.mesh
    nodes = mesh.nodes()
    now = time.time()
    found = [
        view
        for model in mesh.models()
        if not _CAPABILITIES.keys().isdisjoint(model.kinds)
        for view in _loaded(model, nodes, now)
    ]
    return web.Response(
        text=LoadedModels(models=found).model_dump_json(exclude_none=True),
        content_type="application/json",
    )


async def show(exchange: Exchange, body: ShowRequest) -> web.StreamResponse:
    """Say what is known of a model, in Ollama's shape."""
    mesh = exchange.gateway.mesh
    name = served_name(exchange, body.model or body.name or "")
    models = {model.name: model for model in mesh.models()}
    if name not in models:
        near = difflib.get_close_matches(name, models, n=3)
        raise ModelNotFound(
            f"No node of this mesh serves a model '{name}'.",
            hint=f"Did you mean {' or '.join(near)}?" if near else "",
            param="model",
        )
    model, nodes = models[name], mesh.nodes()
    info: dict[str, str | int] = {"general.name": name}
    parameters = _parameters(nodes, name)
    if parameters:
        info["general.parameter_count"] = parameters
    if model.context is not None:
        info["general.context_length"] = model.context
    named: dict[str, None] = dict.fromkeys(
        _CAPABILITIES[kind] for kind in model.kinds if kind in _CAPABILITIES
    )
    if {"chat", "caption"} <= set(model.kinds):
        named["vision"] = None  # whoever says what a picture shows, sees
    elif "chat" in model.kinds:
        named["tools"] = None  # every other model that chats can be told of them
    view = ShowAnswer(
        details=_details(nodes, name),
        model_info=info,
        capabilities=list(named),
        modified_at=iso(exchange.gateway.started),
    )
    return web.Response(text=view.model_dump_json(), content_type="application/json")


async def version(exchange: Exchange) -> web.StreamResponse:
    """Say which version of blip this is; Ollama's versions say nothing about it."""
    view = VersionAnswer(version=blip.__version__)
    return web.Response(text=view.model_dump_json(), content_type="application/json")


def _adverts(nodes: list[NodeEntry], name: str) -> Iterator[Model]:
    return (each for node in nodes for each in node.advert.models if each.name == name)


def _parameters(nodes: list[NodeEntry], name: str) -> int:
    return max((each.parameters for each in _adverts(nodes, name)), default=0)


def _details(nodes: list[NodeEntry], name: str) -> Details:
    return Details(parameter_size=size_name(_parameters(nodes, name)))


def size_name(parameters: int) -> str:
    """Write a number of weights as Ollama does: 134.5M, 8.0B; "" if it is not known."""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{letter}"
    return str(parameters or "")


def _loaded(model: ServedModel, nodes: list[NodeEntry], now: float) -> Iterator[Loaded]:
    replicas: list[tuple[Replica, bool]] = []
    for node in nodes:
        kinds = {device.id: device.kind for device in node.advert.devices}
        replicas += [
            (replica, kinds.get(replica.device) != "cpu")
            for replica in node.advert.replicas
            if replica.model == model.name and replica.state == "ready"
        ]
    if not replicas:
        return
    ends = [replica.unload_in for replica, _ in replicas]
    stays = any(each is None for each in ends)
    yield Loaded(
        name=model.name,
        model=model.name,
        size=sum(replica.memory for replica, _ in replicas),
        size_vram=sum(replica.memory for replica, gpu in replicas if gpu),
        details=_details(nodes, model.name),
        expires_at=None if stays else iso(now + max(each for each in ends if each is not None)),
        context_length=model.context,
    )


OPERATIONS = (
    Operation("GET", "/api/tags", tags, "List models", "ollama", answer=Tags, dialect=DIALECT),
    Operation(
        "POST",
        "/api/show",
        show,
        "Show a model",
        "ollama",
        body=ShowRequest,
        answer=ShowAnswer,
        errors=(ModelNotFound,),
        example={"model": "smollm2"},
        dialect=DIALECT,
    ),
    Operation(
        "GET",
        "/api/ps",
        running,
        "List loaded models",
        "ollama",
        answer=LoadedModels,
        dialect=DIALECT,
    ),
    Operation(
        "GET", "/api/version", version, "Version", "ollama", answer=VersionAnswer, dialect=DIALECT
    ),
)

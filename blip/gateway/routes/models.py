"""``GET /v1/models``: what the mesh serves."""

from __future__ import annotations

import difflib
from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from blip.errors import ModelNotFound
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.mesh import ServedModel
from blip.gateway.moments import iso


class ModelView(BaseModel):
    """A model, in OpenAI's and Anthropic's shapes and with what a mesh knows besides."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["model"] = "model"
    type: Literal["model"] = "model"
    """Anthropic's word for object, as display_name and created_at are for id and created."""
    display_name: str
    created: int
    """When this gateway started: models have no birthday that a mesh would know."""
    created_at: str
    owned_by: Literal["mesh"] = "mesh"
    kinds: list[str]
    context: int | None
    """Context window in tokens, where the model has one."""
    nodes: list[str]
    """Names of the nodes that have it."""
    ready: int
    """Replicas that are loaded."""
    loras: list[str]
    """Names of the LoRAs that pictures may be painted with."""
    controlnets: list[str]
    """Names of the ControlNets that pictures may follow."""


class ModelList(BaseModel):
    """Every model, by name."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["list"] = "list"
    data: list[ModelView]
    has_more: Literal[False] = False
    """Anthropic's, as the next two: this is the only page."""
    first_id: str | None
    last_id: str | None


def _view(model: ServedModel, created: int) -> ModelView:
    return ModelView(
        id=model.name,
        display_name=model.name,
        created=created,
        created_at=iso(created),
        kinds=list(model.kinds),
        context=model.context,
        nodes=list(model.nodes),
        ready=model.ready,
        loras=list(model.loras),
        controlnets=list(model.controlnets),
    )


async def index(exchange: Exchange) -> web.StreamResponse:
    """List every model that at least one connected node can run."""
    gateway = exchange.gateway
    views = [_view(model, gateway.started) for model in gateway.mesh.models()]
    ends = (views[0].id, views[-1].id) if views else (None, None)
    found = ModelList(data=views, first_id=ends[0], last_id=ends[1])
    return web.Response(text=found.model_dump_json(), content_type="application/json")


async def show(exchange: Exchange) -> web.StreamResponse:
    """Show one model; its name may contain slashes."""
    name = exchange.request.match_info["id"]
    models = {model.name: model for model in exchange.gateway.mesh.models()}
    if name not in models:
        near = difflib.get_close_matches(name, models, n=3)
        raise ModelNotFound(
            f"No node of this mesh serves a model '{name}'.",
            hint=f"Did you mean {' or '.join(near)}?" if near else "",
            param="model",
        )
    view = _view(models[name], exchange.gateway.started)
    return web.Response(text=view.model_dump_json(), content_type="application/json")


OPERATIONS = (
    Operation("GET", "/v1/models", index, "List models", "mesh", answer=ModelList),
    Operation(
        "GET",
        "/v1/models/{id:.+}",
        show,
        "Show a model",
        "mesh",
        answer=ModelView,
        errors=(ModelNotFound,),
    ),
)

"""``/``, ``/docs`` and ``/openapi.json``: the gateway about itself, and what it does not have."""

from __future__ import annotations

import difflib
from typing import Any, Literal, NoReturn

from aiohttp import web
from pydantic import BaseModel, ConfigDict

import blip
from blip.errors import NotFound
from blip.gateway.api import Operation
from blip.gateway.envelope import MethodNotAllowed
from blip.gateway.exchange import Exchange
from blip.gateway.page import CONTENT_POLICY, render


class About(BaseModel):
    """Where to look next."""

    name: Literal["blip"] = "blip"
    version: str
    docs: str = "/docs"
    openapi: str = "/openapi.json"
    models: str = "/v1/models"
    ready: str = "/readyz"


class Document(BaseModel):
    """An OpenAPI 3.1 document."""

    model_config = ConfigDict(extra="allow")

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]


async def root(exchange: Exchange) -> web.StreamResponse:
    """Say what this is and where its documentation lies."""
    about = About(version=blip.__version__)
    return web.Response(text=about.model_dump_json(), content_type="application/json")


async def openapi(exchange: Exchange) -> web.StreamResponse:
    """Describe every operation as OpenAPI 3.1."""
    return web.Response(body=exchange.gateway.api.text, content_type="application/json")


async def docs(exchange: Exchange) -> web.StreamResponse:
    """Describe every operation for people, with something to paste into a shell."""
    request = exchange.request
    page = render(exchange.gateway.api, f"{request.scheme}://{request.host}")
    return web.Response(
        text=page,
        content_type="text/html",
        headers={"Content-Security-Policy": CONTENT_POLICY, "X-Content-Type-Options": "nosniff"},
    )


async def unknown(exchange: Exchange) -> NoReturn:
    """Say that there is nothing here, and what may have been meant."""
    request = exchange.request
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        _, methods = await resource.resolve(request)
        allowed |= methods
    allowed.discard("*")  # this route's own
    if allowed:
        raise MethodNotAllowed(
            f"{request.path} does not take {request.method}.",
            hint=f"It takes {', '.join(sorted(allowed))}.",
            details={"allow": sorted(allowed)},
        )
    paths = [operation.template for operation in exchange.gateway.api.operations]
    near = difflib.get_close_matches(request.path, paths, n=1)
    raise NotFound(
        f"There is nothing at {request.path}.",
        hint=f"Did you mean {near[0]}?" if near else "GET /docs lists what there is.",
    )


OPERATIONS = (
    Operation("GET", "/", root, "About", "about", answer=About, public=True),
    Operation("GET", "/openapi.json", openapi, "OpenAPI", "about", answer=Document, public=True),
    Operation(
        "GET",
        "/docs",
        docs,
        "Documentation",
        "about",
        media={"text/html": "A page that needs no script."},
        public=True,
    ),
)

#: Matches whatever the others do not; not part of the API, hence not among its operations.
UNKNOWN = Operation("*", "/{rest:.*}", unknown, "Unknown", "about", public=True)

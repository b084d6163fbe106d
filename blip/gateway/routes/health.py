"""``/healthz``, ``/readyz`` and ``/metrics``, for those who watch over a gateway."""

from __future__ import annotations

from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """One thing the gateway depends on."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    ok: bool
    detail: str
    required: bool
    """Whether the gateway is of no use without it."""


class Readiness(BaseModel):
    """Whether every required dependency is there."""

    ready: bool
    checks: list[Check]


class NotReady(Readiness):
    """A required dependency is down; the checks say which."""


async def healthz(exchange: Exchange) -> web.StreamResponse:
    """Say that the process is alive and its event loop turns. It depends on nothing else."""
    return web.Response(text=Alive().model_dump_json(), content_type="application/json")


async def readyz(exchange: Exchange) -> web.StreamResponse:
    """Say whether requests can be served, dependency by dependency."""
    checks = [
        Check(name=health.name, ok=health.ok, detail=health.detail, required=health.required)
        for health in await exchange.gateway.mesh.health()
    ]
    ready = all(check.ok for check in checks if check.required)
    view = Readiness(ready=ready, checks=checks)
    return web.Response(
        text=view.model_dump_json(),
        status=200 if ready else 503,
        content_type="application/json",
    )


async def metrics(exchange: Exchange) -> web.StreamResponse:
    """Show counters and histograms for Prometheus."""
    accept = exchange.request.headers.get("Accept", "")
    data, content_type = exchange.gateway.metrics.render(accept)
    return web.Response(body=data, headers={"Content-Type": content_type})


def operations(*, metrics_open: bool) -> tuple[Operation, ...]:
    """Return the operations; ``metrics_open`` lets anyone read the metrics."""
    return (
        Operation("GET", "/healthz", healthz, "Alive?", "health", answer=Alive, public=True),
        Operation(
            "GET",
            "/readyz",
            readyz,
            "Ready?",
            "health",
            answer=Readiness,
            answers={503: NotReady},
            public=True,
        ),
        Operation(
            "GET",
            "/metrics",
            metrics,
            "Metrics",
            "health",
            media={"text/plain": "Prometheus' text format, or OpenMetrics where asked for."},
            public=metrics_open,
        ),
    )

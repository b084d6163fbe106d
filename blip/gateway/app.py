"""Assembles the aiohttp application; owns no logic of its own."""

from __future__ import annotations

from aiohttp import web

from blip.gateway.api import Api
from blip.gateway.exchange import Gateway
from blip.gateway.files import Files
from blip.gateway.handler import make_expect_handler, make_handler
from blip.gateway.mesh import Mesh
from blip.gateway.routes import (
    about,
    chat,
    completions,
    echo,
    embeddings,
    files,
    health,
    images,
    kinds,
    messages,
    models,
    moderations,
    ollama,
    original,
    pipelines,
    rerank,
    responses,
    speech,
    tasks,
    transcriptions,
    upscale,
    videos,
    vision,
)
from blip.gateway.routes import mesh as mesh_routes
from blip.gateway.routes import operations as operation_routes
from blip.gateway.settings import GatewaySettings
from blip.store.files import Files as StoredFiles


def build_app(
    mesh: Mesh, settings: GatewaySettings, store: StoredFiles | None = None
) -> web.Application:
    """Return the HTTP face of ``mesh``; ``store`` keeps results, else memory does.

    Run it with ``handler_cancellation=True``: a client that goes away then cancels its tasks.
    """
    operations = (
        *chat.OPERATIONS,
        *completions.OPERATIONS,
        *responses.OPERATIONS,
        *messages.OPERATIONS,
        *ollama.OPERATIONS,
        *original.OPERATIONS,
        *embeddings.OPERATIONS,
        *rerank.OPERATIONS,
        *pipelines.OPERATIONS,
        *images.OPERATIONS,
        *transcriptions.OPERATIONS,
        *speech.OPERATIONS,
        *vision.OPERATIONS,
        *videos.OPERATIONS,
        *files.OPERATIONS,
        *upscale.OPERATIONS,
        *moderations.OPERATIONS,
        *kinds.OPERATIONS,
        *models.OPERATIONS,
        *mesh_routes.OPERATIONS,
        *operation_routes.OPERATIONS,
        *tasks.OPERATIONS,
        *echo.OPERATIONS,
        *health.operations(metrics_open=settings.metrics_open),
        *about.OPERATIONS,
    )
    api = Api(operations, secured=bool(settings.api_keys))
    gateway = Gateway(mesh, settings, api, Files(settings, store))
    app = web.Application(client_max_size=settings.body_limit)

    async def close(app: web.Application) -> None:
        await gateway.studio.close()

    app.on_cleanup.append(close)
    for operation in (*operations, pipelines.UNKNOWN, about.UNKNOWN):
        handler = make_handler(gateway, operation)
        expect = make_expect_handler(gateway, operation)
        app.router.add_route(operation.method, operation.path, handler, expect_handler=expect)
        if operation.method == "GET":
            app.router.add_route("HEAD", operation.path, handler, expect_handler=expect)
    return app

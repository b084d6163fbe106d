"""Verbs that show what a mesh is and does."""

from __future__ import annotations

from typing import Annotated

import typer

from blip.cli.options import ApiKey, Json, Url, app


@app.command()
def models(url: Url = None, api_key: ApiKey = None, json: Json = False) -> int:
    """List the models that the mesh serves."""
    from blip.cli import views

    return views.models(url, api_key, as_json=json)


@app.command()
def status(
    devices: Annotated[
        bool, typer.Option("--devices", "-v", help="All that is known of each device.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Show the nodes, their devices and what is loaded."""
    from blip.cli import views

    return views.status(url, api_key, devices=devices, as_json=json)


@app.command()
def ps(url: Url = None, api_key: ApiKey = None, json: Json = False) -> int:
    """List the loaded models, the tasks in flight, and those that have just ended."""
    from blip.cli import views

    return views.ps(url, api_key, as_json=json)


@app.command()
def why(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Its id, or the start or the end of it.")
    ],
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Explain why a task ran where it ran, what else was considered, and what came of it."""
    from blip.cli import why

    return why.why(task, url, api_key, as_json=json)

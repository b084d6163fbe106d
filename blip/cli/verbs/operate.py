"""Verbs of operators: what to load where, and who is out of service."""

from __future__ import annotations

from typing import Annotated

import typer

from blip.cli.options import ApiKey, Json, Model, Url, app

Where = Annotated[
    str | None,
    typer.Argument(metavar="[NODE[/DEVICE]]", help="A node of `blip status`, or its device."),
]
Standing = Annotated[
    str, typer.Argument(metavar="NODE[/DEVICE]", help="A node of `blip status`, or its device.")
]
Reason = Annotated[
    str | None, typer.Option("--reason", help="Why, for those who look at `blip status`.")
]


@app.command()
def load(
    model: Model,
    place: Where = None,
    pin: Annotated[
        bool | None, typer.Option("--pin/--no-pin", help="Never unload it to make room.")
    ] = None,
    keep_alive: Annotated[
        float | None,
        typer.Option(
            "--keep-alive",
            metavar="SECONDS",
            help="Unload it after that long without work; -1: when its room is needed.",
        ),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Load a model, on the fastest device that has room unless one is named."""
    from blip.cli import operations

    return operations.load(
        model, place, pin=pin, keep_alive=keep_alive, url=url, api_key=api_key, as_json=json
    )


@app.command()
def unload(
    model: Model,
    place: Where = None,
    force: Annotated[
        bool, typer.Option("--force", help="Do not wait for what it runs: that goes elsewhere.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Unload a model, from every node unless one is named."""
    from blip.cli import operations

    return operations.unload(model, place, force=force, url=url, api_key=api_key, as_json=json)


@app.command()
def cordon(
    place: Standing,
    reason: Reason = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Take a node or a device out of service: it takes no new tasks."""
    from blip.cli import operations

    return operations.cordon(place, reason, url, api_key, as_json=json)


@app.command()
def uncordon(place: Standing, url: Url = None, api_key: ApiKey = None, json: Json = False) -> int:
    """Put a node or a device back into service."""
    from blip.cli import operations

    return operations.uncordon(place, url, api_key, as_json=json)


@app.command()
def drain(
    place: Standing,
    reason: Reason = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Take a node or a device out of service, and wait until nothing runs on it any more."""
    from blip.cli import operations

    return operations.drain(place, reason, url, api_key, as_json=json)

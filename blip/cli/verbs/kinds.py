"""``kinds`` and ``task``: what plugins define."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import ApiKey, Deadline, Json, Priority, Require, Url, app


@app.command()
def kinds(url: Url = None, api_key: ApiKey = None, json: Json = False) -> int:
    """List the kinds of task that the mesh knows, built in or of your own."""
    from blip.cli import kinds

    return kinds.show(url, api_key, as_json=json)


@app.command()
def task(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="A kind of `blip kinds`.")],
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Needed where several models serve it."),
    ] = None,
    input: Annotated[
        str,
        typer.Option(
            "--input", "-i", metavar="JSON", help="The input: JSON, @file or - for stdin."
        ),
    ] = "{}",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where the answer goes.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print parts and progress as they come, a line each.")
    ] = False,
    priority: Priority = None,
    deadline: Deadline = None,
    require: Require = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Run a task of a kind that a plugin defines, and print what it answers."""
    from blip.cli import kinds

    said = {"priority": priority, "deadline": deadline, "require": require}
    asked = kinds.Asked(kind, model, kinds.read_input(input), said)
    if stream:
        return kinds.stream(asked, url, api_key)
    return kinds.run(asked, out, url, api_key, as_json=json)

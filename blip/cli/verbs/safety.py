"""``moderate``: what models that moderate are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import ApiKey, Json, Url, app


@app.command()
def moderate(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts to judge, each by itself."),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="A picture; all is then judged together."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="In place of the gateway's own.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Say which categories of harm texts or pictures fall into."""
    from blip.cli import moderate

    return moderate.run(texts or [], images or [], model, url, api_key, as_json=json)

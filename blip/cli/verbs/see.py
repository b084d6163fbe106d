"""``see``: what models that look at pictures are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import ApiKey, Json, Model, Url, see_app

Image = Annotated[
    Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or WebP file; - for stdin.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", metavar="TEXT", help="What to look for; may be repeated."),
]
Threshold = Annotated[
    float | None, typer.Option("--threshold", min=0, max=1, help="Leave out what is less sure.")
]


@see_app.command()
def caption(
    model: Model,
    image: Image,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="What the caption continues, or the question."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1)] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Say in words what a picture shows."""
    from blip.cli import see

    return see.caption(model, image, prompt, max_tokens, url, api_key, as_json=json)


@see_app.command()
def detect(
    model: Model,
    image: Image,
    label: Labels = None,
    threshold: Threshold = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Find things in a picture."""
    from blip.cli import see

    return see.detect(model, image, label, threshold, url, api_key, as_json=json)


@see_app.command()
def classify(
    model: Model,
    image: Image,
    label: Labels = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Answers.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Name a picture."""
    from blip.cli import see

    return see.classify(model, image, label, top, url, api_key, as_json=json)


@see_app.command()
def depth(
    model: Model,
    image: Image,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The PNG.")],
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Write how far away everything is, as a gray PNG of 16 bits."""
    from blip.cli import see

    return see.depth(model, image, out, url, api_key, as_json=json)


@see_app.command()
def segment(
    model: Model,
    image: Image,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Where to write the masks."),
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="semantic, instance or panoptic.")
    ] = None,
    threshold: Threshold = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Cut a picture up into the things that it shows."""
    from blip.cli import see

    return see.segment(model, image, out, mode, threshold, url, api_key, as_json=json)

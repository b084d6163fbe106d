"""``upscale``: what super-resolution models are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import ApiKey, Json, Url, app


@app.command()
def upscale(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or WebP file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Where to: .png, .jpg or .webp; - for stdout."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Needed where there are several."),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", min=1, help="How many times longer its sides are to be."),
    ] = None,
    enhance: Annotated[
        bool, typer.Option("--enhance", help="Clean the picture, and keep its size.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What it shows; diffusion models read it.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of a diffusion model; 75 by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same picture.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Enlarge a picture, or clean it, with a super-resolution model."""
    from blip.cli import enlarge

    said = {"prompt": prompt, "steps": steps, "seed": seed}
    return enlarge.run(image, out, model, scale, said, url, api_key, enhance=enhance, as_json=json)

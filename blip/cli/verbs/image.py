"""``image``: what models of pictures are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import ApiKey, Json, Model, Url, app


@app.command()
def image(
    model: Model,
    prompt: Annotated[
        str, typer.Argument(metavar="[PROMPT]", help="What to paint; may be left out with --from.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Where to: .png, .jpg or .webp; - for stdout."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Such as 512x512.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1)] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same picture.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=10, help="Pictures.")] = 1,
    negative: Annotated[
        str | None, typer.Option("--negative", help="What to keep out of it.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", min=0, help="How closely to follow the prompt.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="NAME", help="Such as euler-karras.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="IMAGE", help="A picture to paint over.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="IMAGE", help="Where to: transparent, or else white."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", min=0, max=1, help="How much of --from may change."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="NAME:WEIGHT", help="A LoRA of the model; may come again."),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            "--control", metavar="TYPE=IMAGE", help="A picture whose shapes to follow: canny=a.png."
        ),
    ] = None,
    control_map: Annotated[
        str | None,
        typer.Option("--control-map", metavar="TYPE=IMAGE", help="The same, but the map itself."),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Paint pictures and write them to files."""
    from blip.cli import paint

    options = {
        "negative_prompt": negative,
        "steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "scheduler": scheduler,
        "strength": strength,
    }
    request = paint.Request(
        model, prompt, n, size, source, mask, options, lora or (), control, control_map
    )
    return paint.run(request, out, url, api_key, as_json=json)

"""``video``: what models of videos are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import ApiKey, Json, Model, Url, app


@app.command()
def video(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to film.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Where to: .mp4, .webp, .gif or .png; - for stdout."
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0, help="How long it is.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="How many frames, in place of seconds.")
    ] = None,
    fps: Annotated[int | None, typer.Option("--fps", min=1, help="Frames a second.")] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Such as 832x480.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1)] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same video.")] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", help="What to keep out of it.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", min=0, help="How closely to follow the prompt.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option("--scheduler", metavar="NAME")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="IMAGE", help="A picture to begin with.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Make a video, wait for it, and write it to a file."""
    from blip.cli import film

    options = {
        "seconds": seconds,
        "num_frames": frames,
        "fps": fps,
        "size": size,
        "steps": steps,
        "seed": seed,
        "negative_prompt": negative,
        "guidance_scale": guidance,
        "scheduler": scheduler,
    }
    request = film.Request(model, prompt, source, options)
    return film.run(request, out, url, api_key, as_json=json)

"""``speak``: what voices are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import ApiKey, Deadline, Json, Model, Priority, Require, Url, app


@app.command()
def speak(
    model: Model,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="What to say; without it: stdin.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Where to: .mp3, .opus, .ogg, .flac, .wav or .pcm; - for stdout.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="mp3, opus, flac, wav or pcm."),
    ] = None,
    voice: Annotated[
        str | None, typer.Option("--voice", metavar="NAME", help="One of the model's.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option("--speed", min=0.25, max=4, help="1: its own pace.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same samples.")] = None,
    priority: Priority = None,
    deadline: Deadline = None,
    require: Require = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Say a text and write the audio to a file."""
    from blip.cli import speech

    options = {
        "voice": voice,
        "speed": speed,
        "seed": seed,
        "priority": priority,
        "deadline": deadline,
        "require": require,
    }
    return speech.run(model, text, out, format, options, url, api_key, as_json=json)

"""``transcribe``: what models of speech are asked."""

from __future__ import annotations

from typing import Annotated

import typer

from blip.cli.options import ApiKey, Deadline, Json, Priority, Require, Url, app


@app.command()
def transcribe(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="WAV, MP3, FLAC or Ogg; - for stdin.")
    ],
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="MODEL", help="Else one of the mesh's that listens."),
    ] = "",
    translate: Annotated[
        bool, typer.Option("--translate", help="In English, whatever is spoken.")
    ] = False,
    format: Annotated[
        str, typer.Option("--format", "-f", metavar="FORMAT", help="text, srt or vtt.")
    ] = "text",
    language: Annotated[
        str | None, typer.Option("--language", "-l", help="What is spoken, such as de.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text that could stand before it: names, style.")
    ] = None,
    words: Annotated[
        bool, typer.Option("--words", help="Times of words, too; for --json.")
    ] = False,
    temperature: Annotated[float | None, typer.Option("--temperature", "-t", min=0, max=1)] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")] = None,
    priority: Priority = None,
    deadline: Deadline = None,
    require: Require = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Write down what is said in a sound file."""
    from blip.cli import hear

    options = {
        "language": language,
        "prompt": prompt,
        "temperature": temperature,
        "seed": seed,
        "priority": priority,
        "deadline": deadline,
        "require": require,
    }
    request = hear.Request(file, model, translate, words, options)
    return hear.run(request, format, url, api_key, as_json=json)

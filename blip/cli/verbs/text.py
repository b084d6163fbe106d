"""``run`` and ``embed``: what models of text are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from blip.cli.options import ApiKey, Deadline, Json, Model, Priority, Require, Url, app


@app.command()
def run(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="What to say; without it: a conversation."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", help="A picture for a model that sees; several times."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text itself: no chat, no template.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1)] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", min=0, max=2, help="0: no chance.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="Stop before this text; up to 4 times.")
    ] = None,
    json_schema: Annotated[
        str | None,
        typer.Option(
            "--json-schema", metavar="FILE|TEXT", help="The answer is JSON of this schema."
        ),
    ] = None,
    priority: Priority = None,
    deadline: Deadline = None,
    require: Require = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Ask a model. Text that is piped in goes with the prompt."""
    from blip.cli import ask

    sampling: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stop": stop,
    }
    if json_schema is not None:
        sampling["structured_outputs"] = {"json": ask.read_schema(json_schema)}
    request = ask.Request(
        model,
        system,
        raw,
        {name: value for name, value in sampling.items() if value is not None},
        {"priority": priority, "deadline": deadline, "require": require},
        ask.read_pictures(image or (), raw=raw),
    )
    return ask.run(request, prompt, url, api_key, as_json=json)


@app.command()
def embed(
    model: Model,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Texts; else lines of stdin.")
    ] = None,
    dimensions: Annotated[int | None, typer.Option("--dimensions", min=1)] = None,
    priority: Priority = None,
    deadline: Deadline = None,
    require: Require = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> int:
    """Embed texts and show how near they are to each other."""
    from blip.cli import ask

    task = {"priority": priority, "deadline": deadline, "require": require}
    return ask.embed(model, texts, dimensions, task, url, api_key, as_json=json)

"""``bench``: measurements of this machine's mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import ConfigFile, Json, Set, bench_app


@bench_app.command("overhead")
def bench_overhead(
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=100, help="Interleaved rounds.")
    ] = 5,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.2, max=60, help="Length of one visit.")
    ] = 1.0,
    cases: Annotated[
        str, typer.Option("--cases", metavar="NAMES", help="Only these, such as echo-64,idle.")
    ] = "",
    profile: Annotated[bool, typer.Option("--profile", help="CPU time of each thread.")] = False,
    json: Json = False,
) -> int:
    """Compare the whole path of an echo with a bare HTTP server."""
    from blip.bench import overhead

    return overhead.main(rounds=rounds, seconds=seconds, cases=cases, as_json=json, profile=profile)


@bench_app.command("placement")
def bench_placement(
    cases: Annotated[
        str, typer.Option("--cases", metavar="NAMES", help="Only these, such as 64-2,memory.")
    ] = "",
    decisions: Annotated[
        int, typer.Option("--decisions", min=10, max=1_000_000, help="Measured in each case.")
    ] = 2000,
    json: Json = False,
) -> int:
    """Measure how long placing a task takes, and the memory that nodes take."""
    from blip.bench import placement

    return placement.main(cases=cases, decisions=decisions, as_json=json)


@bench_app.command("text")
def bench_text(
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="NAME", help="A configured model, or a source; else: random."
        ),
    ] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=100, help="Rounds.")] = 3,
    at_a_time: Annotated[
        str, typer.Option("--at-a-time", metavar="NUMBERS", help="Requests, such as 1,8,32.")
    ] = "1,8,32",
    mesh: Annotated[bool, typer.Option(help="Ask over HTTP too.")] = True,
    config: ConfigFile = None,
    set_: Set = None,
    json: Json = False,
) -> int:
    """Compare batched decoding with transformers' own generate."""
    from blip.bench import speed, text
    from blip.cli import settings

    loaded = settings.read(config, set_)
    return text.main(
        model=model,
        rounds=rounds,
        companies=speed.companies_of(at_a_time),
        mesh=mesh,
        as_json=json,
        config=loaded.config,
    )


@bench_app.command("image")
def bench_image(
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FOLDER", help="A diffusers pipeline; toy-shapes if none."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Such as cpu or cuda:0.")] = "cpu",
    steps: Annotated[
        int, typer.Option("--steps", min=1, max=450, help="Steps that are compared.")
    ] = 40,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=1000, help="Interleaved rounds.")
    ] = 9,
    json: Json = False,
) -> int:
    """Compare painting in blip's runtime with bare diffusers."""
    from blip.bench import image

    return image.main(model=model, device=device, steps=steps, rounds=rounds, as_json=json)


@bench_app.command("cancel")
def bench_cancel(
    kinds: Annotated[
        str, typer.Option("--kinds", metavar="NAMES", help="Only these, such as chat,image.")
    ] = "",
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=1000, help="Connections closed of each kind.")
    ] = 9,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Measure how soon a slot is free after a client has gone."""
    from blip.bench import cancel

    return cancel.main(config=config, kinds=kinds, rounds=rounds, as_json=json)

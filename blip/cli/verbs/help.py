"""Verbs to try blip with, and to find out what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import ConfigFile, Json, Set, app


@app.command()
def doctor(config: ConfigFile = None, set_: Set = None, json: Json = False) -> int:
    """Check what this machine can and cannot do."""
    from blip.cli import doctor

    return doctor.doctor(config, set_, as_json=json)


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Stay up at http://127.0.0.1:8001 afterwards.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option("--port", "-p", min=1, max=65535, help="That port instead.", metavar="PORT"),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where what it makes goes.")
    ] = Path("demo-output"),
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what the roles log.")
    ] = False,
) -> int:
    """Try a mesh of two nodes: chat, embed, paint, caption, speak, transcribe, and check it all."""
    from blip.cli import demo

    return demo.demo(keep=keep, port=port, stream=verbose, folder=out)


@app.command()
def sim(
    scenario: Annotated[
        str | None,
        typer.Argument(metavar="[SCENARIO]", help="A name or a TOML file; without: list them."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", metavar="NAME", help="Only this variant of it.")
    ] = None,
    tasks: Annotated[int | None, typer.Option("--tasks", min=1, help="So many tasks.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same run.")] = None,
    policies: Annotated[
        str, typer.Option("--policies", metavar="NAMES", help="Only these, such as broker,oracle.")
    ] = "",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Where the PNG goes.")
    ] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Only the table.")] = False,
    json: Json = False,
) -> int:
    """Simulate a mesh: the broker's scheduler against other policies, in virtual time."""
    from blip.sim.main import main

    return main(
        scenario,
        variant=variant,
        tasks=tasks,
        seed=seed,
        policies=policies,
        plot=plot,
        no_plot=no_plot,
        as_json=json,
    )


@app.command()
def version(json: Json = False) -> int:
    """Print the version."""
    import platform

    from blip import __version__
    from blip.cli import render

    if json:
        render.print_json({"blip": __version__, "python": platform.python_version()})
    else:
        print(f"blip {__version__} (Python {platform.python_version()})")
    return 0

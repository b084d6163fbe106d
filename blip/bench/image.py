"""``blip bench image``: what painting in blip's runtime costs, against bare diffusers.

Nodes' code does the painting, in a process of its own: this package imports none of it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blip import __version__
from blip.bench.report import Quartiles
from blip.cli import render
from blip.errors import ConfigError, RuntimeFailed

#: A step in blip may take this much of what it takes in bare diffusers.
LIMIT = 1.03

#: Steps of the short pictures; what they take is not the steps' is taken off the long ones.
FEW = 5

_TOY = Path(__file__).parents[2] / "tests" / "models" / "toy-shapes"


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of one thing, medians over the rounds, and the ratio within each round."""

    what: str
    blip: float
    bare: float
    ratio: Quartiles


def main(
    *, model: Path | None, device: str = "cpu", steps: int, rounds: int, as_json: bool = False
) -> int:
    """Measure and print; return 0 whether or not the aim is met.

    Raises ``ConfigError`` if there is no such model, ``RuntimeFailed`` if it cannot be painted.
    """
    folder = model or _TOY
    if not (folder / "model_index.json").is_file():
        raise ConfigError(
            f"--model: {folder} is no folder of a diffusers pipeline",
            param="--model",
            hint="Name one that holds a model_index.json; a checkout of blip has "
            "tests/models/toy-shapes.",
        )
    render.note(f"{folder.name}: {rounds} rounds of {FEW} and {FEW + steps} steps")
    found = _measure(folder, device, FEW + steps, rounds)
    rows = figures(found)
    if as_json:
        render.print_json(document(folder, device, found, rows))
    else:
        _print(rows)
    return 0


def _measure(folder: Path, device: str, many: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "blip_node.runtimes.diffusion.bench", str(folder)]
    command += ["--device", device, "--few", str(FEW), "--many", str(many)]
    command += ["--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeFailed(f"the bench ended with status {done.returncode}: {lines[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def figures(found: Mapping[str, Any]) -> list[Row]:
    """Sum up what was measured: a step and a whole picture, on the wall and of CPU. Pure."""
    many, more = found["many"], found["many"] - found["few"]
    ours, theirs = found["rounds"]["blip"], found["rounds"]["bare"]
    rows = []
    for at, clock in enumerate(("", ", CPU")):
        for what, each in (
            (f"step{clock}", lambda taken, at=at: (taken["many"][at] - taken["few"][at]) / more),
            (f"picture of {many} steps{clock}", lambda taken, at=at: taken["many"][at]),
        ):
            mine, bare = list(map(each, ours)), list(map(each, theirs))
            ratios = [one / other for one, other in zip(mine, bare, strict=True)]
            rows.append(
                Row(what, statistics.median(mine), statistics.median(bare), Quartiles.of(ratios))
            )
    return rows


def document(
    folder: Path, device: str, found: Mapping[str, Any], rows: Sequence[Row]
) -> dict[str, Any]:
    """Return everything for programs. Times are seconds."""
    return {
        "version": __version__,
        "model": folder.name,
        "device": device,
        "cores": os.cpu_count(),
        "limit": LIMIT,
        "figures": [asdict(row) | {"ratio": row.ratio._asdict()} for row in rows],
        "rounds": found["rounds"],
    }


def _print(rows: Sequence[Row]) -> None:
    print(f"blip {__version__}, one process on {os.cpu_count()} cores")
    print(
        render.table(
            ["", "blip ms", "bare ms", "x bare", "quartiles", "aim"],
            [
                (
                    row.what,
                    f"{row.blip * 1e3:.2f}",
                    f"{row.bare * 1e3:.2f}",
                    f"{row.ratio.median:.3f}",
                    f"{row.ratio.q1:.3f} to {row.ratio.q3:.3f}",
                    _aim(row),
                )
                for row in rows
            ],
        )
    )


def _aim(row: Row) -> str:
    if not row.what.startswith("step"):
        return ""
    return f"at most {LIMIT}: {'met' if row.ratio.median <= LIMIT else 'not met'}"

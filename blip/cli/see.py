"""``blip see``: what models say of pictures, as tables and files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blip.cli import files, render
from blip.client import Blip


def caption(
    model: str,
    image: Path,
    prompt: str | None,
    max_tokens: int | None,
    url: str | None,
    api_key: str | None,
    *,
    as_json: bool,
) -> int:
    """Print what a picture shows. Raises :class:`~blip.errors.BlipError`, as all here do."""
    with Blip(url, api_key) as client:
        answer = client.caption(model, files.read(image), prompt, max_tokens=max_tokens)
    if as_json:
        render.print_json(asdict(answer))
    else:
        print(answer.text)
    return 0


def detect(
    model: str,
    image: Path,
    labels: Sequence[str] | None,
    threshold: float | None,
    url: str | None,
    api_key: str | None,
    *,
    as_json: bool,
) -> int:
    """Print what was found in a picture, and where."""
    with Blip(url, api_key) as client:
        answer = client.detect(model, files.read(image), labels, threshold=threshold)
    if as_json:
        render.print_json(asdict(answer))
        return 0
    rows = [
        (each.label, f"{each.score:.2f}", *(f"{edge:.0f}" for edge in each.box))
        for each in answer.objects
    ]
    print(render.table(["what", "sure", "left", "top", "right", "bottom"], rows))
    return 0


def classify(
    model: str,
    image: Path,
    labels: Sequence[str] | None,
    top: int | None,
    url: str | None,
    api_key: str | None,
    *,
    as_json: bool,
) -> int:
    """Print names for a picture."""
    with Blip(url, api_key) as client:
        answer = client.classify_image(model, files.read(image), labels, top=top)
    if as_json:
        render.print_json(asdict(answer))
        return 0
    print(render.table(["what", "sure"], [(label, f"{s:.3f}") for label, s in answer.labels]))
    return 0


def depth(
    model: str, image: Path, out: Path, url: str | None, api_key: str | None, *, as_json: bool
) -> int:
    """Write the distances of a picture's pixels to a file."""
    with Blip(url, api_key) as client:
        answer = client.depth(model, files.read(image))
    files.write(out, answer.file)
    facts: dict[str, Any] = {"file": str(out), "min": answer.low, "max": answer.high}
    if as_json:
        render.print_json({**facts, "origin": asdict(answer.origin)})
    else:
        print(f"{out}  from {answer.low:g} (black) to {answer.high:g} (white)")
    return 0


def segment(
    model: str,
    image: Path,
    out: Path | None,
    mode: str | None,
    threshold: float | None,
    url: str | None,
    api_key: str | None,
    *,
    as_json: bool,
) -> int:
    """Print the parts of a picture, and write their masks if there is a folder for them."""
    with Blip(url, api_key) as client:
        answer = client.segment(model, files.read(image), mode=mode, threshold=threshold)
    rows: list[dict[str, Any]] = []
    for number, part in enumerate(answer.segments):
        row = {"label": part.label, "score": part.score, "area": part.area}
        if out is not None:
            name = re.sub(r"\W+", "-", part.label.lower()).strip("-") or "part"
            path = out / f"{number:02d}-{name}.png"
            files.write(path, part.mask)
            row["file"] = str(path)
        rows.append(row)
    if as_json:
        render.print_json({"mode": answer.mode, "segments": rows, "origin": asdict(answer.origin)})
        return 0
    whole = answer.width * answer.height
    cells = [
        (
            row["label"],
            "" if row["score"] is None else f"{row['score']:.2f}",
            f"{row['area'] / whole:.0%}",
            row.get("file", ""),
        )
        for row in rows
    ]
    print(render.table(["what", "sure", "of the picture", "mask"], cells))
    return 0

"""``blip upscale``: a picture's file into a larger one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from blip.cli import paint, render
from blip.client import Blip
from blip.errors import ConfigError, ModelNotFound


def run(
    source: Path,
    out: Path | None,
    model: str | None,
    scale: float | None,
    said: dict[str, Any],
    url: str | None,
    api_key: str | None,
    *,
    enhance: bool,
    as_json: bool,
) -> int:
    """Enlarge or clean a picture and write it. Raises :class:`~blip.errors.BlipError`.

    ``said`` is what diffusion models are told beside it. Without ``out`` it stands beside its
    source, as ``NAME-upscaled.png``; none is overwritten.
    Without ``model`` the mesh must have exactly one of the kind.
    """
    to_stdout = str(out) == "-"
    if to_stdout and as_json:
        raise ConfigError("--out - writes the picture and nothing else", param="--out")
    if enhance and scale is not None:
        raise ConfigError("--enhance keeps a picture's size", param="--scale")
    format = paint.format_of(out)
    image = paint.read(source) or b""
    options = {"output_format": None if format == "png" else format, **said}
    with Blip(url, api_key) as client:
        chosen = model or _only_model(client)
        if enhance:
            answer = client.enhance(chosen, image, **options)
        else:
            answer = client.upscale(chosen, image, scale=scale, **options)
    if to_stdout:
        sys.stdout.buffer.write(answer.file)
        return 0
    path = out or _free(source, "enhanced" if enhance else "upscaled")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(answer.file)
    if as_json:
        origin = answer.origin
        render.print_json(
            {
                "file": str(path),
                "size": answer.size,
                "model": chosen,
                "node": origin.node,
                "request_id": origin.request_id,
            }
        )
    else:
        print(f"{path}  {answer.size}")
    return 0


def _only_model(client: Blip) -> str:
    able = [model.id for model in client.models() if "upscale" in model.kinds]
    if len(able) == 1:
        return able[0]
    if not able:
        raise ModelNotFound(
            "the mesh has no model that enlarges pictures",
            hint="Name one in a node's configuration, such as "
            "hf:caidas/swin2SR-classical-sr-x2-64.",
        )
    raise ConfigError(
        f"the mesh has {len(able)} models that enlarge pictures",
        param="--model",
        hint=f"Choose one with --model: {', '.join(able)}.",
    )


def _free(source: Path, what: str) -> Path:
    """Return a name beside the source that no file has."""
    path = source.with_name(f"{source.stem}-{what}.png")
    number = 1
    while path.exists():
        path = source.with_name(f"{source.stem}-{what}-{number}.png")
        number += 1
    return path

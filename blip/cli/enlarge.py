"""``blip upscale``: a picture's file into a larger one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from blip.cli import files, paint, render
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
    format = files.format_of(out, paint.FORMATS) or "png"
    image = files.read(source)
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
    path = out or files.free(
        source.with_name(f"{source.stem}-{'enhanced' if enhance else 'upscaled'}.png")
    )
    files.write(path, answer.file)
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

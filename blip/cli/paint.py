"""``blip image``: pictures into files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.cli import files, render
from blip.client import Blip
from blip.errors import ConfigError, InvalidRequest

#: Formats by the ending of a file's name.
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True, slots=True)
class Request:
    """What to paint. ``source`` and ``mask`` are files; None among the options leaves one out."""

    model: str
    prompt: str
    n: int = 1
    size: str | None = None
    source: Path | None = None
    mask: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    loras: Sequence[str] = ()
    #: ``TYPE=FILE``; a map is taken as it is, where a picture has one made of it.
    control: str | None = None
    control_map: str | None = None


def run(
    request: Request, out: Path | None, url: str | None, api_key: str | None, *, as_json: bool
) -> int:
    """Paint, write the files, and print their names. Raises :class:`~blip.errors.BlipError`.

    Without ``out`` files are named by the prompt, in the current folder, and none is overwritten;
    with it, several get a number before the ending.
    """
    if not request.prompt and request.source is None:
        raise InvalidRequest(
            "there is nothing to paint: no prompt and no --from",
            hint='Write it: blip image MODEL "a large red heart on a white background"',
        )
    to_stdout = str(out) == "-"
    if to_stdout and (request.n > 1 or as_json):
        raise ConfigError("--out - writes one picture and nothing else", param="--out")
    format = files.format_of(out, FORMATS) or "png"
    with Blip(url, api_key) as client:
        answer = client.image(
            request.model,
            request.prompt,
            image=files.read_if(request.source),
            mask=files.read_if(request.mask),
            n=request.n,
            size=request.size,
            loras=dict(map(_lora, request.loras)),
            control=_control(request),
            output_format=None if format == "png" else format,
            **request.options,
        )
    if to_stdout:
        sys.stdout.buffer.write(answer.pictures[0].file)
        return 0
    names = _names(request, out, format)
    written = []
    for picture in answer.pictures:
        path = next(names)
        files.write(path, picture.file)
        written.append({"file": str(path), "seed": picture.seed, "size": answer.size})
        if not as_json:
            print(f"{path}  {answer.size}, seed {picture.seed}")
    if as_json:
        origin = answer.origin
        render.print_json(
            {"pictures": written, "node": origin.node, "request_id": origin.request_id}
        )
    return 0


def _lora(text: str) -> tuple[str, float]:
    """Read ``NAME`` or ``NAME:WEIGHT``."""
    name, colon, weight = text.partition(":")
    try:
        return name, float(weight) if colon else 1.0
    except ValueError:
        raise ConfigError(
            f"--lora: {text!r} is not written as NAME:WEIGHT", param="--lora"
        ) from None


def _control(request: Request) -> dict[str, Any] | None:
    """Read ``TYPE=FILE`` or ``TYPE:WEIGHT=FILE``."""
    text, option = request.control, "--control"
    if request.control_map is not None:
        if text is not None:
            raise ConfigError("--control and --control-map exclude each other", param=option)
        text, option = request.control_map, "--control-map"
    if text is None:
        return None
    kind, equals, file = text.partition("=")
    if not (kind and equals and file):
        raise ConfigError(f"{option}: {text!r} is not written as TYPE=IMAGE", param=option)
    name, weight = _lora(kind)
    preprocess = request.control_map is None
    return {"type": name, "weight": weight, "preprocess": preprocess, "image": files.read(file)}


def _names(request: Request, out: Path | None, format: str) -> Iterator[Path]:
    """Yield a path for each picture."""
    if out is not None and request.n == 1:
        yield out
    elif out is not None:
        for number in range(1, request.n + 1):
            yield out.with_stem(f"{out.stem}-{number}")
    else:
        words = request.prompt or (request.source.stem if request.source else "")
        while True:
            yield files.free(files.named_by(words, "picture", format))

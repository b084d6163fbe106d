"""``blip video``: a video into a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.cli import files, render
from blip.client import Blip, VideoProgress
from blip.errors import ConfigError

#: Formats by the ending of a file's name, and endings by what a file is.
_FORMATS = {".mp4": "mp4", ".webp": "webp", ".gif": "gif", ".png": "apng", ".apng": "apng"}
_ENDINGS = {"video/mp4": "mp4", "image/webp": "webp", "image/gif": "gif", "image/apng": "png"}

#: Seconds between two looks: a person watches.
_POLL = 0.5


@dataclass(frozen=True, slots=True)
class Request:
    """What to film. ``source`` is a file to begin with; None among the options leaves one out."""

    model: str
    prompt: str
    source: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def run(
    request: Request, out: Path | None, url: str | None, api_key: str | None, *, as_json: bool
) -> int:
    """Film, write the file, and print its name. Raises :class:`~blip.errors.BlipError`.

    Without ``out`` the file is named by the prompt, in the current folder, and none is
    overwritten. How far it is is shown on stderr, if that is a terminal.
    """
    to_stdout = str(out) == "-"
    if to_stdout and as_json:
        raise ConfigError("--out - writes the video and nothing else", param="--out")
    shown = sys.stderr.isatty()

    def show(progress: VideoProgress) -> None:
        if shown:
            print(f"\r{progress.status:12}{progress.percent:3} %", end="", file=sys.stderr)

    with Blip(url, api_key) as client:
        try:
            answer = client.video(
                request.model,
                request.prompt,
                image=files.read_if(request.source),
                output_format=files.format_of(out, _FORMATS),
                progress=show,
                poll=_POLL,
                **request.options,
            )
        finally:
            if shown:
                print("\r\x1b[K", end="", file=sys.stderr)
    if to_stdout:
        sys.stdout.buffer.write(answer.file)
        return 0
    ending = _ENDINGS.get(answer.media, "bin")
    path = out or files.free(files.named_by(request.prompt, "video", ending))
    files.write(path, answer.file)
    if as_json:
        render.print_json(
            {
                "file": str(path),
                "seed": answer.seed,
                "size": answer.size,
                "frames": answer.frames,
                "fps": answer.fps,
                "content_type": answer.media,
                "url": answer.url,
                "task": answer.origin.task_id,
            }
        )
    else:
        length = f"{answer.frames} frames at {answer.fps} a second"
        print(f"{path}  {answer.size}, {length}, seed {answer.seed}")
    return 0

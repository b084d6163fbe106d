"""``blip speak``: a text into an audio file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from blip.cli import files, render
from blip.client import Blip, Origin
from blip.errors import ConfigError, InvalidRequest

#: Formats by the ending of a file's name.
_FORMATS = {
    ".mp3": "mp3",
    ".opus": "opus",
    ".ogg": "opus",
    ".flac": "flac",
    ".wav": "wav",
    ".pcm": "pcm",
}


def run(
    model: str,
    text: str | None,
    out: Path | None,
    format: str | None,
    options: Mapping[str, Any],
    url: str | None,
    api_key: str | None,
    *,
    as_json: bool,
) -> int:
    """Say a text, or what is on stdin, and print the file's name.

    The format is that of the ending of ``out``; WAV without one. Without ``out`` the file is named
    by the text, in the current folder, and none is overwritten. A file that breaks off is left as
    far as it came. Raises :class:`~blip.errors.BlipError`.
    """
    to_stdout = str(out) == "-"
    if to_stdout and as_json:
        raise ConfigError("--out - writes the audio and nothing else", param="--out")
    text = _text(text)
    kind = format or files.format_of(out, _FORMATS, ", or name a --format") or "wav"
    path = out or files.free(files.named_by(text, "speech", kind))
    with (
        Blip(url, api_key) as client,
        client.speak_stream(model, text, format=kind, **options) as stream,
    ):
        if to_stdout:
            _write(stream, sys.stdout.buffer)
            return 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            size = _write(stream, file)
        origin: Origin = stream.origin
    if as_json:
        said = {"file": str(path), "format": kind, "bytes": size}
        render.print_json({**said, "node": origin.node, "request_id": origin.request_id})
    else:
        print(f"{path}  {size:,} bytes")
    return 0


def _write(pieces: Iterable[bytes], file: BinaryIO) -> int:
    """Write pieces as they come, so that a player at the other end of a pipe begins at once."""
    size = 0
    for piece in pieces:
        file.write(piece)
        file.flush()
        size += len(piece)
    return size


def _text(text: str | None) -> str:
    if text is None and not sys.stdin.isatty():
        text = sys.stdin.read()
    if text is None or not text.strip():
        raise InvalidRequest(
            "there is nothing to say: no text was given and stdin is empty",
            hint='Write it: blip speak MODEL "Hello from the mesh." -o hello.wav',
        )
    return text

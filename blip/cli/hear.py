"""``blip transcribe``: what is said in a sound file, as text, subtitles or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blip.cli import files, render
from blip.client import Blip, TranscriptAnswer
from blip.errors import ConfigError, ModelNotFound

#: What can be printed. JSON is what ``--json`` is for.
FORMATS = ("text", "srt", "vtt")


@dataclass(frozen=True, slots=True)
class Request:
    """What to listen to; ``model`` is "" for one that serves the kind, ``file`` "-" for stdin."""

    file: str
    model: str = ""
    translate: bool = False
    words: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of the task."""
        return "translation" if self.translate else "transcription"


def run(
    request: Request, format: str, url: str | None, api_key: str | None, *, as_json: bool
) -> int:
    """Listen and print what was said. Raises :class:`~blip.errors.BlipError`."""
    if format not in FORMATS:
        raise ConfigError(
            f"--format: '{format}' is not one of {', '.join(FORMATS)}", param="--format"
        )
    data = files.read(request.file)
    with Blip(url, api_key) as client:
        model = request.model or _choose(client, request.kind)
        if request.translate:
            answer = client.translate(model, data, **request.options)
        else:
            answer = client.transcribe(model, data, words=request.words, **request.options)
    if as_json:
        render.print_json(_document(answer, model))
    elif format == "text":
        print(answer.text)
    else:
        print(answer.srt if format == "srt" else answer.vtt, end="")
    return 0


def _choose(client: Blip, kind: str) -> str:
    """Return a model that serves a kind, a loaded one before others."""
    able = [model for model in client.models() if kind in model.kinds]
    if not able:
        raise ModelNotFound(
            f"no model of this mesh serves {kind}",
            hint="Name one in a node's configuration; `blip models` shows what there is.",
        )
    return min(able, key=lambda model: (not model.ready, model.id)).id


def _document(answer: TranscriptAnswer, model: str) -> dict[str, Any]:
    def times(each: Any) -> dict[str, Any]:
        return {"text": each.text, "start": each.start, "end": each.end}

    return {
        "text": answer.text,
        "language": answer.language or None,
        "duration": answer.duration,
        "segments": [times(segment) for segment in answer.segments],
        "words": [times(word) for word in answer.words],
        "model": model,
        "node": answer.origin.node,
        "request_id": answer.origin.request_id,
    }

"""``blip kinds`` and ``blip task``: kinds of task that plugins define."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from blip.cli import files, render
from blip.client import Blip
from blip.errors import InvalidRequest


class Asked(NamedTuple):
    """A task; ``options`` are the client's, None leaves one out."""

    kind: str
    model: str | None
    input: dict[str, Any]
    options: Mapping[str, Any]


def show(url: str | None, api_key: str | None, *, as_json: bool) -> int:
    """List the kinds."""
    with Blip(url, api_key) as client:
        found = client.kinds()
    if as_json:
        render.print_json(found)
        return 0
    rows = [
        (
            kind["name"],
            "built in" if kind["builtin"] else kind["nodes"],
            kind["models"],
            _fields(kind),
        )
        for kind in found
    ]
    print(render.table(("KIND", "FROM", "MODELS", "INPUT"), rows))
    return 0


def _fields(kind: Mapping[str, Any]) -> str:
    """Return the fields of an input; a built-in kind's are its routes' business."""
    if kind["builtin"]:
        return ""
    schema = kind["input_schema"]
    required = schema.get("required", ())
    return ", ".join(
        name if name in required else f"[{name}]" for name in schema.get("properties", ())
    )


def run(
    asked: Asked, out: Path | None, url: str | None, api_key: str | None, *, as_json: bool
) -> int:
    """Run a task; JSON is printed, bytes go to ``out`` or stdout as they are."""
    with Blip(url, api_key) as client:
        answer = client.run_task(asked.kind, asked.input, model=asked.model, **dict(asked.options))
    body = answer.output
    is_bytes = isinstance(body, bytes)
    if out is not None:
        text = b"" if is_bytes else json.dumps(body, ensure_ascii=False, indent=2).encode() + b"\n"
        files.write(out, body if is_bytes else text)
        body = {"file": str(out), "media_type": answer.media}
    elif is_bytes:
        sys.stdout.buffer.write(body)
        return 0
    if as_json:
        origin = answer.origin
        said = {"output": body, "node": origin.node, "request_id": origin.request_id}
        render.print_json(said)
    elif out is None:
        render.print_json(body)
    else:
        print(f"{out}  {answer.media}")
    return 0


def stream(asked: Asked, url: str | None, api_key: str | None) -> int:
    """Run a task and print its events, one a line."""
    with Blip(url, api_key) as client:
        events = client.stream_task(
            asked.kind, asked.input, model=asked.model, **dict(asked.options)
        )
        for event in events:
            print(json.dumps(event, ensure_ascii=False), flush=True)
    return 0


def read_input(text: str) -> dict[str, Any]:
    """Read an input: a JSON object, ``@file`` with one, or ``-`` for stdin.

    Raises :class:`~blip.errors.InvalidRequest`.
    """
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"cannot read {text[1:]}: {error}", param="--input") from None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(
            f"--input is not JSON: {error}",
            hint="""Write it so that the shell leaves it whole: --input '{"text": "one two"}'""",
            param="--input",
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequest("--input must be a JSON object", param="--input")
    return value

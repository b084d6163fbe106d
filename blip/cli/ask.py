"""``blip run`` and ``blip embed``: one question, a conversation, some vectors."""

from __future__ import annotations

import json
import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.cli import files, render
from blip.client import Blip, SyncTextStream, picture
from blip.config.schema import default_state_dir
from blip.errors import BlipError, InvalidRequest

#: Lines of the conversation history file.
HISTORY_LINES = 1000

_HELP = "/clear forgets the conversation, /bye or Ctrl-D leaves, Ctrl-C stops an answer."


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask of a model, apart from the prompt. ``raw`` continues text instead of chatting."""

    model: str
    system: str | None = None
    raw: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    #: ``priority``, ``deadline`` and ``require`` of its tasks, as the SDK takes them.
    task: dict[str, Any] = field(default_factory=dict)
    #: Files of pictures that the conversation begins with.
    pictures: Sequence[bytes] = ()

    def stream(self, client: Blip, turns: Sequence[dict[str, str]]) -> SyncTextStream:
        """Ask for the next turn of a conversation."""
        options = {**self.sampling, **self.task}
        if self.raw:
            return client.complete_stream(self.model, turns[-1]["content"], **options)
        said: list[dict[str, Any]] = list(turns)
        if self.pictures:
            seen = [*map(picture, self.pictures), said[0]["content"]]
            said[0] = {"role": "user", "content": seen}
        if self.system:
            said.insert(0, {"role": "system", "content": self.system})
        return client.chat_stream(self.model, said, **options)


def read_pictures(paths: Sequence[Path], *, raw: bool) -> list[bytes]:
    """Return the contents of files.

    Raises :class:`~blip.errors.InvalidRequest` for what cannot be read, or with ``raw``.
    """
    if paths and raw:
        raise InvalidRequest("--image needs a chat: --raw continues text alone")
    return [files.read(path) for path in paths]


def read_schema(given: str) -> dict[str, Any]:
    """Return a JSON Schema from JSON text, or from the file of that name.

    Raises :class:`~blip.errors.InvalidRequest` for what is neither.
    """
    text, where = given, "--json-schema"
    if not given.lstrip().startswith("{"):
        try:
            text, where = Path(given).read_text(encoding="utf-8"), given
        except (OSError, UnicodeError) as error:
            raise InvalidRequest(
                f"--json-schema: {given} cannot be read: {error}",
                hint='Name a file, or write the schema itself: \'{"type": "object"}\'.',
            ) from None
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where} is not valid JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{where} is no JSON Schema: it must be an object")
    return schema


def run(
    request: Request, prompt: str | None, url: str | None, api_key: str | None, *, as_json: bool
) -> int:
    """Answer one prompt, or hold a conversation when there is none and a person at the keyboard.

    Raises :class:`~blip.errors.BlipError`.
    """
    if not sys.stdin.isatty():
        piped = sys.stdin.read().strip()
        prompt = "\n\n".join(part for part in (prompt, piped) if part)
        if not prompt:
            raise InvalidRequest(
                "there is no prompt: none was given and stdin is empty",
                hint='Write it: blip run MODEL "What is the capital of France?"',
            )
    with Blip(url, api_key) as client:
        if prompt is None:
            return _converse(client, request)
        return _answer_once(client, request, prompt, as_json)


def _answer_once(client: Blip, request: Request, prompt: str, as_json: bool) -> int:
    with request.stream(client, [{"role": "user", "content": prompt}]) as stream:
        text = "".join(stream) if as_json else _print_live(stream)
    if as_json:
        render.print_json(
            {
                "text": text,
                "finish_reason": stream.finish_reason,
                "usage": dict(stream.usage),
                "node": stream.origin.node,
                "request_id": stream.origin.request_id,
            }
        )
    return 0


def _print_live(stream: SyncTextStream) -> str:
    said = []
    try:
        for piece in stream:
            said.append(piece)
            print(piece, end="", flush=True)
    finally:
        print()
    return "".join(said)


def _converse(client: Blip, request: Request) -> int:
    history = _open_history()
    print(f"{request.model}. {_HELP}")
    turns: list[dict[str, str]] = []
    while True:
        try:
            line = input(">>> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            break
        if line in ("/bye", "/exit", "/quit"):
            break
        if line == "/clear":
            turns.clear()
        elif line.startswith("/"):
            print(_HELP)
        elif line:
            turns.append({"role": "user", "content": line})
            turns = _take_turn(client, request, turns)
    if history is not None:
        history()
    return 0


def _take_turn(client: Blip, request: Request, turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Answer, and return the conversation with the answer in it; without the turn if it failed."""
    try:
        with request.stream(client, turns) as stream:
            text = _print_live(stream)
    except KeyboardInterrupt:
        return turns[:-1]
    except BlipError as error:
        # one failed answer must not end the conversation
        render.note(f"error: {error.message}")
        if error.hint:
            render.note(f"hint: {error.hint}")
        return turns[:-1]
    return [*turns, {"role": "assistant", "content": text}]


def _open_history() -> Any:
    """Give ``input`` editing and history; return what saves it, or None where there is neither."""
    try:
        import readline
    except ImportError:
        return None
    path = default_state_dir() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    except OSError:
        return None
    readline.set_history_length(HISTORY_LINES)
    return lambda: readline.write_history_file(path)


def embed(
    model: str,
    texts: Sequence[str] | None,
    dimensions: int | None,
    task: dict[str, Any],
    url: str | None,
    api_key: str | None,
    *,
    as_json: bool,
) -> int:
    """Embed texts; print a glimpse of each vector and the cosines between all pairs."""
    if not texts and not sys.stdin.isatty():
        texts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not texts:
        raise InvalidRequest(
            "there is nothing to embed", hint='Write it: blip embed MODEL "first" "second"'
        )
    with Blip(url, api_key) as client:
        answer = client.embed(model, texts, dimensions=dimensions, **task)
    if as_json:
        render.print_json(
            {
                "vectors": answer.vectors,
                "usage": dict(answer.usage),
                "node": answer.origin.node,
                "request_id": answer.origin.request_id,
            }
        )
        return 0
    for text, vector in zip(texts, answer.vectors, strict=True):
        start = ", ".join(f"{number:.4f}" for number in vector[:3])
        print(f"{len(vector)} numbers [{start}, ...]  {text}")
    if len(texts) > 1:
        numbers = range(1, len(texts) + 1)
        cosines = [
            (number, *(f"{cosine(one, other):.3f}" for other in answer.vectors))
            for number, one in zip(numbers, answer.vectors, strict=True)
        ]
        print("\ncosines\n" + render.table(["", *map(str, numbers)], cosines))
    return 0


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors: 1 same direction, 0 unrelated."""
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(map(operator.mul, one, other)) / lengths if lengths else 0.0

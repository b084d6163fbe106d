"""``blip rerank`` and ``blip pipeline``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.cli import files, render
from blip.client import Blip
from blip.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Asked:
    """What ``blip pipeline`` was told; ``settings`` are written ``name=value``."""

    task: str
    model: str
    texts: Sequence[str] | None
    labels: Sequence[str] | None
    question: str | None
    settings: Sequence[str] | None
    options: dict[str, Any]
    files: Sequence[Path] | None = None

    def parameters(self) -> dict[str, Any]:
        """Return the parameters. Raises :class:`~blip.errors.InvalidRequest` for a bad setting."""
        found: dict[str, Any] = {"candidate_labels": list(self.labels)} if self.labels else {}
        for setting in self.settings or ():
            name, equals, value = setting.partition("=")
            if not equals or not name.isidentifier():
                raise InvalidRequest(f"'{setting}' is no parameter", hint="Write it: --set top_k=3")
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = value  # a word needs no quotes
        return found


def rerank(
    model: str,
    query: str,
    documents: Sequence[str] | None,
    options: dict[str, Any],
    url: str | None,
    api_key: str | None,
    *,
    as_json: bool,
) -> int:
    """Sort texts by a query and print them, best first."""
    texts = _texts(documents, 'blip rerank MODEL "query" "first" "second"')
    with Blip(url, api_key) as client:
        answer = client.rerank(model, query, texts, **options)
    if as_json:
        ranking = [
            {"index": each.index, "score": each.score, "text": texts[each.index]}
            for each in answer.ranking
        ]
        render.print_json({"ranking": ranking, **_about(answer)})
        return 0
    for each in answer.ranking:
        print(f"{each.score:7.4f}  {texts[each.index]}")
    for warning in answer.warnings:
        render.note(f"note: {warning}")
    return 0


def run(asked: Asked, url: str | None, api_key: str | None, *, as_json: bool) -> int:
    """Run a task on texts, or on files, and print each one's result."""
    if asked.files:
        return _run_files(asked, asked.files, url, api_key, as_json=as_json)
    texts = _texts(asked.texts, 'blip pipeline TASK MODEL "first" "second"')
    inputs: list[Any] = texts
    if asked.question is not None:
        inputs = [{"question": asked.question, "context": text} for text in texts]
    with Blip(url, api_key) as client:
        answer = client.pipeline(
            asked.task, asked.model, inputs, **asked.options, **asked.parameters()
        )
    if as_json:
        render.print_json({"results": answer.results, **_about(answer)})
        return 0
    _print(texts, answer.results)
    return 0


def _run_files(
    asked: Asked, paths: Sequence[Path], url: str | None, api_key: str | None, *, as_json: bool
) -> int:
    """Run a task on files, a request each."""
    if asked.texts:
        raise InvalidRequest("there are texts and --file", hint="Give one of both.")
    contents = [files.read(path) for path in paths]
    settings = asked.options | asked.parameters()
    with Blip(url, api_key) as client:
        answers = [client.pipeline(asked.task, asked.model, each, **settings) for each in contents]
    results = [result for answer in answers for result in answer.results]
    if as_json:
        render.print_json({"results": results, "nodes": [each.origin.node for each in answers]})
    else:
        _print([str(path) for path in paths], results)
    return 0


def _print(inputs: Sequence[str], results: Sequence[Any]) -> None:
    for given, result in zip(inputs, results, strict=True):
        if len(inputs) > 1:
            print(given)
        print("\n".join(_lines(result)))


def _lines(result: Any) -> list[str]:
    """Write a result in lines, whatever its task: texts plain, what has a score with it."""
    if isinstance(result, dict):
        words = [str(value) for value in result.values() if isinstance(value, str)]
        score = [f"{result['score']:7.4f}"] if "score" in result else []
        return ["  ".join([*score, *words])]
    if result and isinstance(result[0], float):
        return [f"{len(result)} numbers [{', '.join(f'{n:.4f}' for n in result[:3])}, ...]"]
    return [line for each in result for line in _lines(each)]


def _texts(given: Sequence[str] | None, usage: str) -> list[str]:
    if not given and not sys.stdin.isatty():
        given = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not given:
        raise InvalidRequest("there is no text", hint=f"Write it: {usage}")
    return list(given)


def _about(answer: Any) -> dict[str, Any]:
    return {
        "usage": dict(answer.usage),
        "node": answer.origin.node,
        "request_id": answer.origin.request_id,
    }

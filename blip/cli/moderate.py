"""``blip moderate``: verdicts, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from blip.cli import files, render
from blip.client import Blip
from blip.errors import InvalidRequest

#: Letters of a text that are shown beside its verdict.
_SHOWN = 50


def run(
    texts: Sequence[str],
    images: Sequence[Path],
    model: str | None,
    url: str | None,
    api_key: str | None,
    *,
    as_json: bool,
) -> int:
    """Ask, and print a line a verdict. Raises :class:`~blip.errors.BlipError`."""
    if not texts and not images:
        raise InvalidRequest(
            "there is nothing to judge: no text and no --image",
            hint='Write it: blip moderate "some text"',
        )
    pictures = [files.read(path) for path in images]
    with Blip(url, api_key) as client:
        found = client.moderate(texts, images=pictures, model=model)
    if as_json:
        render.print_json([asdict(verdict) for verdict in found])
        return 0
    whole = ", ".join([*texts, *map(str, images)])
    names = [whole] if pictures else list(texts)
    rows = [
        (
            name if len(name) <= _SHOWN else f"{name[: _SHOWN - 3]}...",
            ", ".join(verdict.categories) or "nothing",
            max(verdict.scores, key=lambda each: verdict.scores[each]),
            f"{max(verdict.scores.values()):.3f}",
        )
        for name, verdict in zip(names, found, strict=True)
    ]
    print(render.table(("WHAT", "FLAGGED", "HIGHEST", "SCORE"), rows))
    return 0

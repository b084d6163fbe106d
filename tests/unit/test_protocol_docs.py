"""docs/protocol.md shows the tables of the code: run this file to write them anew.

python tests/unit/test_protocol_docs.py
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TypeVar

from blip.protocol import attempt, link
from blip.protocol.messages import TYPES
from blip_node import executions, replica

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def messages() -> str:
    """One row a message: number, name, fields, what it is for."""
    rows = ["| type | message | fields | |", "|---|---|---|---|"]
    for number, cls in TYPES.items():
        text = " ".join((cls.__doc__ or "").split()).replace("|", "\\|")
        text = text.replace("``", "`").replace(":class:`~blip.protocol.attempt.Refusal`", "refusal")
        text = text.replace(":mod:`blip.errors`", "the error codes")
        rows.append(f"| {number} | {cls.__name__.upper()} | {', '.join(cls._fields)} | {text} |")
    return "\n".join(rows)


def states(table: Mapping[S, Mapping[E, S]]) -> str:
    """One row a state, one column an event."""
    events = list(dict.fromkeys(event for row in table.values() for event in row))
    rows = [
        "| in | " + " | ".join(event.value for event in events) + " |",
        "|---|" + "---|" * len(events),
    ]
    for state, row in table.items():
        cells = [row[event].name.lower() if event in row else "" for event in events]
        rows.append(f"| **{state.name.lower()}** | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def tables() -> dict[str, str]:
    """Every generated part of the page, by the name in its markers."""
    return {
        "messages": messages(),
        "link": states(link.TRANSITIONS),
        "attempt": states(attempt.TRANSITIONS),
        "execution": states(executions.TRANSITIONS),
        "replica": states(replica.TRANSITIONS),
    }


def render(page: str) -> str:
    """Put the tables between their markers."""
    for name, table in tables().items():
        begin, end = f"<!-- {name} -->\n\n", f"\n\n<!-- /{name} -->"
        head, found, rest = page.partition(begin)
        assert found, f"no marker for {name}"
        page = head + begin + table + end + rest.partition(end)[2]
    return page


def test_the_page_shows_the_tables_of_the_code() -> None:
    page = PAGE.read_text()
    assert page == render(page), "run: python tests/unit/test_protocol_docs.py"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))

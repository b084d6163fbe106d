"""``blip why``: the candidates of each decision about a task, their costs, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from blip.cli import render
from blip.client import Blip

#: The terms of a cost, in the order in which they are shown.
_TERMS = ("wait", "service", "load", "others", "cost")

#: What happened, before the device that it is about, and without one.
_OUTCOMES = {"grant": "placed on", "wait": "waits, best for", "move": "taken back, better on"}
_BARE = {"grant": "placed", "wait": "waits", "move": "taken back"}


def why(task: str, url: str | None, api_key: str | None, *, as_json: bool) -> int:
    """Explain why a task ran where it ran. Raises :class:`~blip.errors.BlipError`."""
    with Blip(url, api_key) as client:
        story = client.why(task)
    if as_json:
        render.print_json(story)
    else:
        print("\n".join(_story(story)))
    return 0


def _story(story: Mapping[str, Any]) -> Iterator[str]:
    task = story.get("task")
    yield f"task {story['id']}"
    if task:
        where = f" on {task['node']}" if task.get("node") else ""
        yield (
            f"{task['kind']} {task['model']}, priority {task['priority']}: {task['state']}{where}, "
            f"attempt {task['attempt']}, {render.duration(task['age'])}"
        )
        if task.get("error"):
            yield f"error: {task['error']}"
    if not story["decisions"]:
        yield "\nNothing is remembered about how it was placed."
    for decision in story["decisions"]:
        yield ""
        yield from _decision(decision)
    if story.get("note"):
        yield f"\nThe broker's part is missing: {story['note']}."


def _decision(decision: Mapping[str, Any]) -> Iterator[str]:
    when = f"{render.duration(max(0.0, decision['ago']))} ago, attempt {decision['attempt']}"
    yield f"{when}: {_headline(decision)}"
    if decision.get("text"):
        yield f"  {decision['text']}"
    considered = decision.get("considered") or []
    if any(each.get(term) is not None for each in considered for term in _TERMS):
        yield _indent(_candidates(considered))
    excluded = decision.get("excluded") or []
    if excluded:
        rows = [(_node(each), each.get("device"), each.get("reason")) for each in excluded]
        yield "  out of the question:"
        yield _indent(render.table(("NODE", "DEVICE", "WHY"), rows), "    ")


def _headline(decision: Mapping[str, Any]) -> str:
    outcome = decision["outcome"]
    if outcome == "end":
        return _end(decision.get("end") or {})
    code = f" ({decision['code']})" if decision.get("code") else ""
    considered = decision.get("considered") or []
    if outcome == "deny":
        return f"refused{code}"
    words = _OUTCOMES.get(outcome, str(outcome))
    if not considered:
        return f"{_BARE.get(outcome, words)}{code}"
    first = considered[0]
    device = f" {first['device']}" if first.get("device") else ""
    by = ", by the gateway" if decision.get("by") == "gateway" else ""
    return f"{words} {_node(first)}{device}{by}{code}"


def _end(end: Mapping[str, Any]) -> str:
    said = [f"ended: {end.get('outcome') or 'it is not known how'}"]
    for key, words in (("run", "ran"), ("load", "loaded the model for")):
        if end.get(key):
            said.append(f"{words} {render.duration(end[key])}")
    if end.get("units"):
        said.append(f"{end['units']:g} units of work")
    return ", ".join(said)


def _candidates(considered: list[Mapping[str, Any]]) -> str:
    """Return the table of candidates; columns are in seconds, and left out where all are empty."""
    terms = [term for term in _TERMS if any(each.get(term) is not None for each in considered)]
    evicts = any(each.get("evicts") for each in considered)
    header = ["NODE", "DEVICE", *(f"{term.upper()} s" for term in terms), "ROOM"]
    rows = []
    for each in considered:
        row: list[object] = [_node(each), each.get("device")]
        row += [_seconds(each.get(term)) for term in terms]
        row.append({True: "yes", False: "no"}.get(each.get("room")))  # type: ignore[arg-type]
        if evicts:
            row.append(each.get("evicts") or "")
        rows.append(row)
    return render.table([*header, "EVICTS"] if evicts else header, rows)


def _node(each: Mapping[str, Any]) -> str:
    return str(each.get("name") or each.get("node") or "")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _indent(text: str, by: str = "  ") -> str:
    return "\n".join(by + line for line in text.splitlines())

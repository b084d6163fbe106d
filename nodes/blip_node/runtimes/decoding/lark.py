"""Grammars as llguidance reads them, a dialect of Lark, from what requests ask for. Pure.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md describes it: ``%json`` is a
JSON Schema, ``<[7]>`` the token 7, a rule that is ``[lazy]`` ends as soon as it can.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from blip.errors import InvalidRequest
from blip.kinds.grammar import Grammar
from blip.kinds.tools import Tool
from blip_node.runtimes.tool_formats import ToolFormat

#: White space between the tokens of JSON: a space, or a new line with its indentation. No more, or
#: a model that has lost its way goes on with spaces until ``max_tokens``.
WHITESPACE = r"(\x20|\x0A(\x20{0,16}|\x09{0,8}))"

#: Characters of a regular expression with its counted repetitions written out. Each takes some
#: microseconds of a mask, and far more when repetitions are nested: ``a{999}{99}`` never ends.
MAX_WRITTEN_OUT = 4000

#: Keywords that bring in further properties. A schema of arguments without them is taken to name
#: all there are: others are of no use to a function, though the schema may allow them.
_OPEN = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties"})

#: The token of a marker, or None if it is not a token of its own.
TokenOf = Callable[[str], int | None]


class Part(NamedTuple):
    """A grammar of its own that is part of another, and the request's field that it stands in."""

    text: str
    at: str


class Lark(NamedTuple):
    """A grammar, and its parts to tell which of them is wrong."""

    text: str
    parts: list[Part]


def answer(grammar: Grammar) -> Lark:
    """Return the grammar of an answer that keeps to a form."""
    text = grammar.text
    if grammar.form == "lark":
        _check_repeats(text, grammar.at)
    else:
        text = f"start: {_body(grammar)}"
    return Lark(text, [Part(text, grammar.at)])


def calls(
    form: ToolFormat, tools: Sequence[Tool], token: TokenOf, *, many: bool, inside: bool
) -> Lark:
    """Return the grammar of calls of ``tools``, several if ``many``.

    ``inside`` one whose beginning is taken from the tokens of running text: with whatever stands
    before the marker in the same token.
    """
    rules, parts = _calls(form, tools, token, many=many)
    start = "marked calls" if form.marker else "calls"
    if inside and form.marker:
        start = "running calls"
        spelled = re.escape(form.marker).replace("/", r"\/")
        rules += f"\nrunning: {_marker(form.marker, token, 'spelled')}"
        rules += f"\nspelled[lazy]: /(.|\\n)*{spelled}/"
    return Lark(f"start: {start}\n{rules}", parts)


def either(
    grammar: Grammar, form: ToolFormat, tools: Sequence[Tool], token: TokenOf, *, many: bool
) -> Lark:
    """Return the grammar of calls, or of an answer that keeps to a form.

    Raises :class:`~blip.errors.InvalidRequest` for a form that is a grammar with rules of its own.
    """
    if grammar.form == "lark":
        raise InvalidRequest(
            f"'{grammar.at}': a grammar and tools do not go together",
            hint="Ask for a JSON schema, or require a tool.",
            param=grammar.at,
        )
    rules, parts = _calls(form, tools, token, many=many)
    start = "marked calls" if form.marker else "calls"
    text = f"start: answer | {start}\nanswer: {_body(grammar)}\n{rules}"
    return Lark(text, [*answer(grammar).parts, *parts])


def _calls(
    form: ToolFormat, tools: Sequence[Tool], token: TokenOf, *, many: bool
) -> tuple[str, list[Part]]:
    """Return the rules of calls behind the first marker."""
    rules, parts = [], []
    for number, tool in enumerate(tools):
        schema = _json(tool.parameters, tool.at, strict=tool.strict, arguments=True)
        head = _sequence(form.head(tool.name), token)
        tail = _sequence(form.tail, token)
        rules.append(f"call_{number}: {head} {schema} {tail}")
        parts.append(Part(f"start: {schema}", tool.at))
    rules.append(f"call: {' | '.join(f'call_{number}' for number in range(len(tools)))}")
    again = f"({_sequence(form.between, token)} call)*" if many and form.between else ""
    rules.append(
        f"calls: {_sequence(form.opening, token)} call {again} {_sequence(form.closing, token)}"
    )
    if form.marker:
        rules.append(f"marked: {_marker(form.marker, token, json.dumps(form.marker))}")
    rules.append("GAP: /[ \\n\\t]{1,4}/")
    return "\n".join(rules), parts


def _marker(marker: str, token: TokenOf, spelled: str) -> str:
    """Return a marker as its token, or spelled by others."""
    its = token(marker)
    return spelled if its is None else f"<[{its}]> | {spelled}"


def _sequence(items: Sequence[str], token: TokenOf) -> str:
    """Return what follows on each other: literal text, markers among it, and "" for a gap."""
    written = []
    for item in items:
        if not item:
            written.append("GAP?")
        elif (its := token(item)) is not None:
            written.append(f"(<[{its}]> | {json.dumps(item)})")
        else:
            written.append(json.dumps(item))
    return " ".join(written)


def _body(grammar: Grammar) -> str:
    if grammar.form == "json":
        return _json(grammar.text, grammar.at, strict=grammar.strict)
    if grammar.form == "choice":
        return " | ".join(map(json.dumps, grammar.choices))
    _check_repeats(grammar.text, grammar.at)
    return f"/{_slashes(grammar.text)}/"


def _slashes(regex: str) -> str:
    """Return a regular expression as it may stand between slashes, on one line."""
    closed = re.sub(
        r"\\.|/", lambda found: r"\/" if found[0] == "/" else found[0], regex, flags=re.S
    )
    return closed.replace("\r", r"\r").replace("\n", r"\n")


def _json(text: str, at: str, *, strict: bool, arguments: bool = False) -> str:
    """Return a JSON Schema as a rule; one of ``arguments`` is an object's.

    Raises :class:`~blip.errors.InvalidRequest` for what is no schema.
    """
    try:
        schema: Any = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise InvalidRequest(f"'{at}' is not valid JSON", param=at) from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidRequest(f"'{at}' is no JSON Schema: it must be an object", param=at)
    if arguments:
        schema = {"type": "object", **schema}
        if (schema.get("properties") or not text) and not schema.keys() & _OPEN:
            schema.setdefault("additionalProperties", False)
        if schema["type"] != "object":
            raise InvalidRequest(
                f"'{at}': the schema of a function's arguments must have the type object",
                param=at,
            )
    for pattern in _patterns(schema):
        _check_repeats(pattern, at)
    options = {"whitespace_pattern": WHITESPACE, "lenient": not strict}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def _patterns(schema: Any) -> Iterator[str]:
    """Yield the regular expressions in a schema."""
    pending = [schema]
    while pending:
        here = pending.pop()
        if isinstance(here, dict):
            if isinstance(here.get("pattern"), str):
                yield here["pattern"]
            if isinstance(here.get("patternProperties"), dict):
                yield from here["patternProperties"]
            pending += here.values()
        elif isinstance(here, list):
            pending += here


def _check_repeats(regex: str, at: str) -> None:
    """Raise :class:`~blip.errors.InvalidRequest` for a regular expression that is too large."""
    if (size := written_out(regex)) > MAX_WRITTEN_OUT:
        raise InvalidRequest(
            f"'{at}': with its repetitions written out a regular expression in it has {size} "
            f"characters; {MAX_WRITTEN_OUT} is most",
            hint="Repeat less, or without a limit: a* instead of a{0,9999}.",
            param=at,
        )


_PIECE = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{(\d+)(?:,(\d*))?\}|.", re.DOTALL)


def written_out(regex: str) -> int:
    """Return about how many characters a regular expression has without counted repetitions."""
    groups, last = [0], 0
    for piece in _PIECE.finditer(regex):
        if piece[1]:
            most = int(piece[2] or piece[1])
            groups[-1] += last * (most - 1)
            last *= most
        elif piece[0] == "(":
            groups.append(0)
        elif piece[0] == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif piece[0] not in "|*+?":
            last = 1
            groups[-1] += 1
    return max(groups)

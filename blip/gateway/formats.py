"""Forms that a request may ask its answer to keep to, in the dialects of OpenAI and vLLM."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from blip.errors import InvalidRequest
from blip.gateway.fields import Ignored, Request
from blip.gateway.parts import Typed
from blip.kinds.grammar import ANY_OBJECT, MAX_CHOICES, Grammar

#: A JSON Schema, as it stands in a body.
Schema = dict[str, Any]


def of_schema(schema: Any, at: str, *, strict: bool = True) -> Grammar:
    """Return the form of a JSON Schema; ``at`` is where it stands in the body."""
    return Grammar(form="json", text=json.dumps(schema), strict=strict, at=at)


def any_object(at: str) -> Grammar:
    """Return the form of any JSON object."""
    return Grammar(form="json", text=ANY_OBJECT, at=at)


class NamedSchema(Request):
    """A JSON Schema, with a name that says what it is of."""

    name: Annotated[str | None, Ignored()] = None
    description: Annotated[str | None, Ignored()] = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    """The JSON Schema that the answer satisfies; any object without one."""
    strict: bool | None = None
    """Whether keywords that cannot be enforced are an error; otherwise they are ignored."""


class ResponseFormat(Typed):
    """What the answer looks like."""

    noun: ClassVar[str] = "formats"
    hint: ClassVar[str] = "Send text, json_object or json_schema."

    type: str
    """text, json_object, or json_schema."""
    json_schema: NamedSchema | None = None
    """With the type json_schema."""

    def grammar(self, at: str) -> Grammar | None:
        """Return the form; ``at`` is where this stands in the body, ending in a dot."""
        if self.type not in ("text", "json_object", "json_schema"):
            self.refuse_type(self.type, at)
        self.check(at)
        if self.type == "text":
            return None
        if self.type == "json_object":
            return any_object(at.rstrip("."))
        if self.json_schema is None:
            raise InvalidRequest(f"'{at}json_schema' is missing.", param=at + "json_schema")
        where = f"{at}json_schema.schema"
        schema = (
            {"type": "object"} if self.json_schema.schema_ is None else self.json_schema.schema_
        )
        return of_schema(schema, where, strict=bool(self.json_schema.strict))


class StructuredOutputs(Request):
    """A form for the answer, one of several kinds."""

    model_config = ConfigDict(protected_namespaces=())

    json_: Annotated[Schema | str | None, Field(alias="json")] = None
    """A JSON Schema, as an object or as JSON text."""
    json_object: bool | None = None
    """Any JSON object."""
    regex: str | None = None
    """A regular expression over the whole answer."""
    choice: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        Field(min_length=1, max_length=MAX_CHOICES),
    ] = None
    """Texts of which the answer is one."""
    grammar: str | None = None
    """A Lark grammar in llguidance's dialect that begins with the rule start."""

    def form(self, at: str) -> Grammar:
        """Return the form; ``at`` is where this stands in the body, ending in a dot.

        Raises :class:`~blip.errors.InvalidRequest` unless there is exactly one.
        """
        self.check(at)
        found: list[Grammar] = []
        if self.json_ is not None:
            found.append(of_schema(_schema(self.json_, at + "json"), at + "json"))
        if self.json_object:
            found.append(any_object(at + "json_object"))
        if self.regex is not None:
            found.append(Grammar(form="regex", text=self.regex, at=at + "regex"))
        if self.choice is not None:
            found.append(Grammar(form="choice", choices=self.choice, at=at + "choice"))
        if self.grammar is not None:
            found.append(Grammar(form="lark", text=self.grammar, at=at + "grammar"))
        if len(found) != 1:
            where = at.rstrip(".")
            raise InvalidRequest(
                f"'{where}' must say one thing: json, json_object, regex, choice or grammar.",
                param=where,
            )
        return found[0]


def _schema(given: Schema | str, at: str) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"'{at}' is not valid JSON.", param=at) from None

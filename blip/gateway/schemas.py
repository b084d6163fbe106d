"""Holds an input against the JSON schema of a plugin's kind, without any of the plugin's code.

Schemas come from nodes, inputs from anybody. So nothing is ever fetched for a ``$ref``, and what
could take much longer than reading the input is left to the node, which checks again: regular
expressions (a pattern may take for ever) and ``uniqueItems`` (quadratic).
"""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

from blip.errors import InvalidRequest

#: Complaints that are looked at to find the one that tells most; a list of a million wrong items
#: has a million.
_COMPLAINTS = 32

#: Schemas that are kept in their compiled form.
_KEPT = 256

#: Letters of a complaint: it may quote the whole input.
_SHOWN = 300


def complaint(schema: str, value: Any, at: str = "input") -> InvalidRequest | None:
    """Return what is wrong with a value, None if nothing is; ``at`` is the value's own name.

    A schema that cannot be used says nothing: the node has the last word.
    """
    validator = _validator(schema)
    if validator is None:
        return None
    from jsonschema.exceptions import best_match  # type: ignore[import-untyped]
    from referencing.exceptions import Unresolvable

    try:
        found = best_match(itertools.islice(validator.iter_errors(value), _COMPLAINTS))
    except (Unresolvable, RecursionError):
        return None
    if found is None:
        return None
    where = ".".join([at, *(str(part) for part in found.absolute_path)])
    text = str(found.message)
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"
    return InvalidRequest(f"'{where}': {text}", hint="GET /v1/kinds has the schema.", param=where)


@functools.lru_cache(maxsize=_KEPT)
def _validator(schema: str) -> Any:
    """Return what checks values, None for a schema that is none."""
    # a tenth of a second, and most gateways never see a plugin
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import extend  # type: ignore[import-untyped]
    from referencing import Registry

    def additional(validator: Any, rule: Any, value: Any, within: Any) -> Any:
        # which properties are additional depends on the patterns
        if "patternProperties" in within:
            return ()
        return Draft202012Validator.VALIDATORS["additionalProperties"](
            validator, rule, value, within
        )

    def pass_all(validator: Any, rule: Any, value: Any, within: Any) -> Any:
        return ()

    left = dict.fromkeys(
        ("pattern", "patternProperties", "unevaluatedProperties", "uniqueItems"), pass_all
    )
    checker = extend(Draft202012Validator, {**left, "additionalProperties": additional})
    try:
        parsed = json.loads(schema)
        Draft202012Validator.check_schema(parsed)
        # an empty registry: references inside the schema work, none to elsewhere is looked up
        return checker(parsed, registry=Registry())
    except (ValueError, SchemaError, RecursionError):
        return None

"""Hypothesis strategies for messages, derived from their annotations."""

from __future__ import annotations

import types
import typing
from typing import Any

from hypothesis import strategies as st

from blip.protocol.messages import TASK_ID_BYTES, TYPES, Message, Payload

#: What msgpack can carry.
INTS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
#: Everything but surrogates, which UTF-8 cannot carry.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BYTES = st.binary(max_size=64)

#: A free-form field's values: what JSON has.
FREE = st.recursive(
    st.none() | st.booleans() | INTS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


_KNOWN: dict[Any, st.SearchStrategy[Any]] = {}


def of(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of an annotation, as they leave the codec."""
    if annotation not in _KNOWN:
        _KNOWN[annotation] = _make(annotation)
    return _KNOWN[annotation]


def _make(annotation: Any) -> st.SearchStrategy[Any]:
    if annotation is Any:
        return FREE
    if annotation == Payload:
        return BYTES
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([st.none() if each is types.NoneType else of(each) for each in args])
    if origin is list:
        return st.lists(of(args[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(of(args[0]), of(args[1]), max_size=3)
    if hasattr(annotation, "_fields"):
        return _tuple_of(annotation)
    return {int: INTS, float: FLOATS, str: TEXTS, bytes: BYTES, bool: st.booleans()}[annotation]


def _tuple_of(cls: Any) -> st.SearchStrategy[Any]:
    fields = {name: of(hint) for name, hint in typing.get_type_hints(cls).items()}
    if "task" in fields:
        fields["task"] = st.binary(min_size=TASK_ID_BYTES, max_size=TASK_ID_BYTES)
    if "attempt" in fields:
        fields["attempt"] = st.integers(0, 2**64 - 1)
    return st.builds(cls, **fields)


def message_of(cls: Any) -> st.SearchStrategy[Any]:
    """Instances of a message, or of one of the tuples that messages are made of."""
    return of(cls)


#: Any message.
MESSAGES: st.SearchStrategy[Message] = st.sampled_from(list(TYPES.values())).flatmap(message_of)

SEQS = st.integers(0, 2**64 - 1)

"""What a node tells of a plugin: taken from its class, and checked. Pure."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter

from blip.errors import ModelLoadFailed
from blip.kinds import KINDS
from blip.protocol.messages import PluginKind
from blip_node.plugin import Plugin

#: Most bytes of a kind's schemas together: they travel in adverts, which a control link limits to
#: 1 MiB, and a large form's schema takes a tenth of this.
MAX_SCHEMA_BYTES = 64 * 1024

#: Levels of a schema; people write five.
MAX_DEPTH = 32

#: Slots that may be asked for: each is a thread.
MAX_SLOTS = 256

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[._-][a-z0-9]+)*")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class Card(NamedTuple):
    """A plugin's kind, and what its node plans with."""

    kind: PluginKind
    slots: int
    memory: int

    def to_json(self) -> str:
        """Write it, for the process that asked."""
        return json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read what :meth:`to_json` wrote. Raises ``ValueError`` or ``TypeError``."""
        kind, slots, memory = json.loads(text)
        return cls(PluginKind(*kind), int(slots), int(memory))


def card_of(plugin: type[Plugin]) -> Card:
    """Describe a plugin's class. Raises :class:`~blip.errors.ModelLoadFailed` for what it lacks."""
    name = plugin.kind
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 64:
        raise _wrong(plugin, f"kind must be lower-case letters, digits and '-', got {name!r}")
    if name in KINDS:
        raise _wrong(plugin, f"the kind '{name}' is built in; choose another name")
    if plugin.run is Plugin.run:
        raise _wrong(plugin, "it has no run")
    given = getattr(plugin, "Input", None)
    if not (isinstance(given, type) and issubclass(given, BaseModel)):
        raise _wrong(plugin, "Input must be a pydantic model")
    for field, most in (("slots", MAX_SLOTS), ("memory", 1 << 50)):
        value = getattr(plugin, field)
        if not isinstance(value, int) or not 0 <= value <= most:
            raise _wrong(plugin, f"{field} must be a whole number up to {most}, got {value!r}")
    if plugin.units and plugin.units not in given.model_fields:
        raise _wrong(plugin, f"units names '{plugin.units}', which is no field of Input")
    try:
        asked = given.model_json_schema()
        answered = None if plugin.Output is None else _output_schema(plugin.Output)
    except Exception as error:  # pydantic has a dozen reasons
        raise _wrong(plugin, f"its schema cannot be made: {error}") from error
    schemas = [_written(plugin, schema) for schema in (asked, answered)]
    if sum(map(len, schemas)) > MAX_SCHEMA_BYTES:
        raise _wrong(plugin, f"its schemas take more than {MAX_SCHEMA_BYTES} bytes")
    about = (inspect.getdoc(plugin) or "").partition("\n")[0][:200]
    if plugin.__doc__ is None:
        about = ""  # inherited from Plugin
    run = plugin.run
    streams = inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run)
    kind = PluginKind(name, schemas[0], schemas[1], plugin.units, about, streams)
    return Card(kind, plugin.slots or 1, plugin.memory)


def _output_schema(output: Any) -> dict[str, Any]:
    return TypeAdapter(output).json_schema(mode="serialization")


def _written(plugin: type[Plugin], schema: dict[str, Any] | None) -> str:
    if schema is None:
        return ""
    _check(plugin, schema, MAX_DEPTH)
    return json.dumps(schema, ensure_ascii=True, separators=(",", ":"))


def _check(plugin: type[Plugin], value: Any, depth: int) -> None:
    """Refuse what a gateway could not take: references to elsewhere, and endless nesting."""
    if not depth:
        raise _wrong(plugin, f"its schema is nested more than {MAX_DEPTH} deep")
    if isinstance(value, list):
        for each in value:
            _check(plugin, each, depth - 1)
    elif isinstance(value, dict):
        for key in _REFERENCES:
            target = value.get(key)
            if isinstance(target, str) and not target.startswith("#"):
                raise _wrong(plugin, f"its schema refers to {target!r}; only '#...' is followed")
        for each in value.values():
            _check(plugin, each, depth - 1)


def _wrong(plugin: type[Plugin], text: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"the plugin {plugin.__module__}.{plugin.__qualname__}: {text}")

"""What a task may require of the device it runs on. Pure; the words are those of the wire.

A requirement is a map: ``{"vendor": ["nvidia"], "memory": 24 << 30, "not": {"node": ["rig-3"]}}``.
Every entry must hold; of a list, one of its values must. ``not`` holds a map whose entries must
each fail.

| key | what is compared |
|---|---|
| ``node`` | the node's name or id |
| ``device`` | the device's id |
| ``vendor`` | the device's kind: ``nvidia``, ``amd``, ``cpu``, ``static`` |
| ``gpu`` | a part of the device's name, whatever its case |
| ``memory`` | the device's total memory, in bytes, at least (below ``not``: that much or more) |
| ``labels`` | the node's labels: ``{"zone": ["cellar"]}`` |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from blip.errors import InvalidRequest
from blip.protocol.messages import Device

#: Keys whose values are lists of words, and all there are.
_WORDS = ("node", "device", "vendor", "gpu")
KEYS = (*_WORDS, "memory", "labels", "not")

#: Words of one list, labels of one map: a requirement is written by a person.
MAX_ITEMS = 64

_UNITS = {
    "": 1,
    **{unit + end: 1024**n for n, unit in enumerate("KMGT", 1) for end in ("", "i", "iB")},
    **{unit + "B": 1000**n for n, unit in enumerate("KMGT", 1)},
    "B": 1,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")

Require = Mapping[str, Any]


def check(require: Mapping[str, Any], *, at: str = "require", negated: bool = False) -> Require:
    """Return a requirement in its one form: words as lists, sizes as bytes.

    Raises :class:`~blip.errors.InvalidRequest` that names the entry, below ``at``, and what it
    may be.
    """
    out: dict[str, Any] = {}
    for key, value in require.items():
        name = f"{at}.{key}"
        if key in _WORDS:
            out[key] = _words(value, name)
        elif key == "memory":
            out[key] = _size(value, name)
        elif key == "labels":
            if not isinstance(value, Mapping) or not 0 < len(value) <= MAX_ITEMS:
                raise _wrong(name, 'a map of labels, such as {"zone": "cellar"}')
            out[key] = {str(k): _words(v, f"{name}.{k}") for k, v in value.items()}
        elif key == "not" and not negated:
            if not isinstance(value, Mapping):
                raise _wrong(name, "a map of what the device must not be")
            out[key] = check(value, at=name, negated=True)
        else:
            known = ", ".join(each for each in KEYS if not (negated and each == "not"))
            raise _wrong(name, f"one of {known}")
    return out


def parse(text: str, *, at: str = "require") -> Require:
    """Read ``node=rig-2|rig-3; memory>=24GiB; label.zone=cellar; vendor!=amd``.

    This is how a header and the command line write a requirement; ``!=`` and ``<`` are its
    ``not``. Raises :class:`~blip.errors.InvalidRequest`.
    """
    plain: dict[str, Any] = {}
    negated: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in re.split(r"[;,]", text))):
        match = re.fullmatch(r"([\w.-]+)\s*(!=|>=|<|=)\s*(.+)", item)
        if match is None:
            raise _wrong(at, f"terms such as 'node=rig-2', 'memory>=24GiB', 'vendor!=amd': {item}")
        key, operator, value = match.groups()
        if (key == "memory") is not (operator in (">=", "<")):
            wanted = "memory>=24GiB or memory<24GiB" if key == "memory" else f"{key}= or {key}!="
            raise _wrong(f"{at}.{key}", wanted)
        into = negated if operator in ("!=", "<") else plain
        label, dot, rest = key.partition(".")
        if dot and label == "label":
            into.setdefault("labels", {}).setdefault(rest, []).extend(value.split("|"))
        elif key == "memory":
            into[key] = value
        else:
            into.setdefault(key, []).extend(each.strip() for each in value.split("|"))
    return check({**plain, **({"not": negated} if negated else {})}, at=at)


def unmet(
    require: Require, *, node: tuple[str, str], labels: Mapping[str, str], device: Device
) -> list[str]:
    """Return in words what a device lacks, in the order of the requirement; empty if it will do.

    ``node`` is the node's id and name.
    """
    lacking = [
        word for key, value in require.items() if (word := _lacks(key, value, node, labels, device))
    ]
    for key, value in require.get("not", {}).items():
        for one in _each(key, value):
            if _lacks(key, one, node, labels, device) is None:
                lacking.append(f"it is one with {_say(key, one)}")
    return lacking


def _lacks(
    key: str, value: Any, node: tuple[str, str], labels: Mapping[str, str], device: Device
) -> str | None:
    if key == "node":
        return None if set(value) & set(node) else f"it is node {node[1] or node[0]}"
    if key == "device":
        return None if device.id in value else f"it is device {device.id}"
    if key == "vendor":
        return None if device.kind in value else f"its vendor is {device.kind}"
    if key == "gpu":
        name = device.name.lower()
        return None if any(word.lower() in name for word in value) else f"it is {device.name}"
    if key == "memory":
        if device.memory_total >= value:
            return None
        return f"it has {gib(device.memory_total)} of memory, not {gib(value)}"
    if key == "labels":
        for label, wanted in value.items():
            found = labels.get(label)
            if found not in wanted:
                return f"its label {label} is {found}" if found else f"it has no label {label}"
    return None


def _each(key: str, value: Any) -> Iterable[Any]:
    """Split what must not hold: each label by itself, words and sizes as they are."""
    return [{label: words} for label, words in value.items()] if key == "labels" else [value]


def _say(key: str, value: Any) -> str:
    if key == "memory":
        return f"{gib(value)} of memory or more"
    if key == "labels":
        return " and ".join(f"label {label} = {'|'.join(words)}" for label, words in value.items())
    return f"{key} {'|'.join(value)}"


def _words(value: Any, name: str) -> list[str]:
    words = value if isinstance(value, list) else [value]
    if not 0 < len(words) <= MAX_ITEMS or not all(isinstance(w, str) and w for w in words):
        raise _wrong(name, "a word or a list of words")
    return words


def _size(value: Any, name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = _UNITS.get(match[2][:1].upper() + match[2][1:]) if match else None
    if match is None or unit is None or not float(match[1]) * unit >= 1:
        raise _wrong(name, 'a size in bytes, or text such as "24GiB"')
    return int(float(match[1]) * unit)


def gib(size: int) -> str:
    """Write bytes as people read them."""
    return f"{size / 1024**3:.1f} GiB"


def _wrong(name: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"'{name}' must be {wanted}", param=name)

"""``blip load``, ``unload``, ``cordon``, ``uncordon`` and ``drain``: orders to nodes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from blip.cli import render
from blip.client import Blip
from blip.errors import InvalidRequest

Said = list[dict[str, Any]]


def load(
    model: str,
    place: str | None,
    *,
    pin: bool | None,
    keep_alive: float | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    """Load a model. Raises :class:`~blip.errors.BlipError`."""
    node, device = _place(place)
    with Blip(url, api_key) as client, Progress() as progress:
        said = client.load(
            model, node, device, pin=pin, keep_alive=keep_alive, progress=progress.take
        )
    return _answer(said, as_json, lambda each: f"{model} is loaded on {_where(each)}{_cost(each)}")


def unload(
    model: str,
    place: str | None,
    *,
    force: bool,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> int:
    """Unload a model. Raises :class:`~blip.errors.BlipError`."""
    node, device = _place(place)
    with Blip(url, api_key) as client, Progress() as progress:
        said = client.unload(model, node, device, force=force or None, progress=progress.take)
    if as_json:
        return _answer(said, as_json, _sentence)
    # nodes that had nothing to unload say so with a count of 0
    gone = [each for each in said if each["details"].get("replicas") != 0]
    if not gone:
        print(f"{model} was not loaded{f' on {place}' if place else ''}")
    return _answer(gone, as_json, lambda each: f"{model} is unloaded from {_where(each)}")


def cordon(
    place: str, reason: str | None, url: str | None, api_key: str | None, *, as_json: bool
) -> int:
    """Take a node or a device out of service. Raises :class:`~blip.errors.BlipError`."""
    node, device = _node(place)
    with Blip(url, api_key) as client:
        said = client.cordon(node, device, reason=reason)
    return _answer(said, as_json, _sentence)


def uncordon(place: str, url: str | None, api_key: str | None, *, as_json: bool) -> int:
    """Put a node or a device back into service. Raises :class:`~blip.errors.BlipError`."""
    node, device = _node(place)
    with Blip(url, api_key) as client:
        said = client.uncordon(node, device)
    return _answer(said, as_json, _sentence)


def drain(
    place: str, reason: str | None, url: str | None, api_key: str | None, *, as_json: bool
) -> int:
    """Take a node or a device out of service and wait until nothing runs on it.

    Raises :class:`~blip.errors.BlipError`.
    """
    node, device = _node(place)
    try:
        with Blip(url, api_key) as client, Progress() as progress:
            said = client.drain(node, device, reason=reason, progress=progress.take)
    except KeyboardInterrupt:
        render.note(f"{place} goes on draining; `blip uncordon {place}` calls it off")
        raise
    return _answer(said, as_json, _sentence)


class Progress:
    """How orders go, on one line of stderr that is written over; nothing where nobody looks."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._lines: dict[str, str] = {}
        self._written = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._written:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def take(self, said: Mapping[str, Any]) -> None:
        """Take what a node says."""
        self._lines[said["node"]] = f"{_where(said)}: {_going(said)}"
        if self._shown:
            self._written = True
            line = "; ".join(self._lines.values())
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def _place(place: str | None) -> tuple[str | None, str | None]:
    """Split ``NODE/DEVICE``; either may be missing."""
    node, _, device = (place or "").partition("/")
    return node or None, device or None


def _node(place: str) -> tuple[str, str | None]:
    node, device = _place(place)
    if node is None:
        raise InvalidRequest(
            f"'{place}' names no node", hint="Write NODE or NODE/DEVICE; `blip status` lists them."
        )
    return node, device


def _answer(said: Said, as_json: bool, sentence: Callable[[Mapping[str, Any]], str]) -> int:
    if as_json:
        render.print_json(said)
    else:
        for each in said:
            print(sentence(each))
    return 0


def _sentence(each: Mapping[str, Any]) -> str:
    return f"{each['name']}: {each['text'] or each['state']}"


def _where(each: Mapping[str, Any]) -> str:
    return f"{each['name']} {each['device']}".rstrip()


def _going(each: Mapping[str, Any]) -> str:
    """Say how far an order is, from whatever the node tells."""
    if each["text"]:
        return str(each["text"])
    details = each["details"]
    if isinstance(details.get("progress"), int | float):
        return f"loading {details['progress']:.0%}"
    if isinstance(details.get("jobs"), int):
        return f"finishing {details['jobs']}"
    return str(each["state"])


def _cost(each: Mapping[str, Any]) -> str:
    details, words = each["details"], []
    if details.get("memory"):
        words.append(render.size(details["memory"]))
    if details.get("seconds"):
        words.append(render.duration(details["seconds"]))
    return f" ({', '.join(words)})" if words else ""

"""Where a model is best loaded when a person asks for it and names no device. Pure.

Placing a task weighs waiting against loading; here nothing waits, and the load is wanted. So the
fastest device that has room takes it, and what is loaded already counts only if nothing else can.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blip.errors import (
    BlipError,
    ModelLoadFailed,
    ModelNotFound,
    ModelTooLarge,
    NoCapacity,
    NoNode,
    Unavailable,
)
from blip.protocol.constraints import gib
from blip.protocol.messages import Device, Model, NodeEntry, Replica
from blip.protocol.names import unique_names
from blip.protocol.placement import is_up, room, speed


class Spot(NamedTuple):
    """A device that could take a model, or has it."""

    entry: NodeEntry
    device: Device
    model: Model
    loaded: bool
    #: Bytes it has for the model: free, not promised, or held by what may be evicted.
    room: int


def choose_load(entries: Sequence[NodeEntry], model: str, device: str = "") -> Spot:
    """Choose where to load ``model``, on a device with that id if one is given.

    Raises :class:`~blip.errors.NoNode`, :class:`~blip.errors.ModelNotFound`,
    :class:`~blip.errors.ModelLoadFailed`, :class:`~blip.errors.ModelTooLarge`,
    :class:`~blip.errors.NoCapacity` or :class:`~blip.errors.Unavailable`, each with its reasons.
    """
    check_known(entries, model)
    spots = [
        spot
        for entry in entries
        if entry.status == "ready" and not entry.advert.draining
        for spot in _spots(entry, model)
        if not device or spot.device.id == device
    ]
    taking = [spot for spot in spots if spot.device.health > 0 and spot.device.state == "ready"]
    fitting = [spot for spot in taking if not spot.loaded and not _pausing(spot) and _fits(spot)]
    loaded = [spot for spot in taking if spot.loaded]
    if not (fitting or loaded):
        raise _unloadable(model, spots, taking, unique_names(entries))
    return max(fitting or loaded, key=lambda spot: (speed(spot.device), spot.room))


def check_known(entries: Sequence[NodeEntry], model: str) -> None:
    """Raise unless one of these nodes has the model; the error names what is near."""
    names = sorted({each.name for entry in entries for each in entry.advert.models})
    if not entries:
        raise NoNode("no node is connected to this mesh")
    if model not in names:
        near = difflib.get_close_matches(model, names, n=3)
        guess = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        if len(entries) == 1:
            text = f"node {entries[0].name or entries[0].id} does not have a model '{model}'"
        else:
            text = f"no node has a model '{model}'"
        raise ModelNotFound(text + guess, param="model", details={"near": near})


def has_replica(entry: NodeEntry, model: str, device: str = "") -> bool:
    """Whether a node has the model loaded, or is loading it; on that device, if one is given."""
    return any(
        is_up(replica, model) and device in ("", replica.device)
        for replica in entry.advert.replicas
    )


def _spots(entry: NodeEntry, name: str) -> list[Spot]:
    model = next((each for each in entry.advert.models if each.name == name), None)
    if model is None:
        return []
    found = []
    for device in entry.advert.devices:
        here: list[Replica] = [each for each in entry.advert.replicas if each.device == device.id]
        loaded = has_replica(entry, name, device.id)
        found.append(Spot(entry, device, model, loaded, room(device, here)))
    return found


def _fits(spot: Spot) -> bool:
    # a device that does not tell its size is tried: the load itself decides
    return spot.model.memory <= 0 or spot.device.memory_total <= 0 or spot.room >= spot.model.memory


def _pausing(spot: Spot) -> bool:
    return bool(spot.model.error) and spot.model.retry_in > 0


def _unloadable(
    name: str, spots: list[Spot], taking: list[Spot], names: Mapping[str, str]
) -> BlipError:
    """Explain why no device takes the model."""

    def place(spot: Spot) -> str:
        return f"{spot.device.id} of {names[spot.entry.id]}"

    if not spots:
        return Unavailable(f"no device of a node that is ready can take '{name}'")
    if not taking:
        device = spots[0].device
        state = device.state if device.state != "ready" else "unhealthy"
        why = f": {device.reason}" if device.reason else ""
        return Unavailable(f"no device takes '{name}' now; {place(spots[0])} is {state}{why}")
    trying = [spot for spot in taking if not _pausing(spot)]
    if not trying:
        first = min(taking, key=lambda spot: spot.model.retry_in).model
        return ModelLoadFailed(
            f"'{name}' cannot be loaded: {first.error}", retry_after=max(1.0, first.retry_in)
        )
    best = max(trying, key=lambda spot: spot.room)
    need = min(spot.model.memory for spot in trying)
    largest = max(spot.device.memory_total for spot in trying)
    error = ModelTooLarge if need > largest else NoCapacity
    most = largest if error is ModelTooLarge else best.room
    return error(
        f"'{name}' needs {gib(need)}; the most that a device can give is {gib(most)} "
        f"({place(best)})",
        details={"need": need, "most": most, "node": best.entry.id, "device": best.device.id},
    )

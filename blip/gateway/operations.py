"""Orders to nodes: load and unload models, cordon, uncordon and drain devices.

Whom an order goes to is decided by pure functions of the node table. The node has the last word,
and says how it goes until it is done: :class:`LiveOrder` is what waits for that.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from blip.errors import (
    BlipError,
    InternalError,
    InvalidRequest,
    NodeLost,
    NotFound,
    Unavailable,
    from_wire,
)
from blip.gateway.mesh import Mesh
from blip.protocol.loading import check_known, choose_load, has_replica
from blip.protocol.messages import NodeEntry, Order, Ordered
from blip.protocol.names import unique_names

log = logging.getLogger(__name__)

#: Seconds without a word after which an order is given up. Nodes report loads and drains about once
#: a second; a link that breaks is noticed by itself, long before.
SILENCE = 30.0

#: What an order ends with.
FINAL = ("done", "failed")


class LiveOrder:
    """An order under way, between the route that reads it and the link that feeds it."""

    __slots__ = ("_news", "order")

    def __init__(self, order: Order) -> None:
        self.order = order
        self._news: asyncio.Queue[Ordered] = asyncio.Queue()

    def take(self, ordered: Ordered) -> None:
        """Take the node's word."""
        self._news.put_nowait(ordered)

    def fail(self, error: BlipError) -> None:
        """Take it that no further word will come."""
        self.take(Ordered(self.order.number, "failed", *error.to_wire()))

    async def updates(self) -> AsyncGenerator[Ordered, None]:
        """Yield what the node says, until it is done or has failed; silence is a failure too."""
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    ordered = await self._news.get()
            except TimeoutError:
                self.fail(Unavailable(f"the node said nothing for {SILENCE:g} s"))
                continue
            yield ordered
            if ordered.state in FINAL:
                return


class Target(NamedTuple):
    """A node that an order goes to. An empty ``device`` means all of it, or its own choice."""

    entry: NodeEntry
    device: str = ""


class Step(NamedTuple):
    """What one of several nodes says about its order; ``number`` is the target's, from 0."""

    number: int
    ordered: Ordered


async def follow(mesh: Mesh, targets: Sequence[Target], order: Order) -> AsyncGenerator[Step, None]:
    """Send an order to every target and yield what they say, until all have ended.

    Use it under ``aclosing``: leaving it early forgets the orders, the nodes go on with them.
    """
    news: asyncio.Queue[Step] = asyncio.Queue()

    async def pump(number: int, target: Target) -> None:
        mine = order._replace(device=target.device)
        try:
            async with aclosing(mesh.order(target.entry, mine)) as updates:
                async for ordered in updates:
                    news.put_nowait(Step(number, ordered))
        except Exception as error:
            # whoever waits for the last word must get one
            log.exception("an order to %s", target.entry.id)
            failed = InternalError(f"something inside this gateway went wrong: {error}")
            news.put_nowait(Step(number, Ordered(0, "failed", *failed.to_wire())))

    pumps = [asyncio.create_task(pump(number, each)) for number, each in enumerate(targets)]
    left = len(pumps)
    try:
        while left:
            step = await news.get()
            left -= step.ordered.state in FINAL
            yield step
    finally:
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


# --- whom it goes to -------------------------------------------------------------------------


def load_targets(
    entries: Sequence[NodeEntry], model: str, node: str | None, device: str | None
) -> list[Target]:
    """Return where to load: on the node that is named, which chooses its device; else the best.

    Raises what :func:`find_node`, :func:`find_device` and
    :func:`~blip.protocol.loading.choose_load` raise.
    """
    if node is not None:
        entry = find_node(entries, node)
        check_known([entry], model)
        return [Target(entry, find_device([entry], device))]
    check_known(entries, model)
    spot = choose_load(entries, model, find_device(entries, device))
    return [Target(spot.entry, spot.device.id)]


def unload_targets(
    entries: Sequence[NodeEntry], model: str, node: str | None, device: str | None
) -> list[Target]:
    """Return where to unload: on the node that is named, else on all that have it loaded.

    If no advert says so, those that could have it are asked: the advert of a load that has just
    ended may be on its way. Raises what :func:`find_node` and :func:`find_device` raise, and
    :class:`~blip.errors.ModelNotFound`.
    """
    if node is not None:
        entry = find_node(entries, node)
        return [Target(entry, find_device([entry], device))]
    there = [entry for entry in entries if entry.status != "lost"]
    having = [entry for entry in there if has_replica(entry, model)]
    if not having:
        check_known(there, model)
        having = [entry for entry in there if model in (m.name for m in entry.advert.models)]
    at = find_device(having, device)
    return [
        Target(entry, at)
        for entry in having
        if not at or any(each.id == at for each in entry.advert.devices)
    ]


def standing_targets(entries: Sequence[NodeEntry], node: str, device: str | None) -> list[Target]:
    """Return the node that is named, or its device. Raises as the finders do."""
    entry = find_node(entries, node)
    return [Target(entry, find_device([entry], device))]


def find_node(entries: Sequence[NodeEntry], given: str) -> NodeEntry:
    """Return the node with this id or name. Raises an error that names what there is.

    :class:`~blip.errors.InvalidRequest` if several have the name, :class:`~blip.errors.NotFound`
    if none has, :class:`~blip.errors.NodeLost` if it is not there any more.
    """
    names = unique_names(entries)
    found = [entry for entry in entries if given in (entry.id, names[entry.id])]
    found = found or [entry for entry in entries if given == entry.name]
    # one that is gone does not make the name of one that is there ambiguous
    found = [entry for entry in found if entry.status != "lost"] or found
    if not found:
        known = sorted({*names.values(), *(entry.name for entry in entries if entry.name)})
        near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
        guess = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise NotFound(
            f"no node of this mesh is called '{given}'{guess}",
            hint="`blip status` lists them.",
            param="node",
            details={"near": near},
        )
    if len(found) > 1:
        said = ", ".join(f"{names[entry.id]} ({entry.id})" for entry in found)
        raise InvalidRequest(
            f"{len(found)} nodes are called '{given}': {said}",
            hint="Name one by its id, or as `blip status` shows it.",
            param="node",
            details={"ids": [entry.id for entry in found]},
        )
    if found[0].status == "lost":
        raise NodeLost(f"node {names[found[0].id]} cannot be reached: it is lost")
    return found[0]


def find_device(entries: Sequence[NodeEntry], given: str | None) -> str:
    """Return the id of the device with this id, or that one's start; "" where none is given.

    Raises :class:`~blip.errors.NotFound` or :class:`~blip.errors.InvalidRequest`.
    """
    if not given:
        return ""
    ids = sorted({device.id for entry in entries for device in entry.advert.devices})
    if given in ids:
        return given
    found = [id for id in ids if id.startswith(given)]
    if len(found) == 1:
        return found[0]
    where = f"node {entries[0].name or entries[0].id}" if len(entries) == 1 else "this mesh"
    if found:
        raise InvalidRequest(
            f"{len(found)} devices of {where} begin with '{given}': {', '.join(found)}",
            param="device",
        )
    near = difflib.get_close_matches(given, ids, n=3, cutoff=0.5) or ids[:3]
    has = f"; there is {', '.join(near)}" if near else ""
    raise NotFound(
        f"no device of {where} is called '{given}'{has}",
        hint="`blip status` lists them.",
        param="device",
        details={"near": near},
    )


def error_of(ordered: Ordered, details: Mapping[str, Any]) -> BlipError:
    """Return the error that a failed order amounts to, with further details."""
    error = from_wire(ordered.code, ordered.text or "the node did not say why", ordered.details)
    error.details.update(details)
    return error

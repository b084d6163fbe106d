"""How nodes and gateways find the broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from blip.errors import BlipError
from blip.store import Store
from blip.store.discovery import Record

log = logging.getLogger(__name__)


def newest(records: list[Record]) -> tuple[list[str], str] | None:
    """Return ``(endpoints, host)`` of the broker that rules: the one of the highest epoch."""
    usable = [
        record
        for record in records
        if isinstance(record.payload.get("endpoints"), list)
        and isinstance(record.payload.get("host"), str)
    ]
    if not usable:
        return None
    ruling = max(usable, key=lambda record: record.incarnation)
    endpoints = [each for each in ruling.payload["endpoints"] if isinstance(each, str)]
    return endpoints, ruling.payload["host"]


async def find(store: Store) -> tuple[list[str], str] | None:
    """Look once for the ruling broker; None while the store is away or names none."""
    try:
        return newest(await store.discovery.list("broker"))
    except BlipError as error:
        log.info("the store names no broker: %s", error.message)
        return None


async def follow(store: Store, found: Callable[[list[str], str], None]) -> None:
    """Call ``found`` with the ruling broker's endpoints and host, now and at each change.

    Runs until cancelled. While the store is away, or names no broker, the last one stands.
    """
    last: tuple[list[str], str] | None = None
    async with aclosing(store.discovery.watch("broker")) as listings:
        async for records in listings:
            ruling = newest(records)
            if ruling is not None and ruling != last:
                last = ruling
                found(*ruling)


def start_following(store: Store, found: Callable[[list[str], str], None]) -> asyncio.Task[None]:
    """Run :func:`follow` in the background."""
    return asyncio.create_task(follow(store, found), name="follow brokers")

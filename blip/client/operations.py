"""What operators tell nodes to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from blip.client.answers import error_from_envelope
from blip.client.connection import Connection
from blip.client.stream import EventReader

#: Called with what a node says about an order, as it goes: ``node``, ``name``, ``device``,
#: ``state``, ``text``, ``details``.
Progress = Callable[[dict[str, Any]], None]


class OperationsClient(Connection):
    """Orders, each until the nodes have carried it out."""

    async def load(
        self,
        model: str,
        node: str | None = None,
        device: str | None = None,
        *,
        pin: bool | None = None,
        keep_alive: float | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Load a model on a node, on the best one if none is named, and wait until it is ready.

        ``pin`` keeps it whatever needs its room; ``keep_alive`` is how many seconds it stays
        without work, below 0 until its room is needed. Returns what each node said last: ``node``,
        ``name``, ``device``, ``text`` and ``details``; ``progress`` is called with the same as it
        goes. Raises the error of the first node that fails.
        """
        said = {"model": model, "node": node, "device": device}
        return await self._order("load", {**said, "pin": pin, "keep_alive": keep_alive}, progress)

    async def unload(
        self,
        model: str,
        node: str | None = None,
        device: str | None = None,
        *,
        force: bool | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Unload a model from a device, a node, or every node; returns as :meth:`load` does.

        What it runs is finished first, unless ``force`` is set.
        """
        said = {"model": model, "node": node, "device": device, "force": force}
        return await self._order("unload", said, progress)

    async def cordon(
        self, node: str, device: str | None = None, *, reason: str | None = None
    ) -> list[dict[str, Any]]:
        """Take a node, or one of its devices, out of service: it takes no new tasks."""
        said = {"node": node, "device": device, "reason": reason}
        return await self._order("cordon", said, None)

    async def uncordon(self, node: str, device: str | None = None) -> list[dict[str, Any]]:
        """Put a node, or one of its devices, back into service."""
        return await self._order("uncordon", {"node": node, "device": device}, None)

    async def drain(
        self,
        node: str,
        device: str | None = None,
        *,
        reason: str | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Take a node or a device out of service and wait until nothing runs on it any more.

        Giving up the wait does not call it off: :meth:`uncordon` does.
        """
        said = {"node": node, "device": device, "reason": reason}
        return await self._order("drain", said, progress)

    async def _order(
        self, verb: str, said: Mapping[str, Any], progress: Progress | None
    ) -> list[dict[str, Any]]:
        # streamed whether anybody listens or not: a load may take longer than the longest wait
        # for an answer, and a stream is never silent for long
        body = {key: value for key, value in said.items() if value is not None}
        last: dict[str, dict[str, Any]] = {}
        async with EventReader(self, f"/v1/mesh/{verb}", {**body, "stream": True}) as events:
            while (data := await events.next()) is not None:
                event = json.loads(data)
                if "error" in event:
                    raise error_from_envelope(event["error"])
                last[event["node"]] = event
                if progress is not None:
                    progress(event)
        return list(last.values())

"""What the mesh is, and what its tasks are doing."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from blip.client.answers import ModelInfo, models_from
from blip.client.connection import Connection, object_of


class MeshClient(Connection):
    """Questions about the mesh."""

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        """Return whether the gateway says it is ready, and its report on each dependency."""
        status, body, _ = await self._send("GET", "/readyz")
        return status == 200, object_of(body)

    async def models(self) -> list[ModelInfo]:
        """Return every model that the mesh serves."""
        return models_from((await self._json("GET", "/v1/models"))[0])

    async def mesh(self) -> dict[str, Any]:
        """Return the mesh as its gateway sees it: nodes, devices, replicas, health."""
        return dict((await self._json("GET", "/v1/mesh"))[0])

    async def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks in flight, then those that ended lately."""
        return list((await self._json("GET", "/v1/tasks"))[0]["tasks"])

    async def task(self, id: str) -> dict[str, Any]:
        """Return one task of the gateway's, by its id, or the start or the end of it."""
        return dict((await self._json("GET", f"/v1/tasks/{quote(id, safe='')}"))[0])

    async def why(self, id: str) -> dict[str, Any]:
        """Return why a task ran where it ran: its ``task`` and the ``decisions`` about it."""
        return dict((await self._json("GET", f"/v1/tasks/{quote(id, safe='')}/why"))[0])

"""The task that gives back what it was given."""

from __future__ import annotations

from typing import Any

from blip.client.answers import EchoAnswer, Origin
from blip.client.connection import Connection, body_of, object_of
from blip.client.options import Require, task_headers


class EchoClient(Connection):
    """What tries the mesh itself."""

    async def echo(
        self,
        text: str = "",
        *,
        model: str = "echo",
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> EchoAnswer:
        """Send a task through the mesh that gives back what it was given.

        Options are those of :class:`blip.kinds.echo.EchoInput`; with ``size`` the answer is that
        many bytes, else the text.
        """
        body = body_of(model, {"text": text, **options})
        said = task_headers(priority, deadline, require)
        status, raw, headers = await self._send("POST", "/v1/echo", body, said)
        self._check(status, raw, headers)
        if headers.get("Content-Type", "").startswith("application/json"):
            raw = str(object_of(raw)["text"]).encode()
        return EchoAnswer(raw, Origin.of(headers))

"""Kinds of task that plugins define."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from blip.client.answers import Origin, error_from_envelope
from blip.client.connection import Connection, object_of
from blip.client.options import Require, task_headers
from blip.client.stream import EventReader


@dataclass(frozen=True, slots=True)
class TaskAnswer:
    """What a plugin answered: JSON's values, or bytes; ``media`` says what they are."""

    output: Any
    media: str
    origin: Origin


class KindsClient(Connection):
    """What plugins are asked."""

    async def kinds(self) -> list[dict[str, Any]]:
        """Return every kind of task, with its schemas, models and nodes."""
        return list((await self._json("GET", "/v1/kinds"))[0]["data"])

    async def run_task(
        self,
        kind: str,
        input: Mapping[str, Any],
        *,
        model: str | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
    ) -> TaskAnswer:
        """Run a task of a plugin's kind; ``model`` may be left out where only one serves it."""
        said = task_headers(priority, deadline, require)
        status, raw, headers = await self._send(
            "POST", "/v1/tasks", _body(kind, model, input), said
        )
        self._check(status, raw, headers)
        media = headers.get("Content-Type", "")
        # a JSON answer stands in an envelope, bytes come as they are
        is_json = media.partition(";")[0] == "application/json"
        output: Any = object_of(raw)["output"] if is_json else raw
        return TaskAnswer(output, media, Origin.of(headers))

    async def stream_task(
        self,
        kind: str,
        input: Mapping[str, Any],
        *,
        model: str | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Run a task and yield its events as they come: progress, parts, and ``completed``.

        Closing the generator cancels the task.
        """
        body = {**_body(kind, model, input), "stream": True}
        headers = task_headers(priority, deadline, require)
        async with EventReader(self, "/v1/tasks", body, headers) as events:
            while (data := await events.next()) is not None:
                event = json.loads(data)
                if isinstance(event.get("error"), dict):
                    raise error_from_envelope(event["error"])
                yield event


def _body(kind: str, model: str | None, input: Mapping[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"kind": kind, "input": dict(input)}
    return body if model is None else {**body, "model": model}

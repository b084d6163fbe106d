"""What replicas tell about attempts, and to whom."""

from __future__ import annotations

from typing import Protocol

from blip.errors import BlipError
from blip_node.executions import Execution


class Outcomes(Protocol):
    """What the agent is told about attempts."""

    def part(self, execution: Execution, payload: bytes) -> None:
        """A part of the result came."""
        ...

    def done(
        self,
        execution: Execution,
        usage: dict[str, int],
        units: float,
        first: float,
        run: float,
        payload: bytes,
    ) -> None:
        """The worker finished it."""
        ...

    def failed(self, execution: Execution, error: BlipError) -> None:
        """It failed, or has stopped after a cancel."""
        ...

    def changed(self) -> None:
        """Something that adverts tell has changed."""
        ...

"""Why a task ran where it ran: what brokers tell, and what this gateway decided by itself.

A decision is a map as brokers write it: ``ago`` (seconds), ``attempt``, ``outcome`` (``grant``,
``wait``, ``deny``, ``move``, ``end``), and what else is known. ``by`` says who decided.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from typing import Any, NamedTuple

from blip.gateway.mesh import TaskStory
from blip.protocol.messages import Place, Story, Why

#: Own decisions that are remembered. They are made only while no broker is there, and people ask
#: about a task within minutes.
REMEMBERED = 512

#: Seconds that a broker may take to answer. It answers from memory; one that takes this long is
#: stuck, and its part of the story is left out.
STORY_TIMEOUT = 5.0

#: What a decision of ours is explained with.
BY_ITSELF = "no broker could be reached: the gateway placed it by itself, on the last adverts"

Decision = dict[str, Any]


class _Own(NamedTuple):
    at: float
    place: Place
    outcome: str
    code: str
    text: str
    considered: list[dict[str, Any]]


class Stories:
    """The decisions of one gateway, and the questions it has put to its broker."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._own: collections.deque[_Own] = collections.deque(maxlen=REMEMBERED)
        self._waiting: dict[bytes, list[asyncio.Future[Story | None]]] = {}

    def placed(self, place: Place, node: str, name: str, device: str) -> None:
        """Remember that this gateway chose a device for an attempt."""
        chosen = {"node": node, "name": name, "device": device}
        self._own.append(_Own(self._now(), place, "grant", "", BY_ITSELF, [chosen]))

    def refused(self, place: Place, code: str, text: str) -> None:
        """Remember that this gateway found no device for an attempt."""
        self._own.append(_Own(self._now(), place, "deny", code, text, []))

    async def tell(self, task: bytes, send: Callable[[Why], None] | None) -> TaskStory:
        """Return all that is known about a task; ``send`` reaches the broker, if one is there."""
        if send is None:
            return TaskStory(self._mine(task), note="no broker can be reached")
        waiter: asyncio.Future[Story | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task, []).append(waiter)
        try:
            send(Why(task, 0))
            async with asyncio.timeout(STORY_TIMEOUT):
                story = await waiter
        except TimeoutError:
            note = f"the broker did not answer within {STORY_TIMEOUT:g} s"
            return TaskStory(self._mine(task), note=note)
        finally:
            waiters = self._waiting.get(task, [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._waiting.pop(task, None)
        if story is None:
            return TaskStory(self._mine(task), note="the link to the broker broke")
        theirs = [{"by": "broker", **decision} for decision in story.decisions]
        return TaskStory(merge(theirs, self._mine(task)))

    def told(self, story: Story) -> None:
        """Take a broker's answer."""
        self._answer(self._waiting.pop(story.task, []), story)

    def abandon(self) -> None:
        """The broker is gone: nobody will answer any more."""
        for waiters in self._waiting.values():
            self._answer(waiters, None)
        self._waiting.clear()

    def _answer(self, waiters: list[asyncio.Future[Story | None]], story: Story | None) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(story)

    def _mine(self, task: bytes) -> list[Decision]:
        now = self._now()
        return [
            {
                "by": "gateway",
                "ago": now - own.at,
                "attempt": own.place.attempt,
                "kind": own.place.kind,
                "model": own.place.model,
                "outcome": own.outcome,
                "code": own.code,
                "text": own.text,
                "considered": own.considered,
            }
            for own in self._own
            if own.place.task == task
        ]


def merge(theirs: list[Decision], ours: list[Decision]) -> list[Decision]:
    """Return both in order of time, oldest first; what has no time keeps its place."""
    if not ours:
        return theirs
    # stable, so that what a broker wrote down at one moment stays in its order
    return sorted([*theirs, *ours], key=lambda decision: -_seconds(decision.get("ago")))


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0

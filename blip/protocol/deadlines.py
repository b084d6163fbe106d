"""One wheel for every deadline of a process, instead of a timer a task.

``call_later`` and ``cancel`` cost 0.7 us a task and leave the heap full of cancelled entries; a
deadline here is an append to a list, and forgetting one costs nothing: whoever owns the key
decides, when it comes up, whether it still matters.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Deadlines(Generic[Key]):
    """Keys due at a time, in buckets of ``grain`` seconds. Never early, late by up to a grain."""

    def __init__(self, grain: float = 0.25) -> None:
        self.grain = grain
        self._buckets: dict[int, list[Key]] = {}
        self._first: int | None = None

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, key: Key, due: float) -> bool:
        """Bring ``key`` up at ``due``; True if that is before everything else: arm the timer."""
        slot = int(due / self.grain) + 1
        self._buckets.setdefault(slot, []).append(key)
        if self._first is not None and self._first <= slot:
            return False
        self._first = slot
        return True

    def due(self, now: float) -> list[Key]:
        """Remove and return every key whose time has come."""
        if self._first is None or self._first * self.grain > now:
            return []
        ready = sorted(slot for slot in self._buckets if slot * self.grain <= now)
        keys = [key for slot in ready for key in self._buckets.pop(slot)]
        self._first = min(self._buckets, default=None)
        return keys

    def next(self) -> float | None:
        """When :meth:`due` has something to return; None while it is empty."""
        return None if self._first is None else self._first * self.grain

"""Virtual time: a heap of things to do, and when."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

_Entry = tuple[float, int, Callable[[], None]]


class Clock:
    """Time in seconds from 0; what is due at the same time happens in the order it was asked for.

    Nothing here looks at the real time, so that a run is the same every time.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._entries: list[_Entry] = []
        self._count = 0
        self._stopped = False

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do that then, or now if that is past; never, if it is infinitely far off."""
        if when < math.inf:
            self._count += 1
            heapq.heappush(self._entries, (max(when, self.now), self._count, what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Do that so many seconds from now."""
        self.at(self.now + seconds, what)

    def stop(self) -> None:
        """Let :meth:`run` return after what is happening now."""
        self._stopped = True

    def run(self, until: float = math.inf) -> None:
        """Do everything that is due up to ``until``, in order, or up to :meth:`stop`."""
        while self._entries and not self._stopped and self._entries[0][0] <= until:
            self.now, _, what = heapq.heappop(self._entries)
            what()

"""Files in the memory of this process: bounded in bytes, count and time. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from blip.protocol.messages import Payload


class Kept(NamedTuple):
    """A file that is kept to be fetched. Times are in seconds since the epoch."""

    id: str
    #: Its media type, and the name to save it under.
    media: str
    name: str
    size: int
    made: int
    expires: int


class Shelf:
    """The newest files, as far as they fit; time is an argument."""

    def __init__(self, most_bytes: int, most_files: int) -> None:
        self._most_bytes = most_bytes
        self._most_files = most_files
        #: Oldest first.
        self._files: OrderedDict[str, tuple[Kept, Payload]] = OrderedDict()
        #: Bytes of all of them.
        self.size = 0

    def __len__(self) -> int:
        return len(self._files)

    def put(self, kept: Kept, content: Payload, now: float) -> None:
        """Keep a file that fits; those that have expired go, and the oldest to make room."""
        for id in [id for id, (each, _) in self._files.items() if each.expires <= now]:
            self.remove(id)
        self._files[kept.id] = kept, content
        self.size += kept.size
        while self.size > self._most_bytes or len(self._files) > self._most_files:
            self.remove(next(iter(self._files)))

    def get(self, id: str, now: float) -> tuple[Kept, Payload] | None:
        """Return a file; None if there is none, or it has expired."""
        found = self._files.get(id)
        if found is not None and found[0].expires <= now:
            self.remove(id)
            return None
        return found

    def remove(self, id: str) -> None:
        """Forget a file, if it is there."""
        found = self._files.pop(id, None)
        if found is not None:
            self.size -= found[0].size

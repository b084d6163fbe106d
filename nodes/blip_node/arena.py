"""Shared memory for large payloads between a worker and its agent.

A long-lived arena of equal blocks: a megabyte through the pipe is copied six times, a fresh
shared-memory file for each result is slower still (page faults), the arena costs two copies. The
worker owns the allocation; the agent copies a payload out and gives the block back at once, so a
slow client never holds one.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

#: What one block holds: a result part is at most 1 MiB, plus room for its framing.
BLOCK_BYTES = 1024 * 1024 + 4096

#: Blocks of an arena; memory is only taken by those that were ever used. With 8, sixteen clients
#: that fetch a megabyte each found none free most of the time, and the pipe, which then stands in,
#: cost twice the worker's CPU.
BLOCKS = 32

#: Below this the pipe is as fast.
WORTHWHILE_BYTES = 64 * 1024


class Arena:
    """A file in shared memory, mapped by two processes. The creator passes ``path`` to the other.

    The file is unlinked as soon as both have it, so nothing is left behind, whoever is killed.
    """

    def __init__(self, path: str | None = None) -> None:
        create = path is None
        if path is None:
            shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            descriptor, path = tempfile.mkstemp(prefix="blip-arena-", dir=shared)
            os.ftruncate(descriptor, BLOCK_BYTES * BLOCKS)
        else:
            descriptor = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, BLOCK_BYTES * BLOCKS)
        finally:
            os.close(descriptor)
        self.path = path
        self._view = memoryview(self._map)
        self._free = list(range(BLOCKS)) if create else []

    def put(self, payload: bytes | memoryview) -> int | None:
        """Copy a payload into a free block; its number, or None: send it another way."""
        if not WORTHWHILE_BYTES <= len(payload) <= BLOCK_BYTES or not self._free:
            return None
        block = self._free.pop()
        start = block * BLOCK_BYTES
        self._view[start : start + len(payload)] = payload
        return block

    def take(self, block: int, size: int) -> bytes:
        """Copy a payload out. Raises ``ValueError`` for a block or size that cannot be."""
        if not (0 <= block < BLOCKS and 0 <= size <= BLOCK_BYTES):
            raise ValueError(f"no block {block} of {size} bytes")
        start = block * BLOCK_BYTES
        return bytes(self._view[start : start + size])

    def release(self, block: int) -> None:
        """Have a block back from the agent."""
        if block in self._free or not 0 <= block < BLOCKS:
            raise ValueError(f"block {block} was not taken")
        self._free.append(block)

    def unlink(self) -> None:
        """Remove the file's name; the memory lives until both sides have closed."""
        Path(self.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmap."""
        self._view.release()
        self._map.close()

"""The pipe between an agent and a worker: rows of msgpack over a unix socket.

Both ends are ours and of one version, started by one another, so there is no negotiation: a row
is a list whose first element is its :class:`Row`. What one loop tick has to say leaves in one
write. Half the latency and CPU of ZeroMQ over ipc, which buys nothing here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import IntEnum
from typing import Any, cast

import msgpack

log = logging.getLogger(__name__)

#: Large results go through the arena or in parts of a megabyte; inputs arrive whole.
MAX_MESSAGE_BYTES = 128 * 1024 * 1024

_LENGTH_BYTES = 4


class Row(IntEnum):
    """What a row says; its other elements are listed behind it."""

    # worker to agent
    HELLO = 1  # token, arena path
    PROGRESS = 2  # share of loading done, 0 to 1
    READY = 3  # slots, bytes of memory, seconds the load took
    BROKEN = 4  # code, text, details: loading failed
    DATA = 5  # job, payload
    DATA_BLOCK = 6  # job, arena block, size
    DONE = 7  # job, usage, units, seconds to the first part, seconds run, payload
    DONE_BLOCK = 8  # the same, with arena block and size for the payload
    FAILED = 9  # job, code, text, details
    MEMORY = 10  # bytes, the peak so far: it has grown
    # agent to worker
    RUN = 20  # job, kind, window, payload
    CREDIT = 21  # job, bytes
    CANCEL = 22  # job
    FREE = 23  # arena block
    STOP = 24


class Pipe(asyncio.Protocol):
    """One end of a pipe. ``on_row`` gets each row in order; ``on_close`` is called once."""

    def __init__(
        self, on_row: Callable[[Pipe, list[Any]], None], on_close: Callable[[Pipe], None]
    ) -> None:
        self._on_row = on_row
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = bytearray()
        self._out: list[list[Any]] = []
        self._flushing = False

    def send(self, *row: Any) -> None:
        """Send a row with the rest of this tick; a closed pipe swallows it."""
        self._out.append(list(row))
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is queued now."""
        self._flushing = False
        rows, self._out = self._out, []
        if rows and self._transport is not None and not self._transport.is_closing():
            body = msgpack.packb(rows)
            self._transport.write(len(body).to_bytes(_LENGTH_BYTES, "little") + body)

    def close(self) -> None:
        """Write what is queued, then close."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio's call)."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner (asyncio's call)."""
        self._transport = None
        self._on_close(self)

    def data_received(self, data: bytes) -> None:
        """Cut the stream into rows (asyncio's call)."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH_BYTES:
            size = int.from_bytes(buffer[start : start + _LENGTH_BYTES], "little")
            if size > MAX_MESSAGE_BYTES:
                log.error("a pipe message of %d bytes: closing the pipe", size)
                if self._transport is not None:
                    self._transport.abort()
                return
            end = start + _LENGTH_BYTES + size
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                rows = msgpack.unpackb(view[start + _LENGTH_BYTES : end], strict_map_key=False)
            start = end
            for row in rows:
                try:
                    self._on_row(self, row)
                except Exception:
                    # one row's bug must not end every job of the worker
                    log.exception("handling row %s", row[:2])
        if start:
            del buffer[:start]

"""A TCP proxy that makes the network bad on demand.

What a bad network does differs, and so does what follows:

``swallow``  bytes vanish, the connection stays: what was sent is never heard of again.
``hold``     bytes wait, as in a partition: once it heals all of them arrive in one burst.
``latency``  every chunk is late by so many seconds.
``refuse``   new connections are cut at once; those that stand are not touched.
``reset()``  connections that stand are cut, with RST.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from types import TracebackType


class Toxic:
    """``async with Toxic(port) as toxic``: dial ``toxic.endpoint`` instead of ``port``."""

    def __init__(self, upstream: int, *, host: str = "127.0.0.1") -> None:
        self._host = host
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.swallow = False
        self.latency = 0.0
        self.refuse = False
        #: Connections accepted so far, refused ones included.
        self.accepted = 0

    @property
    def port(self) -> int:
        """Where the proxy listens."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def endpoint(self) -> str:
        """The same for ZeroMQ."""
        return f"tcp://{self._host}:{self.port}"

    @property
    def hold(self) -> bool:
        """Whether bytes wait."""
        return not self._flowing.is_set()

    @hold.setter
    def hold(self, value: bool) -> None:
        if value:
            self._flowing.clear()
        else:
            self._flowing.set()

    def reset(self) -> None:
        """Cut every connection that stands."""
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            # closing with a linger time of 0 is how a socket sends RST instead of FIN
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def __aenter__(self) -> Toxic:
        self._server = await asyncio.start_server(self._accept, self._host, 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.hold = False
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refuse:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = {writer}
        self._writers.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection(self._host, self._upstream)
            writers.add(up_writer)
            self._writers.add(up_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, up_writer))
                pumps.create_task(self._pump(up_reader, writer))
        except* OSError:
            pass  # one side is gone; the other is told below
        finally:
            for each in writers:
                self._writers.discard(each)
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            if self.latency:
                await asyncio.sleep(self.latency)
            await self._flowing.wait()
            if not self.swallow:
                writer.write(chunk)
                await writer.drain()
        raise ConnectionResetError("the other side has closed")

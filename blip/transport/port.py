"""A :class:`Port` owns one ZeroMQ socket and is the only code that reads or writes it.

ZeroMQ's file descriptor is edge-triggered: after a send, after reading EVENTS, or after reading
without reaching EAGAIN, a message may wait in the socket while the descriptor stays silent, for
ever. And a cancelled ``await socket.recv()`` loses the message it had already taken. So: drain to
EAGAIN, bounded, and come back; drain again after every send; never be awaited, never be
cancelled. ``zmq.asyncio`` also costs three to seven times as much.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence
from typing import cast

import zmq
from zmq.utils.monitor import parse_monitor_message

from blip.protocol.messages import Payload

#: Messages read before other callbacks of the loop get their turn.
BUDGET = 256

#: Messages that wait for a peer whose pipe is full. The pipe itself holds as many again; beyond
#: that the peer has stopped reading.
OUTBOX = 4096

Frames = Sequence[Payload]

#: Plain numbers: arithmetic on zmq's enums takes longer than the call it is for.
_POLLIN, _NOBLOCK = int(zmq.POLLIN), int(zmq.NOBLOCK)


def _descriptor(socket: zmq.Socket[bytes]) -> int:
    return cast(int, socket.getsockopt(zmq.FD))


class PeerUnreachable(Exception):
    """The peer is gone, or has not read for so long that its queue is full."""


class Port:
    """One socket on the running loop.

    ``on_frames`` is called with each message's frames as ``zmq.Frame`` buffers (routing id first
    on a ROUTER); it must not raise. ``on_connected`` and ``on_disconnected`` tell what the
    transport knows of a DEALER's peer.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        on_frames: Callable[[list[Payload]], None],
        *,
        on_connected: Callable[[], None] | None = None,
        on_disconnected: Callable[[], None] | None = None,
    ) -> None:
        self.socket = socket
        self._on_frames = on_frames
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._loop = asyncio.get_running_loop()
        self._fd = _descriptor(socket)
        self._queued = False
        self._closed = False
        self._outbox: dict[bytes, collections.deque[Frames]] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._monitor_fd = -1
        self._loop.add_reader(self._fd, self._drain)
        self._poke()
        if on_connected or on_disconnected:
            self._watch()

    # --- in ---------------------------------------------------------------------------------

    def _poke(self) -> None:
        if not self._queued and not self._closed:
            self._queued = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._queued = False
        if not self._read(BUDGET):
            self._poke()

    def _read(self, most: int) -> bool:
        """Read up to so many messages; whether that was all there is."""
        receive = self.socket.recv_multipart
        for _ in range(most):
            if self._closed:
                return True
            try:
                # EVENTS is 2 us where an EAGAIN exception is 5; it is read on every turn, so
                # what it clears is never relied upon
                if not cast(int, self.socket.getsockopt(zmq.EVENTS)) & _POLLIN:
                    return True
                frames = receive(_NOBLOCK, copy=False)
            except zmq.Again:
                return True
            self._on_frames([frame.buffer for frame in frames])
        return False

    # --- out --------------------------------------------------------------------------------

    def send(self, frames: Frames, peer: bytes = b"") -> None:
        """Send one message, to ``peer`` on a ROUTER; never blocks.

        Raises :class:`PeerUnreachable` when the peer is gone or its outbox is full. Payload
        frames must not be changed afterwards.
        """
        waiting = self._outbox.get(peer)
        if waiting is not None:
            if len(waiting) >= OUTBOX:
                raise PeerUnreachable("the peer has stopped reading")
            waiting.append(frames)
            return
        if not self._try(frames, peer):
            self._outbox[peer] = collections.deque((frames,))
            self._retry_later()

    def _try(self, frames: Frames, peer: bytes) -> bool:
        if self._closed:
            raise PeerUnreachable("the port is closed")
        try:
            parts = (peer, *frames) if peer else frames
            # not copying pays from some 64 KiB on (1 MiB: 23 us less) and costs 5 us below; large
            # payloads are what comes in frames of its own
            self.socket.send_multipart(parts, _NOBLOCK, copy=len(frames) == 1)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise PeerUnreachable(str(error)) from None
        finally:
            self._poke()  # a send that failed has swallowed the wake-up just as well
        return True

    def _retry_later(self) -> None:
        # ZeroMQ has no "this peer can take more" event on a ROUTER, so a full pipe, and only a
        # full pipe, is looked at again after a while.
        if self._retry is None and self._outbox:
            self._retry = self._loop.call_later(0.01, self._flush)

    def _flush(self) -> None:
        self._retry = None
        for peer, waiting in list(self._outbox.items()):
            try:
                while waiting and self._try(waiting[0], peer):
                    waiting.popleft()
            except PeerUnreachable:
                waiting.clear()  # whoever sends next hears of it
            if not waiting:
                del self._outbox[peer]
        self._retry_later()

    def forget(self, peer: bytes = b"") -> None:
        """Drop what waits for a peer that is gone."""
        self._outbox.pop(peer, None)

    # --- the transport's own word -----------------------------------------------------------

    def _watch(self) -> None:
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(events)
        monitor.linger = 0
        self._monitor = monitor
        self._monitor_fd = _descriptor(monitor)
        self._loop.add_reader(self._monitor_fd, self._observe)
        self._loop.call_soon(self._observe)

    def _observe(self) -> None:
        while self._monitor is not None and not self._closed:
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event = parse_monitor_message(frames)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                if self._on_connected:
                    self._on_connected()
            elif event == zmq.EVENT_DISCONNECTED:
                # The monitor may overtake the data: read what had arrived before acting on it.
                while not self._read(BUDGET):
                    pass
                self._poke()
                self._outbox.clear()
                if self._on_disconnected:
                    self._on_disconnected()

    def close(self, linger: float = 0.0) -> None:
        """Give the socket back; ``linger`` seconds are spent on writing what was sent."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._outbox.clear()
        self._loop.remove_reader(self._fd)
        if self._monitor is not None:
            self._loop.remove_reader(self._monitor_fd)
            self.socket.disable_monitor()
            self._monitor.close(0)
            self._monitor = None
        self.socket.close(int(linger * 1000))

"""Byte credit: the receiver of a stream says how much may be on its way.

ZeroMQ's high-water mark counts messages, not bytes (1,000 messages of 4 MiB are 4 GiB), and
blocks the whole socket. Credit is granted a stream, in bytes, by whoever reads it: a slow client
slows its own stream only.
"""

from __future__ import annotations

#: First window of a stream of text or small parts: a second of the fastest model's output, or
#: one large part.
STREAM_WINDOW = 1024 * 1024

#: First window of a stream of images or video, which come in pieces of a megabyte.
BULK_WINDOW = 8 * 1024 * 1024

#: A grant no honest receiver exceeds; more is an overflow attack on the counter.
MAX_GRANT = 1 << 40


class SendWindow:
    """The sender's side. Going negative by one message is allowed, the next one waits.

    That spares senders from cutting a message to fit, and bounds the excess by one message.
    """

    __slots__ = ("left",)

    def __init__(self, window: int) -> None:
        self.left = max(0, min(window, MAX_GRANT))

    @property
    def open(self) -> bool:
        """Whether another message may be sent now."""
        return self.left > 0

    def take(self, size: int) -> None:
        """Account for a message of ``size`` bytes that was sent."""
        self.left -= size

    def grant(self, size: int) -> bool:
        """Add credit from the receiver; True when that opened a closed window."""
        if not 0 < size <= MAX_GRANT:
            return False
        was_open = self.left > 0
        self.left = min(self.left + size, MAX_GRANT)
        return not was_open and self.left > 0


class ReceiveWindow:
    """The receiver's side: grants again once half of the window has been consumed.

    Half: one grant for every half window keeps the pipe full at any round trip shorter than half
    a window takes to send, at a fraction of a message a part.
    """

    __slots__ = ("consumed", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.consumed = 0

    def consume(self, size: int) -> int:
        """Account for ``size`` bytes handed to the application; return what to grant, or 0."""
        self.consumed += size
        if self.consumed * 2 < self.window:
            return 0
        grant, self.consumed = self.consumed, 0
        return grant

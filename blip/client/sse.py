"""Server-sent events, the reading side (HTML Living Standard, section 9.2.6). Pure."""

from __future__ import annotations


class Events:
    """Turns the bytes of an event stream, however they are cut, into the data of its events.

    ``event``, ``id`` and ``retry`` fields are skipped: no answer of blip's depends on them.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[str]:
        """Take bytes; return the data of every event that they completed."""
        # a lone CR may be half of CRLF: it ends a line only once the next byte is known
        text = self._rest + chunk
        held = b"\r" if text.endswith(b"\r") else b""
        lines = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *complete, rest = lines.split(b"\n")
        self._rest = rest + held
        events = []
        for line in complete:
            if not line:
                if self._data:
                    events.append("\n".join(self._data))
                    self._data = []
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" ").decode("utf-8", "replace"))
        return events

"""Cuts a stream of server-sent events into the data of its events. Pure.

As the HTML standard has it: lines end with LF, CRLF or CR, an event with an empty line, comments
begin with a colon. Old llama.cpp servers send errors under a field name of their own, ``error:``.
"""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

from blip.errors import RemoteProtocolError

#: Longest event, in characters: a chunk with the log-probabilities of many tokens is some 10 KB.
MAX_EVENT = 4 * 1024 * 1024

_LINE_END = re.compile(r"\r\n|\n|\r")


class Event(NamedTuple):
    """One event. ``error`` says that it came under the field ``error``."""

    data: str
    error: bool = False


class EventReader:
    """Takes bytes as they come, and returns the events that they complete."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._data: list[str] = []
        self._size = 0
        self._error = False
        self._began = False

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes.

        Raises :class:`~blip.errors.RemoteProtocolError` for what is no event stream.
        """
        self._text += self._decoder.decode(chunk)
        if not self._began and self._text:
            self._began = True
            self._text = self._text.removeprefix("\ufeff")
        events: list[Event] = []
        start = 0
        for end in _LINE_END.finditer(self._text):
            if end.group() == "\r" and end.end() == len(self._text):
                break  # its LF may be on the way
            event = self._line(self._text[start : end.start()])
            start = end.end()
            if event is not None:
                events.append(event)
        self._text = self._text[start:]
        if len(self._text) + self._size > MAX_EVENT:
            raise RemoteProtocolError(f"sent an event of over {MAX_EVENT} characters")
        return events

    @property
    def unfinished(self) -> bool:
        """Whether the stream stands in the middle of an event."""
        return bool(self._text.strip() or self._data)

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if not colon and name not in ("data", "event", "id", "retry"):
            raise RemoteProtocolError(f"sent a line that is no event: {line[:80]!r}")
        if name in ("data", "error"):
            self._data.append(value)
            self._size += len(value)
            self._error = self._error or name == "error"
        return None

    def _dispatch(self) -> Event | None:
        if not self._data:
            return None
        event = Event("\n".join(self._data), self._error)
        self._data, self._size, self._error = [], 0, False
        return event

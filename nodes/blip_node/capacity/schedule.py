"""When the owner uses a machine whatever is measured: lines such as "mon-fri 09:00-18:00". Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from blip.errors import ConfigError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_LINE = re.compile(r"(\S+)\s+(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})")

_DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class Window:
    """A span of the day, in minutes from midnight, on some days of the week (0 is Monday).

    One whose ``end`` is not after its ``start`` goes on over midnight and belongs to the day on
    which it begins.
    """

    line: str
    days: frozenset[int]
    start: int
    end: int

    def contains(self, local: datetime) -> bool:
        """Tell whether a moment, in the machine's own time, is within."""
        minute, today = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        if minute >= self.start:
            return today in self.days
        return minute < self.end and (today - 1) % 7 in self.days


def parse(lines: Iterable[str]) -> tuple[Window, ...]:
    """Read a schedule. Raises :class:`~blip.errors.ConfigError` that names a bad line."""
    return tuple(_window(line) for line in lines)


def _window(line: str) -> Window:
    found = _LINE.fullmatch(line.strip().lower())
    if found is None:
        raise _wrong(line, "expected days and a span of time")
    start_hour, start_minute, end_hour, end_minute = map(int, found.groups()[1:])
    start, end = start_hour * 60 + start_minute, end_hour * 60 + end_minute
    if start_minute > 59 or end_minute > 59 or start >= _DAY or end > _DAY:
        raise _wrong(line, "there is no such time of day")
    if start == end:
        raise _wrong(line, "it ends when it begins; a whole day is 00:00-24:00")
    return Window(line, _days(line, found[1]), start, end)


def _days(line: str, text: str) -> frozenset[int]:
    if text == "daily":
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise _wrong(line, f"'{part}' is no day; days are {', '.join(DAYS)} and daily")
        begin = DAYS.index(first)
        length = (DAYS.index(last) - begin) % 7 if dash else 0
        days |= {(begin + offset) % 7 for offset in range(length + 1)}
    return frozenset(days)


def _wrong(line: str, why: str) -> ConfigError:
    return ConfigError(
        f"node.schedule: '{line}': {why}",
        hint="Write for instance 'mon-fri 09:00-18:00', 'sat,sun 20:00-02:00' or "
        "'daily 22:00-06:00'.",
    )

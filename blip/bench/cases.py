"""What is asked of every stack. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from blip.bench.load import Load
from blip.errors import ConfigError

#: The prompt of the small requests: a short question.
_TEXT = "x" * 100
_MIB = 1024 * 1024
#: Tokens a second of one stream: a fast model, faster than anyone reads.
_PACE = 50
#: Intervals between two tokens over which the paced streams start. Over one alone they would be a
#: burst, in step with each other ever after; and as 13 and 64 have no common divisor, starts that
#: are spread evenly over 13 intervals leave the ticks spread evenly over each.
_SPREAD = 13
#: Tokens of one unpaced stream.
_FLOOD = 64

#: The case that asks for nothing: what the stack uses while it has nothing to do.
IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Case:
    """One request and how many connections send it.

    ``rate`` is the tokens a second of a paced stream; 0 asks for ``chunks`` at once. With neither
    it is no stream, and ``size`` is the least an answer may have, in bytes.
    """

    name: str
    connections: int
    body: Mapping[str, object]
    size: int = 0
    rate: int = 0
    chunks: int = 0

    @property
    def streamed(self) -> bool:
        """Whether tokens are counted in place of requests."""
        return bool(self.rate or self.chunks)

    def load(self, port: int, headers: Mapping[str, str], seconds: float) -> Load:
        """Return the load for a visit of ``seconds``; one paced stream takes as long."""
        body = dict(self.body)
        events, stagger = self.chunks, 0.0
        if self.rate:
            events = max(2, round(self.rate * seconds))
            stagger = _SPREAD / self.rate
            body |= {"interval": 1 / self.rate, "stamp": True}
        if self.streamed:
            body |= {"stream": True, "chunks": events}
        return Load(
            port=port,
            body=json.dumps(body),
            connections=self.connections,
            seconds=seconds,
            headers=dict(headers),
            size=self.size,
            events=events,
            once=bool(self.rate),
            stagger=stagger,
        )


CASES = (
    *(Case(f"echo-{n}", n, {"text": _TEXT}, size=len(_TEXT)) for n in (1, 16, 64, 256)),
    *(Case(f"mib-{n}", n, {"size": _MIB}, size=_MIB) for n in (1, 16)),
    Case("paced-64", 64, {"text": "token"}, rate=_PACE),
    Case("unpaced-16", 16, {"text": "token"}, chunks=_FLOOD),
)

NAMES = (*(case.name for case in CASES), IDLE)


def select(names: str) -> tuple[list[Case], bool]:
    """Return the cases that a list like ``echo-64,mib`` names, and whether idling is among them.

    A name without its number stands for all of that name; an empty list for everything. Raises
    :class:`~blip.errors.ConfigError`.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()} or set(NAMES)
    known = {*NAMES, *(name.partition("-")[0] for name in NAMES)}
    if unknown := sorted(wanted - known):
        raise ConfigError(
            f"--cases: there is no case called '{unknown[0]}'",
            hint=f"There are {', '.join(NAMES)}; echo stands for all that begin with it.",
        )
    cases = [case for case in CASES if {case.name, case.name.partition("-")[0]} & wanted]
    return cases, IDLE in wanted

"""Why attempts ran where they ran: the last decisions, each with what the alternatives cost.

What is remembered is written out only when somebody asks; remembering is on the path of every
task, asking is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from blip.broker.demand import Demand
from blip.broker.quotes import Quote
from blip.broker.sites import Candidate, Group
from blip.protocol.messages import Place, Release

#: Candidates that a decision lists as excluded; the rest are only counted.
EXCLUDED_SHOWN = 16

#: Candidates that are looked at to find those. A requirement that excludes devices excludes many;
#: in a large mesh it is a sample.
SCANNED = 256


class Considered(NamedTuple):
    """One candidate of a decision, with what the attempt would have cost there, in seconds."""

    node: str
    name: str
    device: str
    wait: float
    service: float
    load: float
    others: float
    #: Whether it had room at that moment.
    room: bool
    #: Models that would have been unloaded to make room.
    evicts: tuple[str, ...] = ()

    @property
    def cost(self) -> float:
        """The sum that was compared."""
        return self.wait + self.service + self.load + self.others


class Excluded(NamedTuple):
    """One candidate that did not come into question, and why, in words."""

    node: str
    name: str
    device: str
    reason: str


class Decision(NamedTuple):
    """What was decided about an attempt, when (on the broker's clock) and why.

    ``outcome`` is ``grant``, ``wait``, ``deny``, ``move`` (asked back, to run elsewhere) or
    ``end``; a denial has a ``code`` of :mod:`blip.errors` and a ``text``, an end says how it ended.
    ``considered`` starts with the candidate that was chosen; the others are those that came
    closest, ``more`` counts the rest. ``excluded`` are the first of those that were out of the
    question, ``unlisted`` counts the rest.
    """

    at: float
    task: bytes
    attempt: int
    kind: str
    model: str
    outcome: str
    code: str
    text: str
    considered: list[Considered]
    more: int
    excluded: list[Excluded]
    unlisted: int
    end: Release | None = None

    def to_wire(self, now: float) -> dict[str, Any]:
        """Write it for a STORY; what does not apply is left out."""
        out: dict[str, Any] = {
            "ago": round(max(0.0, now - self.at), 3),
            "attempt": self.attempt,
            "kind": self.kind,
            "model": self.model,
            "outcome": self.outcome,
        }
        if self.code:
            out |= {"code": self.code, "text": self.text}
        if self.considered:
            out["considered"] = [
                {**each._asdict(), "evicts": list(each.evicts), "cost": each.cost}
                for each in self.considered
            ]
            out["more"] = self.more
        if self.excluded:
            out["excluded"] = [each._asdict() for each in self.excluded]
            out["unlisted"] = self.unlisted
        if self.end is not None:
            end = self.end
            out["end"] = {
                "outcome": end.outcome,
                "run": end.run,
                "load": end.load,
                "units": end.units,
            }
        return out


class Search(NamedTuple):
    """What a decision looked at: ``barred`` are those that only this attempt may not use."""

    quotes: tuple[Quote, ...] = ()
    #: Candidates that could have been chosen, the quoted ones included.
    seen: int = 0
    #: Those out of the question with why, for as many as are shown; and how many there are.
    excluded: tuple[tuple[Candidate, str], ...] = ()
    out: int = 0


NOTHING = Search()


def search(
    group: Group, demand: Demand, quotes: tuple[Quote, ...], barred: Sequence[Candidate]
) -> Search:
    """Take down what was looked at, before anything changes."""
    off = group.off
    seen = len(group.members) - len(off)
    if not off and not barred and not demand.picky:
        return Search(quotes, seen)
    out = dict.fromkeys(barred)
    if demand.picky:
        # The search stops at the best: whom it never came to may be barred as well.
        members = islice(group.members.values(), SCANNED)
        out |= {c: None for c in members if c not in off and demand.bars(c.site.device)}
    excluded = [(candidate, candidate.barrier) for candidate in islice(off, EXCLUDED_SHOWN)]
    for candidate in islice(out, EXCLUDED_SHOWN - len(excluded)):
        excluded.append((candidate, _why_barred(candidate, demand)))
    return Search(quotes, seen - len(out), tuple(excluded), len(off) + len(out))


def _why_barred(candidate: Candidate, demand: Demand) -> str:
    device = candidate.site.device
    if device.node.id in demand.exclude:
        return "this task was refused there, or failed there"
    if demand.key and (lacking := demand.lacking(device)):
        return f"required otherwise: {' and '.join(lacking)}"
    if candidate.site.fleet.full:
        return "as many replicas are loaded as there may be"
    return "the model does not fit beside what is there"


class _Record(NamedTuple):
    at: float
    place: Place
    outcome: str
    code: str
    text: str
    search: Search
    end: Release | None


class Decisions:
    """A ring of the last decisions."""

    def __init__(self, limit: int) -> None:
        self._records: deque[_Record] = deque(maxlen=limit)

    def add(
        self,
        at: float,
        place: Place,
        outcome: str,
        search: Search = NOTHING,
        *,
        code: str = "",
        text: str = "",
        end: Release | None = None,
    ) -> None:
        """Remember a decision; the first of the quotes is what was chosen."""
        self._records.append(_Record(at, place, outcome, code, text, search, end))

    def of(self, task: bytes) -> list[Decision]:
        """Return what is remembered about a task, oldest first."""
        return [_decision(record) for record in self._records if record.place.task == task]

    def last(self, count: int) -> list[Decision]:
        """Return the last decisions, newest first."""
        records = list(self._records)[-count:] if count > 0 else []
        return [_decision(record) for record in reversed(records)]


def _decision(record: _Record) -> Decision:
    place, found = record.place, record.search
    considered = [
        Considered(
            *_where(quote.candidate),
            quote.wait,
            quote.service,
            quote.load,
            quote.others,
            quote.room,
            tuple(victim.model.name for victim in quote.victims),
        )
        for quote in found.quotes
    ]
    excluded = [Excluded(*_where(candidate), reason) for candidate, reason in found.excluded]
    return Decision(
        record.at,
        place.task,
        place.attempt,
        place.kind,
        place.model,
        record.outcome,
        record.code,
        record.text,
        considered,
        max(0, found.seen - len(considered)),
        excluded,
        found.out - len(excluded),
        record.end,
    )


def _where(candidate: Candidate) -> tuple[str, str, str]:
    device = candidate.site.device
    return device.node.id, device.node.name, device.info.id

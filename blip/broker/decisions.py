"""Why attempts ran where they ran: the last decisions, each with what the alternatives cost."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from blip.broker.quotes import Quote
from blip.protocol.messages import Place


class Considered(NamedTuple):
    """One candidate of a decision, with what the attempt would have cost there, in seconds."""

    node: str
    device: str
    wait: float
    service: float
    load: float
    others: float
    #: Whether it had room at that moment.
    room: bool

    @property
    def cost(self) -> float:
        """The sum that was compared."""
        return self.wait + self.service + self.load + self.others


class Decision(NamedTuple):
    """What was decided about an attempt, when (on the broker's clock) and why.

    ``outcome`` is ``grant``, ``wait`` or ``deny``; a denial has a ``code`` of
    :mod:`blip.errors`. ``considered`` starts with the candidate that was chosen; the others are
    those that came closest, not all there are.
    """

    at: float
    task: bytes
    attempt: int
    kind: str
    model: str
    outcome: str
    code: str
    considered: list[Considered]


class _Record(NamedTuple):
    at: float
    place: Place
    outcome: str
    code: str
    quotes: tuple[Quote, ...]


class Decisions:
    """A ring of the last decisions. Remembering is cheap; they are written out when asked for."""

    def __init__(self, limit: int) -> None:
        self._records: deque[_Record] = deque(maxlen=limit)

    def add(
        self, at: float, place: Place, outcome: str, quotes: tuple[Quote, ...] = (), code: str = ""
    ) -> None:
        """Remember a decision; ``quotes`` are those compared, the chosen one first."""
        self._records.append(_Record(at, place, outcome, code, quotes))

    def of(self, task: bytes) -> list[Decision]:
        """Return what is remembered about a task, oldest first."""
        return [_decision(record) for record in self._records if record.place.task == task]

    def last(self, count: int) -> list[Decision]:
        """Return the last decisions, newest first."""
        records = list(self._records)[-count:] if count > 0 else []
        return [_decision(record) for record in reversed(records)]


def _decision(record: _Record) -> Decision:
    place = record.place
    considered = [
        Considered(
            quote.candidate.site.device.node.id,
            quote.candidate.site.device.info.id,
            quote.wait,
            quote.service,
            quote.load,
            quote.others,
            quote.room,
        )
        for quote in record.quotes
    ]
    return Decision(
        record.at,
        place.task,
        place.attempt,
        place.kind,
        place.model,
        record.outcome,
        record.code,
        considered,
    )

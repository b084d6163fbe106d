"""The orders "load" and "unload": what was asked, until it is so or cannot be.

An order is followed by looking: at each change of a replica and at each tick, :meth:`Loads.check`
compares what is there with what was ordered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from blip.errors import BlipError, InvalidRequest, Unavailable
from blip.protocol.messages import Order, Ordered
from blip_node.admission import Fit, no_room
from blip_node.capacity import Reading
from blip_node.catalogue import Catalogue, Entry
from blip_node.replica import LOADING, Replica, State
from blip_node.replicas import Replicas

Say = Callable[[Ordered], None]

#: Seconds between two reports on one order: as often as a progress bar needs to look alive.
REPORT_EVERY = 0.5


@dataclass(slots=True, eq=False)
class _Followed:
    """An order that is not answered for good yet, and the replicas it is about."""

    order: Order
    say: Say
    began: float
    replicas: list[Replica] = field(default_factory=list)
    told: float = -math.inf

    def done(self, **details: Any) -> None:
        self.say(Ordered(self.order.number, "done", details=details))

    def failed(self, error: BlipError) -> None:
        code, text, details = error.to_wire()
        self.say(Ordered(self.order.number, "failed", code, text, details))


class Loads:
    """The load orders of one node.

    ``readings`` are its devices, ``why_not`` says why one takes nothing new, "" if it does, and
    ``speed`` is that of devices whose owner said nothing.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        replicas: Replicas,
        readings: Callable[[], Iterable[Reading]],
        why_not: Callable[[Reading], str],
        now: Callable[[], float],
        speed: float = 1.0,
    ) -> None:
        self._catalogue = catalogue
        self._replicas = replicas
        self._readings = readings
        self._why_not = why_not
        self._now = now
        self._speed = speed
        self._followed: dict[_Followed, Callable[[_Followed], bool]] = {}
        self._checking = self._due = False

    def load(self, order: Order, say: Say) -> None:
        """Load ``order.model`` on ``order.device``, or on the best one. Says how it goes.

        Options: ``pin`` (true or false) and ``keep_alive`` (seconds, or null for ever), instead of
        what is configured. Done, with device, seconds and memory, at once if it is loaded already.
        """
        self._follow(order, say, self._loaded)

    def unload(self, order: Order, say: Say) -> None:
        """Unload ``order.model`` from ``order.device``, or from all. Says how it goes.

        What was given to a replica is finished first, unless the option ``force`` is true.
        """
        followed = _Followed(order, say, self._now())
        try:
            entry = self._catalogue.find(_model(order))
            force = _flag(order, "force") or False
        except BlipError as error:
            followed.failed(error)
            return
        followed.replicas = self._of(entry, order.device)
        for replica in followed.replicas:
            if force:
                self._replicas.unload(replica)
            else:
                self._replicas.retire(replica)
        if not self._unloaded(followed):
            self._followed[followed] = self._unloaded

    def check(self) -> None:
        """Report on every order that has come to something."""
        self._due = True
        if self._checking:
            return  # what an order does changes replicas, and is looked at once more after it
        self._checking = True
        try:
            while self._due:
                self._due = False
                for followed, ended in list(self._followed.items()):
                    if ended(followed):
                        del self._followed[followed]
        finally:
            self._checking = False

    # --- inside -----------------------------------------------------------------------------

    def _follow(self, order: Order, say: Say, ended: Callable[[_Followed], bool]) -> None:
        followed = _Followed(order, say, self._now())
        if not ended(followed):
            self._followed[followed] = ended

    def _loaded(self, followed: _Followed) -> bool:
        """Take a load order further; whether it has been answered for good."""
        try:
            replica = self._replica(followed)
        except BlipError as error:
            followed.failed(error)
            return True
        progress = 0.0
        if replica is not None:
            if replica.state is State.READY:
                seconds = self._now() - followed.began
                followed.done(device=replica.device, seconds=seconds, memory=replica.memory)
                return True
            if replica.state not in LOADING:
                gone = Unavailable(f"'{replica.model}' was unloaded before it was loaded")
                followed.failed(replica.failure or gone)
                return True
            progress = replica.progress
        self._report(followed, progress=progress)
        return False

    def _replica(self, followed: _Followed) -> Replica | None:
        """Return the replica that the order is about, made by it or not; None to wait for room."""
        if followed.replicas:
            return followed.replicas[0]
        order = followed.order
        entry = self._catalogue.find(_model(order))
        pin, keep_alive = _flag(order, "pin"), _seconds(order, "keep_alive")
        there = self._of(entry, order.device)
        live = [each for each in there if each.state in (State.READY, *LOADING)]
        if not live and any(each.state is State.STOPPING for each in there):
            return None  # it is just being unloaded
        if live:
            replica = min(live, key=lambda each: each.state is not State.READY)
            self._replicas.keep(replica)
        else:
            reading, room = self._choose(entry, order.device)
            replica = self._replicas.load(entry, reading, room.evict)
        if pin is not None:
            replica.pinned = pin
        if "keep_alive" in order.options:
            replica.keep_alive = keep_alive
        followed.replicas = [replica]
        return replica

    def _choose(self, entry: Entry, device: str) -> tuple[Reading, Fit]:
        """Return where to load: without evicting before with, then the fastest, then the freest.

        Raises ``InvalidRequest`` for an unknown device, ``Unavailable`` if none takes anything,
        ``NoCapacity`` with the numbers of the roomiest.
        """
        readings = list(self._readings())
        if device and all(each.info.id != device for each in readings):
            known = ", ".join(each.info.id for each in readings) or "none"
            raise InvalidRequest(
                f"this node has no device '{device}'", hint=f"It has: {known}.", param="device"
            )
        asked = [each for each in readings if device in ("", each.info.id)]
        open = [each for each in asked if not self._why_not(each)]
        if not open:
            why = "; ".join(f"{each.info.id}: {self._why_not(each)}" for each in asked)
            raise Unavailable(f"no device here takes a model now ({why or 'there is none'})")
        rooms = [(each, room) for each in open if (room := self._replicas.room(entry, each))]
        fitting = [each for each in rooms if each[1].fits]
        if fitting:
            return max(fitting, key=self._rank)
        reading, room = max(rooms, key=lambda each: each[1].free)
        raise no_room(entry.spec.name, reading.info.id, room, reading.info.memory_total)

    def _rank(self, place: tuple[Reading, Fit]) -> tuple[bool, float, int]:
        reading, room = place
        return not room.evict, reading.info.speed or self._speed, room.free

    def _unloaded(self, followed: _Followed) -> bool:
        """Take an unload order further; whether it has been answered for good."""
        left = [each for each in followed.replicas if self._there(each)]
        if not left:
            freed = sum(each.memory for each in followed.replicas)
            followed.done(replicas=len(followed.replicas), memory=freed)
            return True
        kept = [each for each in left if each.state is not State.STOPPING and not each.leaving]
        if kept:
            followed.failed(Unavailable(f"'{kept[0].model}' stays: it was ordered to load again"))
            return True
        self._report(followed, jobs=sum(len(each.jobs) + len(each.waiting) for each in left))
        return False

    def _report(self, followed: _Followed, **details: Any) -> None:
        now = self._now()
        if now - followed.told >= REPORT_EVERY:
            followed.told = now
            followed.say(Ordered(followed.order.number, "running", details=details))

    def _of(self, entry: Entry, device: str) -> list[Replica]:
        name = entry.spec.name
        return [e for e in self._replicas if e.model == name and device in ("", e.device)]

    def _there(self, replica: Replica) -> bool:
        return self._replicas.get(replica.model, replica.device) is replica


def _model(order: Order) -> str:
    if not order.model:
        raise InvalidRequest(f"'{order.verb}' needs the name of a model", param="model")
    return order.model


def _flag(order: Order, name: str) -> bool | None:
    value = order.options.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"'{name}' must be true or false, got {value!r}", param=name)
    return value


def _seconds(order: Order, name: str) -> float | None:
    value = order.options.get(name)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise InvalidRequest(f"'{name}' must be seconds, 0 or more, got {value!r}", param=name)
    return float(value)

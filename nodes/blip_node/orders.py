"""Orders of operators: what each verb does, and how it is answered. Pure.

An order may take a while: it is answered ``running`` any number of times, then ``done`` or
``failed``. It goes on when whoever gave it is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from blip.errors import BlipError, InvalidRequest, NotFound, Unavailable
from blip.protocol.messages import Order, Ordered
from blip_node.standing import Event, Standing, State

log = logging.getLogger(__name__)

#: How an order is answered, over the link that it came by.
Say = Callable[[Ordered], None]

#: A drain says at most this often, in seconds, how much is left.
TELL_EVERY = 1.0


class Devices(Protocol):
    """What orders are about; see :class:`blip_node.warden.Warden`."""

    @property
    def standings(self) -> dict[str, Standing]:
        """Every device by its id."""
        ...

    def order(self, devices: Sequence[str], event: Event, wish: str) -> None:
        """Have an event happen to devices, with all that follows from it."""
        ...

    def left(self, devices: Sequence[str]) -> int:
        """Count the attempts on devices, and the replicas that are still being ended."""
        ...


class Models(Protocol):
    """Who loads and unloads; see :class:`blip_node.loads.Loads`."""

    def load(self, order: Order, say: Say) -> None:
        """Load a model, and answer."""
        ...

    def unload(self, order: Order, say: Say) -> None:
        """Unload a model, and answer."""
        ...


@dataclass(slots=True)
class Drain:
    """A drain under way."""

    number: int
    devices: list[str]
    say: Say
    told: float


class Orders:
    """The orders of one node."""

    def __init__(self, devices: Devices, name: str, models: Models) -> None:
        self._devices = devices
        self._models = models
        self._name = name
        self._drains: list[Drain] = []

    def handle(self, order: Order, say: Say, now: float) -> None:
        """Carry an order out, or begin to, and answer it."""
        carry_out = VERBS.get(order.verb)
        try:
            if carry_out is None:
                raise InvalidRequest(
                    f"node '{self._name}' knows no order '{order.verb}'",
                    hint=f"It knows {', '.join(sorted(VERBS))}.",
                    param="verb",
                )
            log.info("order: %s %s", order.verb, order.device or "every device")
            carry_out(self, order, say, now)
        except BlipError as error:
            say(Ordered(order.number, "failed", *error.to_wire()))

    def tick(self, now: float) -> None:
        """See how drains get on; call it about twice a second, and when an attempt has ended."""
        self._drains = [drain for drain in self._drains if not self._ended(drain, now)]

    # --- verbs ------------------------------------------------------------------------------

    def cordon(self, order: Order, say: Say, now: float) -> None:
        """Take nothing new; what runs goes on."""
        devices = self._named(order)
        self._devices.order(devices, Event.CORDON, _wish(order))
        left = self._devices.left(devices)
        say(_done(order.number, devices, f"{_list(devices)} cordoned", left=left))

    def uncordon(self, order: Order, say: Say, now: float) -> None:
        """Take tasks again, also after a fault."""
        devices = self._named(order)
        self._devices.order(devices, Event.UNCORDON, "")
        standings = [self._devices.standings[device] for device in devices]
        faulted = [each for each in standings if each.state in (State.FAULTED, State.PROBING)]
        if faulted:
            raise Unavailable(
                "; ".join(each.refusal for each in faulted),
                hint="No operator cordons it any more. Order it again to do without the canary; "
                "that helps where only the past speaks against it.",
                details={"devices": devices},
            )
        yielding = [each.refusal for each in standings if each.state is State.YIELDING]
        text = "; ".join([f"{_list(devices)} uncordoned", *yielding])
        say(_done(order.number, devices, text))

    def drain(self, order: Order, say: Say, now: float) -> None:
        """Take nothing new, finish what runs, and then be cordoned."""
        devices = self._named(order)
        self._devices.order(devices, Event.DRAIN, _wish(order))
        drain = Drain(order.number, devices, say, float("-inf"))
        if not self._ended(drain, now):
            self._drains.append(drain)

    def load(self, order: Order, say: Say, now: float) -> None:
        """Load a model; see :meth:`blip_node.loads.Loads.load`."""
        self._models.load(order, say)

    def unload(self, order: Order, say: Say, now: float) -> None:
        """Unload a model; see :meth:`blip_node.loads.Loads.unload`."""
        self._models.unload(order, say)

    def _ended(self, drain: Drain, now: float) -> bool:
        gone = [each for each in drain.devices if not self._devices.standings[each].ordered]
        if gone:
            error = Unavailable(f"{_list(gone)} uncordoned before the drain was done")
            drain.say(Ordered(drain.number, "failed", *error.to_wire()))
            return True
        left = self._devices.left(drain.devices)
        states = {self._devices.standings[device].state for device in drain.devices}
        if not left and states == {State.CORDONED}:
            drain.say(_done(drain.number, drain.devices, f"{_list(drain.devices)} drained"))
            return True
        if now - drain.told >= TELL_EVERY:
            drain.told = now
            details = {"left": left, "devices": drain.devices}
            text = f"{left} left on {_list(drain.devices)}"
            drain.say(Ordered(drain.number, "running", "", text, details))
        return False

    def _named(self, order: Order) -> list[str]:
        """Return the devices that an order is about. Raises ``NotFound`` naming what there is."""
        there = list(self._devices.standings)
        if order.device in there:
            return [order.device]
        if not there:
            raise NotFound(f"node '{self._name}' has no device, or has not found it yet")
        if order.device:
            raise NotFound(
                f"node '{self._name}' has no device '{order.device}'",
                hint=f"It has {', '.join(there)}.",
                param="device",
                details={"devices": there},
            )
        return there


#: What each verb does.
VERBS: dict[str, Callable[[Orders, Order, Say, float], None]] = {
    "cordon": Orders.cordon,
    "uncordon": Orders.uncordon,
    "drain": Orders.drain,
    "load": Orders.load,
    "unload": Orders.unload,
}


def _done(number: int, devices: list[str], text: str, left: int = 0) -> Ordered:
    return Ordered(number, "done", "", text, {"left": left, "devices": devices})


def _list(devices: list[str]) -> str:
    return ", ".join(devices)


def _wish(order: Order) -> str:
    reason = order.options.get("reason", "")
    if not isinstance(reason, str):
        raise InvalidRequest("the reason of an order is text", param="reason")
    return reason

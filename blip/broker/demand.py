"""What an attempt asks of the device it runs on."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import NamedTuple

from blip.broker.rates import Rates
from blip.broker.sites import DeviceRecord, Lane
from blip.protocol.constraints import Require, check, unmet
from blip.protocol.messages import Place

#: The least and the most work that is believed of one attempt, in units.
UNITS_MIN, UNITS_MAX = 1e-6, 1e12

#: Requirements whose verdict a device remembers. Few are in use at a time, and judging one anew
#: costs microseconds.
REMEMBERED = 64


def believed(units: float) -> float:
    """Return an amount of work as far as it is believed."""
    return min(max(units, UNITS_MIN), UNITS_MAX)


class Demand(NamedTuple):
    """Kind and model, the work in units, and what the device must (not) be."""

    lane: Lane
    units: float
    #: Nodes that this task was refused by or failed on.
    exclude: Collection[str] = ()
    require: Require = {}  # noqa: RUF012  (never mutated)
    #: The requirement in one canonical form; "" for none.
    key: str = ""

    @property
    def picky(self) -> bool:
        """Whether :meth:`bars` may say yes."""
        return bool(self.exclude or self.key)

    def bars(self, device: DeviceRecord) -> bool:
        """Whether the attempt must not run there."""
        if device.node.id in self.exclude:
            return True
        if not self.key:
            return False
        verdict = device.verdicts.get(self.key)
        if verdict is None:
            if len(device.verdicts) >= REMEMBERED:
                device.verdicts.clear()
            verdict = device.verdicts[self.key] = bool(self.lacking(device))
        return verdict

    def lacking(self, device: DeviceRecord) -> list[str]:
        """Say what a device lacks of what is required; empty if nothing."""
        node = device.node
        labels = node.advert.labels if node.advert is not None else {}
        return unmet(self.require, node=(node.id, node.name), labels=labels, device=device.info)


def demand_of(place: Place, rates: Rates) -> Demand:
    """Read a PLACE. Raises :class:`~blip.errors.InvalidRequest` for a requirement that is none."""
    units = rates.expected(place.kind, place.model, believed(place.units))
    lane = (place.kind, place.model)
    if not place.require:
        return Demand(lane, units, place.exclude)
    require = check(place.require)
    return Demand(lane, units, place.exclude, require, json.dumps(require, sort_keys=True))

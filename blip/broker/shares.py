"""Weighted fairness between tenants, after start-time fair queueing. Pure.

Each tenant has a virtual clock: the seconds of device time that it was granted, divided by its
weight. Whoever is furthest behind goes first, so tenants that want more than there is get device
time in proportion to their weights, whatever the sizes of their tasks. A tenant that was away
begins where those that wait now stand: time not used is not saved up.

Goyal, Vin, Cheng: Start-time Fair Queuing, SIGCOMM 1996.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

#: Tenants whose clocks are kept; beyond it those that are owed nothing are forgotten.
LIMIT = 1024


class Shares:
    """The tenants' clocks. Tenants without a configured weight weigh 1."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._clocks: dict[str, float] = {}
        #: Where a tenant stands that comes now.
        self._virtual = 0.0

    def weight(self, tenant: str) -> float:
        """Return a tenant's weight."""
        return self._weights.get(tenant, 1.0)

    def clock(self, tenant: str) -> float:
        """Return where a tenant stands, in virtual seconds."""
        return max(self._virtual, self._clocks.get(tenant, 0.0))

    def charge(self, tenant: str, seconds: float, waiting: Collection[str]) -> None:
        """A tenant was granted device time; ``waiting`` are the tenants that have tickets."""
        clock = self.clock(tenant)
        # The clocks of those that wait must not be overtaken by the present: it is their turn.
        behind = min((self.clock(other) for other in waiting), default=clock)
        self._virtual = min(clock, behind)
        self._clocks[tenant] = clock + seconds / self.weight(tenant)
        if len(self._clocks) > LIMIT:
            self._clocks = {t: at for t, at in self._clocks.items() if at > self._virtual}

    def correct(self, tenant: str, seconds: float) -> None:
        """It took that much more (or less) device time than was charged."""
        if tenant in self._clocks:
            self._clocks[tenant] += seconds / self.weight(tenant)

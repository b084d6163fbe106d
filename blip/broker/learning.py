"""What runs really took, and what the broker makes of it."""

from __future__ import annotations

from blip.broker.index import Index
from blip.broker.ledger import Lease
from blip.broker.priors import speed_of
from blip.broker.rates import Rates
from blip.broker.sites import Site
from blip.protocol.messages import Release

#: A run cannot have taken longer than its lease has existed; clocks and rounding get this much.
CLOCK_SLACK = 1.0


def learn(
    lease: Lease, release: Release, site: Site, now: float, *, rates: Rates, index: Index
) -> None:
    """Feed the rates with a lease that ended, and sort candidates anew that they concern.

    A claim that cannot be true (more time than the lease existed) teaches nothing.
    """
    if release.outcome == "done" and lease.place is not None:
        rates.observe_work(lease.kind, site.model.name, lease.place.units, release.units)
    age = now - lease.granted_at + CLOCK_SLACK
    device = site.device
    # Only who started a load saw all of it.
    if lease.cold and release.load <= age:
        rates.observe_load(device.key, site.model.load_bytes, release.load)
    if not 0 < release.run <= age:
        return
    # The company it kept: halfway between what it met and what it left.
    slowdown = (lease.slowdown + site.slowdown(index.crowding)) / 2
    model, speed = site.model.name, speed_of(device.info, lease.kind)
    seconds = release.run / slowdown
    news = rates.observe(lease.kind, model, device.key, speed, release.units, seconds)
    group = index.groups.get((lease.kind, model))
    if group is None:
        return
    for candidate in group.members.values() if news else (group.members.get(device.key),):
        if candidate is not None:
            index.rerate(candidate)

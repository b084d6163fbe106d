"""How a gateway places by itself while no broker can be reached.

Several gateways do this at once, each sees only its own attempts, and adverts are old: whoever
takes the best device then takes the same one as everybody else. So each draws three devices at
random, a fast one more often than a slow one, and takes the best of those. In simulation that
gave a 99th percentile of 7.8 s on adverts two seconds old, where the apparently best gave 21 s.

The node has the last word as always; a refusal leads to another draw with that node excluded.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import NamedTuple

from blip.protocol.messages import Device, Model, NodeEntry, Replica

#: Draws, from what is loaded and from what is not. Two are good, more than three bring little and
#: herd again.
DRAWS = 3

#: Seconds that a typical task takes on a device of speed 1; only its ratio to a load matters.
TYPICAL = 2.0

#: Bytes a second from disk to a device that has not measured it: a SATA SSD.
BANDWIDTH = 5e8

#: Seconds that a load takes beside moving bytes.
LOAD_START = 1.0


class _Option(NamedTuple):
    entry: NodeEntry
    device: Device
    slots: int
    #: Attempts that the node had when it last said so.
    busy: int
    load: float


def choose(
    entries: Sequence[NodeEntry],
    kind: str,
    model: str,
    in_flight: Callable[[str, str], int],
    exclude: Collection[str],
    rng: Callable[[], float],
) -> tuple[str, int, str] | None:
    """Choose ``(node id, incarnation, device id)`` for one attempt, or None if nothing fits.

    ``in_flight(node id, device id)`` counts the gateway's own attempts there, ``rng`` returns
    numbers from 0 to below 1.
    """
    warm: list[_Option] = []
    cold: list[_Option] = []
    for entry in entries:
        if entry.status != "ready" or entry.advert.draining or entry.id in exclude:
            continue
        wanted = next((m for m in entry.advert.models if m.name == model), None)
        if wanted is None or kind not in wanted.kinds:
            continue
        for device in entry.advert.devices:
            option = _option(entry, device, wanted)
            if option is not None:
                (cold if option.load else warm).append(option)
    drawn = _draw(warm, rng) + _draw(cold, rng)
    if not drawn:
        return None

    def cost(option: _Option) -> float:
        mine = in_flight(option.entry.id, option.device.id)
        # What the node reports may include ours: the larger of the two, not the sum.
        ahead = max(mine, option.busy) / option.slots
        return TYPICAL * (1 + ahead) / _speed(option.device) + option.load

    best = min(drawn, key=cost)
    return best.entry.id, best.entry.incarnation, best.device.id


def _option(entry: NodeEntry, device: Device, model: Model) -> _Option | None:
    """Return how the model could run on a device; None if it cannot."""
    if device.health <= 0 or device.state != "ready":
        return None
    replicas = [replica for replica in entry.advert.replicas if replica.device == device.id]
    for replica in replicas:
        if replica.model == model.name and replica.state in ("ready", "loading"):
            # A load under way counts as warm: better to join it than to start another.
            return _Option(entry, device, max(1, replica.slots), _busy(replica), 0.0)
    if model.error and model.retry_in > 0:
        return None
    idle = sum(r.memory for r in replicas if r.state == "ready" and not _busy(r))
    # A device that does not tell its size is tried: the load itself decides.
    if model.memory > 0 and device.memory_total > 0 and device.memory_free + idle < model.memory:
        return None
    load = LOAD_START + max(0, model.load_bytes) / (device.load_bandwidth or BANDWIDTH)
    return _Option(entry, device, max(1, model.slots), 0, load)


def _draw(options: list[_Option], rng: Callable[[], float]) -> list[_Option]:
    """Draw, in proportion to speed; a few options are all taken."""
    if len(options) <= DRAWS:
        return options
    sums = list(accumulate(_speed(option.device) for option in options))
    return [options[min(bisect(sums, rng() * sums[-1]), len(options) - 1)] for _ in range(DRAWS)]


def _busy(replica: Replica) -> int:
    return max(0, replica.active + replica.queued)


def _speed(device: Device) -> float:
    return min(max(device.speed, 1e-3), 1e3)

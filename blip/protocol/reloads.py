"""What loading a model again costs, and what evicting one is expected to cost by that.

Brokers predict by it which replicas a node will unload to make room, gateways without a broker and
nodes decide by it: so all of them must reckon alike.
"""

from __future__ import annotations

#: Bytes a second from disk to device before any load was measured: a SATA SSD. NVMe does five
#: times that, a mining riser or a hard disk half; between them, too slow a guess only makes us
#: prefer replicas that are loaded already.
DISK_BANDWIDTH = 5e8

#: Seconds that a load takes beside moving bytes: a worker forked from a warm server, its CUDA
#: context, its handshake.
LOAD_START = 1.0

#: Below this many seconds, how long ago a replica was needed says nothing about who is needed
#: next: people read an answer before they ask again.
RECENT = 10.0


def reload_seconds(size: int, bandwidth: float | None) -> float:
    """Predict the seconds to load ``size`` bytes, at the device's bandwidth if it was measured."""
    return LOAD_START + max(0, size) / (bandwidth or DISK_BANDWIDTH)


def regret(reload: float, silence: float) -> float:
    """What evicting an idle replica is expected to cost, in seconds of reloading a second.

    The reload has to be paid if the model is needed again. How soon that is, its silence tells:
    where nothing is known of the rate of requests, what was silent for t seconds is expected to
    come back at a rate of about 1/t (the longer it was, the longer it will be). So the seconds of
    the reload are divided by the seconds of silence. With equal reloads that is least recently
    used; a model that takes a minute to load stays twelve times as long as one that takes five
    seconds. Size as such does not count: what is freed beyond the need is worth nothing.
    """
    return reload / (max(0.0, silence) + RECENT)

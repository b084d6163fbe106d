"""What an operator can tune about placement; the defaults argue for themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from blip.errors import ConfigError

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """The scheduler's settings. Times are seconds, sizes are bytes.

    Raises :class:`~blip.errors.ConfigError` naming the field when a value makes no sense.
    """

    #: Tickets that may wait, over all models. At a task a second it is a quarter of an hour of
    #: work: whoever comes after that is better told to come back.
    queue_limit: int = 1024
    #: The part of the queue that only priority 5 and better may fill, so that a flood of batch
    #: work cannot lock interactive users out.
    queue_reserve: float = 0.2
    #: Seconds of waiting that outweigh one priority class: priority 10 overtakes priority 1
    #: after a minute and a half, so nothing starves.
    ageing: float = 10.0
    #: Deadlines farther away than this do not reorder a class: there is no hurry yet.
    patience: float = 30.0
    #: Attempts bound to a ready replica beyond its slots. One hides the round trip between two
    #: tasks; more would only take away the freedom to choose late.
    prefetch: int = 1
    #: ... and only once a slot is predicted to be free within so many seconds: earlier it could
    #: still turn out better elsewhere. In simulation the 99th percentile with tasks of unknown
    #: length falls from 1.69 to 1.50 of the oracle's by it, with known ones from 1.18 to 1.01;
    #: half of it begins to cost where models must be loaded.
    prefetch_within: float = 0.5
    #: Device memory that stays free: readings lag, and other programs on the machine breathe.
    headroom: int = 256 * MIB
    #: How much one more attempt in a batch slows each of the others. 16 together then take 2.9
    #: times as long as one alone and do 5.6 times its work, which lies between continuous
    #: batching measured on a CPU (3.5 times) and what GPUs reach (10 times).
    crowding: float = 0.125
    #: Tickets that one freed device or one tick looks at, best rank first. A slow device is worth
    #: using once as many tickets wait as others are faster, and few are more than 64 times faster.
    lookahead: int = 64
    #: Decisions that :meth:`~blip.broker.scheduler.Scheduler.explain` remembers; a task leaves two
    #: when all goes well.
    decisions: int = 2000
    #: After a refusal, seconds until that replica is tried again: by then the node's next advert,
    #: sent on change, has corrected what we believe.
    refusal_pause: float = 1.0
    #: Shares of busy devices by tenant; others weigh 1.
    tenants: Mapping[str, float] = field(default_factory=dict)
    #: Seconds that taking an attempt back and placing it again costs at most; stealing must gain
    #: more. It is three messages and a submission, and predictions are not exact.
    move_cost: float = 0.25
    #: Which kinds of device a kind of task may use; kinds that are not listed may use all.
    device_kinds: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (
            "ageing",
            "patience",
            "headroom",
            "crowding",
            "refusal_pause",
            "move_cost",
            "prefetch_within",
        ):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"broker setting '{name}' must be 0 or more, not {value!r}")
        for name in ("queue_limit", "prefetch"):
            if getattr(self, name) < 0:
                raise ConfigError(f"broker setting '{name}' must be 0 or more")
        for name in ("lookahead", "decisions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"broker setting '{name}' must be 1 or more")
        for tenant, weight in self.tenants.items():
            if not 0 < weight < math.inf:
                raise ConfigError(f"broker setting 'tenants': the weight of '{tenant}' is {weight}")
        if not 0 <= self.queue_reserve < 1:
            raise ConfigError("broker setting 'queue_reserve' must be at least 0 and below 1")

"""Whether its owner is using a device, and what then. Pure: clock and local time are arguments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Literal

from blip_node.capacity.device import DeviceInfo, DeviceSample
from blip_node.capacity.schedule import Window

#: Seconds for which others must keep a device busy before that counts. A desktop draws a window
#: and a browser decodes a picture in less; and what we have just finished ourselves is still in
#: the driver's average for a second.
BUSY_FOR = 3.0

#: Seconds without use by others after which a device is ours again. Its owner's programs follow
#: each other (a game's next level, a training script's next run) within a few seconds; coming back
#: too early costs loading a model and freeing it again, which is about as long as this.
QUIET_FOR = 20.0


class Policy(Enum):
    """What is done when the owner uses a device."""

    #: Nothing: it is shared.
    OFF = "off"
    #: It yields at the hours of the schedule only.
    SCHEDULE = "schedule"
    #: It yields: takes nothing new, and frees idle replicas.
    POLITE = "polite"
    #: It yields, and what runs is stopped.
    STRICT = "strict"


def policy_for(
    setting: Literal["auto", "off", "polite", "strict"],
    info: DeviceInfo,
    *,
    machine_display: bool,
) -> Policy:
    """Return the policy of a device from ``node.neighbour``.

    ``auto`` is polite on a GPU that has a display, or whose machine has one: somebody may sit
    there. A processor is shared by default: an operating system balances load on it anyway, and the
    mesh's own gateway, broker and clients on this machine count as others there.
    """
    if setting != "auto":
        return Policy(setting)
    if info.vendor != "cpu" and (info.display or machine_display):
        return Policy.POLITE
    return Policy.SCHEDULE


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on use by others counts: bytes, and a share from 0 to 1."""

    memory: int
    utilization: float


@dataclass(frozen=True, slots=True)
class Use:
    """What others use of a device, as far as it can be told."""

    memory: int | None = None
    utilization: float | None = None


def foreign_use(
    info: DeviceInfo,
    sample: DeviceSample | None,
    *,
    workers: Iterable[tuple[int | None, int]],
    idle: bool,
) -> Use:
    """Tell what others use. ``workers`` are our replicas there, as (pid, bytes they take).

    A worker that the driver does not list yet, or never does because a container hides its pid,
    is within the driver's "others": what it takes is subtracted. ``idle`` says that none of ours
    is at work there; all utilisation is then the others'. Memory of the processor's is no sign:
    an operating system always uses some.
    """
    if sample is None:
        return Use()
    utilization = sample.foreign_utilization
    if utilization is None and idle:
        utilization = sample.utilization
    if info.vendor == "cpu" or sample.foreign_memory is None:
        return Use(None, utilization)
    listed = {process.pid for process in sample.processes or () if process.own}
    unseen = sum(size for pid, size in workers if pid not in listed)
    return Use(max(0, sample.foreign_memory - unseen), utilization)


class Neighbour:
    """The owner of one device, watched."""

    def __init__(self, policy: Policy, limits: Limits, schedule: Sequence[Window] = ()) -> None:
        self.policy = policy
        self._limits = limits
        self._schedule = schedule
        self._busy_since: float | None = None
        self._used: float | None = None
        self._reason = ""

    def observe(self, use: Use, now: float, local: datetime) -> str:
        """Return why the device yields to its owner now, as a sentence; "" if it does not.

        ``local`` is the machine's own time of day; ``now`` never goes back.
        """
        reason = self._reasons(use, now, local)
        if reason:
            self._used, self._reason = now, reason
        elif self._used is not None and now - self._used >= QUIET_FOR:
            self._used, self._reason = None, ""
        return self._reason

    def _reasons(self, use: Use, now: float, local: datetime) -> str:
        if self.policy is Policy.OFF:
            return ""
        for window in self._schedule:
            if window.contains(local):
                return f"It is its owner's at this hour ({window.line})."
        if self.policy is Policy.SCHEDULE:
            return ""
        if use.utilization is None or use.utilization < self._limits.utilization:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = now
        if use.memory is not None and use.memory >= self._limits.memory:
            return f"Its owner is using it: {use.memory / 2**30:.1f} GiB by other programs."
        if self._busy_since is not None and now - self._busy_since >= BUSY_FOR:
            assert use.utilization is not None
            return f"Its owner is using it: {use.utilization:.0%} busy with other programs."
        return ""

"""The node's last word: whether it takes an attempt. Pure.

The broker plans on adverts that are a heartbeat old, and a gateway without a broker on less. The
node looks at what is true now and says ACCEPT or REFUSE; a refusal is cheap, and the task is
placed again at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from blip.protocol.attempt import Refusal
from blip.protocol.messages import Refuse, Submit
from blip_node.catalogue import Entry
from blip_node.executions import Executions
from blip_node.replica import Replica, State

#: Attempts that may wait at a replica, in multiples of its slots. The broker sends one more than
#: there are slots; a gateway that places by itself may be a few behind.
QUEUE_FACTOR = 2

#: Device memory left alone: contexts, allocator slack, the desktop's own needs.
HEADROOM_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fit:
    """What a model needs on a device, and what is there, in bytes."""

    need: int
    free: int
    #: Idle replicas to stop first, least recently used first; enough of them.
    evict: tuple[Replica, ...]
    fits: bool


def fit(need: int, free: int | None, reserved: int, others: Iterable[Replica]) -> Fit:
    """Decide whether a model fits a device, evicting idle replicas if it must.

    ``free`` is the device's true free memory (None: unknown, and then the load itself decides),
    ``reserved`` what is promised to replicas that are still loading.
    """
    if need == 0 or free is None:
        return Fit(need, free or 0, (), True)
    available = free - reserved - HEADROOM_BYTES
    evict: list[Replica] = []
    for replica in sorted(others, key=lambda each: each.used):
        if available >= need:
            break
        if replica.idle and replica.memory:
            evict.append(replica)
            available += replica.memory
    return Fit(need, available, tuple(evict), available >= need)


def decide(
    submit: Submit,
    *,
    now: float,
    draining: bool,
    executions: Executions,
    entry: Entry | None,
    device_known: bool,
    device_refusal: str,
    replica: Replica | None,
    room: Fit | None,
) -> Refuse | None:
    """Return why an attempt is refused, or None to accept it.

    ``device_refusal`` says why the device takes nothing new, "" if it does. ``room`` is only
    looked at when there is no replica yet.
    """

    def refuse(code: Refusal, text: str, **details: int) -> Refuse:
        return Refuse(submit.task, submit.attempt, code.value, text, details)

    current = executions.current(submit.task)
    if executions.buried(submit.task, submit.attempt):
        return refuse(Refusal.SUPERSEDED, "this attempt was cancelled or has ended")
    if current is not None and current.attempt > submit.attempt:
        return refuse(Refusal.SUPERSEDED, f"attempt {current.attempt} is here already")
    if submit.expires_in <= 0:
        return refuse(Refusal.EXPIRED, "it came after its deadline")
    if draining:
        return refuse(Refusal.DRAINING, "this node is draining")
    if entry is None or submit.kind not in entry.kinds:
        return refuse(Refusal.UNKNOWN_MODEL, f"no model '{submit.model}' for {submit.kind} here")
    if not device_known:
        return refuse(Refusal.NO_MEMORY, f"there is no device '{submit.device}' here")
    if device_refusal:
        return refuse(Refusal.DRAINING, device_refusal)
    if replica is None or replica.state is State.FAILED:
        if entry.error is not None and now < entry.retry_at:
            return refuse(Refusal.LOAD_FAILED, entry.error.message)
        if replica is None and room is not None and not room.fits:
            return refuse(
                Refusal.NO_MEMORY,
                f"'{submit.model}' needs {_mib(room.need)} on '{submit.device}', "
                f"{_mib(max(0, room.free))} can be had",
                need=room.need,
                free=max(0, room.free),
            )
        return None
    if replica.state is State.STOPPING:
        return refuse(Refusal.BUSY, f"'{submit.model}' is being unloaded")
    if len(replica.jobs) + len(replica.waiting) >= replica.slots * (1 + QUEUE_FACTOR):
        return refuse(Refusal.BUSY, f"{len(replica.waiting)} tasks wait for '{submit.model}'")
    return None


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"

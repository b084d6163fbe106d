"""The node's last word: whether it takes an attempt. Pure.

The broker plans on adverts that are a heartbeat old, and a gateway without a broker on less. The
node looks at what is true now and says ACCEPT or REFUSE; a refusal is cheap, and the task is
placed again at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from blip.errors import NoCapacity
from blip.protocol.attempt import Refusal
from blip.protocol.messages import Refuse, Submit
from blip.protocol.reloads import regret, reload_seconds
from blip_node.catalogue import Entry
from blip_node.executions import Executions
from blip_node.replica import Replica, State

#: Attempts that may wait at a replica, in multiples of its slots. The broker sends one more than
#: there are slots; a gateway that places by itself may be a few behind.
QUEUE_FACTOR = 2

#: Device memory left alone: allocator slack, readings that lag, the desktop's own needs.
HEADROOM_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fit:
    """What a model needs on a device, and what is there, in bytes."""

    need: int
    free: int
    #: Replicas to stop first, and those that stop already and must be waited for; enough of them.
    evict: tuple[Replica, ...]
    fits: bool


def _regret(replica: Replica, now: float, bandwidth: float | None) -> float:
    """What evicting a replica is expected to cost; see :func:`blip.protocol.reloads.regret`."""
    if replica.going:
        return 0.0  # it goes anyway
    return regret(reload_seconds(replica.load_bytes, bandwidth), now - replica.used)


def victims(
    short: int, others: Iterable[Replica], now: float, bandwidth: float | None
) -> tuple[tuple[Replica, ...], int]:
    """Choose replicas whose memory covers ``short`` bytes; return them and the bytes they free.

    The least regret goes first, and of these enough. What the last one, being large, makes
    superfluous stays: dearest first, everyone is kept whom the rest can do without.
    """
    ranked = sorted(
        (each for each in others if each.memory and (each.evictable or each.going)),
        key=lambda each: _regret(each, now, bandwidth),
    )
    chosen: list[Replica] = []
    freed = 0
    for replica in ranked:
        if freed >= short:
            break
        chosen.append(replica)
        freed += replica.memory
    for replica in reversed(chosen.copy()):
        if freed - replica.memory >= short:
            chosen.remove(replica)
            freed -= replica.memory
    return tuple(chosen), freed


def fit(
    need: int,
    free: int | None,
    reserved: int,
    others: Iterable[Replica],
    now: float,
    bandwidth: float | None = None,
) -> Fit:
    """Decide whether a model fits a device, evicting idle replicas if it must.

    ``free`` is the device's true free memory (None: unknown, and then the load itself decides),
    ``reserved`` what is promised to replicas that are still loading, ``others`` the replicas
    there, ``bandwidth`` how fast it loads, in bytes a second, if that was measured.
    """
    if need == 0 or free is None:
        return Fit(need, free or 0, (), True)
    available = free - reserved - HEADROOM_BYTES
    if available >= need:
        return Fit(need, available, (), True)
    evict, freed = victims(need - available, others, now, bandwidth)
    available += freed
    return Fit(need, available, evict, available >= need)


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
    total: int = 0,
) -> Refuse | None:
    """Return why an attempt is refused, or None to accept it.

    ``device_refusal`` says why the device takes nothing new, "" if it does. ``room`` is only
    looked at when there is no replica yet, or one whose load failed.
    """

    def refuse(code: Refusal, text: str, **details: Any) -> Refuse:
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
        if replica is not None and now < replica.retry_at and replica.failure is not None:
            # only memory was short, and only here: other devices are not to blame
            return refuse(Refusal.NO_MEMORY, replica.failure.message, **replica.failure.details)
        if room is not None and not room.fits:
            short = no_room(submit.model, submit.device, room, total)
            return refuse(Refusal.NO_MEMORY, short.message, **short.details)
        return None
    if replica.state is State.STOPPING or replica.leaving:
        return refuse(Refusal.BUSY, f"'{submit.model}' is being unloaded")
    if len(replica.jobs) + len(replica.waiting) >= replica.slots * (1 + QUEUE_FACTOR):
        return refuse(Refusal.BUSY, f"{len(replica.waiting)} tasks wait for '{submit.model}'")
    return None


def no_room(model: str, device: str, room: Fit, total: int | None) -> NoCapacity:
    """The error that a model does not fit a device, with the numbers."""
    had = max(0, room.free)
    return NoCapacity(
        f"'{model}' needs {_mib(room.need)} on '{device}', {_mib(had)} can be had"
        + (f" of {_mib(total)}" if total else ""),
        details={"need": room.need, "free": had, "total": total or 0, "device": device},
    )


def ran_out(
    model: str, device: str, need: int, free: int | None, total: int | None, text: str
) -> NoCapacity:
    """The error that memory ran out although the model had seemed to fit, with the numbers."""
    there = f"{_mib(free)} were free" if free is not None else "it does not tell what is free"
    return NoCapacity(
        f"'{model}' ran out of memory on '{device}': it needs more than {_mib(need)}, "
        f"{there}{f' of {_mib(total)}' if total else ''} ({text})",
        details={"need": need, "free": free or 0, "total": total or 0, "device": device},
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"

"""Why an attempt cannot be placed, in words that say what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from blip.broker.demand import Demand
from blip.broker.quotes import Quote, Quotes
from blip.broker.registry import NodeRecord, Status
from blip.broker.sites import Candidate, DeviceRecord, Group, Lane, State
from blip.errors import (
    BlipError,
    DeadlineExceeded,
    DeadlineUnreachable,
    ModelLoadFailed,
    ModelNotFound,
    ModelTooLarge,
    NoCapacity,
    NoNode,
    Overloaded,
    Unavailable,
    Unsatisfiable,
)

#: Bounds of Retry-After, in seconds: sooner is no use, and who is told to come back later than in
#: a minute does not come back.
RETRY_SOONEST, RETRY_LATEST = 1.0, 60.0


def unknown(
    kind: str, model: str, groups: Mapping[Lane, Group], nodes: Iterable[NodeRecord]
) -> BlipError | None:
    """Nobody serves the model for that kind. None if a node that just joined may."""
    nodes = [node for node in nodes if node.connected]
    if not nodes:
        return NoNode("no node is connected to this mesh")
    if any(node.status is Status.JOINED for node in nodes):
        return None
    kinds = sorted({lane[0] for lane in groups if lane[1] == model})
    if kinds:
        return ModelNotFound(
            f"'{model}' does not serve '{kind}'; it serves {', '.join(kinds)}",
            details={"kinds": kinds},
        )
    for each in (each for node in nodes if node.advert for each in node.advert.models):
        if each.name == model and each.error:  # it is known, and why it cannot be had at the moment
            return ModelLoadFailed(f"'{model}' cannot be served: {each.error}")
    near = difflib.get_close_matches(model, sorted({name for of, name in groups if of == kind}))
    guess = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return ModelNotFound(f"no node serves '{model}' for '{kind}'{guess}", details={"near": near})


def unplaceable(group: Group, demand: Demand, quotes: Quotes) -> BlipError | None:
    """The model is known, but no candidate can take it. None if that may pass by itself."""
    members = list(group.members.values())
    if demand.key:
        suitable = [c for c in members if not demand.lacking(c.site.device)]
        if not suitable:
            return _unsatisfiable(group, demand)
        members = suitable
    left = [c for c in members if c.site.device.node.id not in demand.exclude]
    if not left:
        count = len({c.site.device.node.id for c in members})
        nodes = "the only node that serves" if count == 1 else f"all {count} nodes that serve"
        return Unavailable(
            f"{nodes} '{group.model}' refused or failed this task", details={"excluded": count}
        )
    if any(c.site.device.node.status in (Status.JOINED, Status.SUSPECT) for c in left):
        return None
    allowed = [c for c in left if c.allowed]
    if not allowed:
        kinds = sorted({c.site.device.info.kind for c in left})
        return NoCapacity(
            f"the broker's settings keep '{group.kind}' off the devices that have "
            f"'{group.model}' ({', '.join(kinds)})"
        )
    staying = [c for c in allowed if not _draining(c)]
    if not staying:
        return Unavailable(f"every node that serves '{group.model}' is draining")
    healthy = [c for c in staying if c.site.device.info.health > 0]
    if not healthy:
        return Unavailable(f"no device that has '{group.model}' is healthy")
    taking = [c for c in healthy if c.site.device.info.state == "ready"]
    if not taking:
        device = healthy[0].site.device.info
        why = f": {device.reason}" if device.reason else ""
        state = f"{device.id} is {device.state}{why}"
        return Unavailable(f"no device that has '{group.model}' takes tasks now; {state}")
    healthy = taking
    if group.fleet.full and all(c.site.state is State.COLD for c in healthy):
        return Unavailable(
            f"'{group.model}' is loaded {group.fleet.warm} times, which is the most there may be, "
            "and not where this task could run"
        )
    if any(c.site.eligible and quotes.fits(c.site) for c in healthy):
        return None  # as many replicas as there may be are busy, or something is under way
    broken = [c for c in healthy if not c.site.eligible]
    if len(broken) == len(healthy):
        first = min(broken, key=lambda c: c.site.model.retry_in).site
        return ModelLoadFailed(
            f"'{group.model}' cannot be loaded: {first.model.error}",
            retry_after=_retry(first.model.retry_in),
        )
    return _too_large(group, [c for c in healthy if c.site.eligible], quotes)


def late(earliest: float, deadline: float) -> BlipError:
    """The deadline, in seconds from now, will pass before the work can be done."""
    return DeadlineUnreachable(
        f"this would be done in {earliest:.1f} s at the earliest, its deadline is in "
        f"{deadline:.1f} s",
        retry_after=_retry(earliest - deadline),
        details={"earliest_finish": round(earliest, 3), "deadline": round(deadline, 3)},
    )


def hopeless(service: float, left: float) -> BlipError:
    """It waited in vain: even if a device were free now it would be late."""
    return DeadlineExceeded(
        f"no device was free in time: it takes {service:.1f} s and {left:.1f} s are left",
        details={"earliest_finish": round(service, 3), "deadline": round(left, 3)},
    )


def expired(waited: float) -> BlipError:
    """The deadline passed while the attempt waited."""
    return DeadlineExceeded(
        f"the deadline passed after {waited:.1f} s in the queue", details={"waited": waited}
    )


def overloaded(waiting: int, quote: Quote | None, otherwise: float) -> BlipError:
    """The queue is full. Retry-After is when the work ahead, as the ledger has it, is done."""
    retry = _retry(otherwise if quote is None else quote.wait)
    return Overloaded(
        f"every suitable device is busy and {waiting} tasks wait already",
        retry_after=retry,
        details={"waiting": waiting},
    )


def _too_large(group: Group, candidates: list[Candidate], quotes: Quotes) -> BlipError:
    need = max(candidate.site.model.memory for candidate in candidates)
    largest = max((c.site.device for c in candidates), key=lambda d: d.info.memory_total)
    if need > quotes.most(largest):
        return _larger_than_all(group, candidates[0], need, largest)
    best = max((c.site.device for c in candidates), key=quotes.obtainable)
    free = int(quotes.obtainable(best))
    return NoCapacity(
        f"'{group.model}' needs {_size(need)} on a device; the most that one can give is "
        f"{_size(free)} ({best.info.name} of {best.node.name or best.node.id})",
        hint="Free memory on that device, add a larger one, or use a smaller model.",
        details={"need": need, "best_free": free, "node": best.node.id, "device": best.info.id},
    )


def _larger_than_all(
    group: Group, candidate: Candidate, need: int, largest: DeviceRecord
) -> BlipError:
    """Say what the model needs, what there is, and which quantisation would fit."""
    total, parameters = largest.info.memory_total, candidate.site.model.parameters
    details: dict[str, object] = {"need": need, "largest": total}
    hint = (
        "Offer a smaller variant of it, set its 'quantization' or 'offload' to auto where that "
        "is off, or add a larger device."
    )
    if parameters:
        # Beside the weights stays what it needs now: cache, activations, context.
        beside = max(0, need - candidate.site.model.load_bytes)
        sizes = {bits: parameters * bits // 8 + beside for bits in (8, 4)}
        details["quantised"] = {f"{bits}-bit": size for bits, size in sizes.items()}
        fits = [f"{bits} bits ({_size(size)})" for bits, size in sizes.items() if size < total]
        hint = (
            f"Quantised to {fits[0]} it would fit: set its 'quantization' to auto where it is "
            "configured; or add a larger device."
            if fits
            else f"Not even 4 bits a weight ({_size(sizes[4])}) would fit: add a larger device."
        )
    return ModelTooLarge(
        f"'{group.model}' needs {_size(need)} on a device, and the largest has {_size(total)} "
        f"({largest.info.name} of {largest.node.name or largest.node.id})",
        hint=hint,
        details=details,
    )


def _unsatisfiable(group: Group, demand: Demand) -> BlipError:
    """Nobody is what is required: name whoever lacks the least."""
    lacking = [(demand.lacking(c.site.device), c.site.device) for c in group.members.values()]
    missing, nearest = min(lacking, key=lambda item: len(item[0]))
    where = f"{nearest.info.id} of node {nearest.node.name or nearest.node.id}"
    return Unsatisfiable(
        f"no device that has '{group.model}' is what this task requires; nearest is {where}: "
        + " and ".join(missing),
        param="require",
        details={
            "nearest": {"node": nearest.node.id, "device": nearest.info.id},
            "lacking": missing,
        },
    )


def _draining(candidate: Candidate) -> bool:
    advert = candidate.site.device.node.advert
    return advert is not None and advert.draining


def _retry(seconds: float) -> float:
    return round(min(max(seconds, RETRY_SOONEST), RETRY_LATEST), 1)


def _size(size: int) -> str:
    gib = size / 1024**3
    return f"{gib:.1f} GiB" if gib >= 1 else f"{size / 1024**2:.0f} MiB"

"""One request's texts cut into several tasks, so that several devices share them.

The broker spreads the tasks as it spreads those of different clients, a slow device getting fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

from blip.errors import BlipError
from blip.gateway.exchange import Exchange, Result
from blip.kinds import Kind, TaskInput
from blip.protocol.messages import NodeEntry

#: The least work of a task, in texts and tokens. A task costs the mesh a millisecond or two, and a
#: device some 20 ms (a fast GPU) to a second (a CPU) for so many tokens.
LEAST = 1024.0

#: Tasks for each device: with one each all would wait for the slowest.
TURNS = 4

#: Most tasks of a request, so that one with thousands of texts does not fill the queue of a large
#: mesh.
MOST = 64


def places(nodes: Iterable[NodeEntry], kind: str, model: str) -> int:
    """Return how many devices could serve a model for a kind at the same time."""
    found, most = 0, 0
    for node in nodes:
        if node.status != "ready" or node.advert.draining:
            continue
        for served in node.advert.models:
            if served.name == model and kind in served.kinds and not served.error:
                found += sum(device.state == "ready" for device in node.advert.devices)
                most = max(most, served.max_replicas)
    return min(found, most) if most else found


def cut(costs: Sequence[float], tasks: int) -> list[range]:
    """Cut a list into at most so many parts of about equal cost, in order, none of them empty."""
    share = sum(costs) / tasks
    parts: list[range] = []
    begin, edge = 0, share
    for at, reached in enumerate(accumulate(costs), 1):
        if reached >= edge or at == len(costs):
            parts.append(range(begin, at))
            begin = at
            # past all the shares that one large item was worth; sums of floats may fall just short
            edge = share * (int(reached / share + 1e-9) + 1)
    return parts


def start(
    exchange: Exchange,
    kind: Kind,
    model: str,
    costs: Sequence[float],
    make: Callable[[range], TaskInput],
) -> list[range]:
    """Start the tasks of a list, and return which part of it each one has.

    ``costs`` are the items' in texts and tokens; ``make`` makes a task's input of a part. Raises
    what :meth:`~blip.gateway.mesh.Mesh.call` raises.
    """
    tasks = 1
    affordable = int(sum(costs) / LEAST)
    if affordable > 1 and len(costs) > 1:
        devices = places(exchange.gateway.mesh.nodes(), kind.name, model)
        if devices > 1:  # one device computes the batches of one task as fast as of several
            tasks = min(affordable, devices * TURNS, MOST)
    parts = cut(costs, tasks)
    exchange.start(kind, model, map(make, parts))
    return parts


async def results(exchange: Exchange, fields: Mapping[str, str]) -> list[Result]:
    """Wait for the tasks; raises the error of the first that fails.

    ``fields`` says what the input's fields are called in the request, so that an error names one
    that its reader knows: ``texts.7`` is ``inputs.7`` there.
    """
    try:
        return await exchange.results()
    except BlipError as error:
        name, dot, rest = (error.param or "").partition(".")
        if name in fields:
            error.param = fields[name] + dot + rest
        raise

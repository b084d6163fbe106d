"""``POST /v1/mesh/load`` and its kin: what an operator tells nodes to do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from blip.errors import (
    BlipError,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    ModelTooLarge,
    NoCapacity,
    NodeLost,
    NoNode,
    NotFound,
    Unavailable,
)
from blip.gateway.api import Operation
from blip.gateway.envelope import error_json
from blip.gateway.events import DONE, EventStream
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Request
from blip.gateway.operations import (
    FINAL,
    Step,
    Target,
    error_of,
    follow,
    load_targets,
    standing_targets,
    unload_targets,
)
from blip.protocol.messages import Order, Ordered
from blip.protocol.names import unique_names

Name = Annotated[str, Field(min_length=1, max_length=256)]


class _Ordering(Request):
    """What all of them take."""

    stream: bool | None = None
    """Tell how it goes, as server-sent events."""


class LoadRequest(_Ordering):
    """A model to load."""

    model: Name
    """A name from GET /v1/models."""
    node: Name | None = None
    """The node's name or id; without it the fastest device that has room takes it."""
    device: Name | None = None
    """The device's id, or its start; without it the node chooses."""
    pin: bool | None = None
    """Never unload it to make room for others."""
    keep_alive: float | None = None
    """Seconds without work after which it is unloaded, in place of the configured ones; below 0:
    when its room is needed."""


class UnloadRequest(_Ordering):
    """A model to unload."""

    model: Name
    node: Name | None = None
    """The node's name or id; without it every node that has it."""
    device: Name | None = None
    force: bool | None = None
    """Do not wait for what it runs: that is placed again elsewhere."""


class StandingRequest(_Ordering):
    """A node, or one of its devices."""

    node: Name
    """The node's name or id."""
    device: Name | None = None
    """The device's id, or its start; without it all of the node's."""


class ReasonedRequest(StandingRequest):
    """A node, or one of its devices, and why it is taken out of service."""

    reason: Annotated[str, Field(max_length=1000)] | None = None
    """Why, for those who look at the mesh."""


class OrderView(BaseModel):
    """What a node says about its order."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    node: str
    """The node's id."""
    name: str
    device: str
    """Empty: the whole node, or the node's own choice."""
    state: str
    """running, done or failed."""
    code: str
    """An error code, if it failed."""
    text: str
    details: dict[str, Any]


class OrdersView(BaseModel):
    """How the order ended, node by node; none if there was nothing to do."""

    orders: list[OrderView]


class _Journal:
    """Writes down what the nodes say, and how it ended."""

    def __init__(self, exchange: Exchange, targets: Sequence[Target]) -> None:
        names = unique_names(exchange.gateway.mesh.nodes())
        self._targets = targets
        self._names = [names.get(each.entry.id, each.entry.name) for each in targets]
        self._last: dict[int, OrderView] = {}
        self._failed: list[tuple[int, Ordered]] = []

    def take(self, step: Step) -> OrderView:
        """Take a step; return it as clients see it."""
        index, ordered = step
        target = self._targets[index]
        device = ordered.details.get("device")
        view = OrderView(
            node=target.entry.id,
            name=self._names[index],
            device=device if isinstance(device, str) else target.device,
            state=ordered.state,
            code=ordered.code,
            text=ordered.text,
            details=ordered.details,
        )
        self._last[index] = view
        if ordered.state == "failed":
            self._failed.append((index, ordered))
        return view

    @property
    def error(self) -> BlipError | None:
        """The first failure, with how the others ended."""
        if not self._failed:
            return None
        index, ordered = self._failed[0]
        others = {
            self._names[other]: view.text or view.state
            for other, view in self._last.items()
            if other != index and view.state in FINAL
        }
        details: dict[str, Any] = {"node": self._targets[index].entry.id}
        if others:
            details["others"] = others
        error = error_of(ordered, details)
        if self._names[index] not in error.message:
            error.message = f"{error.message} (node {self._names[index]})"
        return error

    @property
    def view(self) -> OrdersView:
        """How everything ended."""
        return OrdersView(orders=[self._last[index] for index in sorted(self._last)])


async def _carry_out(
    exchange: Exchange, targets: Sequence[Target], order: Order, *, stream: bool
) -> web.StreamResponse:
    """Send the order and answer with what comes of it."""
    journal = _Journal(exchange, targets)
    async with aclosing(follow(exchange.gateway.mesh, targets, order)) as steps:
        if stream:
            return await _stream(exchange, steps, journal)
        async for step in steps:
            journal.take(step)
    if journal.error is not None:
        raise journal.error
    return web.Response(text=journal.view.model_dump_json(), content_type="application/json")


async def _stream(
    exchange: Exchange, steps: AsyncGenerator[Step, None], journal: _Journal
) -> web.StreamResponse:
    """Answer with events. What fails before anything else is said is a plain HTTP error."""
    first = await anext(steps, None)
    event = "" if first is None else _event(journal.take(first))
    if journal.error is not None:
        async for step in steps:
            journal.take(step)
        raise journal.error
    stream = EventStream(exchange.gateway.settings.heartbeat)
    exchange.stamp(stream.response)
    await stream.open(exchange.request)
    try:
        if event:
            await stream.send(event)
        async for step in steps:
            await stream.send(_event(journal.take(step)))
        if journal.error is not None:
            raise journal.error
        await stream.end(DONE)
    except Exception as error:
        if exchange.client_gone():
            raise
        failure = exchange.failure(error)
        await stream.end(f"data: {error_json(failure, exchange.request_id)}\n\n")
    finally:
        stream.stop()
    return stream.response


def _event(view: OrderView) -> str:
    return f"data: {view.model_dump_json()}\n\n"


async def load(exchange: Exchange, body: LoadRequest) -> web.StreamResponse:
    """Load a model, and answer when it is ready.

    Without a node, the fastest device takes it that has the model's files, has not loaded it and
    has room; idle replicas that are not pinned may make room.
    """
    targets = load_targets(exchange.gateway.mesh.nodes(), body.model, body.node, body.device)
    options: dict[str, Any] = {}
    if body.pin is not None:
        options["pin"] = body.pin
    if body.keep_alive is not None:
        options["keep_alive"] = body.keep_alive if body.keep_alive >= 0 else None
    order = Order(0, "load", model=body.model, options=options)
    return await _carry_out(exchange, targets, order, stream=bool(body.stream))


async def unload(exchange: Exchange, body: UnloadRequest) -> web.StreamResponse:
    """Unload a model from a device, a node, or every node that has it loaded.

    What it runs is finished first, unless force is set. A model that is loaded nowhere is no
    error: there is nothing to do.
    """
    targets = unload_targets(exchange.gateway.mesh.nodes(), body.model, body.node, body.device)
    options = {} if body.force is None else {"force": body.force}
    order = Order(0, "unload", model=body.model, options=options)
    return await _carry_out(exchange, targets, order, stream=bool(body.stream))


async def cordon(exchange: Exchange, body: ReasonedRequest) -> web.StreamResponse:
    """Take a node or a device out of service: it takes no new tasks; what it has, it finishes."""
    return await _stand(exchange, body, "cordon", body.reason)


async def uncordon(exchange: Exchange, body: StandingRequest) -> web.StreamResponse:
    """Put a node or a device back into service, after a cordon or a drain."""
    return await _stand(exchange, body, "uncordon")


async def drain(exchange: Exchange, body: ReasonedRequest) -> web.StreamResponse:
    """Take a node or a device out of service, and answer when nothing runs on it any more.

    Going away does not call it off: uncordon does.
    """
    return await _stand(exchange, body, "drain", body.reason)


async def _stand(
    exchange: Exchange, body: StandingRequest, verb: str, reason: str | None = None
) -> web.StreamResponse:
    targets = standing_targets(exchange.gateway.mesh.nodes(), body.node, body.device)
    order = Order(0, verb, options={"reason": reason} if reason else {})
    return await _carry_out(exchange, targets, order, stream=bool(body.stream))


_FAILURES: tuple[type[BlipError], ...] = (InvalidRequest, NotFound, NodeLost, Unavailable)
_LOAD_FAILURES = (ModelNotFound, ModelLoadFailed, NoCapacity, ModelTooLarge, NoNode)


def _operation(
    handler: Any,
    summary: str,
    body: type[Request],
    example: dict[str, Any],
    errors: tuple[type[BlipError], ...] = (),
) -> Operation:
    return Operation(
        "POST",
        f"/v1/mesh/{handler.__name__}",
        handler,
        summary,
        "mesh",
        body=body,
        answer=OrdersView,
        event=OrderView,
        errors=(*_FAILURES, *errors),
        example=example,
    )


OPERATIONS = (
    _operation(load, "Load a model", LoadRequest, {"model": "smollm2"}, _LOAD_FAILURES),
    _operation(unload, "Unload a model", UnloadRequest, {"model": "smollm2"}, (ModelNotFound,)),
    _operation(cordon, "Take out of service", ReasonedRequest, {"node": "rig-1"}),
    _operation(uncordon, "Put back into service", StandingRequest, {"node": "rig-1"}),
    _operation(drain, "Drain", ReasonedRequest, {"node": "rig-1"}),
)

"""A dispatcher on real sockets; the test plays its broker and its node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from blip.errors import DeadlineExceeded, DeadlineUnreachable, Unsatisfiable
from blip.gateway.dispatch import Dispatcher
from blip.gateway.mesh import Options
from blip.kinds import KINDS
from blip.kinds.echo import EchoInput
from blip.protocol import constraints
from blip.protocol.link import LinkEvent, Liveness
from blip.protocol.messages import (
    Advert,
    Deny,
    Device,
    Grant,
    Message,
    Model,
    NodeEntry,
    Nodes,
    Order,
    Ordered,
    Place,
    Refuse,
    Release,
    Story,
    Submit,
    Welcome,
    Why,
)
from blip.transport.links import Listener, Peer
from tests.mesh.wires import Context, terminating, until

#: Long enough that a busy machine is not taken for a dead one.
PATIENT = Liveness()


class Played:
    """A listener that notes what it is told and answers as the test says."""

    def __init__(
        self, context: Context, *, data: bool, answer: Callable[[Message], list[Any]]
    ) -> None:
        self.heard: list[Any] = []
        self.answer = answer
        self.peer: Peer | None = None
        limits = PATIENT
        welcome = Welcome(1, "played", 7, limits.heartbeat, limits.suspect_after, limits.lost_after)
        self.listener = Listener(
            context, ["tcp://127.0.0.1:*"], lambda: welcome, self._on, data=data
        )

    def _on(self, peer: Peer, event: LinkEvent | Message) -> None:
        self.peer = peer
        self.heard.append(event)
        for message in self.answer(event):  # type: ignore[arg-type]
            peer.send(message)

    def of(self, kind: type) -> list[Any]:
        return [each for each in self.heard if type(each) is kind]


class Mesh:
    """A dispatcher between a played broker and a played node."""

    def __init__(self, context: Context) -> None:
        self.node = Played(context, data=True, answer=self._node)
        self.broker = Played(context, data=False, answer=self._broker)
        self.dispatcher = Dispatcher(
            context=context, gateway_id="gateway", incarnation=1, request_timeout=30.0
        )
        self.dispatcher.use_broker(self.broker.listener.endpoints[0])
        #: What the node says to an order, and whom the broker denies.
        self.words: Callable[[Order], list[Ordered]] = lambda order: []
        self.decide: Callable[[Place], list[Any]] = lambda place: []
        self.submitted: Callable[[Submit], list[Any]] = lambda submit: []
        self.tell: Callable[[Why], list[Story]] = lambda why: []

    def _node(self, event: Message) -> list[Any]:
        if isinstance(event, Order):
            return self.words(event)
        return self.submitted(event) if isinstance(event, Submit) else []

    def _broker(self, event: Message) -> list[Any]:
        if isinstance(event, Place):
            return self.decide(event)
        return self.tell(event) if isinstance(event, Why) else []

    @property
    def entry(self) -> NodeEntry:
        device = Device("gpu0", "nvidia", "RTX", 2**34, 2**34)
        advert = Advert(1, False, [device], [Model("echo", ["echo"])], [], [])
        endpoints = self.node.listener.endpoints
        return NodeEntry("n1", 7, "rig", "elsewhere", endpoints, "ready", advert)

    def announce(self) -> None:
        assert self.broker.peer is not None
        self.broker.peer.send(Nodes(True, [self.entry], []))

    async def order(self, verb: str, **fields: Any) -> list[Ordered]:
        (entry,) = self.dispatcher.nodes()
        async with aclosing(self.dispatcher.order(entry, Order(0, verb, **fields))) as said:
            return [each async for each in said]

    def call(self, **options: Any) -> Any:
        return self.dispatcher.call(KINDS["echo"], "echo", EchoInput(), Options(**options))


@asynccontextmanager
async def played() -> AsyncIterator[Mesh]:
    with terminating() as context:
        mesh = Mesh(context)
        try:
            await until(lambda: mesh.broker.heard)
            mesh.announce()
            await until(mesh.dispatcher.nodes)
            yield mesh
        finally:
            mesh.dispatcher.close()
            mesh.broker.listener.close()
            mesh.node.listener.close()


# --- orders ----------------------------------------------------------------------------------


async def test_an_order_and_its_answers() -> None:
    async with played() as mesh:
        mesh.words = lambda order: [
            Ordered(order.number + 1000, "done", text="somebody else's"),
            Ordered(order.number, "running", details={"progress": 0.5}),
            Ordered(order.number, "done", text="loaded"),
            Ordered(order.number, "running", text="too late"),
        ]
        # the first may wait for the link to be made, the second finds it
        for _ in range(2):
            said = await mesh.order("load", model="m", device="gpu0", options={"pin": True})
            assert [(each.state, each.text) for each in said] == [
                ("running", ""),
                ("done", "loaded"),
            ]
        first, second = mesh.node.of(Order)
        assert first.number != second.number
        assert first._replace(number=0) == Order(0, "load", "gpu0", "m", {"pin": True})
        assert not mesh.dispatcher._links["n1"].orders


async def test_a_node_that_goes_fails_its_orders() -> None:
    async with played() as mesh:
        mesh.words = lambda order: [Ordered(order.number, "running")]
        ordering = asyncio.create_task(mesh.order("drain"))
        await until(lambda: mesh.node.of(Order))
        mesh.node.listener.close()
        last = (await ordering)[-1]
        assert (last.state, last.code) == ("failed", "node_lost")
        assert not mesh.dispatcher._links.get("n1") or not mesh.dispatcher._links["n1"].orders


async def test_a_node_that_restarted_meanwhile() -> None:
    async with played() as mesh:
        entry = mesh.entry._replace(incarnation=6)
        async with aclosing(mesh.dispatcher.order(entry, Order(0, "drain"))) as said:
            (last,) = [each async for each in said]
        assert last.code == "node_lost"


async def test_a_silent_node_and_a_link_that_is_never_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("blip.gateway.operations.SILENCE", 0.3)
    async with played() as mesh:
        (last,) = await mesh.order("drain")
        assert (last.state, last.code) == ("failed", "unavailable")
        # what was given up before the link stood must not be carried out once it does
        gone = mesh.entry._replace(id="n2", endpoints=["tcp://127.0.0.1:1"])
        assert mesh.broker.peer is not None
        mesh.broker.peer.send(Nodes(False, [gone], []))
        await until(lambda: len(mesh.dispatcher.nodes()) == 2)
        async with aclosing(mesh.dispatcher.order(gone, Order(0, "drain"))) as said:
            (last,) = [each async for each in said]
        assert last.code == "unavailable"
        assert not mesh.dispatcher._links["n2"].waiting


async def test_a_gateway_that_drains_lets_go_of_its_orders() -> None:
    async with played() as mesh:
        ordering = asyncio.create_task(mesh.order("drain"))
        await until(lambda: mesh.node.of(Order))
        await mesh.dispatcher.drain(1.0)
        assert "the node goes on with it" in (await ordering)[-1].text
        assert "shutting down" in (await mesh.order("cordon"))[-1].text


# --- stories ---------------------------------------------------------------------------------


async def test_the_broker_tells_the_story() -> None:
    async with played() as mesh:
        decision = {"ago": 1.5, "attempt": 1, "outcome": "grant", "code": "", "considered": []}
        mesh.tell = lambda why: [Story(why.task, why.attempt, [decision])]
        story = await mesh.dispatcher.why(b"t" * 16)
        assert story.decisions == [{"by": "broker", **decision}]
        assert story.note == ""
        assert mesh.broker.of(Why) == [Why(b"t" * 16, 0)]


async def test_a_broker_that_goes_leaves_our_part() -> None:
    async with played() as mesh:
        asking = asyncio.create_task(mesh.dispatcher.why(b"t" * 16))
        await until(lambda: mesh.broker.of(Why))
        mesh.broker.listener.close()
        assert (await asking).note == "the link to the broker broke"
        await until(lambda: not mesh.dispatcher._broker_usable)
        mesh.submitted = lambda submit: [Refuse(submit.task, submit.attempt, "busy", "full")]
        call = mesh.call()
        with pytest.raises(Exception, match="full"):
            await call.answer()
        story = await mesh.dispatcher.why(call.id)
        assert story.note == "no broker can be reached"
        first, *_, last = story.decisions
        assert (first["outcome"], first["attempt"]) == ("grant", 1)
        assert first["considered"] == [{"node": "n1", "name": "rig", "device": "gpu0"}]
        assert (last["outcome"], last["code"]) == ("deny", "no_node")
        # and nobody is what this one asks for
        with pytest.raises(Unsatisfiable, match="nearest is gpu0 of rig, but its vendor is nvidia"):
            await mesh.call(require=constraints.parse("vendor=amd")).answer()


# --- options ---------------------------------------------------------------------------------


async def test_what_is_said_about_a_task_reaches_the_broker() -> None:
    async with played() as mesh:
        require = constraints.parse("memory>=1GiB")
        plain = mesh.call()
        said = mesh.call(priority=2, deadline=20.0, tenant="me", require=require)
        await until(lambda: len(mesh.broker.of(Place)) == 2)
        first, second = mesh.broker.of(Place)
        assert (first.priority, first.deadline, first.tenant, first.require) == (5, 0.0, "", {})
        assert (second.priority, second.tenant, second.require) == (2, "me", require)
        assert 15 < second.deadline <= 20
        views = {view.id: view for view in mesh.dispatcher.tasks()}
        assert views[said.task_id].priority == 2
        for call in (plain, said):
            call.cancel()


async def test_a_later_attempt_has_less_time() -> None:
    async with played() as mesh:
        mesh.decide = lambda place: [Grant(place.task, place.attempt, "n1", 7, "gpu0")]
        mesh.submitted = lambda submit: []
        call = mesh.call(deadline=20.0)
        await until(lambda: mesh.node.of(Submit))
        assert mesh.dispatcher.tasks()[0].device == "gpu0"
        (submit,) = mesh.node.of(Submit)
        assert submit.expires_in <= 20
        await asyncio.sleep(0.5)
        mesh.decide = lambda place: []
        assert mesh.node.peer is not None
        mesh.node.peer.send(Refuse(submit.task, submit.attempt, "busy", "full"))
        await until(lambda: len(mesh.broker.of(Place)) == 2)
        assert mesh.broker.of(Release)[0].outcome == "refused"
        first, second = mesh.broker.of(Place)
        assert second.attempt == 2
        assert second.deadline <= first.deadline - 0.5
        call.cancel()


async def test_a_deadline_ends_a_task_that_waits() -> None:
    async with played() as mesh:
        call = mesh.call(deadline=0.3)
        with pytest.raises(DeadlineExceeded):
            await call.answer()
        # the request timeout is another thing: the broker is not told of it
        with pytest.raises(DeadlineExceeded):
            await mesh.call(timeout=0.3).answer()
        assert [place.deadline > 0 for place in mesh.broker.of(Place)] == [True, False]


async def test_a_denial_comes_with_its_details() -> None:
    async with played() as mesh:
        details = {"earliest_finish": 9.5, "retry_after": 4.0}
        mesh.decide = lambda place: [
            Deny(place.task, place.attempt, "deadline_unreachable", "too late", details)
        ]
        with pytest.raises(DeadlineUnreachable, match="too late") as late:
            await mesh.call(deadline=1.0).answer()
        assert late.value.details == {"earliest_finish": 9.5}
        assert late.value.retry_after == 4.0

"""The dispatcher owns every task of a gateway: it asks the broker, talks to nodes, retries.

The decisions are :class:`blip.protocol.attempt.Task`'s; here are the sockets, the node table and
the one wheel of deadlines. Without a broker it places tasks by itself, on what it knows.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import zmq

from blip.errors import BlipError, NodeLost, NoNode, Unavailable
from blip.gateway.call import LiveCall, NodeLink
from blip.gateway.mesh import Health, Options, ServedModel, TaskStory, TaskView
from blip.gateway.operations import LiveOrder
from blip.gateway.stories import Stories
from blip.gateway.table import NodeTable
from blip.kinds import Kind, TaskInput, input_to_wire
from blip.protocol import versions
from blip.protocol.attempt import (
    TERMINAL,
    Command,
    Deliver,
    Finish,
    State,
    Task,
    ToNode,
)
from blip.protocol.credit import STREAM_WINDOW
from blip.protocol.deadlines import Deadlines
from blip.protocol.link import Closed, LinkEvent, Lost, Ready, Suspect
from blip.protocol.messages import (
    Accept,
    Cancel,
    Cancelled,
    Data,
    Deny,
    Done,
    Fail,
    Grant,
    Hello,
    Lease,
    Message,
    Move,
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
)
from blip.protocol.placement import choose, unsatisfiable
from blip.transport.host import host_id, reachable
from blip.transport.links import Dialer

log = logging.getLogger(__name__)

#: A node answers a SUBMIT with ACCEPT or REFUSE within microseconds; two seconds of silence on a
#: machine that still answers pings mean that the message or the answer is gone.
ACCEPT_TIMEOUT = 2.0

#: Up to this many seconds a task's timeout is kept by the wheel, to a quarter of a second; longer
#: ones are found by the tick, to half a second. At 10,000 requests a second the usual ten minutes
#: would otherwise keep six million reminders of tasks that ended long ago.
PRECISE_TIMEOUT = 10.0

#: How long a cancelled attempt may take to stop before its lease is released regardless; a node
#: reports a worker that cannot be stopped by itself.
CANCEL_TIMEOUT = 10.0

#: Least seconds that a deadline is said to be away: 0 would mean that there is none.
MIN_DEADLINE = 0.001

#: A RELEASE may be this late. Requests that follow each other then cost one message to the broker,
#: not two; to a queue that waits for the slot it is nothing beside the task itself.
RELEASE_WITHIN = 0.002

#: A broker that ended the link (another protocol version, say) is asked again after this long.
REDIAL_AFTER = 2.0

#: Dial every node as it appears up to this many, so that the first request finds a link; beyond
#: it links are made when they are first needed, to keep a gateway's sockets bounded by its work.
EAGER_LINKS = 64

#: Nodes greet a broker that restarted within a heartbeat; one that has not by then is gone.
CONFIRM_WITHIN = 10.0

#: Ended tasks that `blip ps` can still show.
HISTORY = 512

_FROM_NODE = (Refuse, Fail, Cancelled)

#: Half a heartbeat: links judge silence in whole heartbeats.
TICK = 0.5


class Dispatcher:
    """Implements :class:`blip.gateway.mesh.Mesh` over the links of one gateway process."""

    def __init__(
        self,
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        gateway_id: str,
        incarnation: int,
        request_timeout: float,
        store_health: Callable[[], Awaitable[Health]] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        # the loop's own clock has a grain of a millisecond under uvloop; same origin, finer
        self.now = time.monotonic
        self._context = context
        self._id = gateway_id
        self._incarnation = incarnation
        self._timeout = request_timeout
        self._store_health = store_health
        self._rng = rng or random.Random()
        # Ids are a random prefix and a counter: uuid4 costs 2 us, this costs 0.2.
        self._prefix = os.urandom(10)
        self._counter = 0
        self._broker: Dialer | None = None
        self._broker_endpoint = ""
        self._table = NodeTable()
        self._links: dict[str, NodeLink] = {}
        self._calls: dict[bytes, LiveCall] = {}
        self._history: collections.deque[TaskView] = collections.deque(maxlen=HISTORY)
        self._stories = Stories(self.now)
        self._orders = 0
        self._deadlines: Deadlines[tuple[bytes, int, str]] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._releases: list[Release] = []
        self._draining = False
        self._closed = False
        self._idle: asyncio.Future[None] | None = None
        self._beat = self.loop.call_later(TICK, self._tick)

    # --- the Mesh interface -----------------------------------------------------------------

    def call(self, kind: Kind, model: str, value: TaskInput, options: Options) -> LiveCall:
        """Start a task; see :meth:`blip.gateway.mesh.Mesh.call`."""
        if self._draining:
            raise Unavailable("this gateway is shutting down", retry_after=1.0)
        if not self._table.serves(kind.name, model):
            raise self._table.unknown(kind.name, model)
        self._counter += 1
        id = self._prefix + self._counter.to_bytes(6, "big")
        timeout = self._timeout if options.timeout is None else options.timeout
        if options.deadline is not None:
            timeout = min(timeout, options.deadline)
        now = self.now()
        call = LiveCall(self, id, kind, value, now + timeout)
        call.due = None if options.deadline is None else now + options.deadline
        place = Place(
            id,
            1,
            kind.name,
            model,
            kind.units(value),
            options.priority,
            options.deadline or 0.0,
            options.tenant,
            require=dict(options.require),
        )
        call.task = Task(
            place,
            input_to_wire(value),
            window=STREAM_WINDOW,
            resume=call.resume if kind.resumable else None,
        )
        self._calls[id] = call
        if timeout <= PRECISE_TIMEOUT:
            self._remind(id, 0, "expire", timeout)
        self.execute(call, call.task.start())
        return call

    def models(self) -> list[ServedModel]:
        """Every model the mesh serves, by name."""
        return self._table.served

    def nodes(self) -> list[NodeEntry]:
        """Every node this gateway knows, by name."""
        return sorted(self._table.nodes.values(), key=lambda entry: entry.name)

    def tasks(self) -> list[TaskView]:
        """Tasks in flight, oldest first; then those that ended lately, newest first."""
        return [*map(self._view, self._calls.values()), *reversed(self._history)]

    async def order(self, node: NodeEntry, order: Order) -> AsyncGenerator[Ordered, None]:
        """Give a node an order; see :meth:`blip.gateway.mesh.Mesh.order`."""
        self._orders += 1
        live = LiveOrder(order._replace(number=self._orders))
        link = self._link(node.id, node.incarnation)
        if link is None or self._draining:
            gone = Unavailable("this gateway is shutting down") if self._draining else None
            live.fail(gone or NodeLost("the node is not known here any more"))
        else:
            link.orders[self._orders] = live
            if link.dialer is not None and link.dialer.ready:
                link.dialer.send(live.order)
            else:
                link.waiting.append(live.order)
        try:
            async for ordered in live.updates():
                yield ordered
        finally:
            if link is not None:
                link.orders.pop(live.order.number, None)
                if live.order in link.waiting:
                    link.waiting.remove(live.order)

    async def why(self, task: bytes) -> TaskStory:
        """Tell what was decided about a task; see :meth:`blip.gateway.mesh.Mesh.why`."""
        broker = self._broker
        return await self._stories.tell(
            task, broker.send if broker is not None and broker.usable else None
        )

    async def health(self) -> list[Health]:
        """Look at everything this gateway depends on."""
        ready = [entry for entry in self._table.nodes.values() if entry.status == "ready"]
        broker = self._broker_usable
        return [
            Health(
                "broker",
                broker,
                self._broker_endpoint
                if broker
                else f"{self._broker_endpoint or 'none found'}: placing by ourselves",
                required=False,
            ),
            Health("nodes", bool(ready), f"{len(ready)} of {len(self._table.nodes)} ready", True),
            Health("accepting", not self._draining, "draining" if self._draining else "", True),
            *([await self._store_health()] if self._store_health is not None else []),
        ]

    # --- life -------------------------------------------------------------------------------

    def use_broker(self, endpoint: str) -> None:
        """Dial this broker, leaving any other."""
        if endpoint == self._broker_endpoint:
            return
        if self._broker is not None:
            self._broker.close()
            self._stories.abandon()
        self._broker_endpoint = endpoint
        self._broker = Dialer(self._context, endpoint, self._hello, self._on_broker)

    def _redial(self, closed: Dialer | None) -> None:
        if closed is not None and closed is self._broker and not self._closed:
            endpoint, self._broker_endpoint = self._broker_endpoint, ""
            self.use_broker(endpoint)

    async def drain(self, timeout: float) -> None:
        """Take nothing new, and wait until what runs has ended, at most ``timeout`` seconds."""
        self._draining = True
        for link in self._links.values():
            for order in link.orders.values():
                order.fail(Unavailable("this gateway is shutting down; the node goes on with it"))
        if self._calls:
            self._idle = self.loop.create_future()
            await asyncio.wait({self._idle}, timeout=timeout)

    def close(self) -> None:
        """Cancel what is left and close every link."""
        self._draining = True
        for call in list(self._calls.values()):
            self.cancel(call)
        self._closed = True
        self._beat.cancel()
        for timer in (self._timer, self._sweeping):
            if timer is not None:
                timer.cancel()
        for link in self._links.values():
            if link.dialer is not None:
                link.dialer.close()
        self._links.clear()
        if self._broker is not None:
            self._broker.close()

    def cancel(self, call: LiveCall) -> None:
        """Cancel a call; see :meth:`LiveCall.cancel`."""
        self._remind(call.id, call.task.place.attempt, "stop", CANCEL_TIMEOUT)
        self.execute(call, call.task.cancel())

    # --- commands ---------------------------------------------------------------------------

    def execute(self, call: LiveCall, commands: Sequence[Command]) -> None:
        """Carry out what the task decided."""
        for command in commands:
            kind = type(command)
            if kind is Deliver:
                call.deliver(command.payload)  # type: ignore[union-attr]
            elif kind is Finish:
                call.finish(command.outcome)  # type: ignore[union-attr]
            elif kind is ToNode:
                self._to_node(call, command)  # type: ignore[arg-type]
            else:
                self._to_broker(call, command.message)  # type: ignore[union-attr]
        if call.task.state in TERMINAL:
            self._end(call)

    def _to_broker(self, call: LiveCall, message: Message) -> None:
        if type(message) is Release:
            self._leave(call)
            self._release(message)
        elif self._broker_usable:
            self._send_releases()
            assert self._broker is not None
            if type(message) is Place and call.due is not None:
                # an attempt's deadline counts from now, and the first may be long ago
                left = max(MIN_DEADLINE, call.due - self.now())
                message = message._replace(deadline=left)
            self._broker.send(message)
        elif type(message) is Place:
            # not from within the task's own decision: its answer is a new event
            self.loop.call_soon(self._place, call, message)

    def _release(self, release: Release) -> None:
        """Tell the broker soon: with the next thing it is told anyway, or after a moment."""
        if not self._releases:
            self.loop.call_later(RELEASE_WITHIN, self._send_releases)
        self._releases.append(release)

    def _send_releases(self) -> None:
        releases, self._releases = self._releases, []
        if self._broker_usable:
            assert self._broker is not None
            for release in releases:
                self._broker.send(release)

    def _to_node(self, call: LiveCall, command: ToNode) -> None:
        message = command.message
        link = self._link(command.node, command.incarnation)
        if link is None:
            attempt = call.task.place.attempt
            self.loop.call_soon(self._lost, call, attempt, "the node is not known here")
            return
        if type(message) is Submit:
            self._leave(call)
            call.link = link
            link.calls[call.id] = call
            call.node = self._table.names.get(link.entry.id, link.entry.name)
            self._remind(call.id, message.attempt, "accept", ACCEPT_TIMEOUT)
        if link.dialer is not None and link.dialer.ready:
            link.dialer.send(message)
        elif type(message) is Submit:
            link.waiting.append(message)
        elif type(message) is Cancel:
            self.loop.call_soon(self._lost, call, message.attempt, "the node cannot be reached")

    def _place(self, call: LiveCall, place: Place) -> None:
        """Place a task without the broker; a degraded mode, see docs/scheduling.md."""
        task = call.task
        if task.state is not State.PLACING or task.place.attempt != place.attempt:
            return
        entries = list(self._table.nodes.values())
        found = choose(
            entries,
            place.kind,
            place.model,
            self._in_flight,
            place.exclude,
            self._rng.random,
            place.require,
        )
        if found is None:
            error: BlipError | None = None
            if place.require:
                error = unsatisfiable(entries, place.kind, place.model, place.require)
            text = "no broker is connected and no node that could run this is known"
            code, text, details = (error or NoNode(text)).to_wire()
            self._stories.refused(place, code, text)
            deny = Deny(place.task, place.attempt, code, text, details)
            self.execute(call, task.denied(deny))
            return
        node, incarnation, device = found
        self._stories.placed(place, node, self._table.names.get(node, node), device)
        self._granted(call, Grant(place.task, place.attempt, node, incarnation, device))

    def _in_flight(self, node: str, device: str) -> int:
        link = self._links.get(node)
        return len(link.calls) if link else 0

    def _granted(self, call: LiveCall, grant: Grant) -> None:
        left = max(0.1, call.expires - self.now())
        call.timing.queue = self.now() - call.began
        self.execute(call, call.task.granted(grant, left))

    def _lost(self, call: LiveCall, attempt: int, reason: str) -> None:
        if call.task.place.attempt == attempt:
            self.execute(call, call.task.lost(reason))

    def _leave(self, call: LiveCall) -> None:
        if call.link is not None:
            call.link.calls.pop(call.id, None)
            call.link = None

    def _end(self, call: LiveCall) -> None:
        if self._calls.pop(call.id, None) is None:
            return
        self._leave(call)
        self._history.append(self._view(call))
        if self._idle is not None and not self._calls and not self._idle.done():
            self._idle.set_result(None)

    def _view(self, call: LiveCall) -> TaskView:
        task = call.task
        error = call.outcome.message if isinstance(call.outcome, BlipError) else ""
        return TaskView(
            call.task_id,
            call.kind.name,
            task.place.model,
            task.state.value,
            call.node,
            task.place.attempt,
            self.now() - call.began if call.timing.total is None else call.timing.total,
            error,
            task.grant.device if task.grant is not None else "",
            task.place.priority,
        )

    # --- the broker -------------------------------------------------------------------------

    @property
    def _broker_usable(self) -> bool:
        # READY only: a suspect broker may be frozen, and then a ticket would wait with it
        return self._broker is not None and self._broker.usable

    def _hello(self) -> Hello:
        leases = []
        for call in self._calls.values():
            grant, place = call.task.grant, call.task.place
            if grant is not None and call.task.state not in TERMINAL:
                age = max(0.0, self.now() - call.began)
                leases.append(
                    Lease(
                        call.id,
                        place.attempt,
                        grant.node,
                        grant.device,
                        place.model,
                        place.kind,
                        place.units,
                        age,
                    )
                )
        return Hello(
            "gateway",
            self._id,
            self._incarnation,
            versions.LOW,
            versions.HIGH,
            name=self._id,
            host=host_id(),
            leases=leases,
        )

    def _on_broker(self, event: LinkEvent | Message) -> None:
        kind = type(event)
        if kind is Grant:
            call = self._calls.get(event.task)  # type: ignore[union-attr]
            if call is not None:
                self._granted(call, event)  # type: ignore[arg-type]
            else:
                self._stray(event)  # type: ignore[arg-type]
        elif kind is Deny:
            call = self._calls.get(event.task)  # type: ignore[union-attr]
            if call is not None:
                self.execute(call, call.task.denied(event))  # type: ignore[arg-type]
        elif kind is Move:
            call = self._calls.get(event.task)  # type: ignore[union-attr]
            if call is not None:
                self.execute(call, call.task.moved(event))  # type: ignore[arg-type]
        elif isinstance(event, Nodes):
            self._update(event)
        elif isinstance(event, Story):
            self._stories.told(event)
        elif kind is Ready:
            log.info("connected to the broker at %s", self._broker_endpoint)
            self._replace()
        elif kind is Lost or kind is Suspect:
            log.warning("the broker is %s; placing by ourselves", kind.__name__.lower())
            self._stories.abandon()
            self._replace()
        elif isinstance(event, Closed):
            log.error("the broker ended the link: %s", event.text)
            self.loop.call_later(REDIAL_AFTER, self._redial, self._broker)

    def _stray(self, grant: Grant) -> None:
        """Give back a lease whose task has ended meanwhile."""
        self._release(Release(grant.task, grant.attempt, "cancelled"))

    def _replace(self) -> None:
        """Ask again for every task that waits for a device: whoever was asked has forgotten."""
        for call in list(self._calls.values()):
            if call.task.state is State.PLACING:
                self._to_broker(call, call.task.place)

    # --- nodes ------------------------------------------------------------------------------

    def _update(self, nodes: Nodes) -> None:
        for id in self._table.update(nodes):
            self._left(id)
        if nodes.reset:
            if self._sweeping is not None:
                self._sweeping.cancel()
            self._sweeping = self.loop.call_later(CONFIRM_WITHIN, self._sweep)
        for entry in nodes.nodes:
            link = self._links.get(entry.id)
            if link is not None and link.entry.incarnation != entry.incarnation:
                self._drop(entry.id, "the node restarted")
                link = None
            if link is not None:
                link.entry = entry
                if entry.status == "lost" and (link.dialer is None or not link.dialer.usable):
                    self._void(link, "the node is lost")
            elif entry.status == "ready" and len(self._links) < EAGER_LINKS:
                self._link(entry.id, entry.incarnation)

    def _sweep(self) -> None:
        self._sweeping = None
        for id in self._table.sweep():
            self._left(id)

    def _left(self, id: str) -> None:
        """A node is no longer in the table. What it still sends us on a living link counts: its
        last answers may be on their way, and the link itself tells when it is over."""
        link = self._links.get(id)
        if link is not None and not (link.calls and link.dialer and link.dialer.usable):
            self._drop(id, "the node left the mesh")

    def _link(self, id: str, incarnation: int) -> NodeLink | None:
        """Return the link to this incarnation of a node, dialling it if there is none yet."""
        link = self._links.get(id)
        if link is None:
            entry = self._table.nodes.get(id)
            if entry is None or entry.incarnation != incarnation:
                return None
            link = self._links[id] = NodeLink(entry)
            endpoint = reachable(entry.endpoints, entry.host)
            if endpoint is None:
                log.error("node %s advertises no endpoint reachable from here", entry.name)
                return link
            made = link

            def handle(event: LinkEvent | Message) -> None:
                self._on_node(made, event)

            link.dialer = Dialer(self._context, endpoint, self._hello_node, handle, data=True)
        return link if link.entry.incarnation == incarnation else None

    def _hello_node(self) -> Hello:
        return Hello(
            "gateway",
            self._id,
            self._incarnation,
            versions.LOW,
            versions.HIGH,
            name=self._id,
            host=host_id(),
        )

    def _on_node(self, link: NodeLink, event: LinkEvent | Message) -> None:
        kind = type(event)
        if kind is Data or kind is Done or kind is Accept or kind in _FROM_NODE:
            call = link.calls.get(event.task)  # type: ignore[union-attr]
            if call is None:
                return  # an attempt that was given up; its node has been told
            task = call.task
            if kind is Data:
                commands = task.data(event)  # type: ignore[arg-type]
            elif kind is Done:
                commands = task.done(event)  # type: ignore[arg-type]
            elif kind is Accept:
                commands = task.accepted(event.attempt)  # type: ignore[union-attr]
            elif kind is Refuse:
                commands = task.refused(event)  # type: ignore[arg-type]
            elif kind is Fail:
                commands = task.failed(event)  # type: ignore[arg-type]
            else:
                commands = task.stopped(event)  # type: ignore[arg-type]
            self.execute(call, commands)
        elif isinstance(event, Ordered):
            order = link.orders.get(event.number)
            if order is not None:
                order.take(event)
        elif isinstance(event, Ready):
            peer = event.peer
            if isinstance(peer, Welcome) and peer.epoch != link.entry.incarnation:
                self._drop(link.entry.id, "the node restarted")
                return
            waiting, link.waiting = link.waiting, []
            assert link.dialer is not None
            for message in waiting:
                link.dialer.send(message)
        elif isinstance(event, Lost):
            self._void(link, f"the link to the node broke ({event.reason})")
            if link.entry.id not in self._table.nodes:
                self._drop(link.entry.id, "the node left the mesh")
        elif kind is Closed:
            self._drop(link.entry.id, "the node closed the link")

    def _void(self, link: NodeLink, reason: str) -> None:
        """Every attempt and every order that depends on this link is lost."""
        for order in link.orders.values():
            order.fail(NodeLost(reason))
        calls, link.calls = link.calls, {}
        link.waiting.clear()
        for call in calls.values():
            call.link = None
            self.execute(call, call.task.lost(reason))

    def _drop(self, id: str, reason: str) -> None:
        link = self._links.pop(id, None)
        if link is None:
            return
        self._void(link, reason)
        if link.dialer is not None:
            # not from within its own event: it may still be emitting
            self.loop.call_soon(link.dialer.close)

    # --- time -------------------------------------------------------------------------------

    def _remind(self, id: bytes, attempt: int, what: str, after: float) -> None:
        self._deadlines.add((id, attempt, what), self.now() + after)
        if self._timer is None:
            self._arm()

    def _arm(self) -> None:
        due = self._deadlines.next()
        self._timer = None if due is None else self.loop.call_at(due, self._due)

    def _due(self) -> None:
        for id, attempt, what in self._deadlines.due(self.now()):
            call = self._calls.get(id)
            if call is None:
                continue
            task = call.task
            if what == "expire":
                self._expire(call)
            elif task.place.attempt != attempt:
                continue
            elif what == "accept" and task.state is State.SUBMITTED:
                reason = f"the node did not answer within {ACCEPT_TIMEOUT:g} s"
                self.execute(call, task.lost(reason, cancel=True))
            elif what == "stop" and task.state is State.CANCELLING:
                self.execute(call, task.lost("the node did not confirm the cancel"))
        self._arm()

    def _expire(self, call: LiveCall) -> None:
        self._remind(call.id, call.task.place.attempt, "stop", CANCEL_TIMEOUT)
        self.execute(call, call.task.expire())

    def _tick(self) -> None:
        now = self.now()
        for call in [call for call in self._calls.values() if call.expires <= now]:
            if call.outcome is None:
                self._expire(call)
        if self._broker is not None:
            self._broker.tick(now)
        for link in list(self._links.values()):
            if link.dialer is not None:
                link.dialer.tick(now)
        if not self._closed:
            self._beat = self.loop.call_later(TICK, self._tick)

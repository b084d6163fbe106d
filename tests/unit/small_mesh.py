"""A whole mesh in memory: real tasks, links, executions and scheduler; a clock that is a number.

What stands between them here are the loops of ``blip.gateway.dispatch``, ``blip.broker.server``
and ``blip_node.agent`` without sockets: the same rules, a page each. Nodes run a task that counts:
its parts are the bytes 0, 1, 2, ... up to :data:`LENGTH`, one a part.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from blip.broker.ledger import Ledger
from blip.broker.rates import Rates
from blip.broker.registry import Admission, Registry, Status
from blip.broker.scheduler import Command as ToGateway
from blip.broker.scheduler import Scheduler
from blip.broker.settings import Settings
from blip.errors import BlipError, WorkerCrashed
from blip.protocol.attempt import TERMINAL, Command, Deliver, Finish, State, Task, ToNode
from blip.protocol.deadlines import Deadlines
from blip.protocol.link import Closed, Link, LinkEvent, Lost, Ready, Suspect
from blip.protocol.link import State as LinkState
from blip.protocol.messages import (
    Accept,
    Advert,
    Cancel,
    Cancelled,
    Data,
    Deny,
    Device,
    Done,
    Fail,
    Grant,
    Hello,
    Lease,
    Message,
    Model,
    Move,
    NodeEntry,
    Nodes,
    Place,
    Recall,
    Refuse,
    Release,
    Replica,
    Submit,
    Welcome,
)
from blip.protocol.placement import choose
from blip_node.executions import Event, Execution, Executions
from blip_node.executions import State as Stage
from tests.unit.link_pair import Frames

#: Bytes, and parts, of a task's whole answer.
LENGTH = 4
SLOTS = 2
ACCEPT_TIMEOUT = 2.0
CANCEL_TIMEOUT = 10.0
GIB = 1 << 30


class Channel:
    """A dialler's link, the listener's link at its other end, and the wire between them."""

    def __init__(
        self, mesh: Mesh, target: str, hello: Callable[[], Hello], handle: Callable[..., None]
    ) -> None:
        self.mesh = mesh
        self.target = target
        self.handle = handle
        self.dialler: Link | None = Link(now=mesh.now, hello=hello)
        self.listener: Link | None = None
        self.owner: Broker | Node | None = None
        self.up: deque[Frames] = deque()
        self.down: deque[Frames] = deque()
        self.held = False
        mesh.channels.append(self)
        self.dialler.connected(mesh.now)

    def flush(self) -> None:
        """Put what both ends have to say on the wire."""
        if self.dialler is not None:
            self.up.extend(self.dialler.flush())
        if self.listener is not None:
            frames = self.listener.flush()
            if self.dialler is not None:
                self.down.extend(frames)

    def deliver(self, upward: bool) -> bool:
        """Let one ZeroMQ message arrive; False if there is none."""
        wire = self.up if upward else self.down
        if not wire:
            return False
        frames = wire.popleft()
        now = self.mesh.now
        if not upward:
            if self.dialler is not None:
                self.heard(self.dialler.receive(frames, now))
            return True
        process = self.mesh.listeners.get(self.target)
        if process is None:
            return True
        if self.owner is not process or self.listener is None:
            self.owner = process
            self.listener = Link(now=now, welcome=process.welcome())
        self.heard_there(self.listener.receive(frames, now))
        return True

    def heard(self, events: Sequence[LinkEvent | Message]) -> None:
        """Pass events to the dialling side."""
        for event in events:
            self.handle(event)

    def heard_there(self, events: Sequence[LinkEvent | Message]) -> None:
        """Pass events to the listening side."""
        assert self.owner is not None
        for event in events:
            self.owner.handle(self, event)

    def tick(self) -> None:
        """Let time pass at both ends."""
        if self.dialler is not None:
            self.heard(self.dialler.tick(self.mesh.now))
        if self.listener is not None and self.owner is self.mesh.listeners.get(self.target):
            self.heard_there(self.listener.tick(self.mesh.now))

    def cut(self, told: bool) -> None:
        """The connection breaks; the dialler's transport notices, or nobody does."""
        self.up.clear()
        self.down.clear()
        if told and self.dialler is not None:
            self.heard(self.dialler.disconnected(self.mesh.now))
            self.dialler.connected(self.mesh.now)

    def say(self, message: Message) -> None:
        """Send as the listener, if anybody is there."""
        if self.listener is not None and self.listener.ready:
            self.listener.send(message)

    def close(self) -> None:
        """The dialling process is gone."""
        self.dialler = None
        self.down.clear()


# --- the gateway ----------------------------------------------------------------------------


@dataclass(eq=False)
class Call:
    """A task under way and its client."""

    task: Task
    expires: float
    received: bytearray = field(default_factory=bytearray)
    ends: list[Done | BlipError] = field(default_factory=list)
    link: NodeLink | None = None
    #: Whether the broker granted the current attempt; else the gateway placed it by itself.
    granted: bool = False

    @property
    def id(self) -> bytes:
        """The task's id."""
        return self.task.place.task


@dataclass(eq=False)
class NodeLink:
    """A gateway's link to one incarnation of a node."""

    node: str
    incarnation: int
    channel: Channel
    calls: dict[bytes, Call] = field(default_factory=dict)
    waiting: list[Submit] = field(default_factory=list)


class Gateway:
    """``blip.gateway.dispatch``, without sockets."""

    def __init__(self, mesh: Mesh, name: str, incarnation: int) -> None:
        self.mesh = mesh
        self.name = name
        self.incarnation = incarnation
        self.calls: dict[bytes, Call] = {}
        self.ended: list[Call] = []
        self.table: dict[str, NodeEntry] = {}
        self.links: dict[str, NodeLink] = {}
        self.deadlines: Deadlines[tuple[bytes, int, str]] = Deadlines()
        self.soon: deque[Callable[[], None]] = deque()
        self.broker = Channel(mesh, "broker", self.hello, self.on_broker)

    def submit(self, task: bytes, resumable: bool, timeout: float) -> Call:
        """A client asks for something."""
        call = Call(None, self.mesh.now + timeout)  # type: ignore[arg-type]
        place = Place(task, 1, "count", "m", 1.0, deadline=timeout)
        resume = (lambda: bytes([len(call.received)])) if resumable else None
        call.task = Task(place, b"\0", window=2, resume=resume)
        self.calls[task] = call
        self.deadlines.add((task, 0, "expire"), call.expires)
        self.execute(call, call.task.start())
        return call

    def cancel(self, call: Call) -> None:
        """The client goes away."""
        attempt = call.task.place.attempt
        self.deadlines.add((call.id, attempt, "stop"), self.mesh.now + CANCEL_TIMEOUT)
        self.execute(call, call.task.cancel())

    @property
    def usable(self) -> bool:
        """Whether the broker is asked."""
        assert self.broker.dialler is not None
        return self.broker.dialler.state is LinkState.READY

    def execute(self, call: Call, commands: Sequence[Command]) -> None:
        """Do what the task decided."""
        for command in commands:
            match command:
                case Deliver(payload):
                    assert not call.ends, "a part after the end"
                    call.received += payload
                    self.soon.append(partial(self.consumed, call, len(payload)))
                case Finish(outcome):
                    call.ends.append(outcome)
                case ToNode():
                    self.to_node(call, command)
                case _:
                    self.to_broker(call, command.message)
        if call.task.state in TERMINAL and self.calls.pop(call.id, None) is not None:
            self.leave(call)
            self.ended.append(call)

    def consumed(self, call: Call, size: int) -> None:
        """The client reads."""
        self.execute(call, call.task.consumed(size))

    def to_broker(self, call: Call, message: Message) -> None:
        """Say it to the broker, or place it without one."""
        if isinstance(message, Release):
            self.leave(call)
        if self.usable:
            assert self.broker.dialler is not None
            self.broker.dialler.send(message)
        elif isinstance(message, Place):
            self.soon.append(lambda: self.place(call, message))

    def place(self, call: Call, place: Place) -> None:
        """Place an attempt by ourselves."""
        if call.task.state is not State.PLACING or call.task.place.attempt != place.attempt:
            return
        entries = list(self.table.values())
        found = choose(
            entries, place.kind, place.model, lambda *_: 0, place.exclude, self.mesh.random
        )
        if found is None:
            deny = Deny(place.task, place.attempt, "no_node", "none is known")
            self.execute(call, call.task.denied(deny))
            return
        node, incarnation, device = found
        call.granted = False
        grant = Grant(place.task, place.attempt, node, incarnation, device)
        self.execute(call, call.task.granted(grant, call.expires - self.mesh.now))

    def to_node(self, call: Call, command: ToNode) -> None:
        """Say it to a node, when it can be reached."""
        message, attempt = command.message, call.task.place.attempt
        link = self.link(command.node, command.incarnation)
        if link is None:
            self.soon.append(lambda: self.lost(call, attempt))
            return
        if isinstance(message, Submit):
            self.leave(call)
            call.link = link
            link.calls[call.id] = call
            due = self.mesh.now + ACCEPT_TIMEOUT
            self.deadlines.add((call.id, message.attempt, "accept"), due)
        dialler = link.channel.dialler
        if dialler is not None and dialler.ready:
            dialler.send(message)
        elif isinstance(message, Submit):
            link.waiting.append(message)
        elif isinstance(message, Cancel):
            link.waiting = [each for each in link.waiting if each.task != call.id]
            self.soon.append(lambda: self.lost(call, message.attempt))

    def lost(self, call: Call, attempt: int) -> None:
        """An attempt cannot go on."""
        if call.task.place.attempt == attempt:
            self.execute(call, call.task.lost("cannot be reached"))

    def leave(self, call: Call) -> None:
        """The current attempt depends on no link any more."""
        if call.link is not None:
            call.link.calls.pop(call.id, None)
            call.link = None

    def hello(self) -> Hello:
        """Say what we hold."""
        leases = [
            Lease(
                call.id,
                call.task.place.attempt,
                call.task.grant.node,
                call.task.grant.device,
                "m",
                "count",
                1.0,
                0.0,
            )
            for call in self.calls.values()
            if call.task.grant is not None
        ]
        return Hello("gateway", self.name, self.incarnation, 1, 1, name=self.name, leases=leases)

    def on_broker(self, event: LinkEvent | Message) -> None:
        """Act on what the broker says, or on its silence."""
        match event:
            case Grant():
                call = self.calls.get(event.task)
                if call is None:
                    if self.usable:
                        assert self.broker.dialler is not None
                        gone = Release(event.task, event.attempt, "cancelled")
                        self.broker.dialler.send(gone)
                    return
                before = call.task.state
                left = call.expires - self.mesh.now
                commands = call.task.granted(event, left)
                if before is State.PLACING and call.task.state is State.SUBMITTED:
                    call.granted = True
                self.execute(call, commands)
            case Deny():
                if (call := self.calls.get(event.task)) is not None:
                    self.execute(call, call.task.denied(event))
            case Move():
                if (call := self.calls.get(event.task)) is not None:
                    self.execute(call, call.task.moved(event))
            case Nodes():
                self.update(event)
            case Ready() | Lost() | Suspect():
                for call in list(self.calls.values()):
                    if call.task.state is State.PLACING:
                        self.to_broker(call, call.task.place)

    def update(self, nodes: Nodes) -> None:
        """Take over the broker's node table."""
        for id in nodes.gone:
            self.table.pop(id, None)
            self.drop(id)
        for entry in nodes.nodes:
            self.table[entry.id] = entry
            link = self.links.get(entry.id)
            if link is None:
                continue
            if link.incarnation != entry.incarnation:
                self.drop(entry.id)
            elif entry.status == "lost" and not self.alive(link):
                self.void(link)

    @staticmethod
    def alive(link: NodeLink) -> bool:
        """Whether the node was heard lately."""
        dialler = link.channel.dialler
        return dialler is not None and dialler.state is LinkState.READY

    def link(self, node: str, incarnation: int) -> NodeLink | None:
        """Return the link to this incarnation of a node."""
        link = self.links.get(node)
        if link is None:
            entry = self.table.get(node)
            if entry is None or entry.incarnation != incarnation:
                return None

            def handle(event: LinkEvent | Message) -> None:
                self.on_node(made, event)

            def hello() -> Hello:
                return Hello("gateway", self.name, self.incarnation, 1, 1, name=self.name)

            made = NodeLink(node, incarnation, Channel(self.mesh, node, hello, handle))
            link = self.links[node] = made
        return link if link.incarnation == incarnation else None

    def on_node(self, link: NodeLink, event: LinkEvent | Message) -> None:
        """Act on what a node says, or on its silence."""
        match event:
            case Accept() | Refuse() | Data() | Done() | Fail() | Cancelled():
                call = link.calls.get(event.task)
                if call is None:
                    return
                task = call.task
                if isinstance(event, Accept):
                    commands = task.accepted(event.attempt)
                elif isinstance(event, Refuse):
                    commands = task.refused(event)
                elif isinstance(event, Data):
                    commands = task.data(event)
                elif isinstance(event, Done):
                    commands = task.done(event)
                elif isinstance(event, Fail):
                    commands = task.failed(event)
                else:
                    commands = task.stopped(event)
                self.execute(call, commands)
            case Ready(Welcome() as welcome):
                if welcome.epoch != link.incarnation:
                    self.drop(link.node)
                    return
                waiting, link.waiting = link.waiting, []
                assert link.channel.dialler is not None
                for message in waiting:
                    link.channel.dialler.send(message)
            case Lost():
                self.void(link)
            case Closed():
                self.drop(link.node)

    def void(self, link: NodeLink) -> None:
        """Every attempt that depends on this link is lost."""
        calls, link.calls = link.calls, {}
        link.waiting.clear()
        for call in calls.values():
            call.link = None
            self.execute(call, call.task.lost("the link broke"))

    def drop(self, node: str) -> None:
        """Have nothing to do with this incarnation of a node any more."""
        link = self.links.pop(node, None)
        if link is not None:
            self.void(link)
            link.channel.close()

    def tick(self) -> None:
        """Let time pass."""
        for id, attempt, what in self.deadlines.due(self.mesh.now):
            call = self.calls.get(id)
            if call is None:
                continue
            state = call.task.state
            if what == "expire":
                due = self.mesh.now + CANCEL_TIMEOUT
                self.deadlines.add((id, call.task.place.attempt, "stop"), due)
                self.execute(call, call.task.expire())
            elif call.task.place.attempt != attempt:
                continue
            elif (what == "accept" and state is State.SUBMITTED) or (
                what == "stop" and state is State.CANCELLING
            ):
                self.execute(call, call.task.lost("no answer", cancel=what == "accept"))

    def close(self) -> None:
        """The process is gone, without a word."""
        self.broker.close()
        for link in self.links.values():
            link.channel.close()


# --- the broker -----------------------------------------------------------------------------


class Broker:
    """``blip.broker.server``, without sockets."""

    def __init__(self, mesh: Mesh, epoch: int) -> None:
        self.mesh = mesh
        self.epoch = epoch
        self.registry = Registry()
        self.ledger = Ledger()
        self.scheduler = Scheduler(
            Settings(refusal_pause=0.5), self.registry, self.ledger, Rates(), mesh.now + 3.0
        )
        self.nodes: dict[str, Channel] = {}
        self.gateways: dict[str, Channel] = {}
        self.told: dict[str, int] = {}
        self.missing: dict[str, float] = {}

    def welcome(self) -> Welcome:
        """How this side runs a link."""
        return Welcome(1, "broker", self.epoch, 1.0, 3.0, 10.0)

    def handle(self, channel: Channel, event: LinkEvent | Message) -> None:
        """Act on an event of a link."""
        assert channel.listener is not None
        hello, now = channel.listener.peer, self.mesh.now
        assert isinstance(hello, Hello)
        match event:
            case Place():
                before = self.ledger.get(event.task, event.attempt)
                answer = self.scheduler.place(event, hello.id, now)
                if answer is not None:
                    self.send([(hello.id, answer)], again=before is not None)
            case Release():
                self.send(self.scheduler.release(hello.id, event, now))
            case Cancel():
                self.send(self.scheduler.withdraw(hello.id, event.task, event.attempt, now))
            case Advert():
                commands = self.scheduler.advert(hello.id, event, now)
                if commands is None:
                    channel.listener.goodbye("unknown_epoch", "greet first")
                else:
                    self.send(commands)
            case Ready():
                self.ready(channel, hello)
            case Lost():
                self.lost(channel, hello, event)

    def ready(self, channel: Channel, hello: Hello) -> None:
        """Somebody has greeted."""
        assert channel.listener is not None
        now = self.mesh.now
        if hello.role == "node":
            admission = self.scheduler.node_hello(
                hello.id, hello.incarnation, hello.name, hello.host, hello.endpoints, now
            )
            if admission is Admission.REJECTED:
                channel.listener.goodbye("superseded", "a newer process is connected")
                return
            older = self.nodes.get(hello.id)
            if older is not None and older is not channel and older.listener is not None:
                older.listener.goodbye("superseded", "a newer process is connected")
            self.nodes[hello.id] = channel
        else:
            self.gateways[hello.id] = channel
            self.missing.pop(hello.id, None)
            self.told[hello.id] = 0
            self.tell(hello.id)
            self.send(self.scheduler.gateway_hello(hello.id, hello.leases, now))

    def lost(self, channel: Channel, hello: Hello, event: Lost) -> None:
        """Somebody is gone, or begins anew."""
        if self.nodes.get(hello.id) is channel:
            if event.reason == "disconnected":
                self.send(self.scheduler.node_unreachable(hello.id, self.mesh.now))
        elif self.gateways.get(hello.id) is channel:
            if event.reason == "silent":
                self.forget(hello.id)
            else:
                self.missing[hello.id] = self.mesh.now

    def forget(self, gateway: str) -> None:
        """What a gateway held and asked for is void."""
        self.gateways.pop(gateway, None)
        self.told.pop(gateway, None)
        self.missing.pop(gateway, None)
        self.send(self.scheduler.gateway_lost(gateway, self.mesh.now))

    def send(self, commands: Sequence[ToGateway], *, again: bool = False) -> None:
        """Send grants and denials. A new grant is for a node that is READY, always."""
        for gateway, message in commands:
            if isinstance(message, Grant) and not again:
                node = self.registry.get(message.node)
                assert node is not None
                assert node.status is Status.READY, f"granted on a node that is {node.status}"
            channel = self.gateways.get(gateway)
            if channel is not None:
                self.tell(gateway)
                channel.say(message)

    def tell(self, gateway: str) -> None:
        """Tell a gateway what changed in the node table."""
        channel, told = self.gateways[gateway], self.told[gateway]
        assert channel.listener is not None
        if told != self.registry.version and channel.listener.ready:
            pages, self.told[gateway] = self.registry.changes(told)
            for page in pages:
                channel.say(page)

    def tick(self) -> None:
        """Let time pass."""
        for gateway, since in list(self.missing.items()):
            if self.mesh.now - since >= 10.0:
                self.forget(gateway)
        self.send(self.scheduler.tick(self.mesh.now))
        for gateway in list(self.gateways):
            self.tell(gateway)


# --- the node -------------------------------------------------------------------------------


class Node:
    """``blip_node.agent``, without sockets and with a worker that counts."""

    def __init__(self, mesh: Mesh, id: str, incarnation: int) -> None:
        self.mesh = mesh
        self.id = id
        self.incarnation = incarnation
        self.executions = Executions()
        self.numbers = itertools.count(1)
        self.advertised = -1e9
        self.refuse_next = ""
        #: What was sent to end each attempt, to see that it is one message.
        self.ends: dict[tuple[bytes, int], int] = {}
        self.broker = Channel(mesh, "broker", self.hello, self.on_broker)

    def hello(self) -> Hello:
        """Introduce ourselves."""
        return Hello("node", self.id, self.incarnation, 1, 1, name=self.id, endpoints=["x"])

    def welcome(self) -> Welcome:
        """How this side runs a link."""
        return Welcome(1, self.id, self.incarnation, 1.0, 3.0, 10.0)

    def on_broker(self, event: LinkEvent | Message) -> None:
        """Advertise to a broker that has just met us."""
        if isinstance(event, Ready):
            self.advertise()

    def advertise(self) -> None:
        """State our capacity."""
        self.advertised = self.mesh.now
        link = self.broker.dialler
        if link is None or not link.ready:
            return
        held = list(self.executions._held.values())
        waiting = sum(each.state is Stage.WAITING for each in held)
        link.send(
            Advert(
                next(self.numbers),
                False,
                [Device("gpu", "cuda", "card", 24 * GIB, 16 * GIB)],
                [Model("m", ["count"], 4 * GIB, GIB, SLOTS)],
                [Replica("m", "gpu", "ready", SLOTS, len(held) - waiting, waiting, 4 * GIB)],
                self.executions.running(),
            )
        )

    def handle(self, channel: Channel, event: LinkEvent | Message) -> None:
        """Act on an event of a gateway's link."""
        match event:
            case Submit():
                self.submit(channel, event)
            case Cancel():
                execution = self.executions.get(event.task, event.attempt)
                if execution is not None:
                    self.stop(execution)
                    return
                if not self.executions.buried(event.task, event.attempt):
                    self.executions.bury(event.task, event.attempt, self.mesh.now)
                channel.say(Cancelled(event.task, event.attempt))
            case Recall():
                execution = self.executions.get(event.task, event.attempt)
                if execution is not None and execution.state is Stage.WAITING:
                    refuse = Refuse(event.task, event.attempt, "recalled", "given back")
                    self.end(execution, refuse)
            case Lost():
                for execution in self.executions.of(channel):
                    self.stop(execution)

    def submit(self, channel: Channel, submit: Submit) -> None:
        """Take an attempt, or refuse it."""
        task, attempt = submit.task, submit.attempt
        current = self.executions.current(task)
        if current is not None and current.attempt == attempt:
            return
        code = ""
        older = current is not None and current.attempt > attempt
        if older or self.executions.buried(task, attempt):
            code = "superseded"
        elif submit.expires_in <= 0:
            code = "expired"
        elif self.refuse_next:
            code, self.refuse_next = self.refuse_next, ""
        elif len(self.executions) >= 3 * SLOTS:
            code = "busy"
        if code:
            channel.say(Refuse(task, attempt, code, "no"))
            return
        if current is not None:
            self.end(current, Cancelled(task, current.attempt))
        execution = Execution(submit, channel, self.mesh.now)
        execution.job = submit.payload[0]
        self.executions.add(execution)
        channel.say(Accept(task, attempt))

    def stop(self, execution: Execution) -> None:
        """Cancel an attempt; one that runs takes a moment to stop."""
        if execution.state is Stage.WAITING:
            self.end(execution, Cancelled(execution.task, execution.attempt))
        else:
            execution.move(Event.STOP)

    def end(self, execution: Execution, message: Message) -> None:
        """Send the one message that ends an attempt."""
        if self.executions.end(execution, self.mesh.now):
            key = execution.task, execution.attempt
            self.ends[key] = self.ends.get(key, 0) + 1
            execution.peer.say(message)

    def work(self, how: str = "on") -> None:
        """Let the worker do a step on every attempt; ``how``: on, crash, or finish."""
        held = list(self.executions._held.values())
        for execution in held:
            running = sum(each.state is not Stage.WAITING for each in held)
            if execution.state is Stage.WAITING and running < SLOTS:
                execution.move(Event.START)
        for execution in held:
            task, attempt = execution.task, execution.attempt
            if execution.state is Stage.RUNNING:
                if how == "crash":
                    self.end(execution, Fail(task, attempt, *WorkerCrashed("signal 9").to_wire()))
                elif execution.job + execution.part < LENGTH:
                    payload = bytes([execution.job + execution.part])
                    execution.peer.say(Data(task, attempt, execution.part, payload))
                    execution.part += 1
                else:
                    usage = {"n": LENGTH}
                    times = (1.0, 0.0, 0.0, 0.0, 0.1)
                    self.end(execution, Done(task, attempt, execution.part, usage, *times, b""))

    def tick(self) -> None:
        """Let time pass. A worker that was told to stop has done so by now."""
        for execution in list(self.executions._held.values()):
            if execution.state is Stage.STOPPING:
                self.end(execution, Cancelled(execution.task, execution.attempt))
        for execution in self.executions.expired(self.mesh.now):
            fail = Fail(execution.task, execution.attempt, "deadline_exceeded", "too late", {})
            self.end(execution, fail)
        if self.mesh.now - self.advertised >= 0.9:
            self.advertise()

    def close(self) -> None:
        """The process is gone, without a word."""
        self.broker.close()


# --- all of it ------------------------------------------------------------------------------


class Mesh:
    """One broker, nodes, gateways and the channels between them."""

    def __init__(self, nodes: int = 2, gateways: int = 1) -> None:
        self.now = 1000.0
        self.channels: list[Channel] = []
        self.listeners: dict[str, Broker | Node] = {}
        self.incarnations = itertools.count(1)
        self.tasks = itertools.count(1)
        #: Every call of every gateway that lived, in order.
        self.calls: list[tuple[Gateway, Call]] = []
        self._draws = itertools.cycle([0.1, 0.6, 0.35, 0.85])
        self.listeners["broker"] = Broker(self, next(self.incarnations))
        for n in range(nodes):
            self.start_node(f"node-{n}")
        self.gateways: dict[str, Gateway] = {}
        for n in range(gateways):
            self.start_gateway(f"gw-{n}")

    def random(self) -> float:
        """A number from 0 to below 1, the same ones in every run."""
        return next(self._draws)

    @property
    def broker(self) -> Broker:
        """The broker of the moment."""
        broker = self.listeners["broker"]
        assert isinstance(broker, Broker)
        return broker

    @property
    def nodes(self) -> list[Node]:
        """The nodes of the moment."""
        return [each for each in self.listeners.values() if isinstance(each, Node)]

    def start_node(self, id: str) -> None:
        """A node's process starts, or takes the place of one that died."""
        old = self.listeners.get(id)
        if isinstance(old, Node):
            old.close()
        self.listeners[id] = Node(self, id, next(self.incarnations))

    def start_broker(self) -> None:
        """Another broker takes the place of one that died."""
        self.listeners["broker"] = Broker(self, next(self.incarnations))

    def start_gateway(self, place: str) -> None:
        """A gateway starts, or takes the place of one that died; its id is new, as in life."""
        if place in self.gateways:
            self.gateways[place].close()
        incarnation = next(self.incarnations)
        self.gateways[place] = Gateway(self, f"{place}.{incarnation}", incarnation)

    def submit(self, gateway: str, resumable: bool, timeout: float) -> Call:
        """A client asks for something."""
        task = next(self.tasks).to_bytes(16, "big")
        call = self.gateways[gateway].submit(task, resumable, timeout)
        self.calls.append((self.gateways[gateway], call))
        return call

    def soon(self) -> None:
        """Do what was put off to the end of the loop's tick, and write."""
        for gateway in self.gateways.values():
            while gateway.soon:
                gateway.soon.popleft()()
        for channel in self.channels:
            channel.flush()
        # a dialler that is gone: its last words still arrive, then its channel is history
        self.channels = [c for c in self.channels if c.dialler or c.up or self.watched(c)]

    def watched(self, channel: Channel) -> bool:
        """Whether the listener has not noticed yet that the dialler is gone."""
        link = channel.listener
        alive = channel.owner is self.listeners.get(channel.target)
        return alive and link is not None and link.ready

    def settle(self) -> None:
        """Let everything arrive on channels that are not held."""
        for _ in range(200):
            self.soon()
            moving = [c for c in self.channels if not c.held and (c.up or c.down)]
            if not moving:
                return
            for channel in moving:
                while channel.deliver(True) or channel.deliver(False):
                    pass
        raise AssertionError("the mesh never stops talking")

    def tick(self, seconds: float) -> None:
        """Let time pass everywhere."""
        self.now += seconds
        for channel in list(self.channels):
            channel.tick()
        for part in (*self.listeners.values(), *self.gateways.values()):
            part.tick()
        self.soon()

    def run(self, seconds: float, work: str | None = "on") -> None:
        """Let time pass as it does, everything arrive, and nodes work."""
        for _ in range(round(seconds / 0.5)):
            self.tick(0.5)
            self.settle()
            if work is not None:
                for node in self.nodes:
                    node.work(work)
            self.settle()

    def held(self) -> dict[tuple[bytes, int], Any]:
        """Every attempt that a living gateway believes a node has, with its call."""
        return {
            (call.id, call.task.place.attempt): call
            for gateway in self.gateways.values()
            for call in gateway.calls.values()
            if call.task.grant is not None
        }

"""The broker's process: one listening socket around the scheduler, which decides everything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid

import zmq

from blip import __version__, lifecycle
from blip.broker import registry
from blip.broker.ledger import Ledger
from blip.broker.rates import Rates
from blip.broker.registry import Admission, Registry
from blip.broker.scheduler import Command, Scheduler
from blip.broker.settings import Settings
from blip.config import Config, check_exposure
from blip.errors import BlipError
from blip.protocol import versions
from blip.protocol.link import LinkEvent, Liveness, Lost, Ready
from blip.protocol.messages import (
    Advert,
    Cancel,
    Hello,
    Info,
    Message,
    Order,
    Ordered,
    Place,
    Release,
    Stats,
    Story,
    Welcome,
    Why,
)
from blip.store import Announcer, Store
from blip.telemetry import logs
from blip.transport.folder import socket_folder
from blip.transport.host import host_id
from blip.transport.links import Listener, Peer

log = logging.getLogger(__name__)

#: Seconds between two looks at silence, expiry and the queue, while tasks wait and while none does.
#: Decisions do not wait for it; what does is a deadline that passes in the queue.
TICK, IDLE_TICK = 0.25, 0.5

#: After a start, nodes and gateways need this long to greet again; until then a model that nobody
#: serves is waited for instead of denied. Greetings are repeated every heartbeat.
SETTLE = 3.0

#: Changes of the node table gather this long before gateways are told; a grant never overtakes
#: what its gateway has to know.
TELL_AFTER = 0.05


class Broker:
    """Scheduler and sockets of one broker process."""

    def __init__(
        self,
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        binds: list[str],
        epoch: int,
        liveness: Liveness,
        settings: Settings,
    ) -> None:
        self.epoch = epoch
        self.id = f"broker-{uuid.uuid4().hex[:12]}"
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._liveness = liveness
        self._registry = Registry(
            registry.Liveness(
                liveness.suspect_after, liveness.lost_after, max(60.0, liveness.lost_after)
            )
        )
        self.scheduler = Scheduler(
            settings,
            self._registry,
            Ledger(3 * liveness.heartbeat),
            Rates(),
            self._now() + SETTLE,
        )
        self._nodes: dict[str, Peer] = {}
        self._gateways: dict[str, Peer] = {}
        #: Up to which version of the node table each gateway has been told.
        self._told: dict[str, int] = {}
        #: Gateways whose link broke, and when: they have `lost_after` to come back.
        self._missing: dict[str, float] = {}
        self._telling: asyncio.TimerHandle | None = None
        self._listener = Listener(context, binds, self._welcome, self._on_peer)
        self._closed = False
        self._beat = self._loop.call_later(TICK, self._tick)

    @property
    def endpoints(self) -> list[str]:
        """Where nodes and gateways dial."""
        return self._listener.endpoints

    def close(self) -> None:
        """Say goodbye; gateways place by themselves from then on."""
        self._closed = True
        self._beat.cancel()
        if self._telling is not None:
            self._telling.cancel()
        self._listener.close("unknown_epoch", "the broker is shutting down")

    def _welcome(self) -> Welcome:
        limits = self._liveness
        return Welcome(
            versions.HIGH,
            self.id,
            self.epoch,
            limits.heartbeat,
            limits.suspect_after,
            limits.lost_after,
        )

    # --- events -----------------------------------------------------------------------------

    def _on_peer(self, peer: Peer, event: LinkEvent | Message) -> None:
        now = self._now()
        match event:
            case Place():
                answer = self.scheduler.place(event, peer.hello.id, now)
                if answer is not None:
                    self._send([(peer.hello.id, answer)])
            case Release():
                self._send(self.scheduler.release(peer.hello.id, event, now))
            case Advert():
                commands = self.scheduler.advert(peer.hello.id, event, now)
                if commands is None:
                    peer.goodbye("unknown_epoch", "greet first: this broker does not know you")
                else:
                    self._send(commands)
                    self._tell_soon()
            case Cancel():
                self._send(self.scheduler.withdraw(peer.hello.id, event.task, event.attempt, now))
            case Ready(peer=Hello() as hello):
                self._ready(peer, hello, now)
            case Lost():
                self._lost(peer, event, now)
            case Why():
                peer.send(self._story(event, now))
            case Ordered(state="failed"):
                log.warning("node %s did not load: %s", peer.hello.name, event.text)
            case Info() if not event.body:
                peer.send(Info({"id": self.id, "epoch": self.epoch, "version": __version__}))
            case Stats() if not event.body:
                peer.send(Stats(self.scheduler.stats(now)))
            case _:
                pass  # Suspect and Healed: the registry judges silence by itself

    def _ready(self, peer: Peer, hello: Hello, now: float) -> None:
        if hello.role == "node":
            admission = self.scheduler.node_hello(
                hello.id, hello.incarnation, hello.name, hello.host, hello.endpoints, now
            )
            if admission is Admission.REJECTED:
                peer.goodbye("superseded", "a newer process of this node is connected")
                return
            older = self._nodes.get(hello.id)
            if older is not None and older is not peer and older.link.ready:
                older.goodbye("superseded", "a newer process of this node is connected")
            self._nodes[hello.id] = peer
            log.info("node %s is here (%s)", hello.name, admission.value)
            self._tell_soon()
        elif hello.role == "gateway":
            self._gateways[hello.id] = peer
            self._missing.pop(hello.id, None)
            self._told[hello.id] = 0
            self._tell(hello.id)
            self._send(self.scheduler.gateway_hello(hello.id, hello.leases, now))
            log.info("gateway %s is here with %d leases", hello.name, len(hello.leases))
        else:
            peer.goodbye("unknown_role", f"'{hello.role}' is neither a node nor a gateway")

    def _lost(self, peer: Peer, lost: Lost, now: float) -> None:
        hello = peer.hello
        if self._nodes.get(hello.id) is peer:
            if lost.reason == "goodbye":
                log.info("node %s has left", hello.name)
                del self._nodes[hello.id]
                self._send(self.scheduler.node_goodbye(hello.id, now))
            elif lost.reason == "disconnected":
                log.warning("node %s cannot be reached", hello.name)
                self._send(self.scheduler.node_unreachable(hello.id, now))
            self._tell_soon()
        elif self._gateways.get(hello.id) is peer:
            if lost.reason == "goodbye":
                self._forget_gateway(hello.id, now)
            elif lost.reason == "silent":
                log.warning("gateway %s is silent: its leases are void", hello.name)
                self._forget_gateway(hello.id, now)
            else:
                self._missing[hello.id] = now

    def _forget_gateway(self, id: str, now: float) -> None:
        self._gateways.pop(id, None)
        self._told.pop(id, None)
        self._missing.pop(id, None)
        self._send(self.scheduler.gateway_lost(id, now))

    # --- commands ---------------------------------------------------------------------------

    def _send(self, commands: list[Command]) -> None:
        for to, message in commands:
            peers = self._nodes if isinstance(message, Order) else self._gateways
            peer = peers.get(to)
            if peer is None or not peer.link.ready:
                continue
            if peer.hello.role == "gateway":
                self._tell(to)  # a grant may name a node that this gateway has not met
            peer.send(message)

    def _story(self, why: Why, now: float) -> Story:
        decisions = [
            decision.to_wire(now)
            for decision in self.scheduler.explain(why.task)
            if why.attempt in (0, decision.attempt)
        ]
        return Story(why.task, why.attempt, decisions)

    def _tell_soon(self) -> None:
        if self._telling is None and not self._closed:
            self._telling = self._loop.call_later(TELL_AFTER, self._tell_all)

    def _tell_all(self) -> None:
        self._telling = None
        for gateway in self._gateways:
            self._tell(gateway)

    def _tell(self, gateway: str) -> None:
        peer, told = self._gateways[gateway], self._told[gateway]
        if told != self._registry.version and peer.link.ready:
            pages, self._told[gateway] = self._registry.changes(told)
            for page in pages:
                peer.send(page)

    def _tick(self) -> None:
        now = self._now()
        self._listener.tick(now)
        for gateway, since in list(self._missing.items()):
            if now - since >= self._liveness.lost_after:
                self._forget_gateway(gateway, now)
        self._send(self.scheduler.tick(now))
        self._tell_all()
        if not self._closed:
            pause = TICK if self.scheduler.tickets else IDLE_TICK
            self._beat = self._loop.call_later(pause, self._tick)


def main(config: Config) -> int:
    """Place tasks until SIGTERM or SIGINT; return the exit code."""
    check_exposure(config, ("broker",))
    logs.configure("broker", config.log.level, config.log.format)
    return lifecycle.run(lambda stop: serve(config, stop))


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Be a broker until ``stop``."""
    with contextlib.ExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.term)
        binds = [str(config.broker.bind)]
        if config.broker.ipc:
            folder = stack.enter_context(socket_folder("blip-broker-"))
            binds.insert(0, f"ipc://{folder}/control.sock")
        store = await Store.open_if_there(
            config.store.url, config.mesh.state_dir, config.mesh.id, name="blip-broker"
        )
        limits = config.broker
        broker = Broker(
            context=context,
            binds=binds,
            epoch=await _epoch(store),
            liveness=Liveness(limits.heartbeat, limits.suspect_after, limits.lost_after),
            settings=Settings(queue_limit=limits.queue_limit, tenants=limits.tenants),
        )
        announcer = None
        if store is not None:
            facts = {"endpoints": broker.endpoints, "host": host_id()}
            announcer = Announcer(store.discovery, "broker", "broker", broker.epoch, facts)
            announcer.start()
        log.info("epoch %d at %s", broker.epoch, broker.endpoints[-1])
        lifecycle.tune_gc()
        try:
            await stop.wait()
        finally:
            if announcer is not None:
                await announcer.close()
            broker.close()
            if store is not None:
                await store.close()


async def _epoch(store: Store | None) -> int:
    """Return a number above that of every broker before; the clock's if there is no store."""
    if store is not None:
        try:
            return await store.discovery.next_epoch()
        except BlipError as error:
            log.warning("no epoch from the store: %s", error.message)
    return int(time.time() * 1000)

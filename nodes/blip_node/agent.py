"""The agent: one a machine. Links on one side, workers on the other, the node's word in between."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from dataclasses import dataclass
from functools import partial

import zmq

from blip import __version__
from blip.errors import BlipError, DeadlineExceeded
from blip.errors import Cancelled as CancelledError
from blip.protocol import versions
from blip.protocol.attempt import Refusal
from blip.protocol.link import Closed, LinkEvent, Liveness, Lost, Ready
from blip.protocol.messages import (
    Accept,
    Cancel,
    Cancelled,
    Credit,
    Data,
    Done,
    Fail,
    Hello,
    Info,
    Message,
    Order,
    Ordered,
    Recall,
    Refuse,
    Stats,
    Submit,
    Welcome,
)
from blip.transport.host import host_id
from blip.transport.links import Dialer, Listener, Peer
from blip_node.admission import HEADROOM_BYTES, decide
from blip_node.adverts import advert
from blip_node.capacity import Monitor, Provider, Reading
from blip_node.catalogue import Catalogue
from blip_node.cordons import Cordons
from blip_node.executions import Execution, Executions, State
from blip_node.loads import Loads
from blip_node.measurements import Measurements, Store
from blip_node.orders import Orders
from blip_node.replicas import Place, Replicas
from blip_node.warden import Manners, Warden

log = logging.getLogger(__name__)

#: Adverts that changes bring forward come at most this often; a burst of loads is one change.
CHANGE_GAP = 0.15

#: An attempt that has given a sign of life by then needs no ACCEPT of its own: DATA and DONE say as
#: much. It spares short tasks a message and a wake-up; a gateway waits two seconds for it.
ACCEPT_AFTER = 0.05

#: Half a heartbeat: links judge silence in whole heartbeats.
TICK = 0.5


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is. The id is stable, the incarnation new at each start."""

    id: str
    name: str
    incarnation: int


class Agent:
    """A node. Construct on the loop, :meth:`start`, :meth:`drain`, :meth:`close`."""

    def __init__(
        self,
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: Identity,
        binds: list[str],
        providers: list[Provider],
        catalogue: Catalogue,
        place: Place,
        manners: Manners,
        cordons: Cordons,
        liveness: Liveness | None = None,
        benchmarks: Store | None = None,
    ) -> None:
        self.identity = identity
        self._context = context
        self._loop = asyncio.get_running_loop()
        # finer than the loop's own under uvloop, with the same origin
        self._now = time.monotonic
        self._liveness = liveness or Liveness()
        self._catalogue = catalogue
        self._place = place
        self._executions = Executions()
        self._monitor = Monitor(providers, changed=self._changed, loop=self._loop)
        self._replicas = Replicas(
            self,
            place,
            catalogue.footprints,
            lambda device: self._monitor.capacity().get(device),
        )
        self._loads = Loads(
            catalogue,
            self._replicas,
            lambda: self._monitor.capacity().readings,
            self._why_not,
            self._now,
            place.speed,
        )
        self._warden = Warden(
            self,
            replicas=self._replicas,
            executions=self._executions,
            catalogue=catalogue,
            manners=manners,
            cordons=cordons,
        )
        self._measurements = None
        if benchmarks is not None:
            self._measurements = Measurements(benchmarks, self.changed)
        self._orders = Orders(self._warden, identity.name, self._loads)
        self._listener = Listener(context, binds, self._welcome, self._on_peer, data=True)
        self._brokers: dict[str, Dialer] = {}
        self._numbers = itertools.count(1)
        self._advertised = 0.0
        self._soon: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._unannounced: list[Execution] = []
        self._announcing: asyncio.TimerHandle | None = None
        self._capacity = self._monitor.capacity()
        self._draining = False
        self._closing = False
        self._idle: asyncio.Future[None] | None = None
        self._counted = dict.fromkeys(
            ("accepted", "refused", "recalled", "done", "failed", "cancelled"), 0
        )

    @property
    def endpoints(self) -> list[str]:
        """Where gateways can dial this node."""
        return self._listener.endpoints

    @property
    def pids(self) -> frozenset[int]:
        """Process ids of the workers."""
        return self._replicas.pids

    # --- life -------------------------------------------------------------------------------

    async def start(self, preload: list[str]) -> None:
        """Begin: sample, listen for workers, load what should be loaded from the start."""
        await self._replicas.start({kind for entry in self._catalogue for kind in entry.kinds})
        self._monitor.start()
        self._beat = self._loop.call_later(TICK, self._tick)
        for name in preload:
            self._preload(name)

    def use_brokers(self, endpoints: list[str]) -> None:
        """Keep a link to exactly these brokers."""
        for endpoint in set(self._brokers) - set(endpoints):
            self._brokers.pop(endpoint).close()
        for endpoint in endpoints:
            if endpoint not in self._brokers:
                self._brokers[endpoint] = self._dial(endpoint)

    async def drain(self, timeout: float) -> None:
        """Take nothing new and wait for what runs, at most ``timeout`` seconds."""
        self._draining = True
        self.advertise()
        if len(self._executions):
            self._idle = self._loop.create_future()
            await asyncio.wait({self._idle}, timeout=timeout)

    async def close(self) -> None:
        """Say goodbye, end the workers, stop sampling."""
        self._draining = self._closing = True
        for timer in (self._beat, self._soon, self._announcing):
            if timer is not None:
                timer.cancel()
        self._beat = None
        # gateways first: what they hear last is the end of what ran here
        await self._listener.leave("leaving", "the node is shutting down")
        self._listener.close()
        for dialer in self._brokers.values():
            dialer.close("leaving", "the node is shutting down")
        self._brokers.clear()
        if self._measurements is not None:
            await self._measurements.close()
        await self._replicas.close()
        await asyncio.to_thread(self._monitor.close)

    def release(self, model: str) -> bool:
        """Unload a model's replicas that have no work; return whether none had any."""
        there = [replica for replica in self._replicas if replica.model == model]
        idle = [replica for replica in there if not (replica.jobs or replica.waiting)]
        for replica in idle:
            self._replicas.unload(replica)
        return len(idle) == len(there)

    def _preload(self, name: str) -> None:
        entry = self._catalogue.get(name)
        readings = [
            reading
            for reading in self._capacity.readings
            if not self._warden.refusal(reading.info.id)
        ]
        if entry is None or self._draining:
            return
        if not readings:  # the providers are still looking, or no device takes anything yet
            self._loop.call_later(TICK, self._preload, name)
            return
        self._loads.load(Order(0, "load", model=name), lambda said: self._preloaded(name, said))

    @staticmethod
    def _preloaded(name: str, said: Ordered) -> None:
        if said.state == "failed":
            log.error("'%s' could not be loaded at the start: %s", name, said.text)

    # --- the broker -------------------------------------------------------------------------

    def _dial(self, endpoint: str) -> Dialer:
        def handle(event: LinkEvent | Message) -> None:
            if isinstance(event, Ready):
                log.info("connected to the broker at %s", endpoint)
                self.advertise()
            elif isinstance(event, Order):
                self._orders.handle(event, say, self._now())
            elif isinstance(event, Lost):
                log.warning("lost the broker at %s: %s", endpoint, event.reason)
            elif isinstance(event, Closed):
                log.warning("the broker at %s ended the link: %s", endpoint, event.text)
                if event.code != "superseded":
                    self._loop.call_later(1.0, self._redial, endpoint)

        def say(answer: Ordered) -> None:
            if dialer.ready:
                dialer.send(answer)

        dialer = Dialer(self._context, endpoint, self._hello, handle)
        return dialer

    def _redial(self, endpoint: str) -> None:
        old = self._brokers.get(endpoint)
        if old is not None and not self._draining:
            old.close()
            self._brokers[endpoint] = self._dial(endpoint)

    def _hello(self) -> Hello:
        return Hello(
            "node",
            self.identity.id,
            self.identity.incarnation,
            versions.LOW,
            versions.HIGH,
            name=self.identity.name,
            host=host_id(),
            endpoints=self.endpoints,
        )

    def changed(self) -> None:
        """A replica has changed: memory came or went, and someone may have ordered it."""
        self._monitor.refresh()
        self._loads.check()
        self._hasten()

    def _hasten(self) -> None:
        """Advertise soon: something that placement should know has changed."""
        if self._soon is None and self._beat is not None:
            wait = max(0.0, self._advertised + CHANGE_GAP - self._now())
            self._soon = self._loop.call_later(wait, self.advertise)

    def _changed(self) -> None:
        """The monitor has seen something that placement should know."""
        self._look()
        self._hasten()

    def _look(self) -> None:
        """See how the devices are, and do what follows from that."""
        self._monitor.own_pids = self._own_pids()
        self._capacity = self._monitor.capacity()
        if not self._closing:
            self._settle()
            self._warden.step(self._capacity)
            self._orders.tick(self._now())

    def _settle(self) -> None:
        """Let the catalogue know the largest device: what is open about its models is settled."""
        infos = [reading.info for reading in self._capacity.readings]
        if infos:
            largest = max(infos, key=lambda info: info.memory_total or 0)
            total = largest.memory_total
            room = None if total is None else max(0, total - HEADROOM_BYTES)
            self._catalogue.settle(room, gpu=largest.gpu)

    def advertise(self) -> None:
        """Advertise at once; see :class:`blip_node.warden.Host`."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        now = self._now()
        self._advertised = now
        ready = [dialer for dialer in self._brokers.values() if dialer.ready]
        if not ready:
            return
        statement = advert(
            next(self._numbers),
            now=now,
            draining=self._draining,
            capacity=self._capacity,
            catalogue=self._catalogue,
            replicas=self._replicas,
            executions=self._executions,
            speed=self._place.speed,
            bandwidth=self._replicas.bandwidth,
            standings=self._warden.standings,
            benchmarks=self._measurements.figures if self._measurements is not None else {},
            held=self._replicas.held,
            reserved=self._replicas.reserved,
        )
        for dialer in ready:
            dialer.send(statement)

    def _tick(self) -> None:
        if self._beat is not None:
            self._beat = self._loop.call_later(TICK, self._tick)
        now = self._now()
        self._listener.tick(now)
        for dialer in self._brokers.values():
            dialer.tick(now)
        for execution in self._executions.expired(now):
            self._replicas.cancel(execution)
            self.failed(execution, DeadlineExceeded("the deadline passed while it waited"))
        self._look()
        self._replicas.tick(now)
        self._loads.check()
        if now - self._advertised >= self._liveness.heartbeat - TICK / 2:
            self.advertise()
        if self._measurements is not None:
            self._measurements.step(self._capacity.readings, self._idle_device)

    def _idle_device(self, device: str) -> bool:
        """Whether nothing of ours runs, loads or waits on a device."""
        return not self._draining and all(
            replica.idle or replica.state.value == "failed" for replica in self._replicas.on(device)
        )

    def _own_pids(self) -> frozenset[int]:
        pids = self._replicas.pids
        return pids if self._measurements is None else pids | self._measurements.pids

    # --- gateways ---------------------------------------------------------------------------

    def _welcome(self) -> Welcome:
        limits = self._liveness
        return Welcome(
            versions.HIGH,
            self.identity.id,
            self.identity.incarnation,
            limits.heartbeat,
            limits.suspect_after,
            limits.lost_after,
        )

    def _on_peer(self, peer: Peer, event: LinkEvent | Message) -> None:
        match event:
            case Submit():
                self._submit(peer, event)
            case Credit():
                self._credit(event)
            case Cancel():
                self._cancel(peer, event)
            case Recall():
                self._recall(peer, event)
            case Lost():
                for execution in self._executions.of(peer):
                    self._stop(execution)
            case Order():
                self._orders.handle(event, partial(self._say, peer), self._now())
            case Info() if not event.body:
                self._say(peer, Info(self._info()))
            case Stats() if not event.body:
                self._say(peer, Stats({**self._counted, "running": len(self._executions)}))
            case _:
                pass  # Ready, Suspect and Healed change nothing here; the rest is not for nodes

    def _submit(self, peer: Peer, submit: Submit) -> None:
        now = self._now()
        current = self._executions.current(submit.task)
        if current is not None and current.attempt == submit.attempt:
            return  # a duplicate: it is being worked on
        entry = self._catalogue.get(submit.model)
        reading = self._capacity.get(submit.device)
        replica = self._replicas.get(submit.model, submit.device)
        room = None
        if entry is not None and reading is not None:
            room = self._replicas.room(entry, reading)
        refusal = decide(
            submit,
            now=now,
            draining=self._draining,
            executions=self._executions,
            entry=entry,
            device_known=reading is not None,
            device_refusal=self._warden.refusal(submit.device),
            replica=replica,
            room=room,
            total=(reading.info.memory_total if reading is not None else None) or 0,
        )
        if refusal is not None:
            self._counted["refused"] += 1
            self._say(peer, refusal)
            return
        assert entry is not None
        assert reading is not None
        if current is not None:  # an older attempt that its gateway has given up
            self._stop(current)
            if self._executions.current(submit.task) is not None:
                self._executions.end(current, now)
        replica = self._replicas.load(entry, reading, room.evict if room is not None else ())
        execution = Execution(submit, peer, now)
        self._executions.add(execution)
        self._counted["accepted"] += 1
        self._unannounced.append(execution)
        if self._announcing is None:
            self._announcing = self._loop.call_later(ACCEPT_AFTER, self._announce)
        self._replicas.submit(replica, execution)

    def _why_not(self, reading: Reading) -> str:
        """Why a device takes nothing new, "" if it does."""
        return "this node is draining" if self._draining else self._warden.refusal(reading.info.id)

    def _announce(self) -> None:
        self._announcing = None
        waiting, self._unannounced = self._unannounced, []
        for execution in waiting:
            if not execution.announced and execution.state is not State.ENDED:
                execution.announced = True
                self._say(execution.peer, Accept(execution.task, execution.attempt))

    def _cancel(self, peer: Peer, cancel: Cancel) -> None:
        execution = self._executions.get(cancel.task, cancel.attempt)
        if execution is not None:
            self._stop(execution)
            return
        if not self._executions.buried(cancel.task, cancel.attempt):
            # it overtook its SUBMIT, which will be refused
            self._executions.bury(cancel.task, cancel.attempt, self._now())
        self._say(peer, Cancelled(cancel.task, cancel.attempt))

    def _recall(self, peer: Peer, recall: Recall) -> None:
        """Give an attempt back that no worker has begun with; silence means that one has."""
        execution = self._executions.get(recall.task, recall.attempt)
        if execution is None or execution.state is not State.WAITING:
            return
        self._replicas.cancel(execution)
        self._executions.end(execution, self._now())
        self._counted["recalled"] += 1
        code, text = Refusal.RECALLED.value, "given back before it began"
        self._say(peer, Refuse(recall.task, recall.attempt, code, text))
        self._ended()

    def _credit(self, credit: Credit) -> None:
        execution = self._executions.get(credit.task, credit.attempt)
        if execution is not None and credit.size > 0:
            self._replicas.credit(execution, credit.size)

    def _info(self) -> dict[str, object]:
        return {
            "id": self.identity.id,
            "name": self.identity.name,
            "version": __version__,
            "models": [entry.spec.name for entry in self._catalogue],
        }

    def _stop(self, execution: Execution) -> None:
        """Cancel an attempt, waiting or running."""
        if self._replicas.cancel(execution):
            self.failed(execution, CancelledError("cancelled"))

    def _say(self, peer: Peer, message: Message) -> None:
        # a peer that is gone has been told of as lost, or will be; nobody waits for this
        if peer.link.ready:
            peer.send(message)

    # --- workers ----------------------------------------------------------------------------

    def part(self, execution: Execution, payload: bytes) -> None:
        """Pass a part on; see :class:`blip_node.outcomes.Outcomes`."""
        if execution.peer is None:
            self._warden.part(execution, payload)
        elif execution.state is State.RUNNING:
            execution.announced = True
            self._say(
                execution.peer, Data(execution.task, execution.attempt, execution.part, payload)
            )
            execution.part += 1

    def done(
        self,
        execution: Execution,
        usage: dict[str, int],
        units: float,
        first: float,
        run: float,
        payload: bytes,
    ) -> None:
        """Pass the end on; see :class:`blip_node.outcomes.Outcomes`."""
        if execution.peer is None:
            self._warden.done(execution, payload)
            return
        stopping = execution.state is State.STOPPING
        if not self._executions.end(execution, self._now()):
            return
        assert execution.started is not None
        waited = execution.started - execution.received
        load = max(0.0, execution.loaded - execution.received) if execution.loaded else 0.0
        self._counted["cancelled" if stopping else "done"] += 1
        message: Message
        if stopping:
            message = Cancelled(execution.task, execution.attempt)
        else:
            message = Done(
                execution.task,
                execution.attempt,
                execution.part,
                usage,
                units,
                max(0.0, waited - load),
                load,
                first,
                run,
                payload,
            )
        self._say(execution.peer, message)
        self._ended()

    def failed(self, execution: Execution, error: BlipError) -> None:
        """Pass the failure on; see :class:`blip_node.outcomes.Outcomes`."""
        if execution.peer is None:
            self._warden.failed(execution, error)
            return
        stopping = execution.state is State.STOPPING
        if not self._executions.end(execution, self._now()):
            return
        message: Message
        if stopping or isinstance(error, CancelledError):
            self._counted["cancelled"] += 1
            message = Cancelled(execution.task, execution.attempt)
        else:
            self._counted["failed"] += 1
            message = Fail(execution.task, execution.attempt, *error.to_wire())
        self._say(execution.peer, message)
        self._ended()

    def _ended(self) -> None:
        if self._idle is not None and not len(self._executions) and not self._idle.done():
            self._idle.set_result(None)

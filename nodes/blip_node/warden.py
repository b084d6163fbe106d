"""Watches over the devices: steps their standings, and does what follows from that.

The decisions are in :mod:`blip_node.standing`; here replicas are ended and freed, canaries run,
and operators' orders kept in a file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from blip.errors import BlipError, Unavailable
from blip_node.canary import TIMEOUT, Canary, choose, possible
from blip_node.capacity import Capacity, Reading
from blip_node.capacity.neighbour import Limits, Neighbour, foreign_use, policy_for
from blip_node.capacity.schedule import Window
from blip_node.catalogue import Catalogue
from blip_node.cordons import Cordons
from blip_node.executions import Execution, Executions
from blip_node.executions import State as Stage
from blip_node.replica import Replica
from blip_node.replica import State as Phase
from blip_node.replicas import Replicas
from blip_node.standing import Event, Facts, Standing, State, Todo

log = logging.getLogger(__name__)

#: For so many seconds after our last work on a device its utilisation is still ours: drivers tell
#: an average over up to one second, and we see it up to one second later.
AFTERGLOW = 2.0


@dataclass(frozen=True, slots=True)
class Manners:
    """How the node treats the owner of its devices: ``node.neighbour`` and what belongs to it."""

    setting: Literal["auto", "off", "polite", "strict"]
    limits: Limits
    schedule: tuple[Window, ...]
    #: Whether somebody may sit at the machine.
    display: bool


class Host(Protocol):
    """What the agent does for it."""

    def failed(self, execution: Execution, error: BlipError) -> None:
        """End an attempt with an error."""
        ...

    def advertise(self) -> None:
        """Advertise at once."""
        ...

    def changed(self) -> None:
        """Advertise soon."""
        ...


class Warden:
    """The standings of every device of a node."""

    def __init__(
        self,
        host: Host,
        *,
        replicas: Replicas,
        executions: Executions,
        catalogue: Catalogue,
        manners: Manners,
        cordons: Cordons,
    ) -> None:
        self._host = host
        self._replicas = replicas
        self._executions = executions
        self._catalogue = catalogue
        self._manners = manners
        self._cordons = cordons
        self._now = time.monotonic
        self._capacity = Capacity(0.0)
        self._canaries: dict[str, Canary] = {}
        #: Every device by its id, once it was seen.
        self.standings: dict[str, Standing] = {}

    def refusal(self, device: str) -> str:
        """Return why a device takes nothing new; "" if it does, or is not known."""
        standing = self.standings.get(device)
        return standing.refusal if standing is not None else ""

    # --- time passes ------------------------------------------------------------------------

    def step(self, capacity: Capacity) -> None:
        """Look at every device, and do what has to be done."""
        self._capacity = capacity
        now, local = self._now(), datetime.now()
        for canary in list(self._canaries.values()):
            if now >= canary.deadline:
                self._give_up(canary, f"it took longer than {TIMEOUT:.0f} s")
        # all before the first: what one does may have all of them advertised
        standings = [(self._standing(reading), reading) for reading in capacity.readings]
        for standing, reading in standings:
            before = standing.word, standing.health
            facts = self._facts(reading, now)
            self._do(standing, reading, standing.step(facts, now, local))
            after = standing.word, standing.health
            if before != after:
                self._tell(standing)

    def _standing(self, reading: Reading) -> Standing:
        device = reading.info.id
        found = self.standings.get(device)
        if found is None:
            manners = self._manners
            policy = policy_for(manners.setting, reading.info, machine_display=manners.display)
            neighbour = Neighbour(policy, manners.limits, manners.schedule)
            found = Standing(device, neighbour, self._cordons.devices.get(device))
            self.standings[device] = found
        return found

    def _facts(self, reading: Reading, now: float) -> Facts:
        info = reading.info
        there = self._replicas.on(info.id)
        use = foreign_use(
            info,
            reading.sample,
            workers=[
                (each.worker.pid if each.worker is not None else None, each.memory)
                for each in there
            ],
            idle=all(_idle(each) and now - each.used > AFTERGLOW for each in there),
        )
        attempts = len(self._executions.on(info.id))
        return Facts(reading, use, attempts, possible(self._catalogue, now))

    def _tell(self, standing: Standing) -> None:
        level = logging.INFO if standing.state is State.READY else logging.WARNING
        log.log(level, "device %s is %s. %s", standing.device, standing.word, standing.reason)
        self._host.changed()

    # --- what is to be done -----------------------------------------------------------------

    def _do(self, standing: Standing, reading: Reading, todos: Sequence[Todo]) -> None:
        for todo in todos:
            match todo:
                case Todo.END:
                    self._end(standing)
                case Todo.FREE:
                    self._free(standing.device)
                case Todo.PROBE:
                    self._probe(standing, reading)
                case Todo.ABORT:
                    self._abort(standing.device)

    def _end(self, standing: Standing) -> None:
        # first the news, then the attempts: they come back to be placed at once, and not here
        self._host.advertise()
        error = Unavailable(standing.refusal or f"device '{standing.device}' is out of service")
        for execution in self._executions.on(standing.device):
            if execution.state is Stage.WAITING:
                self._replicas.cancel(execution)
            self._host.failed(execution, error)
        for replica in self._replicas.on(standing.device):
            self._replicas.unload(replica)

    def _free(self, device: str) -> None:
        for replica in self._replicas.on(device):
            if _idle(replica) and replica.state is not Phase.FAILED:
                self._replicas.unload(replica)

    # --- canaries ---------------------------------------------------------------------------

    def _probe(self, standing: Standing, reading: Reading) -> None:
        now, device, gpu = self._now(), standing.device, reading.info.gpu
        found = choose(self._catalogue, gpu=gpu, now=now)
        assert found is not None  # the standing asked before
        entry, kind = found
        room = self._replicas.room(entry, reading)
        if room is not None and not room.fits:
            missing = (room.need - room.free) / 2**20
            standing.canary(f"{missing:,.0f} MiB are missing for '{entry.spec.name}'", now)
            return
        log.info("device %s: a canary of '%s' tries it", device, entry.spec.name)
        canary = Canary(entry, kind, device, now)
        self._canaries[device] = canary
        evict = room.evict if room is not None else ()
        self._replicas.submit(self._replicas.load(entry, reading, evict), canary.execution)

    def _abort(self, device: str) -> None:
        canary = self._canaries.pop(device, None)
        if canary is not None:
            self._replicas.cancel(canary.execution)
            self._clear(canary)

    def _give_up(self, canary: Canary, error: str) -> None:
        self._abort(canary.device)
        self._judged(canary, error)

    def _clear(self, canary: Canary) -> None:
        canary.failed()
        replica = self._replicas.get(canary.entry.spec.name, canary.device)
        if replica is not None:
            self._replicas.unload(replica)

    def _judged(self, canary: Canary, error: str) -> None:
        standing = self.standings[canary.device]
        standing.canary(error, self._now())
        self._tell(standing)

    def _own(self, execution: Execution) -> Canary | None:
        return next((each for each in self._canaries.values() if each.execution is execution), None)

    def part(self, execution: Execution, payload: bytes) -> None:
        """Take a part of a canary's answer."""
        canary = self._own(execution)
        if canary is not None:
            canary.part(payload)

    def done(self, execution: Execution, payload: bytes) -> None:
        """Take the end of a canary's answer."""
        canary = self._own(execution)
        if canary is not None:
            del self._canaries[canary.device]
            error = canary.done(payload)
            if error:
                self._clear(canary)
            self._judged(canary, error)

    def failed(self, execution: Execution, error: BlipError) -> None:
        """Take the failure of a canary."""
        canary = self._own(execution)
        if canary is not None:
            del self._canaries[canary.device]
            self._clear(canary)
            self._judged(canary, error.message)

    # --- orders, see blip_node.orders.Devices -----------------------------------------------

    def order(self, devices: Sequence[str], event: Event, wish: str) -> None:
        """Have an operator's order happen to devices, with all that follows from it."""
        now = self._now()
        for reading in self._capacity.readings:
            if reading.info.id in devices:
                standing = self._standing(reading)
                self._do(standing, reading, standing.order(event, now, wish))
        kept = {
            device: why
            for device, why in self._cordons.devices.items()
            if device not in self.standings  # not found this time; its order stands
        }
        kept |= {each.device: each.wish for each in self.standings.values() if each.ordered}
        try:
            self._cordons.write(kept)
        except OSError as error:
            raise Unavailable(f"the order holds, but not over a restart: {error}") from error
        finally:
            self._host.changed()
            self.step(self._capacity)

    def left(self, devices: Sequence[str]) -> int:
        """Count the attempts on devices, and the replicas that are still being ended."""
        return sum(
            len(self._executions.on(device))
            + sum(each.state is Phase.STOPPING for each in self._replicas.on(device))
            for device in devices
        )


def _idle(replica: Replica) -> bool:
    """Whether nobody waits for it or runs on it; it may still be loading."""
    return not replica.jobs and not replica.waiting

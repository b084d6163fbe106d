"""Devices that differ, fail, belong to somebody or are being worked on: placement follows.

The nodes are real processes; their GPUs are those of the fake NVML, and change while they run.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from blip.gateway.call import LiveCall
from blip.kinds.echo import EchoInput
from blip.protocol import versions
from blip.protocol.link import LinkEvent
from blip.protocol.messages import Device, Hello, Message, NodeEntry, Order, Ordered
from blip.transport.links import Dialer
from blip_node.capacity.neighbour import QUIET_FOR
from blip_node.standing import FIRST_PAUSE
from tests.fake_nvml import RTX_4090, FakeGpus
from tests.mesh.rig import Rig

GIB = 2**30

#: One task at a time and paced work: how long a task takes is the device's speed and nothing else.
PACED = {"echo": {"source": "builtin:echo", "preload": True, "slots": 1}}


def gpu(number: int) -> dict[str, Any]:
    """A card with an id of its own: those of two fake machines would be the same."""
    return {**RTX_4090, "uuid": f"GPU-00000000-0000-0000-0001-{number:012d}"}


class Machines(Rig):
    """A mesh of nodes with one fake GPU each (``cards``), two by default."""

    def __init__(self, folder: Path, nodes: list[dict[str, Any]], **rig: Any) -> None:
        super().__init__(nodes=0, **rig)
        self.wanted = nodes
        self.gpus = [
            FakeGpus(folder / f"gpus-{number}", [gpu(number)]) for number in range(len(nodes))
        ]

    async def __aenter__(self) -> Machines:
        await super().__aenter__()
        try:
            await self.boot()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def boot(self) -> None:
        """Start the nodes, and wait until each has loaded its model."""
        for number, node in enumerate(self.wanted):
            await self.boot_one(number, node)
        await self.until(lambda: self.loaded() >= len(self.wanted), 40.0)

    async def boot_one(self, number: int, node: dict[str, Any]) -> None:
        """Start one node."""
        settings = {"nvml": True, "neighbour": "off", **node}
        await self.start_node(f"node-{number + 1}", env=self.gpus[number].env(), **settings)

    def entry(self, number: int) -> NodeEntry:
        """What the gateway knows of a node."""
        return next(e for e in self.dispatcher.nodes() if e.name == f"node-{number + 1}")

    def ready(self) -> list[str]:
        """The nodes that are there and have stated their devices."""
        return [
            entry.name
            for entry in self.dispatcher.nodes()
            if entry.status == "ready" and entry.advert.devices
        ]

    def device(self, number: int) -> Device:
        """What the gateway knows of a node's only device."""
        (device,) = self.entry(number).advert.devices
        return device

    def work(self, work: float) -> LiveCall:
        """Start one task."""
        return self.call("echo", "echo", EchoInput(text="x", work=work))

    @asynccontextmanager
    async def load(self, work: float, tasks: int) -> AsyncIterator[list[LiveCall]]:
        """Keep ``tasks`` tasks going; gives those that ended. Fails with the first that does."""
        ended: list[LiveCall] = []

        async def keep() -> None:
            while True:
                call = self.work(work)
                await call.answer()
                ended.append(call)

        keepers = [asyncio.create_task(keep()) for _ in range(tasks)]
        try:
            yield ended
        finally:
            for keeper in keepers:
                keeper.cancel()
            results = await asyncio.gather(*keepers, return_exceptions=True)
        for result in results:
            assert isinstance(result, asyncio.CancelledError), result

    @asynccontextmanager
    async def operator(self, number: int) -> AsyncIterator[Operator]:
        """Someone with a link to a node's data port."""
        operator = Operator(self, self.entry(number).endpoints[0])
        try:
            await self.until(lambda: operator.link.ready)
            yield operator
        finally:
            operator.link.close()


class Operator:
    """Gives orders, and keeps the answers by their number."""

    def __init__(self, rig: Rig, endpoint: str) -> None:
        self._rig = rig
        self._numbers = itertools.count(1)
        self.answers: list[Ordered] = []
        hello = Hello("gateway", "operator", 1, versions.LOW, versions.HIGH)
        self.link = Dialer(rig.context, endpoint, lambda: hello, self._on_event, data=True)

    def _on_event(self, event: LinkEvent | Message) -> None:
        if isinstance(event, Ordered):
            self.answers.append(event)

    def give(self, verb: str, device: str = "", **options: Any) -> int:
        """Send an order; return its number."""
        number = next(self._numbers)
        self.link.send(Order(number, verb, device, "", options))
        return number

    def end(self, number: int) -> Ordered | None:
        """The last answer to an order, if it has come."""
        ends = [a for a in self.answers if a.number == number and a.state != "running"]
        return ends[-1] if ends else None

    async def order(self, verb: str, device: str = "", **options: Any) -> Ordered:
        """Give an order and wait for its end."""
        number = self.give(verb, device, **options)
        await self._rig.until(lambda: self.end(number) is not None)
        end = self.end(number)
        assert end is not None
        return end


async def within(seconds: float, true: Callable[[], bool]) -> None:
    """Wait until something is so; fail if it takes longer."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.01)


async def test_unequal_devices_share_work_by_their_speed(tmp_path: Path) -> None:
    nodes = [{"speed": 1.0}, {"speed": 3.0}]
    async with Machines(tmp_path, nodes, models=PACED) as rig:
        assert [rig.device(n).id for n in (0, 1)] == [gpu(n)["uuid"] for n in (0, 1)]
        calls = [rig.work(0.2) for _ in range(200)]
        await asyncio.gather(*(call.answer() for call in calls))
        shares = Counter(call.node for call in calls)
        assert shares["node-2"] == pytest.approx(150, abs=15), shares


async def test_a_device_that_its_owner_uses_yields_and_comes_back(tmp_path: Path) -> None:
    nodes = [{"neighbour": "polite"}, {}]
    # enough waits that a second replica pays, cold or not
    async with Machines(tmp_path, nodes, models=PACED) as rig, rig.load(0.2, 15) as ended:
        await rig.until(lambda: {call.node for call in ended} == {"node-1", "node-2"})
        rig.gpus[0].set(0, memory_used=6 * GIB, processes=f"41:{6 * GIB}")
        await within(2.0, lambda: rig.device(0).state == "yielding")
        assert rig.device(0).reason == "Its owner is using it: 6.0 GiB by other programs."
        # what was placed before may still end there; then its idle replica is freed
        await rig.until(lambda: not rig.entry(0).advert.replicas)
        seen = len(ended)
        await rig.until(lambda: len(ended) >= seen + 20)
        assert {call.node for call in ended[seen:]} == {"node-2"}
        rig.gpus[0].set(0, memory_used=0, processes=None)
        quiet = time.monotonic()
        await rig.until(lambda: rig.device(0).state == "ready", QUIET_FOR + 10)
        assert time.monotonic() - quiet > QUIET_FOR - 1
        seen = len(ended)
        await rig.until(lambda: "node-1" in {call.node for call in ended[seen:]})


async def test_strict_stops_what_runs_and_it_goes_on_elsewhere(tmp_path: Path) -> None:
    async with Machines(tmp_path, [{"neighbour": "strict"}, {}]) as rig:
        calls = [rig.work(3.0) for _ in range(8)]
        await rig.until(lambda: all(call.task.state.value == "running" for call in calls))
        mine = [call for call in calls if call.node == "node-1"]
        assert mine
        rig.gpus[0].set(0, memory_used=6 * GIB, processes=f"41:{6 * GIB}")
        await within(3.0, lambda: all(call.node == "node-2" for call in calls))
        await asyncio.gather(*(call.answer() for call in calls))
        assert [call.task.place.attempt for call in mine] == [2] * len(mine)


async def test_a_fatal_xid_cordons_loses_nothing_and_a_canary_readmits(tmp_path: Path) -> None:
    async with Machines(tmp_path, [{}, {}]) as rig, rig.load(0.3, 12) as ended:
        await rig.until(lambda: {call.node for call in ended} == {"node-1", "node-2"})
        rig.gpus[0].xid(0, 79)
        await within(2.0, lambda: rig.device(0).state == "cordoned")
        cordoned = time.monotonic()
        assert rig.device(0).health == 0
        assert rig.device(0).reason.startswith("Xid 79: GPU has fallen off the bus.")
        await rig.until(lambda: not rig.nodes[0].workers())
        seen = len(ended)
        await rig.until(lambda: len(ended) >= seen + 24)
        assert {call.node for call in ended[seen:]} == {"node-2"}
        await rig.until(lambda: rig.device(0).state == "ready", FIRST_PAUSE + 15)
        assert time.monotonic() - cordoned > FIRST_PAUSE - 1
        assert rig.device(0).health == 1
        seen = len(ended)
        await rig.until(lambda: "node-1" in {call.node for call in ended[seen:]})
        # the same Xid again is news again
        rig.gpus[0].xid(0, 79)
        await within(2.0, lambda: rig.device(0).state == "cordoned")


async def test_drain_under_load_loses_nothing_and_uncordon_brings_it_back(tmp_path: Path) -> None:
    async with (
        Machines(tmp_path, [{}, {}]) as rig,
        rig.operator(0) as operator,
        rig.load(0.05, 6) as ended,
    ):
        await rig.until(lambda: {call.node for call in ended} == {"node-1", "node-2"})
        # with these it is not done at once, and has something to say
        slow = [rig.work(2.5) for _ in range(6)]
        await rig.until(lambda: all(call.task.state.value == "running" for call in slow))
        mine = [call for call in slow if call.node == "node-1"]
        assert mine
        number = operator.give("drain", reason="a new fan")
        await rig.until(lambda: rig.device(0).state == "draining")
        seen = len(ended)
        await rig.until(lambda: operator.end(number) is not None)
        await asyncio.gather(*(call.answer() for call in slow))
        assert [call.task.place.attempt for call in mine] == [1] * len(mine)
        told = [each for each in operator.answers if each.state == "running"]
        assert 1 <= len(told) <= 5
        assert told[0].details["left"] >= len(mine)
        done = operator.answers[-1]
        device = rig.device(0).id
        assert done == Ordered(
            number, "done", "", f"{device} drained", {"left": 0, "devices": [device]}
        )
        await rig.until(lambda: rig.device(0).state == "cordoned")
        assert rig.device(0).reason == "Cordoned by an operator: a new fan."
        assert not rig.entry(0).advert.draining  # the node is still one of us
        after = len(ended)
        await rig.until(lambda: len(ended) >= after + 50)
        assert {call.node for call in ended[after:]} == {"node-2"}
        assert after > seen
        # an operator's cordon outlives the agent
        rig.nodes[0].process.terminate()
        assert await rig.nodes[0].process.wait() == 0
        await rig.until(lambda: rig.ready() == ["node-2"])
        await rig.boot_one(0, {})
        await rig.until(lambda: "node-1" in rig.ready())
        assert rig.device(0).state == "cordoned"
        assert rig.device(0).reason == "Cordoned by an operator: a new fan."
        async with rig.operator(0) as another:
            assert (await another.order("uncordon", device)).state == "done"
        seen = len(ended)
        await rig.until(lambda: "node-1" in {call.node for call in ended[seen:]})


async def test_orders_that_cannot_be_carried_out_say_why(tmp_path: Path) -> None:
    async with Machines(tmp_path, [{}]) as rig, rig.operator(0) as operator:
        device = rig.device(0).id
        unknown = await operator.order("cordon", "gpu7")
        assert (unknown.state, unknown.code) == ("failed", "not_found")
        assert unknown.text == "node 'node-1' has no device 'gpu7'"
        assert unknown.details["hint"] == f"It has {device}."
        strange = await operator.order("explode", device)
        assert (strange.state, strange.code) == ("failed", "invalid_request")
        assert "cordon, drain" in strange.details["hint"]
        assert rig.device(0).state == "ready"
        # orders come from the broker just as well
        assert rig.broker is not None
        for verb, state in (("cordon", "cordoned"), ("uncordon", "ready")):
            for peer in rig.broker._listener.peers.values():
                if peer.hello.role == "node":
                    peer.send(Order(1, verb))
            await rig.until(lambda state=state: rig.device(0).state == state)  # type: ignore[misc]
        # a device that is gone now cannot be vouched for
        rig.gpus[0].set(0, lost=1)
        await within(3.0, lambda: rig.device(0).state == "cordoned")
        refused = await operator.order("uncordon", device)
        assert (refused.state, refused.code) == ("failed", "unavailable")
        assert f"device '{device}' is cordoned" in refused.text


async def test_a_schedule_that_cannot_be_read_stops_the_start(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with Rig(nodes=0) as rig:
        node = await rig.start_node("node-1", schedule=["mon 09:00-10:00", "someday 9-17"])
        assert await node.process.wait() == 2
    assert "node.schedule: 'someday 9-17'" in capfd.readouterr().err

"""Canaries of real models in real workers: they pass where the model works, and only there."""

from __future__ import annotations

import asyncio
import shutil
import struct
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq

from blip_node.agent import Agent, Identity
from blip_node.capacity import DeviceEvent, DeviceInfo, DeviceSample
from blip_node.capacity.neighbour import Limits
from blip_node.catalogue import Catalogue
from blip_node.cordons import Cordons
from blip_node.models.spec import ModelSpec
from blip_node.replicas import Place
from blip_node.standing import FIRST_PAUSE, Standing, State
from blip_node.supervisor import kill_forkserver
from blip_node.warden import Manners

MODELS = Path(__file__).parent.parent / "models"


class Processor:
    """A provider of the processor that can be made to report a fault: real ones have none."""

    name = "processor"
    fallback = False
    reason: str | None = None

    def __init__(self) -> None:
        self.report: Callable[[DeviceEvent], None]

    def probe(self) -> list[DeviceInfo]:
        return [DeviceInfo("cpu", 0, "cpu", "a processor")]

    def sample(self, own_pids: Collection[int]) -> list[DeviceSample]:
        return [DeviceSample("cpu", time.monotonic())]

    def watch(self, report: Callable[[DeviceEvent], None]) -> None:
        self.report = report

    def close(self) -> None:
        pass

    def fail(self) -> None:
        self.report(DeviceEvent("cpu", time.monotonic(), 79, "It fell off the bus.", True))


@asynccontextmanager
async def faulted(folder: Path, *specs: ModelSpec) -> AsyncIterator[Standing]:
    """A node whose only device has just had a fatal event."""
    catalogue = Catalogue()
    catalogue.add(specs)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    processor = Processor()
    agent = Agent(
        context=context,
        identity=Identity("id", "name", 1),
        binds=["tcp://127.0.0.1:*"],
        providers=[processor],
        catalogue=catalogue,
        place=Place(folder / "data", False, 1.0, 1),
        manners=Manners("off", Limits(1, 1.0), (), False),
        cordons=Cordons(folder / "cordons"),
    )
    try:
        await agent.start([])
        standings = agent._warden.standings
        await until(lambda: "cpu" in standings)
        processor.fail()
        await until(lambda: standings["cpu"].state is State.FAULTED)
        yield standings["cpu"]
    finally:
        await agent.close()
        kill_forkserver()
        context.term()


async def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", ["tiny-chat", "tiny-embed"])
async def test_a_model_that_works_readmits_its_device(tmp_path: Path, name: str) -> None:
    async with faulted(tmp_path, ModelSpec(name, str(MODELS / name))) as standing:
        assert standing.reason == "It fell off the bus. A canary task will try it."
        await until(lambda: standing.state is State.READY, FIRST_PAUSE + 30)
        assert standing.health == 1.0


async def test_numbers_that_are_none_do_not(tmp_path: Path) -> None:
    model = tmp_path / "sick"
    shutil.copytree(MODELS / "tiny-chat", model)
    weights = model / "model.safetensors"
    data = weights.read_bytes()
    # the format: the header's size in 8 bytes, the header, the numbers; all of these become NaN,
    # whether they are read as 16 or 32 bits
    start = 8 + struct.unpack("<Q", data[:8])[0]
    weights.write_bytes(data[:start] + b"\xff" * (len(data) - start))
    async with faulted(tmp_path, ModelSpec("sick", str(model))) as standing:
        await until(lambda: "The canary failed: " in standing.reason, FIRST_PAUSE + 30)
        assert standing.state is State.FAULTED


async def test_without_a_model_it_says_who_can_readmit_it(tmp_path: Path) -> None:
    async with faulted(tmp_path) as standing:
        assert "only `blip uncordon` readmits it" in standing.reason

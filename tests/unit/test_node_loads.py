"""Load and unload orders, with real workers: the kind ``echo`` starts in a fraction of a second."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from blip.errors import BlipError, WorkerCrashed
from blip.kinds import input_to_wire
from blip.kinds.echo import EchoInput
from blip.protocol.messages import Order, Ordered, Submit
from blip_node.capacity import DeviceInfo, Reading
from blip_node.catalogue import Catalogue
from blip_node.executions import Execution
from blip_node.loads import Loads
from blip_node.models.spec import ModelSpec
from blip_node.replica import State
from blip_node.replicas import Place, Replicas

TINY_CHAT = Path(__file__).parent.parent / "models" / "tiny-chat"
GIB = 2**30


class House:
    """A node without links: real replicas and workers, and whoever asks for them."""

    def __init__(self, folder: Path) -> None:
        self.devices = [
            Reading(DeviceInfo("slow", 0, "static", "Slow", memory_total=2 * GIB, speed=1.0)),
            Reading(DeviceInfo("fast", 1, "static", "Fast", memory_total=GIB, speed=3.0)),
        ]
        self.refused: dict[str, str] = {}
        self.outcomes: dict[bytes, bytes | BlipError] = {}
        shutil.copytree(TINY_CHAT, folder / "cut")
        self.catalogue = Catalogue()
        self.catalogue.add(
            [
                ModelSpec("echo", "builtin:echo", slots=1, keep_alive=600.0),
                ModelSpec("parrot", "builtin:echo"),
                ModelSpec("cut", str(folder / "cut")),
                ModelSpec("gone", str(folder / "nothing")),
            ]
        )
        weights = folder / "cut" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        self.replicas = Replicas(
            self,
            Place(folder, False, 1.0, 1),
            self.catalogue.footprints,
            lambda id: next(each for each in self.devices if each.info.id == id),
        )
        self.loads = Loads(
            self.catalogue,
            self.replicas,
            lambda: self.devices,
            lambda reading: self.refused.get(reading.info.id, ""),
            time.monotonic,
        )
        self.said: dict[int, list[Ordered]] = {}
        self.news = asyncio.Event()

    # what an agent is told about attempts

    def part(self, execution: Execution, payload: bytes) -> None:
        raise AssertionError("none of these tasks answers in parts")

    def done(
        self,
        execution: Execution,
        usage: dict[str, int],
        units: float,
        first: float,
        run: float,
        payload: bytes,
    ) -> None:
        self.outcomes[execution.task] = payload
        self.news.set()

    def failed(self, execution: Execution, error: BlipError) -> None:
        self.outcomes[execution.task] = error
        self.news.set()

    def changed(self) -> None:
        self.loads.check()
        self.news.set()

    # what tests do

    def give(self, verb: str, model: str, device: str = "", **options: Any) -> int:
        """Give an order; return its number."""
        number = len(self.said) + 1
        self.said[number] = []
        order = Order(number, verb, device, model, options)
        (self.loads.load if verb == "load" else self.loads.unload)(order, self.said[number].append)
        return number

    async def last(self, number: int) -> Ordered:
        """Wait for the end of an order."""
        while not self.said[number] or self.said[number][-1].state == "running":
            await self._wait()
        return self.said[number][-1]

    async def order(self, verb: str, model: str, device: str = "", **options: Any) -> Ordered:
        return await self.last(self.give(verb, model, device, **options))

    def submit(self, model: str, device: str, number: int, delay: float = 0.0) -> bytes:
        """Give a replica a task; return the task's id."""
        value = EchoInput(text=f"{number}", delay=delay)
        payload = input_to_wire(value)
        task = number.to_bytes(16, "big")
        submit = Submit(task, 1, "echo", model, device, 60.0, 1024, payload)
        replica = self.replicas.get(model, device)
        assert replica is not None
        self.replicas.submit(replica, Execution(submit, None, time.monotonic()))
        return task

    async def outcome(self, task: bytes) -> bytes | BlipError:
        while task not in self.outcomes:
            await self._wait()
        return self.outcomes[task]

    async def _wait(self) -> None:
        self.news.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.news.wait(), 0.5)
        self.replicas.tick(time.monotonic())
        self.loads.check()

    def state(self, model: str, device: str) -> State | None:
        replica = self.replicas.get(model, device)
        return replica.state if replica is not None else None


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    await made.replicas.start(["echo"])
    yield made
    await made.replicas.close()


async def test_a_load_goes_to_the_fastest_device_and_is_done_once(house: House) -> None:
    first = house.give("load", "echo")
    second = house.give("load", "echo", "fast")
    done = await house.last(first)
    assert done.state == "done"
    assert done.details["device"] == "fast"
    assert done.details["memory"] == 0
    assert house.said[first][0].state == "running"
    assert (await house.last(second)).details["device"] == "fast"
    assert len(house.replicas.pids) == 1
    again = await house.order("load", "echo")
    assert house.said[again.number] == [again], "it was loaded: nothing to report on the way"


async def test_a_device_that_takes_nothing_is_not_chosen(house: House) -> None:
    house.refused["fast"] = "its owner is using it"
    assert (await house.order("load", "echo")).details["device"] == "slow"
    failed = await house.order("load", "parrot", "fast")
    assert (failed.state, failed.code) == ("failed", "unavailable")
    assert "its owner is using it" in failed.text
    house.devices = []
    failed = await house.order("load", "parrot")
    assert failed.code == "unavailable"


async def test_a_model_that_is_too_large_fails_with_the_numbers(house: House) -> None:
    entry = house.catalogue.find("cut")
    entry.measured(3 * GIB, gpu=False)
    failed = await house.order("load", "cut")
    assert (failed.state, failed.code) == ("failed", "no_capacity")
    assert failed.details == {
        "need": 3 * GIB,
        "free": 2 * GIB - 256 * 2**20,
        "total": 2 * GIB,
        "device": "slow",
    }


async def test_a_load_that_fails_says_why(house: House) -> None:
    failed = await house.order("load", "cut", "slow")
    assert (failed.state, failed.code) == ("failed", "model_load_failed")
    assert "cut off" in failed.text
    assert house.state("cut", "slow") is State.FAILED
    done = await house.order("unload", "cut")
    assert (done.state, done.details["replicas"]) == ("done", 1)
    assert house.state("cut", "slow") is None


@pytest.mark.parametrize(
    ("verb", "model", "device", "options", "code", "word"),
    [
        ("load", "ecko", "", {}, "model_not_found", "echo"),
        ("unload", "ecko", "", {}, "model_not_found", "echo"),
        ("load", "gone", "", {}, "model_load_failed", "nothing"),
        ("load", "", "", {}, "invalid_request", "name of a model"),
        ("load", "echo", "cuda:0", {}, "invalid_request", "cuda:0"),
        ("load", "echo", "", {"pin": 1}, "invalid_request", "'pin'"),
        ("load", "echo", "", {"keep_alive": "5m"}, "invalid_request", "'keep_alive'"),
        ("load", "echo", "", {"keep_alive": -1}, "invalid_request", "'keep_alive'"),
        ("load", "echo", "", {"keep_alive": True}, "invalid_request", "'keep_alive'"),
        ("load", "echo", "", {"keep_alive": float("nan")}, "invalid_request", "'keep_alive'"),
        ("unload", "echo", "", {"force": "yes"}, "invalid_request", "'force'"),
    ],
)
async def test_a_wrong_order_fails_at_once_and_says_what_is_wrong(
    house: House,
    verb: str,
    model: str,
    device: str,
    options: dict[str, Any],
    code: str,
    word: str,
) -> None:
    number = house.give(verb, model, device, **options)
    [said] = house.said[number]
    assert (said.state, said.code) == ("failed", code)
    assert word in said.text
    assert not list(house.replicas)


async def test_an_order_overrides_what_is_configured(house: House) -> None:
    await house.order("load", "echo", "slow")
    replica = house.replicas.get("echo", "slow")
    assert replica is not None
    assert (replica.pinned, replica.keep_alive) == (False, 600.0)
    await house.order("load", "echo", "slow", pin=True)
    assert (replica.pinned, replica.keep_alive) == (True, 600.0)
    await house.order("load", "echo", "slow", pin=False, keep_alive=None)
    assert (replica.pinned, replica.keep_alive) == (False, None)
    await house.order("load", "echo", "slow", keep_alive=0)
    assert replica.keep_alive == 0.0
    house.replicas.tick(time.monotonic())
    assert replica.state is State.STOPPING


async def test_unload_takes_all_replicas_unless_told_which(house: House) -> None:
    await house.order("load", "echo", "slow")
    await house.order("load", "echo", "fast")
    done = await house.order("unload", "echo", "fast")
    assert (done.state, done.details["replicas"]) == ("done", 1)
    assert house.state("echo", "slow") is State.READY
    await house.order("load", "echo", "fast")
    done = await house.order("unload", "echo")
    assert done.details["replicas"] == 2
    assert not list(house.replicas)


async def test_unload_finishes_what_runs_and_what_waits(house: House) -> None:
    await house.order("load", "echo", "slow")
    tasks = [house.submit("echo", "slow", number, delay=0.2) for number in range(3)]
    number = house.give("unload", "echo")
    assert house.said[number][0].state == "running"
    assert house.said[number][0].details["jobs"] == 3
    assert (await house.last(number)).state == "done"
    assert [house.outcomes[task] for task in tasks] == [b"0", b"1", b"2"]


async def test_force_stops_what_runs(house: House) -> None:
    await house.order("load", "echo", "slow")
    task = house.submit("echo", "slow", 1, delay=60.0)
    number = house.give("unload", "echo", force=True)
    assert isinstance(await house.outcome(task), WorkerCrashed)
    assert (await house.last(number)).state == "done"


async def test_a_cancel_lets_a_replica_go_that_waited_for_it(house: House) -> None:
    house.give("load", "echo", "slow")
    replica = house.replicas.get("echo", "slow")
    assert replica is not None
    house.submit("echo", "slow", 1)
    [execution] = replica.waiting
    number = house.give("unload", "echo")
    assert house.replicas.cancel(execution)
    assert (await house.last(number)).state == "done"


async def test_a_load_order_keeps_what_was_about_to_go(house: House) -> None:
    await house.order("load", "echo", "slow")
    task = house.submit("echo", "slow", 1, delay=0.3)
    leaving = house.give("unload", "echo")
    assert (await house.order("load", "echo")).state == "done"
    failed = await house.last(leaving)
    assert (failed.state, failed.code) == ("failed", "unavailable")
    assert "stays" in failed.text
    assert await house.outcome(task) == b"1"
    assert house.state("echo", "slow") is State.READY


async def test_a_load_order_waits_for_the_end_of_an_unload(house: House) -> None:
    await house.order("load", "echo", "slow")
    [before] = house.replicas.pids
    unloading = house.give("unload", "echo")
    assert house.state("echo", "slow") is State.STOPPING
    loading = house.give("load", "echo", "slow")
    assert (await house.last(unloading)).state == "done"
    assert (await house.last(loading)).state == "done"
    assert before not in house.replicas.pids


async def test_a_load_that_is_unloaded_first_fails(house: House) -> None:
    loading = house.give("load", "echo", "slow")
    unloading = house.give("unload", "echo", force=True)
    failed = await house.last(loading)
    assert (failed.state, failed.code) == ("failed", "unavailable")
    assert (await house.last(unloading)).state == "done"

"""Who holds a device's memory, and what a declared device may be filled with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blip_node.capacity import DeviceInfo, DeviceSample, Reading
from blip_node.catalogue import CPU_BYTES, Catalogue, Entry
from blip_node.gauge import CONTEXT_BYTES
from blip_node.memory import Memory, free_memory, held, reserved
from blip_node.models.spec import ModelSpec
from blip_node.replica import Replica, State

MODELS = Path(__file__).parent.parent / "models"
MIB = 2**20
NOW = 100.0


def reading(total: int | None, free: int | None = None, *, sampled: bool = True) -> Reading:
    info = DeviceInfo("one", 0, "static" if free is None else "nvidia", "One", memory_total=total)
    return Reading(info, DeviceSample("one", 0.0, memory_free=free) if sampled else None)


def replica(model: str, memory: int, state: State = State.READY, **facts: Any) -> Replica:
    made = Replica(model, "one", 1, memory, 0.0)
    made.state = state
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def entry() -> Entry:
    catalogue = Catalogue()
    catalogue.add([ModelSpec("tiny-chat", str(MODELS / "tiny-chat"))])
    return catalogue.find("tiny-chat")


def memory(there: list[Replica], device: Reading | None) -> Memory:
    return Memory(lambda: there, lambda id: device, lambda: NOW)


def test_what_is_held_and_what_is_promised() -> None:
    there = [
        replica("ready", 1),
        replica("leaving", 2, leaving=True),
        replica("stopping", 4, State.STOPPING, worker=object()),
        replica("ended", 8, State.STOPPING),
        replica("failed", 16, State.FAILED),
        replica("failing", 32, State.FAILED, worker=object()),
        replica("loading", 64, State.LOADING, worker=object()),
        replica("backoff", 128, State.BACKOFF),
        replica("elsewhere", 256, device="two"),
    ]
    assert held("one", there) == 1 + 2 + 4 + 32
    assert reserved("one", there) == 64 + 128


def test_a_device_that_tells_is_believed_and_a_declared_one_is_kept_account_of() -> None:
    there = [replica("m", 300)]
    assert free_memory(reading(1000, 50), there) == 50
    assert free_memory(reading(1000), there) == 700
    assert free_memory(reading(1000, sampled=False), there) == 700
    assert free_memory(reading(200), there) == 0
    assert free_memory(reading(None), there) is None


def test_the_first_estimate_is_from_the_files_and_then_what_was_measured(entry: Entry) -> None:
    weights = entry.load_bytes(gpu=False)
    assert weights > 900_000
    assert CPU_BYTES + weights < entry.memory(gpu=False) < CPU_BYTES + 20 * weights
    assert entry.memory(gpu=True) > CONTEXT_BYTES
    entry.measured(77 * MIB, gpu=False)
    assert entry.memory(gpu=False) == 77 * MIB
    assert entry.memory(gpu=True) > CONTEXT_BYTES
    told = entry.advert(0.0, gpu=False)
    assert told.memory == 77 * MIB
    assert told.parameters == 246_336
    assert (told.min_replicas, told.max_replicas) == (0, 0)


def test_a_kind_without_a_model_takes_nothing() -> None:
    catalogue = Catalogue()
    catalogue.add([ModelSpec("echo", "builtin:echo")])
    entry = catalogue.find("echo")
    made = replica("echo", 0)
    memory([made], reading(1000)).measured(made, entry, 50 * MIB, gpu=False)
    assert (entry.memory(gpu=False), made.memory, made.peak) == (0, 0, 0)


def test_a_measured_device_frees_what_a_model_takes_now(entry: Entry) -> None:
    made = replica("tiny-chat", 1)
    books = memory([made], reading(1000 * MIB, 500 * MIB))
    books.measured(made, entry, 90 * MIB, gpu=False)
    books.measured(made, entry, 60 * MIB, gpu=False)  # the next life, which is yet to grow
    assert (made.memory, made.peak, entry.memory(gpu=False)) == (60 * MIB, 90 * MIB, 90 * MIB)


def test_a_declared_device_reserves_what_a_model_took_before(entry: Entry) -> None:
    made = replica("tiny-chat", 1)
    books = memory([made], reading(1000 * MIB))
    books.measured(made, entry, 90 * MIB, gpu=False)
    books.measured(made, entry, 60 * MIB, gpu=False)
    assert made.memory == 90 * MIB


def test_growth_beyond_a_declared_device_costs_idle_neighbours() -> None:
    grown = replica("grown", 600)
    idle, pinned = replica("idle", 300), replica("pinned", 300, pinned=True)
    assert memory([grown, idle], reading(900)).beyond(grown) == ((), None)
    assert memory([grown, idle], reading(899)).beyond(grown) == ((idle,), None)
    victims, error = memory([grown, idle, pinned], reading(800)).beyond(grown)
    assert victims == (idle,)
    assert error is not None
    assert error.details["need"] == 600
    assert error.details["total"] == 800
    assert memory([grown, idle], reading(800, 0)).beyond(grown) == ((), None), "that one tells"
    assert memory([grown, idle], None).beyond(grown) == ((), None)


def test_room_counts_loads_under_way_and_everyone_else(entry: Entry) -> None:
    need = entry.memory(gpu=False)
    idle = replica("idle", need)
    loading = replica("loading", 50 * MIB, State.LOADING)
    books = memory([idle, loading], None)
    room = books.room(entry, reading(256 * MIB + 2 * need + 50 * MIB))
    assert (room.fits, room.evict, room.need) == (True, (), need)
    room = books.room(entry, reading(256 * MIB + 2 * need + 50 * MIB - 1))
    assert (room.fits, room.evict) == (True, (idle,))
    room = books.room(entry, reading(256 * MIB + need + 50 * MIB - 1))
    assert not room.fits


def test_a_load_that_ran_out_of_memory_raises_what_is_believed(entry: Entry) -> None:
    made = replica("tiny-chat", 1, State.LOADING, had=10 * MIB)
    believed = entry.memory(gpu=False)
    error = memory([made], reading(64 * MIB)).outgrown(made, entry, "no more", gpu=False)
    assert entry.memory(gpu=False) > believed
    assert error.details == {
        "need": entry.memory(gpu=False),
        "free": 10 * MIB,
        "total": 64 * MIB,
        "device": "one",
    }
    assert error.retryable
    assert "no more" in error.message


def test_a_run_that_ran_out_of_memory_says_what_is_free(entry: Entry) -> None:
    made, other = replica("tiny-chat", 40), replica("other", 30)
    books = memory([made, other], reading(100))
    error = books.exhausted(made, "no more")
    assert (error.details["need"], error.details["free"]) == (40, 30)
    assert books.idle_beside(made) == (other,)
    other.pinned = True
    assert books.idle_beside(made) == ()
    silent = memory([made], reading(None)).exhausted(made, "no more")
    assert "does not tell" in silent.message


def test_bandwidth_is_measured_by_loads() -> None:
    made = replica("m", 1, load_bytes=1000)
    books = memory([made], None)
    books.loaded(made, 2.0)
    assert books.bandwidth == {"one": 500.0}
    books.loaded(replica("echo", 0), 2.0)
    assert books.bandwidth == {"one": 500.0}

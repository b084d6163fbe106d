"""What a simulated device does over time, against what one works out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.protocol.attempt import Refusal
from blip.protocol.messages import Model
from blip.sim.machine import GIB, Device, Job
from blip.sim.scenario import Nodes

#: Half a gigabyte a second: loading this takes a second, and one to start.
BYTES = 500_000_000


def model(name: str = "m", memory: float = 4, slots: int = 1, load: int = BYTES) -> Model:
    return Model(name, ["echo"], int(memory * GIB), load, slots)


def device(*models: Model, crowding: float = 0.125, **make: object) -> Device:
    return Device(
        Nodes("n", **make),  # type: ignore[arg-type]
        {each.name: each for each in models or (model(),)},
        crowding,
    )


def job(number: int, size: float = 1.0, name: str = "m") -> Job:
    return Job((number, 1), name, size, size)


def ends(of: Device, until: float = 1e3) -> dict[int, float]:
    return {each.key[0]: round(each.ended, 6) for each in of.run_to(until)}


def test_one_slot_is_first_come_first_served_at_its_speed() -> None:
    card = device(speed=2.0)
    card.install(["m"])
    for number, size in enumerate((2.0, 4.0, 1.0)):
        assert card.submit(job(number, size)) is None
    assert ends(card) == {0: 1.0, 1: 3.0, 2: 3.5}
    assert card.busy == pytest.approx(3.5)
    assert card.done == pytest.approx(7.0)


def test_a_batch_slows_each_and_speeds_all() -> None:
    card = device(model(slots=4), crowding=0.5)
    card.install(["m"])
    for number in range(3):
        card.submit(job(number))
    # three together: each at 1 / (1 + 0.5 x 2)
    assert ends(card) == {0: 2.0, 1: 2.0, 2: 2.0}


def test_replicas_at_work_share_the_device() -> None:
    card = device(model("a"), model("b"))
    card.install(["a", "b"])
    card.submit(job(0, 1.0, "a"))
    card.submit(job(1, 2.0, "b"))
    # both at half speed until a is done at 2, then b has 1 left
    assert ends(card) == {0: 2.0, 1: 3.0}


def test_a_load_takes_its_time_and_the_device() -> None:
    card = device(model("a"), model("b"))
    card.install(["a"])
    card.submit(job(0, 1.5, "a"))
    assert card.run_to(1.0) == []
    card.submit(job(1, 1.0, "b"))
    # from 1 to 3 it loads and nothing else goes on; then both share until a is done
    assert ends(card) == {0: 4.0, 1: 4.5}
    assert card.loads == [1.0]
    assert card.measured == pytest.approx(5e8)


def test_a_load_that_shares_leaves_something() -> None:
    card = device(model("a"), model("b"), load_share=0.5)
    card.install(["a"])
    card.submit(job(0, 3.0, "a"))
    card.load("b")
    assert ends(card) == {0: 4.0}, "two seconds at half speed, two at full"


def test_throttling_changes_the_speed_in_mid_run() -> None:
    card = device(throttle=((1.0, 0.5), (3.0, 1.0)))
    card.install(["m"])
    card.submit(job(0, 3.0))
    assert ends(card) == {0: 4.0}, "1 unit by 1 s, 1 more by 3 s, the last at 4 s"


def test_idle_replicas_make_room_the_longest_unused_first() -> None:
    card = device(model("a", 10), model("b", 10), model("c", 10))
    card.install(["a", "b"])
    card.submit(job(0, 1.0, "a"))
    card.run_to(1.0)
    assert card.submit(job(1, 1.0, "c")) is None
    assert set(card.replicas) == {"a", "c"}


def test_a_node_refuses_what_does_not_fit_and_what_is_too_much() -> None:
    card = device(model("a", 20), model("b", 20), model("c", 30))
    card.install(["a"])
    assert [card.submit(job(number, 1.0, "a")) for number in range(3)] == [None] * 3
    assert card.submit(job(3, 1.0, "a")) is Refusal.BUSY
    assert card.submit(job(4, 1.0, "b")) is Refusal.NO_MEMORY, "a is at work"
    assert card.submit(job(5, 1.0, "c"), patient=True) is Refusal.NO_MEMORY, "it never fits"
    assert card.submit(job(6, 1.0, "d")) is Refusal.UNKNOWN_MODEL


def test_a_patient_node_serves_in_order_and_lets_nobody_starve() -> None:
    card = device(model("a", 20), model("b", 20))
    card.install(["a"])
    for number, name in enumerate("aabaa"):
        assert card.submit(job(number, 1.0, name), patient=True) is None
    # a, a, then a load of 2 s for b, then one for a again
    assert ends(card) == {0: 1.0, 1: 2.0, 2: 5.0, 3: 8.0, 4: 9.0}
    assert len(card.loads) == 2


def test_foreign_memory_keeps_models_out_until_it_goes() -> None:
    card = device(model("a", 20), foreign=((0.0, 10.0), (5.0, 0.0)))
    assert card.free(1.0) == 14 * GIB
    assert card.submit(job(0, 1.0, "a")) is Refusal.NO_MEMORY
    card.queue.append(job(1, 1.0, "a"))
    assert ends(card) == {1: 8.0}


def test_a_load_under_way_fills_memory_bit_by_bit() -> None:
    card = device(model("a", 20), model("b", 20))
    assert card.load("a")
    card.run_to(1.0)
    assert card.free(1.0) == 14 * GIB
    assert not card.load("b"), "what is promised to a is not free"


def test_orders_load_and_unload() -> None:
    card = device(model("a"))
    assert card.load("a")
    assert card.load("a")
    assert not card.load("x")
    assert not card.unload("a"), "it is still loading"
    card.run_to(3.0)
    card.submit(job(0, 1.0, "a"))
    assert not card.unload("a"), "it is at work"
    card.run_to(5.0)
    assert card.unload("a")
    assert card.unload("a")
    assert card.replicas == {}


def test_what_has_not_begun_can_be_taken_back() -> None:
    card = device()
    card.install(["m"])
    for number in range(3):
        card.submit(job(number))
    assert not card.take_back((0, 1), begun=False)
    assert card.take_back((1, 1), begun=False)
    assert card.take_back((0, 1), begun=True)
    assert not card.take_back((7, 1), begun=True)
    assert ends(card) == {2: 1.0}


def test_a_copy_goes_its_own_way() -> None:
    card = device(model("a"), model("b"))
    card.install(["a"])
    card.submit(job(0, 1.0, "a"))
    card.submit(job(1, 1.0, "b"))
    twin = card.copy()
    ahead = ends(twin)
    assert card.now == 0.0
    assert card.jobs()[0].left == 1.0
    assert ends(card) == ahead


@settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(
        st.tuples(
            st.floats(0, 20),
            st.sampled_from("abc"),
            st.floats(0.1, 5),
            st.booleans(),
        ),
        max_size=25,
    ),
    slots=st.integers(1, 3),
    speed=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_whatever_comes_is_done_in_order_within_memory(
    jobs: list[tuple[float, str, float, bool]], slots: int, speed: float
) -> None:
    card = device(*(model(name, 11, slots) for name in "abc"), speed=speed, crowding=0.2)
    taken: dict[int, float] = {}
    began: dict[str, list[float]] = {}
    over: list[Job] = []
    for number, (at, name, size, patient) in enumerate(sorted(jobs)):
        over += card.run_to(at)
        if card.submit(job(number, size, name), patient=patient) is None:
            taken[number] = size
        assert sum(replica.memory for replica in card.replicas.values()) <= card.memory
    over += card.run_to(1e4)
    assert card.next_at() == math.inf
    assert {each.key[0] for each in over} == set(taken)
    assert card.done == pytest.approx(sum(taken.values()), abs=1e-4)
    assert [each.ended for each in over] == sorted(each.ended for each in over)
    for each in sorted(over, key=lambda each: each.key):
        began.setdefault(each.model, []).append(each.began)
        assert each.ended - each.began >= each.size / speed - 1e-6
    for times in began.values():
        assert times == sorted(times)

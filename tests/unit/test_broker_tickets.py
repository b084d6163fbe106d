"""The queue."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.broker.demand import Demand
from blip.broker.settings import Settings
from blip.broker.tickets import Ticket, Tickets, rank
from blip.errors import ConfigError
from tests.unit.broker_mesh import place

SETTINGS = Settings(queue_limit=10, ageing=10, patience=30)


def ticket(
    priority: int = 5, now: float = 0.0, deadline: float = math.inf, model: str = "m"
) -> Ticket:
    return Ticket(
        place(model, priority=priority),
        "g",
        enqueued=now,
        deadline=deadline,
        rank=rank(priority, now, deadline, SETTINGS),
        demand=Demand(("chat", model), 1.0),
    )


def order(*tickets: Ticket) -> list[int]:
    queue = Tickets(SETTINGS)
    for each in tickets:
        queue.add(each)
    return [tickets.index(each) for each in queue]


def test_first_come_first_served_within_a_class() -> None:
    assert order(ticket(now=2), ticket(now=1), ticket(now=3), ticket(now=3)) == [1, 0, 2, 3]


def test_a_better_priority_goes_first_until_the_other_has_waited_long_enough() -> None:
    assert order(ticket(6, now=0), ticket(5, now=9)) == [1, 0]
    assert order(ticket(6, now=0), ticket(5, now=11)) == [0, 1]
    assert order(ticket(10, now=0), ticket(1, now=89)) == [1, 0]
    assert order(ticket(10, now=0), ticket(1, now=91)) == [0, 1]


def test_priorities_beyond_the_scale_count_as_its_ends() -> None:
    assert order(ticket(-50, now=1), ticket(1, now=0), ticket(99, now=0)) == [1, 0, 2]


def test_a_near_deadline_goes_first_and_a_far_one_changes_nothing() -> None:
    assert order(ticket(now=0), ticket(now=5, deadline=20)) == [1, 0]
    assert order(ticket(now=0, deadline=25), ticket(now=5, deadline=20)) == [1, 0]
    assert order(ticket(now=0, deadline=600), ticket(now=1)) == [0, 1]
    assert order(ticket(now=0), ticket(now=1, deadline=600)) == [0, 1]


def test_the_last_part_is_kept_for_the_better_half() -> None:
    queue = Tickets(SETTINGS)
    for _ in range(8):
        assert not queue.full(10)
        queue.add(ticket(10))
    assert queue.full(6)
    assert not queue.full(5)
    queue.add(ticket(5))
    queue.add(ticket(1))
    assert queue.full(1)


def test_lanes_are_merged_in_order() -> None:
    queue = Tickets(SETTINGS)
    first, second, third = ticket(now=0, model="x"), ticket(now=1, model="y"), ticket(now=2)
    for each in (third, second, first):
        queue.add(each)
    assert queue.first(2) == [first, second]
    assert queue.first_of([("chat", "m"), ("chat", "x"), ("chat", "nobody")], 9) == [first, third]
    assert queue.first_of([("chat", "y")], 9) == [second]
    assert queue.first_of([("chat", "x"), ("chat", "y"), ("chat", "m")], 2) == [first, second]
    assert queue.first_of([], 9) == []
    queue.remove(second)
    assert queue.get(*second.key) is None
    assert queue.get(*first.key) is first
    assert sorted(queue.lanes()) == [("chat", "m"), ("chat", "x")]
    assert first.tenant == ""


def test_deadlines_pass() -> None:
    queue = Tickets(SETTINGS)
    soon, later, gone = ticket(deadline=5), ticket(deadline=9), ticket(deadline=5)
    for each in (later, soon, gone, ticket()):
        queue.add(each)
    queue.remove(gone)
    assert queue.expired(4.9) == []
    assert queue.expired(5.0) == [soon]
    queue.remove(soon)
    assert queue.expired(99.0) == [later]
    assert len(queue) == 2, "who asks for the expired removes them"


def test_deadlines_of_tickets_served_long_before_do_not_pile_up() -> None:
    queue = Tickets(SETTINGS)
    stays = ticket(deadline=500)
    queue.add(stays)
    for _ in range(1000):
        each = ticket(deadline=600)
        queue.add(each)
        queue.remove(each)
    assert len(queue._deadlines) < 100
    assert queue.expired(550.0) == [stays]


@given(
    st.lists(
        st.tuples(st.integers(1, 10), st.floats(0, 100), st.floats(0, 100), st.sampled_from("abc")),
        max_size=30,
    ),
    st.data(),
)
def test_the_queue_is_always_in_order(
    given: list[tuple[int, float, float, str]], data: st.DataObject
) -> None:
    queue = Tickets(Settings(queue_limit=100))
    there: list[Ticket] = []
    for priority, now, left, model in given:
        each = ticket(priority, now, now + left, model)
        queue.add(each)
        there.append(each)
        if len(there) > 3 and data.draw(st.booleans()):
            queue.remove(there.pop(data.draw(st.integers(0, len(there) - 1))))
    expected = sorted(there, key=lambda each: (each.rank, each.number))
    assert list(queue) == expected
    for model in "abc":
        lane = [each for each in expected if each.place.model == model]
        assert queue.first_of([("chat", model)], 99) == lane


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("queue_limit", -1),
        ("queue_reserve", 1.0),
        ("ageing", -1.0),
        ("patience", math.inf),
        ("prefetch", -1),
        ("headroom", -1),
        ("crowding", math.nan),
        ("lookahead", 0),
        ("decisions", 0),
        ("refusal_pause", -0.1),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        Settings(**{field: value})  # type: ignore[arg-type]

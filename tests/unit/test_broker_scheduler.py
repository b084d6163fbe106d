"""Where attempts are placed, what waits, and what events do to both."""

from __future__ import annotations

from collections import Counter

import pytest

from blip.broker.decisions import Decision
from blip.broker.scheduler import Command, Scheduler
from blip.broker.settings import Settings
from blip.protocol.messages import (
    Advert,
    Deny,
    Grant,
    Lease,
    Message,
    Place,
    Release,
    Replica,
    Running,
)
from tests.unit.broker_mesh import GIB, advert, check, device, join, model, place, ready, scheduler

G = "gateway"


def granted(answer: Message | None) -> Grant:
    assert isinstance(answer, Grant), answer
    return answer


def denied(answer: Message | None) -> Deny:
    assert isinstance(answer, Deny), answer
    return answer


def only(commands: list[Command] | None) -> Grant | Deny:
    assert commands is not None
    ((gateway, message),) = commands
    assert gateway == G
    assert isinstance(message, Grant | Deny)
    return message


def done(
    broker: Scheduler, what: Place | Grant, now: float, *, units: float = 0.0, run: float = 0.0
) -> list[Command]:
    return broker.release(G, Release(what.task, what.attempt, "done", units, run), now)


def warm(slots: int = 1, **more: object) -> Advert:
    """An advert of a node with the model loaded."""
    return advert(models=[model(slots=slots)], replicas=[ready(slots=slots)], **more)  # type: ignore[arg-type]


# --- the least cost wins ------------------------------------------------------------------------


def test_a_grant_names_node_incarnation_and_device_and_predicts() -> None:
    broker = scheduler()
    join(broker, "a", warm(), incarnation=9)
    request = place(units=80)
    grant = granted(broker.place(request, G, 1.0))
    assert grant[:5] == (request.task, 1, "a", 9, "gpu0")
    assert (grant.wait, grant.load) == (0, 0)
    assert grant.service == pytest.approx(80 / 40), "the kind's default rate"
    check(broker)


def test_faster_is_better_and_warm_is_better() -> None:
    broker = scheduler()
    join(broker, "slow", warm())
    join(broker, "fast", advert([device(speed=3)], [model()], [ready()]))
    join(broker, "cold", advert([device(speed=8)]))
    assert granted(broker.place(place(), G, 1.0)).node == "fast"


def test_a_cold_but_much_faster_device_wins_when_there_is_enough_to_do() -> None:
    broker = scheduler()
    join(broker, "slow", warm())
    join(broker, "fast", advert([device(speed=10, bandwidth=4 * GIB)]))
    # loading takes 2 s and counts twice; at 40 units a second the slow one needs 2.5 s or 25 s
    assert granted(broker.place(place(units=100), G, 1.0)).node == "slow"
    grant = granted(broker.place(place(units=1000), G, 1.0))
    assert grant.node == "fast"
    assert grant.load == pytest.approx(2.0)
    check(broker)


def test_equal_idle_nodes_take_turns() -> None:
    broker = scheduler()
    for name in "abc":
        join(broker, name, warm())
    order = []
    for step in range(9):
        grant = granted(broker.place(place(), G, step))
        done(broker, grant, step + 0.5, units=100, run=0.5)
        order.append(grant.node)
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert order[:3] * 3 == order


@pytest.mark.parametrize("crowding", [0.125, 0.0])
def test_thirty_two_chats_split_evenly_over_two_nodes(crowding: float) -> None:
    broker = scheduler(Settings(crowding=crowding))
    for name in "ab":
        join(broker, name, warm(slots=16))
    nodes = Counter(granted(broker.place(place(), G, step / 100)).node for step in range(32))
    assert nodes == {"a": 16, "b": 16}
    check(broker)


def test_crowding_makes_slower_and_is_predicted() -> None:
    broker = scheduler(Settings(crowding=0.5))
    join(broker, "a", warm(slots=3))
    services = [granted(broker.place(place(units=40), G, 0.0)).service for _ in range(3)]
    assert services == pytest.approx([1.0, 1.5, 2.0])


def test_a_second_model_at_work_on_the_device_halves_its_speed() -> None:
    broker = scheduler()
    both = [model("m"), model("n")]
    join(broker, "a", advert(models=both, replicas=[ready("m"), ready("n")]))
    assert granted(broker.place(place("m", units=40), G, 0.0)).service == pytest.approx(1.0)
    assert granted(broker.place(place("n", units=40), G, 0.0)).service == pytest.approx(2.0)
    check(broker)


def test_a_neighbour_sends_new_work_to_the_quiet_node() -> None:
    broker = scheduler()
    both = [model("m"), model("n")]
    for name in "ab":
        join(broker, name, advert(models=both, replicas=[ready("m"), ready("n")]))
    first = granted(broker.place(place("m"), G, 0.0)).node
    second = granted(broker.place(place("n"), G, 0.0)).node
    assert {first, second} == {"a", "b"}


def test_an_ailing_device_is_used_last() -> None:
    broker = scheduler()
    join(broker, "hot", advert([device(health=0.4)], replicas=[ready()]))
    join(broker, "fine", advert([device(speed=0.6)], replicas=[ready()]))
    assert granted(broker.place(place(), G, 0.0)).node == "fine"
    assert granted(broker.place(place(), G, 0.0)).node == "hot"


def test_kinds_keep_their_rates_apart() -> None:
    broker = scheduler()
    join(broker, "a", advert(models=[model("m", "chat", "embedding")], replicas=[ready(slots=4)]))
    done(broker, granted(broker.place(place(), G, 0.0)), 9.0, units=100, run=8.0)
    embedding = granted(broker.place(place(kind="embedding"), G, 10.0))
    done(broker, embedding, 19.0, units=100, run=1.0)
    again = granted(broker.place(place(units=100), G, 20.0))
    assert again.service == pytest.approx(8.0)
    check(broker)


def test_duplicate_kinds_models_and_devices_in_an_advert_count_once() -> None:
    broker = scheduler()
    twice = model("m", "chat", "chat")
    join(broker, "a", advert([device(), device()], [twice, twice], [ready(), ready()]))
    assert granted(broker.place(place(), G, 0.0)).node == "a"
    check(broker)


# --- loading and memory -------------------------------------------------------------------------


def test_a_burst_loads_a_batching_model_on_one_node_only() -> None:
    broker = scheduler()
    for name in "abcdef":
        join(broker, name, advert(models=[model(slots=16)]))
    nodes = Counter(
        granted(broker.place(place(units=100), G, step / 100)).node for step in range(6)
    )
    assert len(nodes) == 1, nodes
    check(broker)


def test_who_comes_during_a_load_waits_for_what_is_left_of_it() -> None:
    broker = scheduler()
    join(broker, "a", advert([device(bandwidth=GIB)], [model(slots=4, load=9)]))
    assert granted(broker.place(place(), G, 0.0)).load == pytest.approx(10.0)
    assert granted(broker.place(place(), G, 4.0)).load == pytest.approx(6.0)
    loading = Replica("m", "gpu0", "loading", 4, 1, 0, 4 * GIB, progress=0.5, load_seconds=3.0)
    commands = broker.advert("a", advert([device()], [model(slots=4)], [loading]), 5.0)
    assert commands == []
    assert granted(broker.place(place(), G, 6.0)).load == pytest.approx(2.0), "3 s more at 5.0"
    check(broker)


def test_a_load_that_is_granted_reserves_its_memory() -> None:
    broker = scheduler()
    join(broker, "a", advert([device(total=10)], [model("m", memory=6), model("n", memory=6)]))
    granted(broker.place(place("m"), G, 0.0))
    assert broker.place(place("n"), G, 0.0) is None
    # the next advert does not show the load yet
    join(broker, "a", advert([device(total=10)], [model("m", memory=6), model("n", memory=6)]))
    assert broker.place(place("n"), G, 0.1) is None
    check(broker)


def test_a_load_that_never_happens_gives_its_memory_back() -> None:
    broker = scheduler()
    join(broker, "a", advert([device(total=10)], [model("m", memory=6), model("n", memory=6)]))
    grant = granted(broker.place(place("m"), G, 0.0))
    waiting = place("n")
    assert broker.place(waiting, G, 0.0) is None
    answer = only(broker.release(G, Release(grant.task, 1, "cancelled"), 1.0))
    assert answer.task == waiting.task
    assert isinstance(answer, Grant)
    check(broker)


def test_idle_replicas_are_evicted_least_recently_used_first() -> None:
    broker = scheduler()
    names = ("m", "n", "x")
    models = [model(name, memory=9) for name in names]
    join(
        broker,
        "a",
        advert(
            [device(total=20, free=2)],
            models,
            [ready("m", memory=9), ready("n", memory=9)],
        ),
    )
    done(broker, granted(broker.place(place("n"), G, 0.0)), 1.0)
    done(broker, granted(broker.place(place("m"), G, 2.0)), 3.0)
    grant = granted(broker.place(place("x"), G, 4.0))
    assert grant.load > 0
    (site,) = broker.index.devices("a")
    assert site.sites["x"].victims == (site.sites["n"],)
    # until the node says so, n is not there any more: m is, and goes on
    assert granted(broker.place(place("m"), G, 4.0)).load == 0
    assert broker.place(place("n"), G, 4.0) is None
    check(broker)
    running = [Running(grant.task, 1)]
    loading = Replica("x", "gpu0", "loading", 1, 0, 1, 9 * GIB)
    broker.advert(
        "a",
        advert([device(total=20, free=11)], models, [ready("m", memory=9), loading], running),
        5.0,
    )
    assert not site.sites["n"].doomed
    check(broker)


def test_evicting_costs_the_reload_so_an_empty_device_goes_first() -> None:
    broker = scheduler()
    models = [model("m", memory=20), model("n", memory=20)]
    join(broker, "used", advert([device(free=4)], models, [ready("n", memory=20)]))
    join(broker, "empty", advert([device()], models))
    assert granted(broker.place(place("m"), G, 0.0)).node == "empty"


def test_a_refused_load_leaves_the_victims_where_they_are() -> None:
    broker = scheduler()
    models = [model("m", memory=20), model("n", memory=20)]
    statement = advert([device(free=4)], models, [ready("n", memory=20)])
    join(broker, "a", statement)
    grant = granted(broker.place(place("m"), G, 0.0))
    broker.release(G, Release(grant.task, 1, "refused"), 0.1)
    broker.advert("a", statement._replace(number=statement.number + 10**6), 0.2)
    assert granted(broker.place(place("n"), G, 0.3)).load == 0
    check(broker)


def test_models_without_memory_fit_anywhere() -> None:
    broker = scheduler()
    join(broker, "a", advert([device(total=1, free=0)], [model("m", memory=0, load=0)]))
    assert granted(broker.place(place(), G, 0.0)).load == pytest.approx(1.0)


def test_a_device_that_does_not_tell_its_size_is_tried() -> None:
    broker = scheduler()
    join(broker, "a", advert([device(total=0)]))
    assert granted(broker.place(place(), G, 0.0)).node == "a"


def test_foreign_programs_count() -> None:
    broker = scheduler()
    join(broker, "a", advert([device(total=24, free=3)], [model(memory=4)]))
    join(broker, "b", advert([device(total=8, free=8)], [model(memory=4)]))
    assert granted(broker.place(place(), G, 0.0)).node == "b"


def test_others_attempts_fill_slots() -> None:
    broker = scheduler()
    join(
        broker, "a", advert(models=[model(slots=2)], replicas=[ready(slots=2, active=2, queued=1)])
    )
    join(broker, "b", advert([device(speed=0.5)], [model(slots=2)], [ready(slots=2)]))
    assert granted(broker.place(place(units=40), G, 0.0)).node == "b"
    check(broker)


# --- slots and tickets --------------------------------------------------------------------------


def test_slots_then_one_prefetched_then_the_queue() -> None:
    broker = scheduler()
    join(broker, "a", warm(slots=2))
    grants = [granted(broker.place(place(units=4), G, 0.0)) for _ in range(3)]
    assert [grant.wait > 0 for grant in grants] == [False, False, True]
    waiting = [place(units=4), place(units=4)]
    assert [broker.place(request, G, 0.0) for request in waiting] == [None, None]
    assert only(done(broker, grants[0], 0.05)).task == waiting[0].task
    assert only(done(broker, grants[1], 0.05)).task == waiting[1].task
    assert done(broker, grants[2], 0.05) == []
    check(broker)


def test_nothing_is_prefetched_long_before_a_slot_is_free() -> None:
    broker = scheduler()
    join(broker, "a", warm())
    first = granted(broker.place(place(units=80), G, 0.0))
    waiting = place(units=40)
    assert broker.place(waiting, G, 0.0) is None
    assert broker.tick(1.0) == []
    broker.advert("a", warm(running=[Running(first.task, 1)]), 1.5)
    assert only(broker.tick(2.0)).task == waiting.task, "the first is about to end"
    check(broker)


def test_nothing_is_prefetched_for_a_replica_that_loads() -> None:
    broker = scheduler()
    join(broker, "a", advert(models=[model(slots=2)]))
    for _ in range(2):
        granted(broker.place(place(), G, 0.0))
    assert broker.place(place(), G, 0.0) is None


def test_a_ticket_goes_to_whichever_device_is_free_first() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    join(broker, "b", warm())
    first = granted(broker.place(place(units=40), G, 0.0))
    second = granted(broker.place(place(units=400), G, 0.0))
    request = place()
    assert broker.place(request, G, 0.0) is None
    # the long one ends early, against all predictions
    answer = only(done(broker, second, 0.5))
    assert isinstance(answer, Grant)
    assert answer.node == second.node
    assert first.node != second.node


def test_a_slow_device_is_left_idle_while_waiting_for_a_fast_one_is_quicker() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "slow", advert([device(speed=1)], replicas=[ready()]))
    join(broker, "fast", advert([device(speed=8)], replicas=[ready()]))
    # 1 s on the fast one, 8 s on the slow one. Each that waits counts thrice, for itself and for
    # those behind it: two may wait before the slow one is worth it, and then it is taken.
    outcomes = [broker.place(place(units=320), G, 0.0) for _ in range(10)]
    nodes = [answer.node if isinstance(answer, Grant) else None for answer in outcomes]
    assert nodes == ["fast", None, None, "slow", *[None] * 6]
    check(broker)


def test_priority_and_age_decide_who_is_next() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    first = granted(broker.place(place(), G, 0.0))
    low, high = place(priority=9), place(priority=1)
    assert broker.place(low, G, 0.1) is None
    assert broker.place(high, G, 0.2) is None
    assert only(done(broker, first, 1.0)).task == high.task


def test_newcomers_do_not_overtake_who_waits() -> None:
    broker = scheduler(Settings(prefetch=0, refusal_pause=1.0))
    join(broker, "a", warm())
    grant = granted(broker.place(place(), G, 0.0))
    waits = place()
    assert broker.place(waits, G, 0.1) is None
    broker.release(G, Release(grant.task, 1, "refused"), 0.2)
    newcomer = place()
    assert broker.place(newcomer, G, 0.3) is None
    assert only(broker.tick(1.3)).task == waits.task
    check(broker)


def test_asking_twice_gives_the_same_answer() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    request, other = place(), place()
    grant = granted(broker.place(request, G, 0.0))
    assert broker.place(request, G, 0.5) == grant
    assert broker.place(other, G, 0.5) is None
    assert broker.place(other, G, 0.6) is None
    assert len(broker.tickets) == len(broker.ledger) == 1
    assert denied(broker.place(request, "someone else", 0.7)).code == "unavailable"


def test_withdrawing_a_ticket_and_a_lease() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    first, second, third = place(), place(), place()
    granted(broker.place(first, G, 0.0))
    for request in (second, third):
        assert broker.place(request, G, 0.0) is None
    assert broker.withdraw("someone else", second.task, 1, 0.1) == []
    assert len(broker.tickets) == 2
    assert broker.withdraw(G, second.task, 1, 0.1) == []
    assert broker.withdraw(G, second.task, 1, 0.2) == []
    assert only(broker.withdraw(G, first.task, 1, 0.3)).task == third.task
    check(broker)


def test_a_refusal_is_answered_elsewhere_and_pauses_the_replica() -> None:
    broker = scheduler()
    join(broker, "fast", advert([device(speed=4)], replicas=[ready()]))
    join(broker, "slow", warm())
    request = place()
    assert granted(broker.place(request, G, 0.0)).node == "fast"
    broker.release(G, Release(request.task, 1, "refused"), 0.1)
    retry = request._replace(attempt=2, exclude=["fast"])
    assert granted(broker.place(retry, G, 0.1)).node == "slow"
    other = place()
    assert broker.place(other, G, 0.2) is None, "what it refused, it would refuse to others too"
    assert broker.tick(1.0) == []
    answer = granted(only(broker.tick(1.2)))
    assert (answer.task, answer.node) == (other.task, "fast")
    check(broker)


def test_releases_of_nobody_and_of_other_gateways_change_nothing() -> None:
    broker = scheduler()
    join(broker, "a", warm())
    grant = granted(broker.place(place(), G, 0.0))
    assert broker.release("other", Release(grant.task, 1, "done"), 1.0) == []
    assert broker.release(G, Release(grant.task, 2, "done"), 1.0) == []
    assert broker.release(G, Release(bytes(16), 1, "done"), 1.0) == []
    assert len(broker.ledger) == 1


# --- two models, one device ---------------------------------------------------------------------


def test_a_model_that_needs_the_device_gets_it_although_the_other_stays_busy() -> None:
    """Rent or buy: the loaded model is used until waiting has cost as much as swapping."""
    broker = scheduler(Settings(prefetch=0))
    models = [model("m", memory=20, load=2, slots=2), model("n", memory=20, load=2)]
    card = device(free=4, bandwidth=GIB)
    join(broker, "a", advert([card], models, [ready("m", slots=2, memory=20)]))
    now = 0.0
    running = [granted(broker.place(place("m"), G, now)) for _ in range(2)]
    wanted = place("n")
    assert broker.place(wanted, G, now) is None
    got_m, got_n = 0, None
    while got_n is None:
        now += 1.0
        assert now < 60, "starved"
        broker.advert(
            "a",
            advert(
                [card],
                models,
                [ready("m", slots=2, active=len(running), memory=20)],
                [Running(grant.task, 1) for grant in running],
            ),
            now,
        )
        commands = done(broker, running.pop(0), now, units=100, run=1.0) if running else []
        commands += broker.tick(now)
        for _ in range(2):  # somebody always wants m
            answer = broker.place(place("m"), G, now)
            commands += [] if answer is None else [(G, answer)]
        for _, message in commands:
            grant = granted(message)
            if grant.task == wanted.task:
                got_n = now
            else:
                got_m += 1
                running.append(grant)
        check(broker)
    # swapping costs 3 s for n and 3 s to reload m
    assert got_n is not None
    assert 6 <= got_n <= 12
    assert got_m >= 3, "until then m went on"


def test_a_claim_ends_with_its_ticket() -> None:
    broker = scheduler(Settings(prefetch=0))
    models = [model("m", memory=20), model("n", memory=20)]
    card = device(free=4, bandwidth=1000 * GIB)
    join(broker, "a", advert([card], models, [ready("m", memory=20)]))
    running = granted(broker.place(place("m", units=4000), G, 0.0))
    wanted, others = place("n"), place("m")
    assert broker.place(wanted, G, 0.0) is None
    broker.tick(2.5)

    def claims() -> list[object]:
        return [record.claim for record in broker.index.devices("a")]

    assert claims() == [(wanted.task, 1)]
    assert broker.place(others, G, 2.5) is None
    assert broker.withdraw(G, wanted.task, 1, 2.6) == []
    assert claims() == [None]
    assert only(done(broker, running, 2.7)).task == others.task
    check(broker)


def test_a_claimed_device_takes_nobody_else() -> None:
    broker = scheduler(Settings(prefetch=0))
    models = [model("m", memory=20, slots=4), model("n", memory=20)]
    card = device(free=4, bandwidth=1000 * GIB)
    join(broker, "a", advert([card], models, [ready("m", slots=4, memory=20)]))
    running = granted(broker.place(place("m", units=4000), G, 0.0))
    wanted, late = place("n"), place("m", priority=1)
    assert broker.place(wanted, G, 0.0) is None
    broker.tick(2.5)
    assert broker.place(late, G, 2.5) is None, "three slots are free, and kept free"
    answer = only(done(broker, running, 2.7))
    assert answer.task == wanted.task
    check(broker)


# --- deadlines and limits -----------------------------------------------------------------------


def learned(broker: Scheduler, seconds: float = 2.0) -> None:
    """Teach the broker that 100 units take that long."""
    grant = granted(broker.place(place(units=100), G, 0.0))
    done(broker, grant, 50.0, units=100, run=seconds)


def test_a_deadline_that_cannot_be_met_is_refused_early() -> None:
    broker = scheduler()
    join(broker, "a", warm())
    learned(broker)
    deny = denied(broker.place(place(units=100, deadline=1.5), G, 100.0))
    assert deny.code == "deadline_unreachable"
    assert deny.details["earliest_finish"] == pytest.approx(2.0)
    assert granted(broker.place(place(units=100, deadline=2.5), G, 100.0)).node == "a"
    deny = denied(broker.place(place(units=100, deadline=3.5), G, 100.0))
    assert deny.details["earliest_finish"] == pytest.approx(4.0)


def test_nobody_is_refused_on_a_first_guess() -> None:
    broker = scheduler()
    join(broker, "a", warm())
    assert granted(broker.place(place(units=4000, deadline=1.0), G, 0.0)).service == 100


def test_a_deadline_may_justify_what_the_least_cost_would_not() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "warm", warm())
    learned(broker)
    cold = advert([device(speed=1, bandwidth=2 * GIB)], [model()])
    join(broker, "cold", cold, 100.0)
    granted(broker.place(place(units=200), G, 100.0))
    # 4 s of waiting against 3 s of loading, which count twice
    assert broker.place(place(units=100), G, 100.0) is None
    grant = granted(broker.place(place(units=100, deadline=5.5), G, 100.0))
    assert grant.node == "cold"
    assert grant.load == pytest.approx(3.0)


def test_a_deadline_that_passes_in_the_queue() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    grant = granted(broker.place(place(units=40), G, 0.0))
    request = place(deadline=5.0)
    assert broker.place(request, G, 0.0) is None
    broker.advert("a", warm(running=[Running(grant.task, 1)]), 2.5)
    assert broker.tick(4.9) == []
    deny = only(broker.tick(5.0))
    assert (deny.task, deny.code) == (request.task, "deadline_exceeded")  # type: ignore[union-attr]
    assert not broker.tickets
    check(broker)


def test_a_ticket_that_could_not_even_run_in_time_is_refused_before_its_deadline() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    learned(broker)
    grant = granted(broker.place(place(units=100), G, 100.0))
    request = place(units=100, deadline=4.5)
    assert broker.place(request, G, 100.0) is None
    broker.advert("a", warm(running=[Running(grant.task, 1)]), 101.0)
    assert broker.tick(102.0) == []
    deny = denied(only(broker.tick(103.0)))
    assert (deny.task, deny.code) == (request.task, "deadline_exceeded")


def test_a_full_queue_says_when_to_come_back() -> None:
    broker = scheduler(Settings(queue_limit=5, queue_reserve=0.4, prefetch=0))
    join(broker, "a", warm())
    granted(broker.place(place(units=400), G, 0.0))
    for _ in range(3):
        assert broker.place(place(units=400, priority=10), G, 0.0) is None
    deny = denied(broker.place(place(units=400, priority=10), G, 0.0))
    assert deny.code == "overloaded"
    assert deny.details["retry_after"] == pytest.approx(40.0), "one at work and three waiting"
    assert deny.details["waiting"] == 3
    for _ in range(2):
        assert broker.place(place(units=400), G, 0.0) is None
    assert denied(broker.place(place(units=400, priority=1), G, 0.0)).code == "overloaded"
    check(broker)


# --- nodes come and go --------------------------------------------------------------------------


def test_a_quiet_node_gets_nothing_new_and_keeps_what_it_has() -> None:
    broker = scheduler()
    join(broker, "a", warm())
    grant = granted(broker.place(place(), G, 0.0))
    broker.advert("a", warm(running=[Running(grant.task, 1)]), 0.5)
    assert broker.tick(4.0) == []
    request = place()
    assert broker.place(request, G, 4.0) is None
    assert len(broker.ledger) == 1
    done(broker, grant, 4.5)
    assert only(broker.advert("a", warm(), 5.0)).task == request.task
    check(broker)


def test_a_sign_of_life_is_enough() -> None:
    broker = scheduler()
    join(broker, "a", warm())
    broker.tick(4.0)
    request = place()
    assert broker.place(request, G, 4.0) is None
    assert only(broker.node_heard("a", 4.1)).task == request.task


@pytest.mark.parametrize("how", ["silence", "unreachable", "goodbye"])
def test_a_lost_nodes_leases_are_revoked_and_its_tickets_planned_anew(how: str) -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "fast", advert([device(speed=8)], replicas=[ready()]))
    join(broker, "slow", warm())
    grant = granted(broker.place(place(units=400), G, 0.0))
    assert grant.node == "fast"
    request = place(units=400)
    assert broker.place(request, G, 0.0) is None, "waiting for the fast one is quicker"
    if how == "silence":
        broker.advert("slow", warm(), 9.0)
        broker.advert("fast", advert([device(speed=8)], replicas=[ready()]), 0.5)
        commands = broker.tick(10.5)
    elif how == "unreachable":
        commands = broker.node_unreachable("fast", 1.0)
    else:
        commands = broker.node_goodbye("fast", 1.0)
    answer = granted(only(commands))
    assert (answer.task, answer.node) == (request.task, "slow")
    assert len(broker.ledger) == 1
    assert broker.release(G, Release(grant.task, 1, "lost"), 11.0) == []
    check(broker)


def test_the_last_node_takes_the_tickets_with_it() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    granted(broker.place(place(), G, 0.0))
    requests = [place(), place()]
    for request in requests:
        assert broker.place(request, G, 0.0) is None
    commands = broker.node_goodbye("a", 1.0)
    denials = [denied(message) for _, message in commands]
    assert {deny.task for deny in denials} == {request.task for request in requests}
    assert {deny.code for deny in denials} == {"no_node"}
    assert not broker.tickets
    assert list(broker.index.groups) == []


def test_a_draining_node_gets_nothing_and_its_tickets_go_elsewhere() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", advert([device(speed=8)], replicas=[ready()]))
    join(broker, "b", warm())
    granted(broker.place(place(units=400), G, 0.0))
    request = place(units=400)
    assert broker.place(request, G, 0.0) is None
    commands = broker.advert("a", advert([device(speed=8)], replicas=[ready()], draining=True), 0.5)
    assert granted(only(commands)).node == "b"
    check(broker)


def test_a_restart_voids_leases_and_keeps_tickets_waiting() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    old = granted(broker.place(place(), G, 0.0))
    request = place()
    assert broker.place(request, G, 0.0) is None
    assert broker.node_hello("a", 2, "a", "", [], 1.0).value == "superseded"
    assert len(broker.ledger) == 0
    assert broker.tick(1.1) == []
    check(broker)
    answer = granted(only(broker.advert("a", advert(number=0, replicas=[ready()]), 1.2)))
    assert (answer.task, answer.incarnation) == (request.task, 2)
    assert broker.node_hello("a", 1, "a", "", [], 1.3).value == "rejected"
    assert broker.release(G, Release(old.task, 1, "lost"), 2.0) == []
    check(broker)


def test_a_reconnected_node_goes_on_at_once() -> None:
    broker = scheduler()
    join(broker, "a", warm())
    broker.tick(4.0)
    assert broker.node_hello("a", 1, "a", "", [], 4.5).value == "returned"
    assert granted(broker.place(place(), G, 4.5)).node == "a"


def test_adverts_of_strangers_and_stale_ones() -> None:
    broker = scheduler()
    assert broker.advert("a", advert(), 0.0) is None
    join(broker, "a", advert(replicas=[ready()], number=5))
    assert broker.advert("a", advert(number=5, draining=True), 1.0) == []
    assert granted(broker.place(place(), G, 1.0)).node == "a"


def test_models_and_devices_that_disappear() -> None:
    broker = scheduler(Settings(prefetch=0))
    both = [device("gpu0"), device("gpu1", speed=8)]
    join(broker, "a", advert(both, replicas=[ready(), ready(device_id="gpu1")]))
    grant = granted(broker.place(place(units=400), G, 0.0))
    assert grant.device == "gpu1"
    request = place(units=400)
    assert broker.place(request, G, 0.0) is None
    answer = granted(only(broker.advert("a", advert([device("gpu0")], replicas=[ready()]), 1.0)))
    assert (answer.task, answer.device) == (request.task, "gpu0")
    check(broker)
    other = place()
    assert broker.place(other, G, 1.0) is None
    deny = denied(only(broker.advert("a", advert(models=[model("n")]), 2.0)))
    assert (deny.task, deny.code) == (other.task, "model_not_found")
    assert broker.release(G, Release(grant.task, 1, "done"), 3.0) == []
    check(broker)


def test_a_ticket_is_served_when_a_new_node_joins() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    granted(broker.place(place(), G, 0.0))
    request = place()
    assert broker.place(request, G, 0.0) is None
    assert granted(only(join(broker, "b", warm(), 0.5))).node == "b"


def test_a_lost_lease_frees_its_slot() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    first = granted(broker.place(place(), G, 0.0))
    request = place()
    assert broker.place(request, G, 0.0) is None
    assert broker.advert("a", warm(running=[Running(first.task, 1)]), 1.0) == []
    assert broker.advert("a", warm(), 2.0) == []
    assert only(broker.advert("a", warm(), 2.5)).task == request.task
    check(broker)


def test_a_grant_that_nobody_uses_expires() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    granted(broker.place(place(), G, 0.0))
    request = place()
    assert broker.place(request, G, 0.0) is None
    broker.advert("a", warm(), 2.0)
    assert broker.tick(2.9) == []
    assert only(broker.tick(3.0)).task == request.task
    check(broker)


# --- gateways come and go -----------------------------------------------------------------------


def report(grant: Grant, age: float = 1.0) -> Lease:
    return Lease(grant.task, grant.attempt, grant.node, grant.device, "m", "chat", 100.0, age)


def test_a_new_broker_adopts_leases_before_and_after_it_knows_the_node() -> None:
    old = scheduler()
    join(old, "a", warm(slots=2))
    grants = [granted(old.place(place(), G, 0.0)) for _ in range(2)]
    new = scheduler(Settings(prefetch=0))
    assert new.gateway_hello(G, [report(grants[0])], 100.0) == []
    running = [Running(grant.task, 1) for grant in grants]
    statement = advert(
        models=[model(slots=2)], replicas=[ready(slots=2, active=2)], running=running
    )
    join(new, "a", statement, 100.1)
    account = new.ledger.account("a", "gpu0", "m")
    assert (account.leases, account.external) == (1, 1)
    assert new.place(place(), G, 100.2) is None, "both slots are taken"
    new.gateway_hello("h", [report(grants[1])], 100.3)
    assert (account.leases, account.external) == (2, 0)
    check(new)
    assert len(new.release("h", Release(grants[1].task, 1, "done"), 101.0)) == 1
    check(new)


def test_adopting_an_attempt_that_waits_ends_its_ticket() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    granted(broker.place(place(), "other", 0.0))
    request = place()
    assert broker.place(request, G, 0.0) is None
    lease = Lease(request.task, 1, "a", "gpu0", "m", "chat", 100.0, 0.0)
    broker.gateway_hello(G, [lease], 1.0)
    assert not broker.tickets
    assert len(broker.ledger) == 2
    check(broker)


def test_what_a_gateway_no_longer_lists_is_over() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm(slots=2))
    grants = [granted(broker.place(place(), G, 0.0)) for _ in range(2)]
    request = place()
    assert broker.place(request, G, 0.0) is None
    answer = only(broker.gateway_hello(G, [report(grants[1])], 1.0))
    assert answer.task == request.task
    assert broker.ledger.get(grants[0].task, 1) is None
    check(broker)


def test_a_lost_gateways_leases_and_tickets_go() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    granted(broker.place(place(), "lost", 0.0))
    assert broker.place(place(), "lost", 0.0) is None
    request = place()
    assert broker.place(request, G, 0.0) is None
    assert only(broker.gateway_lost("lost", 1.0)).task == request.task
    assert not broker.tickets
    check(broker)


def test_after_a_start_the_broker_waits_for_nodes_to_come_back() -> None:
    broker = scheduler(settled_at=3.0)
    requests = [place(), place("never-heard-of")]
    for request in requests:
        assert broker.place(request, G, 0.0) is None
    assert broker.tick(1.0) == []
    assert only(join(broker, "a", warm(), 2.0)).task == requests[0].task
    deny = denied(only(broker.tick(3.0)))
    assert (deny.task, deny.code) == (requests[1].task, "model_not_found")
    check(broker)


# --- learning -----------------------------------------------------------------------------------


def test_rates_are_learned_from_releases() -> None:
    broker = scheduler()
    join(broker, "a", warm())
    join(broker, "b", advert([device(speed=0.5)], replicas=[ready()]))
    grant = granted(broker.place(place(units=50), G, 0.0))
    done(broker, grant, 20.0, units=50, run=10.0)
    again = granted(broker.place(place(units=100), G, 30.0))
    assert (grant.node, again.node) == ("a", "a")
    assert again.service == pytest.approx(20.0)
    other = granted(broker.place(place(units=1), G, 30.0))
    assert other.service == pytest.approx(0.4), "b profits, at half the speed"


def test_crowded_runs_are_not_held_against_the_device() -> None:
    broker = scheduler(Settings(crowding=1.0))
    join(broker, "a", warm(slots=2))
    grants = [granted(broker.place(place(units=40), G, 0.0)) for _ in range(2)]
    # one saw itself twice as slow at its end, the other from its start
    done(broker, grants[0], 2.0, units=40, run=1.5)
    done(broker, grants[1], 2.0, units=40, run=1.5)
    assert granted(broker.place(place(units=40), G, 3.0)).service == pytest.approx(1.0)


@pytest.mark.parametrize(
    "release",
    [
        Release(b"", 1, "done", 100.0, 1000.0),
        Release(b"", 1, "done", 0.0, 1.0),
        Release(b"", 1, "done", 100.0, 0.0),
        Release(b"", 1, "failed", 100.0, 9.0),
        Release(b"", 1, "lost", 100.0, 9.0),
    ],
)
def test_runs_that_prove_nothing_teach_nothing(release: Release) -> None:
    broker = scheduler()
    join(broker, "a", warm())
    grant = granted(broker.place(place(units=100), G, 0.0))
    broker.release(G, release._replace(task=grant.task), 10.0)
    assert not broker.rates.knows("chat", "m")


def test_loads_are_learned_from_who_started_them() -> None:
    broker = scheduler()
    join(broker, "a", advert(models=[model(slots=2, load=8)]))
    first, second = (granted(broker.place(place(), G, 0.0)) for _ in range(2))
    guess = broker.rates.load_seconds(("a", "gpu0"), 8 * GIB, None)
    broker.release(G, Release(second.task, 1, "done", 1, 1, 0.5), 20.0)
    assert broker.rates.load_seconds(("a", "gpu0"), 8 * GIB, None) == guess
    broker.release(G, Release(first.task, 1, "done", 1, 1, 9.0), 20.0)
    assert broker.rates.load_seconds(("a", "gpu0"), 8 * GIB, None) == pytest.approx(9.0)


def test_new_rates_reach_other_nodes_with_their_next_advert() -> None:
    broker = scheduler()
    join(broker, "a", warm())
    join(broker, "b", warm())
    rates = []
    for step in range(8):
        grant = granted(broker.place(place(units=100, exclude=["b"]), G, step * 30.0))
        done(broker, grant, step * 30 + 29, units=100, run=2.5 * 1.3**step)
        broker.advert("b", warm(), step * 30.0 + 29)
        candidate = broker.index.groups["chat", "m"].members["b", "gpu0"]
        rates.append(candidate.rate)
    assert rates[-1] > rates[0] * 2
    check(broker)


# --- asking -------------------------------------------------------------------------------------


def test_decisions_are_explained() -> None:
    broker = scheduler(Settings(prefetch=0, decisions=6))
    join(broker, "fast", advert([device(speed=4)], replicas=[ready()]))
    join(broker, "slow", warm())
    first, second = place(units=100), place("nobody-has-it")
    broker.place(first, G, 1.0)
    broker.place(second, G, 2.0)
    (decision,) = broker.explain(first.task)
    assert decision[:7] == (1.0, first.task, 1, "chat", "m", "grant", "")
    assert [c.node for c in decision.considered] == ["fast", "slow"]
    assert decision.considered[0].cost == pytest.approx(100 / 40 / 4)
    (denial,) = broker.explain(second.task)
    assert (denial.outcome, denial.code, denial.considered) == ("deny", "model_not_found", [])
    third = place(units=100)
    broker.place(third, G, 3.0)
    (wait,) = broker.explain(third.task)
    assert [(c.node, c.room) for c in wait.considered] == [("fast", False), ("slow", True)] or [
        c.node for c in wait.considered
    ] == ["slow", "fast"]
    done(broker, first, 3.5)
    assert [d.outcome for d in broker.explain(third.task)][-1] == "grant"
    assert all(isinstance(d, Decision) for d in broker.decisions(2))
    assert [d.at for d in broker.decisions(2)] == sorted(
        (d.at for d in broker.decisions(2)), reverse=True
    )
    assert broker.decisions(0) == []
    for _ in range(20):
        broker.place(place(), G, 9.0)
    assert broker.explain(first.task) == []
    assert len(broker.decisions(100)) == 6


def test_stats_count() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    join(broker, "b", warm())
    broker.node_unreachable("b", 0.0)
    broker.place(place(), G, 0.0)
    broker.place(place(), G, 1.0)
    assert broker.stats(4.0) == {
        "leases": 1,
        "tickets": 1,
        "oldest_ticket": 3.0,
        "nodes": {"ready": 1, "lost": 1},
    }

"""Requirements, states, limits on replicas, moves, and what can be told about all of it."""

from __future__ import annotations

from typing import Any

import pytest

from blip.broker.registry import Liveness, Registry
from blip.broker.scheduler import Command, Scheduler
from blip.broker.settings import Settings
from blip.protocol import ranking
from blip.protocol.codec import CONTROL_LIMIT, pack
from blip.protocol.messages import (
    Deny,
    Device,
    Grant,
    Message,
    Model,
    Move,
    Order,
    Place,
    Release,
    Replica,
    Running,
    Story,
)
from tests.unit.broker_mesh import GIB, advert, check, device, join, model, place, ready, scheduler

G = "gateway"


def granted(answer: Message | None) -> Grant:
    assert isinstance(answer, Grant), answer
    return answer


def denied(answer: Message | None) -> Deny:
    assert isinstance(answer, Deny), answer
    return answer


def warm(*cards: Device, slots: int = 1, labels: dict[str, str] | None = None) -> Any:
    there = list(cards or (device(),))
    replicas = [ready(device_id=card.id, slots=slots) for card in there]
    return advert(there, [model(slots=slots)], replicas, labels=labels)


# --- requirements -------------------------------------------------------------------------------


def labelled() -> Scheduler:
    broker = scheduler()
    join(broker, "fast", warm(device("big", total=48, speed=9.0), labels={"zone": "attic"}))
    join(broker, "slow", warm(device("small"), labels={"zone": "cellar"}))
    return broker


@pytest.mark.parametrize(
    ("require", "node"),
    [
        ({}, "fast"),
        ({"labels": {"zone": "cellar"}}, "slow"),
        ({"node": "slow"}, "slow"),
        ({"device": "small"}, "slow"),
        ({"memory": "40GiB"}, "fast"),
        ({"not": {"memory": "40GiB"}}, "slow"),
        ({"not": {"node": ["fast", "other"]}}, "slow"),
    ],
)
def test_an_attempt_runs_only_on_what_it_requires(require: dict[str, Any], node: str) -> None:
    broker = labelled()
    for now in (1.0, 1.1):
        assert granted(broker.place(place(units=10, require=require), G, now)).node == node
    check(broker)


def test_it_waits_for_what_it_requires_while_others_idle() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm(labels={"zone": "attic"}))
    join(broker, "b", warm(labels={"zone": "cellar"}))
    first = granted(broker.place(place(require={"node": "b"}), G, 1.0))
    request = place(require={"labels": {"zone": "cellar"}})
    assert broker.place(request, G, 1.1) is None
    assert broker.tick(1.5) == []
    ((_, grant),) = broker.release(G, Release(first.task, 1, "done"), 2.0)
    assert granted(grant).node == "b"
    check(broker)


def test_what_nobody_is_names_the_nearest_miss_at_once() -> None:
    broker = labelled()
    require = {"labels": {"zone": "cellar"}, "memory": "40GiB"}
    deny = denied(broker.place(place(require=require), G, 1.0))
    assert deny.code == "unsatisfiable"
    assert "nearest is big of node fast: its label zone is attic" in deny.text
    assert deny.details["lacking"] == ["its label zone is attic"]
    require = {"vendor": "amd", "gpu": "MI300"}
    assert len(denied(broker.place(place(require=require), G, 1.0)).details["lacking"]) == 2


def test_a_requirement_that_is_none_is_refused_by_name() -> None:
    deny = denied(labelled().place(place(require={"colour": "red"}), G, 1.0))
    assert (deny.code, deny.details["param"]) == ("invalid_request", "require.colour")


def test_labels_and_devices_that_change_count_at_once() -> None:
    broker = labelled()
    require = {"labels": {"zone": "cellar"}}
    first = granted(broker.place(place(require=require), G, 1.0))
    assert first.node == "slow"
    assert broker.release(G, Release(first.task, 1, "cancelled"), 1.5) == []
    moved = warm(device("small"), labels={"zone": "attic"})
    assert broker.advert("slow", moved, 2.0) is not None
    assert denied(broker.place(place(require=require), G, 2.0)).code == "unsatisfiable"
    grown = warm(device("small", total=80), labels={"zone": "attic"})
    assert broker.advert("slow", grown, 3.0) is not None
    assert granted(broker.place(place(require={"memory": "60GiB"}), G, 3.0)).node == "slow"


# --- states of devices --------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["yielding", "draining", "cordoned"])
def test_a_device_that_is_not_ready_gets_nothing_new(state: str) -> None:
    broker = scheduler()
    away = device()._replace(state=state, reason="somebody plays")
    join(broker, "a", warm(away))
    deny = denied(broker.place(place(), G, 1.0))
    assert deny.code == "unavailable"
    assert f"gpu0 is {state}: somebody plays" in deny.text
    join(broker, "b", warm())
    assert granted(broker.place(place(), G, 1.0)).node == "b"
    assert broker.advert("a", warm(), 2.0) == []
    assert granted(broker.place(place(), G, 2.0)).node == "a"
    check(broker)


# --- sizes --------------------------------------------------------------------------------------


def test_a_model_larger_than_every_device_says_what_would_fit() -> None:
    broker = scheduler()
    large = Model("m", ["chat"], 50 * GIB, 48 * GIB, 1, parameters=24 * GIB)
    join(broker, "a", advert([device(total=40)], [large]))
    deny = denied(broker.place(place(), G, 1.0))
    assert deny.code == "model_too_large"
    assert "needs 50.0 GiB on a device, and the largest has 40.0 GiB" in deny.text
    assert deny.details["hint"].startswith("Quantised to 8 bits (26.0 GiB) it would fit")
    assert deny.details["quantised"] == {"8-bit": 26 * GIB, "4-bit": 14 * GIB}
    broker = scheduler()
    join(broker, "a", advert([device(total=8)], [large]))
    assert "Not even 4 bits" in denied(broker.place(place(), G, 1.0)).details["hint"]


def test_a_model_of_unknown_parameters_that_is_too_large_names_the_ways_out() -> None:
    broker = scheduler()
    join(broker, "a", advert([device(total=40)], [Model("m", ["chat"], 50 * GIB, 48 * GIB, 1)]))
    deny = denied(broker.place(place(), G, 1.0))
    assert deny.code == "model_too_large"
    hint = deny.details["hint"]
    assert "'quantization' or 'offload' to auto where that is off" in hint
    assert hint.endswith("or add a larger device.")


def test_what_would_fit_an_empty_device_is_not_too_large() -> None:
    broker = scheduler()
    join(broker, "a", advert([device(total=24, free=2)], [model(memory=10)]))
    assert denied(broker.place(place(), G, 1.0)).code == "no_capacity"


# --- replicas: pinned, at least, at most --------------------------------------------------------


def two_models(pinned: bool = False, least: int = 0) -> Any:
    replica = ready(memory=14)._replace(pinned=pinned)
    models = [model(memory=14, min_replicas=least), model("n", memory=14)]
    return advert([device(free=10)], models, [replica])


def test_a_pinned_replica_makes_no_room() -> None:
    broker = scheduler()
    join(broker, "a", two_models(pinned=True))
    assert denied(broker.place(place("n"), G, 1.0)).code == "no_capacity"
    assert broker.advert("a", two_models(), 2.0) == []
    assert granted(broker.place(place("n"), G, 2.0)).load > 0
    check(broker)


def test_neither_does_the_last_of_the_least() -> None:
    broker = scheduler()
    join(broker, "a", two_models(least=1))
    assert denied(broker.place(place("n"), G, 1.0)).code == "no_capacity"
    check(broker)


def orders(commands: list[Command]) -> list[tuple[str, str, str]]:
    found = [(to, message) for to, message in commands if isinstance(message, Order)]
    assert all(message.options == {"keep_alive": None} for _, message in found)
    return [(to, message.device, message.model) for to, message in found]


def test_the_least_number_of_replicas_is_kept_loaded() -> None:
    broker = scheduler()
    wanted = [model(min_replicas=2)]
    for node, speed in (("slow", 1.0), ("fast", 4.0), ("middle", 2.0)):
        join(broker, node, advert([device(speed=speed)], wanted))
    assert orders(broker.tick(1.0)) == [("fast", "gpu0", "m")]
    assert orders(broker.tick(1.25)) == [], "it has a moment to show up"
    loading = Replica("m", "gpu0", "loading", 1, progress=0.5)
    assert broker.advert("fast", advert([device(speed=4.0)], wanted, [loading]), 2.0) == []
    assert orders(broker.tick(12.0)) == []
    for node, speed in (("slow", 1.0), ("middle", 2.0)):
        assert broker.advert(node, advert([device(speed=speed)], wanted), 12.1) is not None
    assert broker.advert("fast", advert([device(speed=4.0)], wanted, [loading]), 12.1) is not None
    assert orders(broker.tick(12.2)) == [("middle", "gpu0", "m")]
    check(broker)


def test_replicas_that_are_at_work_do_not_go_for_it() -> None:
    broker = scheduler()
    models = [model(memory=14, min_replicas=1), model("n", memory=14)]
    join(broker, "a", advert([device(free=10)], models, [ready("n", memory=14)]))
    granted(broker.place(place("n"), G, 0.5))
    assert orders(broker.tick(1.0)) == []
    check(broker)


def test_no_more_than_the_most_are_loaded() -> None:
    broker = scheduler(Settings(prefetch=0))
    limited = [model(max_replicas=1)]
    join(broker, "a", advert(models=limited))
    join(broker, "b", advert(models=limited))
    grants = [broker.place(place(units=4000), G, now) for now in (1.0, 1.1, 1.2)]
    assert [type(answer) for answer in grants] == [Grant, type(None), type(None)]
    first = granted(grants[0])
    elsewhere = denied(broker.place(place(exclude=[first.node]), G, 2.0))
    assert elsewhere.code == "unavailable"
    assert "is loaded 1 times, which is the most there may be" in elsewhere.text
    check(broker)


# --- deadlines ----------------------------------------------------------------------------------


def taught(broker: Scheduler, now: float = 0.0) -> None:
    """100 units take 2 s."""
    grant = granted(broker.place(place(units=100), G, now))
    broker.release(G, Release(grant.task, 1, "done", 100, 2.0), now + 50)


def test_only_who_goes_before_counts_against_a_deadline() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", warm())
    taught(broker)
    granted(broker.place(place(units=100), G, 100.0))
    for _ in range(3):
        assert broker.place(place(units=100), G, 100.0) is None
    # 2 s of the one that runs, and then its own: who has no deadline can wait
    assert broker.place(place(units=100, deadline=4.5), G, 100.0) is None
    deny = denied(broker.place(place(units=100, deadline=4.6), G, 100.0))
    assert deny.code == "deadline_unreachable"
    assert deny.details["earliest_finish"] == pytest.approx(6.0)
    assert deny.details["retry_after"] == pytest.approx(1.4)


def test_a_stall_of_the_broker_moves_deadlines() -> None:
    registry = Registry(Liveness(stall_after=1.0))
    plain = scheduler(Settings(prefetch=0))
    broker = Scheduler(plain.settings, registry, plain.ledger, plain.rates, 0.0)
    join(broker, "a", warm())
    running = granted(broker.place(place(units=100), G, 0.0))
    listed = advert(models=[model()], replicas=[ready()], running=[Running(running.task, 1)])
    assert broker.advert("a", listed, 0.1) == []
    assert broker.place(place(deadline=5.0), G, 0.2) is None
    assert broker.tick(0.5) == []
    assert broker.tick(30.5) == [], "29 s of sleep are nobody's lateness"
    assert [command for now in (31.5, 32.5, 33.5, 34.1) for command in broker.tick(now)] == []
    ((_, late),) = broker.tick(34.3)
    assert denied(late).code == "deadline_exceeded"


#: Binds one ahead however long it has to wait, as gateways that place by themselves do.
EAGER = Settings(prefetch_within=1e6)

# --- moving what waits ---------------------------------------------------------------------------


def behind(now: float) -> tuple[Scheduler, Place, Grant]:
    """A task waits on a node behind a long one."""
    broker = scheduler(EAGER)
    join(broker, "a", warm())
    taught(broker)
    long = granted(broker.place(place(units=1000), G, now))
    request = place(units=100)
    short = granted(broker.place(request, G, now))
    assert long.node == short.node == "a"
    running = [Running(long.task, 1), Running(short.task, 1, False)]
    statement = advert(models=[model()], replicas=[ready(active=1, queued=1)], running=running)
    assert broker.advert("a", statement, now + 0.2) == []
    return broker, request, short


def test_an_idle_device_takes_what_waits_elsewhere() -> None:
    broker, request, short = behind(100.0)
    assert broker.tick(100.5) == []
    join(broker, "b", warm(), 101.0)
    commands = broker.tick(101.1)
    assert commands == [(G, Move(short.task, 1, "b", "gpu0"))]
    assert broker.tick(101.4) == [], "it is asked once"
    assert broker.release(G, Release(short.task, 1, "recalled"), 101.5) == []
    again = granted(broker.place(request._replace(attempt=2), G, 101.5))
    assert (again.node, again.attempt) == ("b", 2)
    outcomes = [decision.outcome for decision in broker.explain(short.task)]
    assert outcomes == ["grant", "move", "end", "grant"]
    check(broker)


def test_what_has_begun_stays() -> None:
    broker, _, short = behind(100.0)
    began = advert(
        models=[model()], replicas=[ready(active=1)], running=[Running(short.task, 1, True)]
    )
    assert broker.advert("a", began, 100.6) is not None
    join(broker, "b", warm(), 101.0)
    assert not any(isinstance(message, Move) for _, message in broker.tick(101.1))


def test_moving_must_be_worth_it_and_allowed() -> None:
    broker, _, _ = behind(100.0)
    # loading 40 GiB at the default bandwidth takes longer than waiting
    join(broker, "cold", advert(models=[model(load=40)]), 101.0)
    assert broker.tick(101.1) == []
    busy = warm()
    join(broker, "b", busy._replace(replicas=[ready(active=1)]), 101.2)
    assert broker.tick(101.3) == []


def test_one_idle_device_takes_one_at_a_time() -> None:
    broker = scheduler(EAGER)
    join(broker, "a", warm(slots=2))
    taught(broker)
    grants = [granted(broker.place(place(units=1000), G, 100.0)) for _ in range(3)]
    running = [Running(grant.task, 1, number < 2) for number, grant in enumerate(grants)]
    extra = place(units=500)
    running.append(Running(extra.task, 1, False))
    statement = advert(
        models=[model(slots=2)],
        replicas=[ready(slots=2, active=2, queued=2)],
        running=running,
    )
    assert broker.advert("a", statement, 100.2) == []
    join(broker, "b", warm(), 101.0)
    moves = [message for _, message in broker.tick(101.1) if isinstance(message, Move)]
    assert [move.task for move in moves] == [grants[2].task]


# --- why ----------------------------------------------------------------------------------------


def test_a_story_says_what_was_compared_who_was_out_and_what_happened() -> None:
    broker = scheduler()
    join(broker, "fast", warm(device(speed=2.0)))
    join(broker, "slow", warm())
    join(broker, "gone", warm(device()._replace(state="cordoned", reason="Xid 79")))
    join(broker, "small", advert([device(total=2)]))
    request = place(require={"not": {"node": "slow"}})
    grant = granted(broker.place(request, G, 1.0))
    broker.release(G, Release(grant.task, 1, "done", 100, 1.25), 2.25)
    stories = [decision.to_wire(3.0) for decision in broker.explain(request.task)]
    pack(1, Story(request.task, 0, stories), CONTROL_LIMIT)
    chosen, end = stories
    assert (chosen["outcome"], chosen["ago"], end["outcome"]) == ("grant", 2.0, "end")
    (best,) = chosen["considered"]
    assert (best["name"], best["room"], best["evicts"]) == ("fast", True, [])
    assert best["cost"] == best["wait"] + best["service"] + best["load"] + best["others"]
    reasons = {each["name"]: each["reason"] for each in chosen["excluded"]}
    assert reasons["gone"] == "the device is cordoned: Xid 79"
    assert reasons["slow"] == "required otherwise: it is one with node slow"
    assert end["end"] == {"outcome": "done", "run": 1.25, "load": 0.0, "units": 100.0}


def test_a_denial_is_told_with_its_reason() -> None:
    broker = scheduler()
    join(broker, "a", warm())
    request = place(require={"node": "b"})
    denied(broker.place(request, G, 1.0))
    (story,) = [decision.to_wire(1.0) for decision in broker.explain(request.task)]
    assert story["code"] == "unsatisfiable"
    assert "nearest is gpu0 of node a" in story["text"]


def test_a_crowd_that_is_out_of_the_question_is_counted() -> None:
    broker = scheduler()
    away = device()._replace(state="yielding")
    for number in range(40):
        join(broker, f"n{number}", warm(away))
    join(broker, "there", warm())
    request = place()
    granted(broker.place(request, G, 1.0))
    (decision,) = broker.explain(request.task)
    assert len(decision.excluded) == 16
    assert decision.unlisted == 24


# --- what was measured ----------------------------------------------------------------------------


def measured(id: str, decode: float, fp16: float, h2d: float = 1.2e10) -> Device:
    """A card as its benchmark ranks it."""
    figures = {"decode": decode, "fp16": fp16, "h2d": h2d}
    speed = ranking.speed(figures)
    assert speed is not None
    return device(id, speed=speed)._replace(benchmark=figures)


def test_first_guesses_follow_what_bounds_the_kind() -> None:
    """One card reads weights faster, the other multiplies faster: they rank the same overall."""
    models = [model("m", "chat", "image", slots=1)]
    reads = measured("reads", 6.4e11, 1.25e13)
    computes = measured("computes", 1.6e11, 5e13)
    assert reads.speed == pytest.approx(computes.speed)
    broker = scheduler()
    replicas = [ready(device_id="reads"), ready(device_id="computes")]
    join(broker, "a", advert([reads, computes], models, replicas))
    assert granted(broker.place(place(kind="chat"), G, 1.0)).device == "reads"
    broker = scheduler()
    join(broker, "a", advert([reads, computes], models, replicas))
    assert granted(broker.place(place(kind="image"), G, 1.0)).device == "computes"


def test_the_owners_word_goes_before_what_was_measured() -> None:
    slow = measured("slow", 1.6e11, 1.25e13)._replace(speed=9.0)
    fast = measured("fast", 6.4e11, 5e13)
    broker = scheduler()
    join(broker, "a", warm(slow, fast))
    assert granted(broker.place(place(), G, 1.0)).device == "slow"


def test_a_riser_loads_as_slowly_as_it_was_measured() -> None:
    broker = scheduler()
    riser = measured("riser", 3.2e11, 2.5e13, h2d=2.5e8)
    slot = measured("slot", 3.2e11, 2.5e13)
    join(broker, "a", advert([riser, slot]))
    first = granted(broker.place(place(), G, 1.0))
    assert first.device == "slot"
    alone = scheduler()
    join(alone, "a", advert([riser]))
    assert granted(alone.place(place(), G, 1.0)).load == pytest.approx(1 + 4 * GIB / 2.5e8)

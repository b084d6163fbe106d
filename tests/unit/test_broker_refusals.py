"""What cannot be placed is denied with a code, a reason and a way out."""

from __future__ import annotations

import pytest

from blip.broker.scheduler import Scheduler
from blip.broker.settings import Settings
from blip.errors import BY_CODE, from_wire
from blip.protocol.codec import CONTROL_LIMIT, pack
from blip.protocol.messages import Advert, Deny, Model
from tests.unit.broker_mesh import GIB, advert, check, device, join, model, place, ready, scheduler

G = "gateway"


def mesh(*statements: Advert, settings: Settings | None = None) -> Scheduler:
    broker = scheduler(settings)
    for number, statement in enumerate(statements):
        join(broker, f"n{number}", statement)
    return broker


def deny(broker: Scheduler, **request: object) -> Deny:
    answer = broker.place(place(**request), G, 1.0)  # type: ignore[arg-type]
    assert isinstance(answer, Deny), answer
    assert answer.code in BY_CODE
    pack(1, answer, CONTROL_LIMIT)  # everything in it can travel
    check(broker)
    return answer


def test_no_node_at_all() -> None:
    answer = deny(mesh())
    assert answer.code == "no_node"
    assert from_wire(answer.code, answer.text).hint


def test_lost_nodes_are_no_nodes() -> None:
    broker = mesh(advert())
    broker.node_unreachable("n0", 0.5)
    assert deny(broker).code == "no_node"


def test_an_unknown_model_with_near_names() -> None:
    broker = mesh(
        advert(models=[model("llama-3-8b"), model("llama-3-70b"), model("pony", "image")])
    )
    answer = deny(broker, model="lama-3-8b")
    assert answer.code == "model_not_found"
    assert "did you mean 'llama-3-8b' or 'llama-3-70b'?" in answer.text
    assert answer.details["near"] == ["llama-3-8b", "llama-3-70b"]
    assert "did you mean" not in deny(broker, model="zzz").text


def test_a_model_that_its_node_cannot_have_at_the_moment() -> None:
    away = Model("m", [], error="upstream 'vllm' cannot be reached")
    answer = deny(mesh(advert(models=[model("other"), away])), model="m")
    assert answer.code == "model_load_failed"
    assert answer.text == "'m' cannot be served: upstream 'vllm' cannot be reached"


def test_a_model_of_another_kind() -> None:
    broker = mesh(advert(models=[model("m", "embedding", "chat")]))
    answer = deny(broker, kind="image")
    assert answer.code == "model_not_found"
    assert answer.text == "'m' does not serve 'image'; it serves chat, embedding"


def test_a_node_that_just_joined_may_have_it() -> None:
    broker = mesh(advert(models=[model("other")]))
    broker.node_hello("new", 1, "new", "", [], 0.9)
    assert broker.place(place(), G, 1.0) is None
    commands = broker.advert("new", advert(), 1.1)
    assert commands is not None
    assert len(commands) == 1


def test_too_large_for_every_device_with_the_numbers() -> None:
    broker = mesh(
        advert([device(total=8)], [model(memory=20)]),
        advert([device(total=24, free=9)], [model(memory=20)], [ready("x", memory=8)]),
    )
    answer = deny(broker)
    assert answer.code == "no_capacity"
    assert "20.0 GiB" in answer.text
    # 9 GiB free less the headroom; the replica of x is of a model that the node does not offer
    assert answer.details["best_free"] == 9 * GIB - 256 * 1024**2
    assert (answer.details["node"], answer.details["need"]) == ("n1", 20 * GIB)
    assert "Test Card of n1" in answer.text


def test_what_would_fit_once_others_are_done_waits() -> None:
    broker = mesh(
        advert(
            [device(total=24, free=4)],
            [model(memory=20), model("x", memory=20)],
            [ready("x", memory=20, active=1)],
        )
    )
    assert broker.place(place(), G, 1.0) is None


def test_everyone_has_refused() -> None:
    one = mesh(advert())
    answer = deny(one, exclude=["n0"])
    assert answer.code == "unavailable"
    assert answer.text == "the only node that serves 'm' refused or failed this task"
    two = mesh(advert(), advert(), advert(models=[model("other")]))
    answer = deny(two, exclude=["n0", "n1"])
    assert "all 2 nodes" in answer.text
    assert answer.details["excluded"] == 2


def test_a_model_that_cannot_be_loaded_says_why_and_when_to_try_again() -> None:
    broken = model(error="weights are corrupt", retry_in=20)
    answer = deny(mesh(advert(models=[broken]), advert(models=[broken._replace(retry_in=7.0)])))
    assert answer.code == "model_load_failed"
    assert "weights are corrupt" in answer.text
    assert answer.details["retry_after"] == 7.0


def test_a_broken_model_that_is_loaded_elsewhere_or_already_is_used() -> None:
    broken = model(error="no", retry_in=20)
    broker = mesh(advert(models=[broken]), advert())
    assert not isinstance(broker.place(place(), G, 1.0), Deny)
    broker = mesh(advert(models=[broken], replicas=[ready()]))
    assert not isinstance(broker.place(place(), G, 1.0), Deny)


def test_a_retry_that_is_due_is_tried() -> None:
    broker = mesh(advert(models=[model(error="no", retry_in=5)]))
    assert deny(broker).code == "model_load_failed"
    broker.advert("n0", advert(models=[model(error="no", retry_in=0)]), 1.0)
    assert not isinstance(broker.place(place(), G, 1.0), Deny)


def test_draining_and_unhealthy() -> None:
    assert "draining" in deny(mesh(advert(draining=True))).text
    answer = deny(mesh(advert([device(health=0)]), advert(draining=True)))
    assert (answer.code, "healthy" in answer.text) == ("unavailable", True)


def test_settings_keep_kinds_off_devices() -> None:
    settings = Settings(device_kinds={"image": frozenset({"cuda"})})
    models = [model("m", "chat", "image")]
    broker = mesh(advert([device("cpu", kind="cpu")], models), settings=settings)
    assert not isinstance(broker.place(place(kind="chat"), G, 1.0), Deny)
    answer = deny(broker, kind="image")
    assert answer.code == "no_capacity"
    assert "(cpu)" in answer.text
    join(broker, "gpu", advert(models=models))
    grant = broker.place(place(kind="image"), G, 1.0)
    assert grant is not None
    assert not isinstance(grant, Deny)
    assert grant.node == "gpu"
    check(broker)


def test_a_device_that_changes_its_kind_is_another_device() -> None:
    settings = Settings(device_kinds={"chat": frozenset({"cuda"})})
    broker = mesh(advert([device(kind="cpu")]), settings=settings)
    assert deny(broker).code == "no_capacity"
    broker.advert("n0", advert([device(kind="cuda")]), 1.0)
    assert not isinstance(broker.place(place(), G, 1.0), Deny)
    check(broker)


def test_the_queue_is_full_while_nothing_can_be_predicted() -> None:
    broker = mesh(advert(replicas=[ready()]), settings=Settings(queue_limit=0))
    broker.tick(4.0)
    answer = broker.place(place(), G, 4.0)
    assert isinstance(answer, Deny)
    assert answer.code == "overloaded"
    assert answer.details["retry_after"] == 10.0, "by then the node is back or lost"


@pytest.mark.parametrize("units", [0.0, -3.0, 1e300])
def test_absurd_units_are_bounded(units: float) -> None:
    broker = mesh(advert(replicas=[ready()]))
    answer = broker.place(place(units=units), G, 1.0)
    assert answer is not None
    pack(1, answer, CONTROL_LIMIT)
    assert not isinstance(answer, Deny)
    assert 0 < answer.service < 1e12

"""The simulated mesh around a policy: links, failures, deadlines, and what policies can do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import pytest

from blip.broker.registry import Status
from blip.protocol.messages import Advert, Move, Order
from blip.sim.baselines import BASELINES, Baseline, Place
from blip.sim.brokered import Brokered, memory_per_node
from blip.sim.mesh import Mesh, Outcome
from blip.sim.node import Node, task_id
from blip.sim.oracle import Oracle
from blip.sim.policy import Ended, Policy, Request, World
from blip.sim.run import repeat, simulate
from blip.sim.scenario import (
    Arrivals,
    Broker,
    Churn,
    Deadlines,
    Links,
    Models,
    Nodes,
    Scenario,
    Sizes,
)
from tests.unit.broker_mesh import check


def stopwatch() -> Callable[[], float]:
    """A clock that ticks once a look: decisions take a second each."""
    ticks: Iterator[int] = itertools.count()
    return lambda: float(next(ticks))


def scenario(*nodes: Nodes, **changes: object) -> Scenario:
    base = Scenario("s", "t", nodes or (Nodes("n", 3),), tasks=60, warmup=0.0)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def brokered(of: Scenario) -> tuple[Outcome, Brokered]:
    mesh = Mesh(of, lambda world: Brokered(world, stopwatch()))
    outcome = mesh.run("broker")
    assert isinstance(mesh.policy, Brokered)
    return outcome, mesh.policy


ALL = ["broker", "oracle", *BASELINES]


@pytest.mark.parametrize("policy", ALL)
def test_every_task_is_done_once_and_the_same_way_every_time(policy: str) -> None:
    of = scenario(models=Models(3, 1.0, memory=10.0), arrivals=Arrivals(load=0.5))
    first, again = (simulate(of, policy, stopwatch()) for _ in range(2))
    assert [record.finished for record in first.records] == [r.finished for r in again.records]
    assert not any(record.code for record in first.records)
    done = sum(device.done for node in first.nodes for device in node.devices.values())
    assert done == pytest.approx(sum(record.task.size for record in first.records), abs=1e-4)
    for record in first.records:
        assert record.latency >= record.task.size * (1 - 1e-9)


def test_links_take_their_time() -> None:
    of = scenario(Nodes("n"), tasks=1, sizes=Sizes(1.0, 0.0), links=Links(hop=0.1))
    # place, grant and submit, done: four hops, and a second of work
    assert simulate(of, "broker", stopwatch()).records[0].latency == pytest.approx(1.4)
    assert simulate(of, "oracle", stopwatch()).records[0].latency == pytest.approx(1.0)


def test_the_broker_keeps_its_books_and_is_timed() -> None:
    outcome, policy = brokered(scenario(broker=Broker(rate_error=0.3)))
    assert len(outcome.decisions) >= 60, "one for each attempt"
    assert set(outcome.decisions) == {1.0}
    check(policy.scheduler)
    assert {node.status for node in policy.scheduler.registry.nodes()} == {Status.READY}
    assert not policy.scheduler.tickets
    assert not policy.scheduler.ledger.leases()


@pytest.mark.parametrize("how", ["goodbye", "crash", "vanish"])
@pytest.mark.parametrize("policy", ["broker", "oracle", "least_queue", "fifo"])
def test_nodes_that_go_lose_no_task(how: str, policy: str) -> None:
    of = scenario(
        Nodes("n", 4),
        tasks=150,
        arrivals=Arrivals(load=0.4),
        churn=Churn(1.0, 30.0, 8.0, (how,)),
        models=Models(load=0.5),
    )
    outcome = simulate(of, policy, stopwatch())
    assert sum(node.incarnation for node in outcome.nodes) > 8, "some came back"
    assert not any(record.code for record in outcome.records)
    if how == "goodbye":
        assert outcome.counts["lost"] == 0
    elif policy != "oracle":
        assert outcome.counts["lost"] > 0
    for node in outcome.nodes:
        assert node.uptime(outcome.end) < outcome.end


def test_who_is_late_is_stopped_and_frees_its_device() -> None:
    of = scenario(
        Nodes("n"),
        tasks=2,
        arrivals=Arrivals("at_once"),
        sizes=Sizes(4.0, 0.0),
        deadlines=Deadlines(1.0, 5.0, 5.0),
    )
    stopped = simulate(of, "least_queue", stopwatch())
    assert [record.code for record in stopped.records] == ["", "deadline_exceeded"]
    assert stopped.end == pytest.approx(5.0, abs=0.01)
    early = simulate(of, "broker", stopwatch())
    assert early.records[1].code.startswith("deadline_")
    assert early.end < 5.01
    late = simulate(of, "fifo", stopwatch())
    assert late.records[1].latency == pytest.approx(8.0, abs=0.02)


class Mover(Policy):
    """Sends everything to the first device, and moves what waits there when the other idles."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.outcomes: list[str] = []
        self.held: list[Request] = []

    def place(self, request: Request, now: float) -> None:
        self.held.append(request)
        self.world.grant(request.key, "a" if request.attempt == 1 else "b", "gpu0")

    def ended(self, ended: Ended, now: float) -> None:
        self.outcomes.append(ended.outcome)

    def advert(self, node: Node, advert: Advert, now: float) -> None:
        if node.id == "a" and len(advert.running) > 1:
            waiting = [each for each in advert.running if not each.begun]
            self.world.recall((int.from_bytes(waiting[-1].task, "big"), waiting[-1].attempt))
            # of what has begun nothing is given back
            begun = next(each for each in advert.running if each.begun)
            self.world.recall((int.from_bytes(begun.task, "big"), begun.attempt))


def test_what_waits_can_be_moved() -> None:
    of = scenario(
        Nodes("a"), Nodes("b"), tasks=2, arrivals=Arrivals("at_once"), sizes=Sizes(3.0, 0.0)
    )
    mesh = Mesh(of, Mover)
    outcome = mesh.run()
    assert isinstance(mesh.policy, Mover)
    assert sorted(mesh.policy.outcomes) == ["done", "done", "recalled"]
    assert outcome.counts == {"recalled": 1, "refused": 0, "lost": 0}
    assert [record.attempt for record in outcome.records] == [1, 2]
    assert outcome.records[1].finished < 4.5, "it would be 6 on the first device"


def test_what_the_scheduler_may_command_reaches_gateway_and_nodes() -> None:
    """Moves and orders by the same path as grants."""

    class Listening(Mesh):
        heard: list[object]

        def recall(self, key: tuple[int, int]) -> None:
            self.heard.append(key)

        def order(self, node: str, order: Order) -> None:
            self.heard.append((node, order))

    mesh = Listening(scenario(), lambda world: Brokered(world, stopwatch()))
    mesh.heard = []
    assert isinstance(mesh.policy, Brokered)
    order = Order(1, "load", "gpu0", "m0")
    mesh.policy.obey([("gateway", Move(task_id(7), 2, "n-0", "gpu0")), ("n-0", order)])
    assert mesh.heard == [(7, 2), ("n-0", order)]


def test_nodes_follow_orders() -> None:
    class Orders(Oracle):
        def joined(self, node: Node, now: float) -> None:
            self.world.order(node.id, Order(1, "load", model="m1"))
            self.world.order(node.id, Order(2, "unload", "gpu0", "m0"))
            self.world.order(node.id, Order(3, "unload", "gpu9", "m0"))

    of = scenario(Nodes("n", resident=2), tasks=1, models=Models(2, memory=4.0))
    mesh = Mesh(of, Orders)
    mesh.run()
    assert "m1" in mesh.nodes["n"].devices["gpu0"].replicas


def test_refusals_lead_elsewhere_and_end() -> None:
    """What never fits is tried on every node once, and denied."""
    of = scenario(
        Nodes("n", 2, foreign=((0.0, 22.0),), resident=0), tasks=1, models=Models(memory=8.0)
    )
    outcome = simulate(of, "memory_blind", stopwatch())
    assert outcome.counts["refused"] == 2
    assert outcome.records[0].code == "unavailable"
    assert simulate(of, "broker", stopwatch()).records[0].code == "no_capacity"
    assert simulate(of, "oracle", stopwatch()).records[0].code == "no_capacity"


def test_a_run_that_never_ends_is_cut_off() -> None:
    of = scenario(Nodes("n"), tasks=50, arrivals=Arrivals(load=4.0), limit=5.0)
    outcome = simulate(of, "random", stopwatch())
    assert any(not record.closed for record in outcome.records)
    assert outcome.end < outcome.records[-1].task.arrives + 5.1


def test_repeats_take_the_next_seeds() -> None:
    of = scenario(tasks=5, repeats=3)
    runs = repeat(of, "random", stopwatch())
    assert [run.scenario.seed for run in runs] == [1, 2, 3]
    assert len({run.records[0].task.size for run in runs}) == 3


def test_the_memory_of_a_node_is_measured_and_grows_with_its_models() -> None:
    one, many = (
        memory_per_node(scenario(Nodes("n", 40), models=Models(count))) for count in (1, 16)
    )
    assert 500 < one < many < 1_000_000


def test_round_robin_takes_turns() -> None:
    of = scenario(tasks=6, arrivals=Arrivals(load=0.1))
    outcome = simulate(of, "round_robin", stopwatch())
    assert [record.node for record in outcome.records] == ["n-0", "n-1", "n-2"] * 2


def test_least_queue_goes_by_what_was_said() -> None:
    mesh = Mesh(scenario(), lambda world: BASELINES["least_queue"](world))
    policy = mesh.policy
    assert isinstance(policy, Baseline)
    for node in mesh.nodes.values():
        node.boot(0.0, node.resident)
        policy.advert(node, node.advert(0.0), 0.0)
    assert policy.queued(Place("n-0", "gpu0")) == 0
    assert policy.warm(Place("n-0", "gpu0"), "m0")
    policy.left(mesh.nodes["n-0"], "goodbye", 1.0)
    assert set(policy.seen) == {"n-1", "n-2"}

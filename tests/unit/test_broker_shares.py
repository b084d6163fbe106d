"""Fairness between tenants, by itself and through the scheduler."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.broker import shares
from blip.broker.scheduler import Scheduler
from blip.broker.settings import Settings
from blip.broker.shares import Shares
from blip.errors import ConfigError
from blip.protocol.messages import Grant, Release
from tests.unit.broker_mesh import advert, check, join, model, place, ready, scheduler

G = "gateway"


def test_clocks_run_by_weight() -> None:
    both = Shares({"heavy": 3.0})
    both.charge("heavy", 6.0, ["heavy", "light"])
    both.charge("light", 2.0, ["heavy", "light"])
    assert both.clock("heavy") == both.clock("light") == 2.0
    both.correct("light", -1.0)
    assert both.clock("light") == 1.0
    both.correct("nobody", 5.0)
    assert both.clock("nobody") == both.clock("somebody")


def test_who_was_away_has_saved_nothing_and_lost_nothing() -> None:
    clocks = Shares({})
    for _ in range(10):
        clocks.charge("busy", 1.0, ["busy"])
    # begins where the one that waits stands, less the run that was granted last
    assert clocks.clock("new") == pytest.approx(9.0)
    clocks.charge("new", 1.0, ["busy"])
    assert clocks.clock("new") == pytest.approx(clocks.clock("busy"))


def test_urgent_work_of_one_does_not_void_the_turn_of_another() -> None:
    clocks = Shares({})
    clocks.charge("waits", 1.0, ["waits"])
    for _ in range(5):
        clocks.charge("urgent", 10.0, ["waits", "urgent"])
    assert clocks.clock("waits") == pytest.approx(1.0)


def test_tenants_that_are_owed_nothing_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "LIMIT", 10)
    clocks = Shares({})
    for number in range(100):
        clocks.charge(f"t{number}", 1.0, ["last"])
        clocks.charge("last", 1.0, ["last"])
    assert len(clocks._clocks) <= 12


@given(
    st.lists(st.sampled_from((0.5, 1.0, 2.0, 5.0)), min_size=2, max_size=4),
    st.lists(st.floats(0.1, 3.0), min_size=400, max_size=400),
)
def test_device_time_follows_weights_whatever_the_sizes(
    weights: list[float], sizes: list[float]
) -> None:
    tenants = {f"t{number}": weight for number, weight in enumerate(weights)}
    clocks, served = Shares(tenants), Counter[str]()
    for size in sizes:
        tenant = min(tenants, key=clocks.clock)
        clocks.charge(tenant, size, list(tenants))
        served[tenant] += size  # type: ignore[assignment]
    # nobody is ahead of anybody by more than one task
    lags = [served[tenant] / weight for tenant, weight in tenants.items()]
    assert max(lags) - min(lags) <= 3.0 / min(weights) + 1e-6


def test_a_weight_is_above_nothing() -> None:
    with pytest.raises(ConfigError, match="'team'"):
        Settings(tenants={"team": 0.0})


# --- through the scheduler ----------------------------------------------------------------------


def serve(broker: Scheduler, running: Grant, count: int, owner: dict[bytes, str]) -> list[str]:
    """Let tasks of a second each run one after the other; return whose they were."""
    order = []
    now = 0.0
    for _ in range(count):
        now += 1.0
        done = Release(running.task, running.attempt, "done", 40.0, 1.0)
        ((_, running),) = broker.release(G, done, now)  # type: ignore[assignment]
        order.append(owner[running.task])
        statement = advert(models=[model()], replicas=[ready()])
        assert broker.advert("a", statement, now) == []
    check(broker)
    return order


def flood(settings: Settings) -> tuple[Scheduler, Grant, dict[bytes, str]]:
    """One device, a flood by one tenant, then some work of another."""
    broker = scheduler(settings)
    join(broker, "a", advert(models=[model()], replicas=[ready()]))
    running = broker.place(place(units=40, tenant="flood"), G, 0.0)
    assert isinstance(running, Grant)
    owner = {}
    for tenant, count in (("flood", 30), ("other", 10)):
        for _ in range(count):
            request = place(units=40, tenant=tenant)
            owner[request.task] = tenant
            assert broker.place(request, G, 0.1) is None
    return broker, running, owner


def test_a_flood_takes_half_when_somebody_else_comes() -> None:
    broker, running, owner = flood(Settings(prefetch=0))
    order = serve(broker, running, 20, owner)
    assert order[:2].count("other") >= 1
    assert 9 <= order.count("other") <= 10


def test_weights_decide_how_much() -> None:
    broker, running, owner = flood(Settings(prefetch=0, tenants={"flood": 3.0}))
    order = serve(broker, running, 20, owner)
    assert order.count("other") == pytest.approx(5, abs=1)


def test_priority_still_goes_before_fairness() -> None:
    broker, running, owner = flood(Settings(prefetch=0))
    urgent = place(units=40, tenant="flood", priority=1)
    owner[urgent.task] = "urgent"
    assert broker.place(urgent, G, 0.2) is None
    assert serve(broker, running, 1, owner) == ["urgent"]


def test_one_tenant_alone_is_served_in_order() -> None:
    broker = scheduler(Settings(prefetch=0))
    join(broker, "a", advert(models=[model()], replicas=[ready()]))
    running = broker.place(place(units=40), G, 0.0)
    assert isinstance(running, Grant)
    owner = {}
    for number in range(10):
        request = place(units=40 + number)
        owner[request.task] = str(number)
        assert broker.place(request, G, number / 10) is None
    assert serve(broker, running, 10, owner) == [str(number) for number in range(10)]

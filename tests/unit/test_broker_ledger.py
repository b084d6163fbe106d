"""Leases, and what they add up to."""

from __future__ import annotations

import math

import pytest

from blip.broker.ledger import Account, Lease, Ledger
from blip.errors import LocalProtocolError
from blip.protocol import messages
from blip.protocol.messages import Running
from tests.unit.broker_mesh import advert, ready

TTL = 3.0


def task(number: int) -> bytes:
    return number.to_bytes(16, "big")


def grant(
    ledger: Ledger,
    number: int,
    account: Account,
    *,
    gateway: str = "g",
    now: float = 0.0,
    service: float = 2.0,
    attempt: int = 1,
) -> Lease:
    return ledger.grant(
        task=task(number),
        attempt=attempt,
        gateway=gateway,
        kind="chat",
        units=10.0,
        account=account,
        now=now,
        wait=1.0,
        service=service,
        load=0.5,
    )


def running(*numbers: int, attempt: int = 1) -> list[Running]:
    return [Running(task(number), attempt) for number in numbers]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(TTL)


def test_a_lease_comes_and_goes(ledger: Ledger) -> None:
    account = ledger.account("a", "gpu0", "m")
    lease = grant(ledger, 1, account, now=10.0)
    assert lease.end == 13.5
    assert ledger.get(task(1), 1) is lease
    assert ledger.leases() == ledger.of_node("a") == ledger.of_gateway("g") == [lease]
    assert (account.leases, account.load, account.ends) == (1, 1, [13.5])
    assert ledger.release(task(1), 1, "g", 12.0) is lease
    assert len(ledger) == account.load == 0
    assert ledger.of_node("a") == ledger.of_gateway("g") == []
    assert ledger.release(task(1), 1, "g", 12.0) is None


def test_the_same_attempt_is_not_granted_twice(ledger: Ledger) -> None:
    account = ledger.account("a", "gpu0", "m")
    grant(ledger, 1, account)
    with pytest.raises(LocalProtocolError, match="lease already"):
        grant(ledger, 1, account)
    grant(ledger, 1, account, attempt=2)
    assert account.leases == 2


def test_ends_are_sorted_and_equal_ends_are_told_apart(ledger: Ledger) -> None:
    account = ledger.account("a", "gpu0", "m")
    for number, service in enumerate((5.0, 1.0, 3.0, 3.0)):
        grant(ledger, number, account, service=service)
    assert account.ends == [2.5, 4.5, 4.5, 6.5]
    ledger.release(task(2), 1, "g", 1.0)
    assert account.ends == [2.5, 4.5, 6.5]


def test_only_the_holder_releases(ledger: Ledger) -> None:
    grant(ledger, 1, ledger.account("a", "gpu0", "m"), gateway="mine")
    assert ledger.release(task(1), 1, "theirs", 1.0) is None
    assert ledger.release(task(1), 2, "mine", 1.0) is None
    assert len(ledger) == 1


def test_nodes_and_gateways_are_revoked_whole(ledger: Ledger) -> None:
    grant(ledger, 1, ledger.account("a", "gpu0", "m"), gateway="g")
    grant(ledger, 2, ledger.account("a", "gpu1", "n"), gateway="h")
    grant(ledger, 3, ledger.account("b", "gpu0", "m"), gateway="g")
    ledger.account("a", "gpu0", "m").external = 4
    assert {lease.task for lease in ledger.revoke_node("a")} == {task(1), task(2)}
    assert ledger.account("a", "gpu0", "m").load == 0
    assert [lease.task for lease in ledger.revoke_gateway("g")] == [task(3)]
    assert len(ledger) == 0
    assert ledger.revoke_node("a") == ledger.revoke_gateway("nobody") == []


def test_a_forgotten_node_leaves_no_account(ledger: Ledger) -> None:
    old = ledger.account("a", "gpu0", "m")
    grant(ledger, 1, old)
    assert len(ledger.forget_node("a")) == 1
    assert list(ledger.accounts()) == []
    assert ledger.account("a", "gpu0", "m") is not old


# --- expiry -------------------------------------------------------------------------------------


def test_a_lease_that_its_node_never_lists_expires(ledger: Ledger) -> None:
    lease = grant(ledger, 1, ledger.account("a", "gpu0", "m"), now=1.0)
    assert ledger.expire(3.9) == []
    assert ledger.expire(4.0) == [lease]
    assert len(ledger) == 0
    assert ledger.expire(9.0) == []


def test_a_listed_lease_lives_until_released(ledger: Ledger) -> None:
    account = ledger.account("a", "gpu0", "m")
    lease = grant(ledger, 1, account)
    ledger.reconcile("a", advert(replicas=[ready(active=1)], running=running(1)))
    assert lease.seen
    assert lease.expires == math.inf
    assert ledger.expire(1e6) == []
    assert account.load == 1


def test_expiry_passes_over_leases_that_ended_or_were_granted_anew(ledger: Ledger) -> None:
    account = ledger.account("a", "gpu0", "m")
    grant(ledger, 1, account, now=0.0)
    ledger.release(task(1), 1, "g", 1.0)
    again = grant(ledger, 1, account, now=2.0)
    assert ledger.expire(3.5) == [], "that was the first one's time"
    assert ledger.expire(5.0) == [again]


# --- the node's own word ------------------------------------------------------------------------


def test_a_listed_lease_that_two_adverts_leave_out_is_lost(ledger: Ledger) -> None:
    account = ledger.account("a", "gpu0", "m")
    lease = grant(ledger, 1, account)
    ledger.reconcile("a", advert(running=running(1)))
    assert ledger.reconcile("a", advert()).lost == []
    lost, changed = ledger.reconcile("a", advert())
    assert lost == [lease]
    assert changed == {account}
    assert len(ledger) == 0


def test_being_listed_again_in_between_saves_it(ledger: Ledger) -> None:
    grant(ledger, 1, ledger.account("a", "gpu0", "m"))
    for listed in ([1], [], [1], []):
        assert ledger.reconcile("a", advert(running=running(*listed))).lost == []
    assert len(ledger) == 1


def test_adverts_sent_before_the_node_had_it_prove_nothing(ledger: Ledger) -> None:
    grant(ledger, 1, ledger.account("a", "gpu0", "m"))
    for _ in range(5):
        assert ledger.reconcile("a", advert()).lost == []
    assert len(ledger) == 1


def test_an_old_advert_does_not_count_twice(ledger: Ledger) -> None:
    grant(ledger, 1, ledger.account("a", "gpu0", "m"))
    ledger.reconcile("a", advert(running=running(1)))
    missing = advert()
    ledger.reconcile("a", missing)
    for _ in range(3):
        assert ledger.reconcile("a", missing, fresh=False).lost == []


def test_another_attempt_or_another_node_does_not_keep_it_alive(ledger: Ledger) -> None:
    lease = grant(ledger, 1, ledger.account("a", "gpu0", "m"))
    ledger.reconcile("a", advert(running=running(1, attempt=2)))
    ledger.reconcile("b", advert(replicas=[ready(active=1)], running=running(1)))
    assert not lease.seen
    assert ledger.account("b", "gpu0", "m").external == 1


def test_work_of_others_counts(ledger: Ledger) -> None:
    account = ledger.account("a", "gpu0", "m")
    grant(ledger, 1, account)
    # 3 active and 2 queued, one of them ours
    statement = advert(
        replicas=[ready(slots=4, active=3, queued=2)], running=running(1, 7, 8, 9, 10)
    )
    assert ledger.reconcile("a", statement).changed == {account}
    assert (account.leases, account.external, account.load) == (1, 4, 5)
    # one of ours that the node has not listed yet does not hide others' work
    grant(ledger, 2, account)
    assert ledger.reconcile("a", statement).changed == set()
    assert account.load == 6
    assert ledger.reconcile("a", advert()).changed == {account}
    assert account.external == 0


def test_what_was_just_released_is_not_others_work(ledger: Ledger) -> None:
    account = ledger.account("a", "gpu0", "m")
    grant(ledger, 1, account, now=0.0)
    late = advert(replicas=[ready(active=1)], running=running(1))
    ledger.release(task(1), 1, "g", 5.0)
    ledger.reconcile("a", late)
    assert account.external == 0, "the advert was on its way when the attempt ended"
    ledger.expire(5.0 + TTL)
    ledger.reconcile("a", late)
    assert account.external == 1, "still running after all that time: somebody's it is"


# --- adoption -----------------------------------------------------------------------------------


def report(number: int, age: float = 1.0, node: str = "a") -> messages.Lease:
    return messages.Lease(task(number), 1, node, "gpu0", "m", "chat", 10.0, age)


def test_a_broker_that_forgot_adopts_what_gateways_report(ledger: Ledger) -> None:
    lease = ledger.adopt("g", report(1, age=2.0), 5.0, now=100.0)
    assert (lease.gateway, lease.granted_at, lease.end) == ("g", 98.0, 103.0)
    assert lease.account is ledger.account("a", "gpu0", "m")
    assert ledger.expire(103.0) == [lease], "unless its node confirms it"


def test_an_overdue_adopted_lease_ends_now_at_the_earliest(ledger: Ledger) -> None:
    assert ledger.adopt("g", report(1, age=20.0), 5.0, now=100.0).end == 100.0


@pytest.mark.parametrize("age", [-5.0, math.inf, math.nan])
def test_an_absurd_age_is_none(ledger: Ledger, age: float) -> None:
    assert ledger.adopt("g", report(1, age=age), 5.0, now=100.0).granted_at == 100.0


def test_adopting_a_known_lease_changes_its_holder_only(ledger: Ledger) -> None:
    account = ledger.account("a", "gpu0", "m")
    lease = grant(ledger, 1, account, gateway="old")
    assert ledger.adopt("new", report(1), 99.0, now=5.0) is lease
    assert account.leases == 1
    assert ledger.of_gateway("old") == []
    assert ledger.of_gateway("new") == [lease]
    assert ledger.release(task(1), 1, "old", 6.0) is None
    assert ledger.release(task(1), 1, "new", 6.0) is lease


def test_adopted_after_release_counts_again(ledger: Ledger) -> None:
    account = ledger.account("a", "gpu0", "m")
    grant(ledger, 1, account)
    ledger.release(task(1), 1, "g", 1.0)
    ledger.adopt("g", report(1), 5.0, now=1.5)
    ledger.reconcile("a", advert(replicas=[ready(active=1)], running=running(1)))
    assert (account.leases, account.external) == (1, 0)

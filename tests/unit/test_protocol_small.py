"""Credit, deadlines, versions: small parts with sharp edges."""

from __future__ import annotations

import math
from collections import deque

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blip.errors import RemoteProtocolError
from blip.protocol.credit import BULK_WINDOW, MAX_GRANT, STREAM_WINDOW, ReceiveWindow, SendWindow
from blip.protocol.deadlines import Deadlines
from blip.protocol.versions import HIGH, LOW, negotiate

# --- credit ---------------------------------------------------------------------------------


@given(
    window=st.integers(1, 5000),
    sizes=st.lists(st.integers(1, 3000), max_size=60),
    reader=st.lists(st.booleans(), max_size=200),
)
@example(window=1, sizes=[3000, 1, 3000], reader=[])
def test_a_stream_is_bounded_and_never_stands_still(
    window: int, sizes: list[int], reader: list[bool]
) -> None:
    """Whenever the client lags, at most a window and one message are unread; when it has read
    everything, there is credit again."""
    sender, receiver = SendWindow(window), ReceiveWindow(window)
    to_send, unread = deque(sizes), deque[int]()
    turns = iter(reader)
    while to_send or unread:
        while to_send and sender.open:
            unread.append(to_send.popleft())
            sender.take(unread[-1])
        assert sum(unread) < window + (unread[-1] if unread else 1)
        assert unread, "the sender waits for credit and the receiver for data"
        for _ in range(1 if next(turns, True) else len(unread)):
            grant = receiver.consume(unread.popleft())
            assert grant >= 0
            sender.grant(grant)


def test_a_window_lets_one_message_overdraw_it() -> None:
    window = SendWindow(10)
    window.take(9)
    assert window.open
    window.take(100)
    assert window.left == -99
    assert not window.grant(99), "that only pays the debt"
    assert window.grant(1), "this opens it"
    assert not window.grant(1), "it is open already"
    assert window.left == 2


@pytest.mark.parametrize("size", [0, -1, -(2**63), MAX_GRANT + 1, 2**64 - 1])
def test_grants_that_make_no_sense_change_nothing(size: int) -> None:
    window = SendWindow(5)
    window.take(5)
    assert not window.grant(size)
    assert window.left == 0


def test_credit_does_not_add_up_for_ever() -> None:
    window = SendWindow(10)
    for _ in range(10):
        window.grant(MAX_GRANT)
    assert window.left == MAX_GRANT
    assert SendWindow(2**64 - 1).left == MAX_GRANT


@pytest.mark.parametrize("window", [0, -1, -(2**63)])
def test_a_window_of_nothing_waits_for_credit(window: int) -> None:
    sender = SendWindow(window)
    assert not sender.open
    assert sender.grant(1)


def test_grants_come_once_half_is_read() -> None:
    receiver = ReceiveWindow(100)
    assert [receiver.consume(size) for size in (20, 29, 1, 49, 1, 100)] == [0, 0, 50, 0, 50, 100]
    assert receiver.consume(0) == 0


def test_the_windows_hold_what_they_are_for() -> None:
    assert BULK_WINDOW >= 8 * 1024 * 1024 > STREAM_WINDOW >= 1024 * 1024


# --- deadlines ------------------------------------------------------------------------------

TIMES = st.floats(0, 1e6, allow_nan=False)
GRAINS = st.sampled_from([0.25, 0.1, 1 / 3, 1.0, 7.0, 1e-3])


@given(
    GRAINS,
    st.lists(TIMES, max_size=30),
    st.lists(st.floats(0, 10_000, allow_nan=False), max_size=30),
)
def test_never_early_each_once_and_late_by_a_grain(
    grain: float, dues: list[float], steps: list[float]
) -> None:
    wheel: Deadlines[int] = Deadlines(grain)
    for key, due in enumerate(dues):
        wheel.add(key, due)
    now, seen = 0.0, list[int]()
    for step in [*steps, 2e6]:
        now += step
        came = wheel.due(now)
        seen += came
        for key in came:
            assert dues[key] <= now
        for key, due in enumerate(dues):
            if key not in seen:
                assert now < due + grain * (1 + 1e-9) + 1e-9
        assert len(wheel) == len(dues) - len(seen)
        assert wheel.due(now) == []
    assert sorted(seen) == list(range(len(dues)))
    assert wheel.next() is None


@given(GRAINS, st.lists(TIMES, min_size=1, max_size=30))
def test_next_is_when_something_comes_up(grain: float, dues: list[float]) -> None:
    """A timer that is set to `next` and finds nothing would spin."""
    wheel: Deadlines[float] = Deadlines(grain)
    for due in dues:
        wheel.add(due, due)
    while (at := wheel.next()) is not None:
        assert wheel.due(math.nextafter(at, -math.inf)) == []
        assert wheel.next() == at
        assert wheel.due(at)


@given(st.lists(TIMES, max_size=40), st.lists(st.booleans(), max_size=40))
def test_add_says_when_a_timer_must_be_set_anew(dues: list[float], advances: list[bool]) -> None:
    """An owner that sets its timer only then is never late."""
    wheel: Deadlines[float] = Deadlines()
    timer, now = math.inf, 0.0
    turns = iter(advances)
    for due in dues:
        if wheel.add(due, due):
            following = wheel.next()
            assert following is not None
            timer = following
        assert timer == wheel.next()
        if next(turns, False):
            now = max(now, timer)
            assert wheel.due(now)
            timer = wheel.next() or math.inf if len(wheel) else math.inf


def test_keys_come_up_in_the_order_of_their_buckets() -> None:
    wheel: Deadlines[str] = Deadlines(1.0)
    for key, due in (("c", 5.5), ("a", 1.5), ("b", 3.5), ("a2", 1.1), ("a", 1.9)):
        wheel.add(key, due)
    assert wheel.next() == 2.0
    assert len(wheel) == 5
    assert wheel.due(1.99) == []
    assert wheel.due(4.0) == ["a", "a2", "a", "b"]
    assert wheel.due(100.0) == ["c"]


# --- versions -------------------------------------------------------------------------------


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_both_sides_come_to_the_same_newest_version(a: int, b: int, c: int, d: int) -> None:
    (low, high), (own_low, own_high) = sorted((a, b)), sorted((c, d))
    common = set(range(low, high + 1)) & set(range(own_low, own_high + 1))
    if common:
        version = max(common)
        assert negotiate(low, high, own_low=own_low, own_high=own_high) == version
        assert negotiate(own_low, own_high, own_low=low, own_high=high) == version
        return
    older = "the dialling side" if high < own_low else "the listening side"
    with pytest.raises(RemoteProtocolError, match=f": upgrade {older}$"):
        negotiate(low, high, own_low=own_low, own_high=own_high)
    with pytest.raises(RemoteProtocolError):
        negotiate(own_low, own_high, own_low=low, own_high=high)


def test_the_sentence_names_both_and_what_to_do() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        negotiate(1, 1, own_low=3, own_high=4, own="broker-1", peer="node rig-2")
    assert caught.value.message == (
        "broker-1 speaks protocol 3 to 4, node rig-2 1: upgrade node rig-2"
    )


@pytest.mark.parametrize(("low", "high"), [(5, 1), (-1, -5), (2**63, -(2**63))])
def test_a_range_that_is_none_meets_nothing(low: int, high: int) -> None:
    with pytest.raises(RemoteProtocolError):
        negotiate(low, high)


def test_we_understand_ourselves() -> None:
    assert negotiate(LOW, HIGH) == HIGH

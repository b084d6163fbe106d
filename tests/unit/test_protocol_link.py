"""Links: greeting, order, silence, farewell, and whatever a bad wire does to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from blip.errors import LocalProtocolError, PayloadTooLarge
from blip.protocol import codec, versions
from blip.protocol.link import (
    PARTED,
    SEQUENCE_GAP,
    TRANSITIONS,
    UNKNOWN_EPOCH,
    Closed,
    Event,
    Healed,
    Link,
    Liveness,
    Lost,
    Ready,
    State,
    Suspect,
)
from blip.protocol.messages import (
    Cancel,
    Fail,
    Goodbye,
    Hello,
    Info,
    Lease,
    Message,
    Ping,
    Pong,
    Welcome,
)
from tests.unit.link_pair import TICK, End, Pair, hello, welcome

TASK = b"t" * 16


def info(number: int) -> Info:
    return Info({"n": number})


def sent(link: Link) -> list[Message]:
    """Flush a link and return the messages."""
    items = [item for frames in link.flush() for item in codec.decode(frames)]
    return [item.message for item in items if isinstance(item, codec.Sequenced)]


def wire(seq: int, message: Message) -> list[Any]:
    """One message as it arrives."""
    [frames] = codec.encode([(seq, message)], codec.DATA_LIMIT)
    return frames


# --- greeting -------------------------------------------------------------------------------


def test_hello_and_welcome_make_both_ready() -> None:
    pair = Pair(greeted=False)
    assert [end.link.state for end in pair.ends] == [State.CONNECTING] * 2
    assert [end.link.version for end in pair.ends] == [0, 0]
    pair.tick(0.0)
    [at_dialler] = pair.dialler.take()
    [at_listener] = pair.listener.take()
    assert at_dialler == Ready(welcome()._replace(greeting=1))
    assert at_listener == Ready(hello(greeting=1))
    assert pair.dialler.link.peer == welcome()._replace(greeting=1)
    assert pair.listener.link.peer == hello(greeting=1)
    assert [end.link.state for end in pair.ends] == [State.READY] * 2
    assert [end.link.version for end in pair.ends] == [versions.HIGH] * 2
    assert not any(end.link.pending for end in pair.ends)


def test_a_link_dials_or_listens() -> None:
    with pytest.raises(LocalProtocolError, match="either dials"):
        Link(now=0.0)
    with pytest.raises(LocalProtocolError, match="either dials"):
        Link(now=0.0, hello=hello, welcome=welcome())


def test_hello_is_repeated_every_heartbeat_until_it_is_answered() -> None:
    link = Link(now=0.0, hello=hello)
    times = []
    for step in range(50):
        now = step / 10
        assert link.tick(now) == []
        for message in sent(link):
            assert isinstance(message, Hello)
            times.append((now, message.greeting))
    assert times == [(0.0, 1), (1.0, 2), (2.0, 3), (3.0, 4), (4.0, 5)]


def test_a_new_connection_is_greeted_at_once() -> None:
    link = Link(now=0.0, hello=hello)
    link.tick(0.0)
    link.connected(0.1)
    # the greeting that had not left yet is replaced, not doubled
    assert sent(link) == [hello(greeting=2)]
    listening = Link(now=0.0, welcome=welcome())
    listening.connected(0.1)
    assert not listening.pending


def test_each_hello_is_made_anew() -> None:
    names = iter(["first", "second"])
    link = Link(now=0.0, hello=lambda: hello(name=next(names)))
    link.tick(0.0)
    assert sent(link) == [hello(name="first", greeting=1)]
    link.tick(1.0)
    assert sent(link) == [hello(name="second", greeting=2)]


def test_only_the_answer_to_the_last_hello_counts() -> None:
    link = Link(now=0.0, hello=hello)
    link.tick(0.0)
    link.tick(1.0)
    assert link.receive(wire(0, welcome()._replace(greeting=1)), 1.1) == []
    assert link.receive(wire(0, welcome()._replace(greeting=0)), 1.1) == []
    assert link.receive(wire(0, welcome()._replace(greeting=3)), 1.1) == []
    assert link.state is State.CONNECTING
    assert link.dropped.duplicate == 3
    last = welcome()._replace(greeting=2)
    assert link.receive(wire(0, last), 1.1) == [Ready(last)]


def test_a_welcome_nobody_asked_for_is_dropped() -> None:
    link = Link(now=0.0, hello=hello)
    assert link.receive(wire(0, welcome()), 0.0) == []
    assert link.state is State.CONNECTING


def test_greeting_again_is_a_fresh_start_for_the_listener() -> None:
    pair = Pair()
    pair.listener.link.send(info(1))  # never leaves: the dialler has forgotten what it was about
    again = hello(greeting=2, name="again")
    assert pair.listener.link.receive(wire(0, again), pair.now) == [
        Lost("greeted_again"),
        Ready(again),
    ]
    assert sent(pair.listener.link) == [welcome()._replace(greeting=2)]
    # and the sequences begin again
    assert pair.listener.link.receive(wire(1, info(2)), pair.now) == [info(2)]
    pair.listener.link.send(info(3))
    [frames] = pair.listener.link.flush()
    assert codec.decode(frames) == [codec.Sequenced(1, info(3))]


def test_a_greeting_makes_a_link_ready_once() -> None:
    pair = Pair()
    for greeting in (1, 1):
        assert pair.listener.link.receive(wire(0, hello(greeting=greeting)), pair.now) == []
        late = welcome()._replace(greeting=greeting)
        assert pair.dialler.link.receive(wire(0, late), pair.now) == []
    assert [end.link.dropped.duplicate for end in pair.ends] == [2, 2]
    assert [end.link.state for end in pair.ends] == [State.READY] * 2
    assert not any(end.link.pending for end in pair.ends)


def test_a_dialler_that_does_not_count_its_greetings_is_welcome_too() -> None:
    link = Link(now=0.0, welcome=welcome())
    assert link.receive(wire(0, hello()), 0.0) == [Ready(hello())]
    assert link.receive(wire(0, hello()), 1.0) == [Lost("greeted_again"), Ready(hello())]


def test_greetings_in_the_wrong_direction_are_dropped() -> None:
    pair = Pair()
    assert pair.dialler.link.receive(wire(1, hello(greeting=9)), pair.now) == []
    assert pair.listener.link.receive(wire(1, welcome()), pair.now) == []
    assert [end.link.dropped.unexpected for end in pair.ends] == [1, 1]
    assert [end.link.state for end in pair.ends] == [State.READY] * 2


@pytest.mark.parametrize(
    "bounds", [(0, 3, 10), (-1, 3, 10), (1, 0.5, 10), (1, 3, 2), (5, 3, 10)], ids=str
)
def test_a_welcome_that_makes_no_sense_is_dropped(bounds: tuple[float, float, float]) -> None:
    link = Link(now=0.0, hello=hello)
    link.tick(0.0)
    beat, suspect, lost = bounds
    bad = welcome(Liveness(beat, suspect, lost))._replace(greeting=1)
    assert link.receive(wire(0, bad), 0.0) == []
    assert link.dropped.malformed == 1
    assert link.state is State.CONNECTING
    assert link.liveness == Liveness()


def test_a_hello_with_more_leases_than_fit_leaves_them_out() -> None:
    leases = [Lease(TASK, n, "node", "cpu", "model", "echo", 1.0, 0.0) for n in range(20_000)]
    for count, told in ((1000, 1000), (20_000, 0)):
        link = Link(now=0.0, hello=lambda count=count: hello(leases=leases[:count]))  # type: ignore[misc]
        link.tick(0.0)
        [message] = sent(link)
        assert isinstance(message, Hello)
        assert len(message.leases) == told


# --- versions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (2, 3, "broker-1 speaks protocol 1, node rig 2 to 3: upgrade broker-1"),
        (0, 0, "broker-1 speaks protocol 1, node rig 0: upgrade node rig"),
    ],
)
def test_versions_that_do_not_meet_end_in_a_sentence_for_people(
    low: int, high: int, text: str
) -> None:
    pair = Pair(make_hello=lambda: hello(low=low, high=high), greeted=False)
    pair.tick(0.0)
    assert pair.listener.take() == []
    assert pair.dialler.take() == [Closed("protocol_version", text)]
    assert [end.link.state for end in pair.ends] == [State.CLOSED] * 2
    pair.run(30.0)
    assert pair.dialler.take() == pair.listener.take() == []
    assert not any(end.link.pending for end in pair.ends), "nobody tries again by itself"


def test_a_peer_that_speaks_more_than_we_do_is_met_where_we_are() -> None:
    pair = Pair(make_hello=lambda: hello(low=0, high=99))
    assert [end.link.version for end in pair.ends] == [versions.HIGH] * 2


def test_a_ready_peer_that_comes_back_with_another_version_is_lost() -> None:
    pair = Pair()
    events = pair.listener.link.receive(wire(0, hello(greeting=2, low=9, high=9)), pair.now)
    assert events == [Lost("protocol_version")]
    assert pair.listener.link.state is State.CLOSED


def test_an_endless_name_is_not_repeated_in_full() -> None:
    link = Link(now=0.0, welcome=welcome())
    long = hello(low=9, high=9, name="n" * 1_000_000)
    assert link.receive(wire(0, long), 0.0) == []
    [message] = sent(link)
    assert isinstance(message, Goodbye)
    assert len(message.text) < 200


# --- order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 1], ids=["dialler", "listener"])
def test_messages_arrive_in_order_and_gathered(side: int) -> None:
    pair = Pair()
    end = pair.ends[side]
    for number in range(5):
        end.link.send(info(number))
    pair.flush()
    far = pair.other(end)
    assert len(far.inbox) == 1, "what a tick has for a peer is one ZeroMQ message"
    pair.settle()
    assert far.take() == [info(number) for number in range(5)]


def test_a_listener_that_misses_something_says_so_and_all_begin_anew() -> None:
    pair = Pair()
    for number in range(4):
        pair.dialler.link.send(info(number))
        pair.flush()
    del pair.listener.inbox[1]
    pair.settle()
    first, lost, ready = pair.listener.take()
    assert (first, lost) == (info(0), Lost(SEQUENCE_GAP))
    assert ready == Ready(hello(greeting=2))
    assert [type(event) for event in pair.dialler.take()] == [Lost, Ready]
    assert pair.listener.link.dropped.gaps == 1
    assert pair.listener.link.dropped.unexpected == 1
    pair.dialler.link.send(info(9))
    pair.settle()
    assert pair.listener.take() == [info(9)]


def test_a_dialler_that_misses_something_greets_at_once() -> None:
    pair = Pair()
    for number in range(4):
        pair.listener.link.send(info(number))
        pair.flush()
    del pair.dialler.inbox[1]
    pair.settle()
    first, lost, ready = pair.dialler.take()
    assert (first, lost) == (info(0), Lost(SEQUENCE_GAP))
    assert ready == Ready(welcome()._replace(greeting=2))
    assert [type(event) for event in pair.listener.take()] == [Lost, Ready]


@pytest.mark.parametrize("side", [0, 1], ids=["dialler", "listener"])
def test_what_arrives_twice_is_taken_once(side: int) -> None:
    pair = Pair()
    end = pair.ends[side]
    end.link.send(info(1))
    pair.flush()
    far = pair.other(end)
    far.inbox.append(far.inbox[0])
    end.link.send(info(2))
    pair.settle()
    assert far.take() == [info(1), info(2)]
    assert far.link.dropped.duplicate == 1


def test_a_message_that_cannot_be_read_is_a_gap() -> None:
    pair = Pair()
    pair.dialler.link.send(info(1))
    pair.flush()
    pair.listener.inbox[0] = [b"garbage"]
    pair.settle()
    assert pair.listener.take() == []
    assert pair.listener.link.dropped.malformed == 1
    assert pair.listener.link.state is State.READY
    pair.dialler.link.send(info(2))
    pair.settle()
    assert [type(event) for event in pair.listener.take()] == [Lost, Ready]


# --- strangers and restarts -----------------------------------------------------------------


def test_a_stranger_is_told_to_greet_once_a_burst() -> None:
    link = Link(now=0.0, welcome=welcome())
    for frames in (wire(5, info(1)), [b"garbage"], wire(6, Ping(1)), []):
        assert link.receive(frames, 0.0) == []
    [message] = sent(link)
    assert isinstance(message, Goodbye)
    assert message.code == UNKNOWN_EPOCH
    assert "greet first" in message.text
    assert link.state is State.CONNECTING
    assert (link.dropped.unexpected, link.dropped.malformed) == (2, 2)
    link.receive(wire(7, info(1)), 0.0)
    assert len(sent(link)) == 1, "the next burst is told again"


def test_a_dialler_never_challenges() -> None:
    link = Link(now=0.0, hello=hello)
    assert link.receive(wire(5, info(1)), 0.0) == []
    assert link.receive([b"garbage"], 0.0) == []
    assert not link.pending


def test_a_restarted_listener_is_greeted_without_waiting() -> None:
    pair = Pair()
    pair.restart_listener()
    pair.dialler.link.send(info(1))
    pair.settle()  # no time passes
    lost, ready = pair.dialler.take()
    assert lost == Lost(UNKNOWN_EPOCH)
    assert ready == Ready(welcome(epoch=2)._replace(greeting=2))
    assert [type(event) for event in pair.listener.take()] == [Ready]


def test_a_burst_to_a_restarted_listener_ends_in_one_greeting() -> None:
    pair = Pair()
    pair.restart_listener()
    for number in range(3):
        pair.dialler.link.send(info(number))
        pair.flush()
        pair.step(pair.listener)
        pair.flush()
    assert len(pair.dialler.inbox) == 3, "three times told"
    pair.settle()
    assert [type(event) for event in pair.dialler.take()] == [Lost, Ready]
    assert [type(event) for event in pair.listener.take()] == [Ready]
    assert pair.dialler.link._greetings == 2


def test_an_idle_restart_shows_within_a_heartbeat() -> None:
    pair = Pair()
    pair.restart_listener()
    pair.run(1.5)
    assert [type(event) for event in pair.dialler.take()] == [Lost, Ready]


def test_a_challenge_to_a_dialler_that_greets_already_changes_nothing() -> None:
    link = Link(now=0.0, hello=hello)
    link.tick(0.0)
    assert link.receive(wire(0, Goodbye(UNKNOWN_EPOCH, "")), 0.0) == []
    assert sent(link) == [hello(greeting=1)]


def test_a_dialler_cannot_challenge_a_listener() -> None:
    pair = Pair()
    assert pair.listener.link.receive(wire(1, Goodbye(UNKNOWN_EPOCH, "")), pair.now) == []
    assert pair.listener.link.state is State.READY


# --- silence --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 1], ids=["dialler", "listener"])
def test_silence_makes_suspect_then_lost(side: int) -> None:
    pair = Pair()
    end = pair.ends[side]
    end.deaf = True
    began = pair.now
    story = []
    for _ in range(30):
        pair.tick()
        story += [(pair.now - began, event) for event in end.take() if not isinstance(event, Ready)]
        if end.link.state is State.LOST:
            break
    assert story == [(3.0, Suspect()), (10.0, Lost("silent"))]


@pytest.mark.parametrize("side", [0, 1], ids=["dialler", "listener"])
def test_a_word_heals(side: int) -> None:
    pair = Pair()
    end, far = pair.ends[side], pair.ends[1 - side]
    end.deaf = True
    pair.run(5.0)
    assert end.link.state is State.SUSPECT
    assert end.link.ready
    end.link.send(info(1))  # suspect is not lost
    # let it hear what comes next in the sequence
    end.deaf = False
    end.link._next_in = far.link._next_out
    end.take()
    far.link.send(info(2))
    pair.settle()
    assert end.take() == [Healed(), info(2)]
    assert pair.ends[side].link.state is State.READY
    assert info(1) in far.take()


def test_quiet_peers_are_pinged_and_busy_ones_are_not() -> None:
    link = Link(now=0.0, welcome=welcome())
    link.receive(wire(0, hello(greeting=1)), 0.0)
    sent(link)
    for step in range(1, 10):  # it hears something every half second
        link.receive(wire(step, info(step)), step * TICK)
        link.tick(step * TICK)
    assert not link.pending
    pings = []
    for step in range(10, 17):
        link.tick(step * TICK)
        pings += [(step * TICK, message) for message in sent(link)]
    assert pings == [(5.5, Ping(1)), (6.5, Ping(2)), (7.5, Ping(3))]


@pytest.mark.parametrize("nonce", [0, -1, 2**64 - 1])
def test_a_ping_is_answered(nonce: int) -> None:
    pair = Pair()
    assert pair.listener.link.receive(wire(1, Ping(nonce)), pair.now) == []
    assert sent(pair.listener.link) == [Pong(nonce)]


def test_idle_links_stay_ready() -> None:
    pair = Pair()
    pair.run(300.0)
    assert pair.dialler.take() == pair.listener.take() == []
    assert [end.link.state for end in pair.ends] == [State.READY] * 2


def test_the_listeners_values_rule() -> None:
    pair = Pair(liveness=Liveness(5.0, 20.0, 30.0))
    assert pair.dialler.link.liveness == Liveness(5.0, 20.0, 30.0)
    for end in pair.ends:
        end.deaf = True
    pair.run(19.5)
    assert pair.dialler.take() == pair.listener.take() == []
    pair.run(0.5)
    assert pair.dialler.take() == pair.listener.take() == [Suspect()]
    pair.run(10.0)
    assert pair.dialler.take() == pair.listener.take() == [Lost("silent")]


def test_a_heartbeat_shorter_than_the_ticks_is_judged_as_configured() -> None:
    """Ticks that are slower than the heartbeat are no stall: nobody is forgiven for them."""
    pair = Pair(liveness=Liveness(0.1, 2.0, 4.0))
    pair.listener.deaf = True
    pair.run(2.0)
    assert pair.listener.take() == [Suspect()]
    pair.run(2.0)
    assert pair.listener.take() == [Lost("silent")]


@pytest.mark.parametrize("stall", [2.0, 9.9, 60.0, 86400.0])
def test_nobody_is_blamed_for_our_own_stall(stall: float) -> None:
    pair = Pair()
    pair.run(1.0)
    for end in pair.ends:
        end.deaf = True  # whatever arrived meanwhile is read after the tick
    pair.tick(stall)
    assert pair.dialler.take() == pair.listener.take() == []
    pair.run(1.5)
    assert pair.dialler.take() == pair.listener.take() == []
    # and then silence counts again, from where it stood
    pair.run(2.0)
    assert pair.dialler.take() == pair.listener.take() == [Suspect()]


def test_a_stall_does_not_hide_silence_from_before_it() -> None:
    pair = Pair()
    pair.listener.deaf = True
    pair.run(2.5)
    pair.tick(100.0)
    assert pair.listener.take() == [Suspect()], "2.5 s before the stall, 1 s of it"


def test_a_clock_that_jumps_back_harms_nobody() -> None:
    pair = Pair()
    pair.run(5.0)
    pair.tick(-100.0)
    pair.run(5.0)
    assert pair.dialler.take() == pair.listener.take() == []


def test_a_lost_peer_is_greeted_until_it_answers() -> None:
    pair = Pair()
    for end in pair.ends:
        end.deaf = True
    pair.run(30.0)
    assert [end.link.state for end in pair.ends] == [State.LOST] * 2
    for end in pair.ends:
        end.deaf = False
        end.take()
    pair.run(1.0)
    assert [type(event) for event in pair.dialler.take()] == [Ready]
    assert [type(event) for event in pair.listener.take()] == [Ready]


def test_what_was_held_up_arrives_in_one_burst_and_all_is_well() -> None:
    """A partition that heals: TCP delivers everything at once, old greetings included."""
    pair = Pair()
    held: list[list[Any]] = []
    for _ in range(60):
        pair.now += TICK
        for end in pair.ends:
            end.note(end.link.tick(pair.now))
        held += pair.dialler.link.flush()
        pair.listener.link.flush()
    assert [end.link.state for end in pair.ends] == [State.LOST] * 2
    pair.listener.inbox.extend(held)
    pair.settle()
    pair.run(2.0)
    assert pair.listener.alternating()
    assert pair.dialler.alternating()
    assert [end.link.state for end in pair.ends] == [State.READY] * 2


# --- the transport's word -------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 1], ids=["dialler", "listener"])
def test_a_connection_that_goes_is_a_loss_once(side: int) -> None:
    pair = Pair()
    link = pair.ends[side].link
    link.send(info(1))
    assert link.disconnected(pair.now) == [Lost("disconnected")]
    assert not link.pending, "what was queued went with it"
    assert link.disconnected(pair.now) == []
    assert link.state is State.CONNECTING


def test_after_a_reconnection_all_begins_anew() -> None:
    pair = Pair()
    pair.dialler.note(pair.dialler.link.disconnected(pair.now))
    pair.dialler.link.connected(pair.now)
    pair.settle()
    assert [type(event) for event in pair.dialler.take()] == [Lost, Ready]
    assert [type(event) for event in pair.listener.take()] == [Lost, Ready]


# --- farewell -------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 1], ids=["dialler", "listener"])
def test_goodbye_ends_a_link_behind_what_was_said(side: int) -> None:
    pair = Pair()
    end, far = pair.ends[side], pair.ends[1 - side]
    end.link.send(info(1))
    end.link.goodbye("leaving", "the node is shutting down")
    assert end.link.state is State.CLOSED
    pair.settle()
    assert far.take() == [
        info(1),
        Lost("goodbye"),
        Closed("leaving", "the node is shutting down"),
    ]
    assert end.take() == [], "who says goodbye knows"
    assert end.link.parted, "the other side has read everything and said so"
    pair.run(30.0)
    assert pair.dialler.take() == pair.listener.take() == []
    assert [each.link.state for each in pair.ends] == [State.CLOSED] * 2


@pytest.mark.parametrize("side", [0, 1], ids=["dialler", "listener"])
def test_a_goodbye_is_answered_once(side: int) -> None:
    pair = Pair()
    end, far = pair.ends[side], pair.ends[1 - side]
    end.link.goodbye("leaving", "bye")
    pair.flush()
    pair.step(far)
    assert far.link.parted
    assert sent(far.link) == [Goodbye(PARTED, "goodbye")]
    assert end.link.receive(wire(5, Goodbye(PARTED, "goodbye")), pair.now) == []
    assert end.link.parted
    assert not end.link.pending, "and the answer is not answered"


def test_both_may_say_goodbye_at_once() -> None:
    pair = Pair()
    for end in pair.ends:
        end.link.goodbye("leaving", "bye")
    pair.settle()
    assert pair.dialler.take() == pair.listener.take() == []
    assert all(end.link.parted for end in pair.ends)


def test_goodbye_heard_twice_is_told_once() -> None:
    pair = Pair()
    frames = wire(9, Goodbye("leaving", "bye"))
    assert len(pair.dialler.link.receive(frames, pair.now)) == 2
    assert pair.dialler.link.receive(frames, pair.now) == []


def test_goodbye_before_a_greeting_closes_without_a_loss() -> None:
    pair = Pair(greeted=False)
    frames = wire(0, Goodbye("superseded", "a newer process is connected"))
    assert pair.dialler.link.receive(frames, pair.now) == [
        Closed("superseded", "a newer process is connected")
    ]
    pair.run(5.0)
    assert pair.dialler.link.state is State.CLOSED
    assert pair.listener.take() == []


def test_a_listener_that_shuts_down_can_have_its_diallers_come_back() -> None:
    pair = Pair()
    pair.listener.link.goodbye(UNKNOWN_EPOCH, "the broker is shutting down")
    pair.flush()
    farewell = pair.dialler.inbox.popleft()
    pair.restart_listener()
    pair.dialler.inbox.append(farewell)
    pair.settle()
    assert [type(event) for event in pair.dialler.take()] == [Lost, Ready]
    assert [type(event) for event in pair.listener.take()] == [Ready]


def test_a_closed_listener_challenges_and_takes_back_who_greets() -> None:
    pair = Pair()
    pair.listener.link.goodbye(UNKNOWN_EPOCH, "greet first")
    pair.settle()
    assert [type(event) for event in pair.dialler.take()] == [Lost, Ready]
    assert [type(event) for event in pair.listener.take()] == [Ready]


def test_a_closed_dialler_stays_closed() -> None:
    pair = Pair(greeted=False)
    pair.dialler.link.tick(pair.now)
    pair.flush()
    pair.dialler.link.goodbye("closing", "this side is closing")
    pair.settle()  # the WELCOME to the HELLO that was under way
    assert pair.dialler.take() == []
    assert pair.dialler.link.state is State.CLOSED
    assert [type(event) for event in pair.listener.take()] == [Ready, Lost, Closed]


# --- sending --------------------------------------------------------------------------------


def in_state(state: State, side: int) -> Pair:
    """A pair whose end ``side`` (0 dials, 1 listens) stands there."""
    pair = Pair(greeted=state is not State.CONNECTING)
    end = pair.ends[side]
    if state in (State.SUSPECT, State.LOST):
        end.deaf = True
        pair.run(4.0 if state is State.SUSPECT else 12.0)
        end.deaf = False
    elif state is State.CLOSED:
        end.link.receive(wire(1, Goodbye("leaving", "bye")), pair.now)
    pair.flush()
    for each in pair.ends:
        each.inbox.clear()
        each.take()
    assert end.link.state is state
    return pair


@pytest.mark.parametrize("side", [0, 1], ids=["dialler", "listener"])
@pytest.mark.parametrize("state", [State.CONNECTING, State.LOST, State.CLOSED])
def test_sending_where_it_is_not_allowed_raises_and_changes_nothing(
    state: State, side: int
) -> None:
    link = in_state(state, side).ends[side].link
    assert not link.ready
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match=f"the link is {state.value}"):
            link.send(info(1))
    assert link.state is state
    assert not link.pending
    assert link.flush() == []


def test_a_message_that_is_too_large_is_refused_and_nothing_is_lost() -> None:
    pair = Pair(limit=10_000)
    pair.dialler.link.send(info(1))
    with pytest.raises(PayloadTooLarge, match="a Info of"):
        pair.dialler.link.send(Info({"text": "x" * 10_000}))
    pair.dialler.link.send(info(2))
    pair.settle()
    assert pair.listener.take() == [info(1), info(2)]
    assert pair.listener.link.dropped.gaps == 0


def test_what_is_sent_is_what_it_was_when_it_was_sent() -> None:
    pair = Pair()
    body = {"n": 1}
    pair.dialler.link.send(Info(body))
    body["n"] = 2
    pair.settle()
    assert pair.listener.take() == [Info({"n": 1})]


def unknown(seq: int, task: bytes) -> list[Any]:
    return [codec.PREFIX + msgpack.packb([[222, seq, task, 3, []]])]


@pytest.mark.parametrize("side", [0, 1], ids=["dialler", "listener"])
def test_types_from_the_future_are_answered_if_they_are_about_a_task(side: int) -> None:
    link = Pair().ends[side].link
    assert link.receive(unknown(1, TASK), 1000.0) == []
    text = "message type 222 is not known here"
    assert sent(link) == [Fail(TASK, 3, "unsupported", text)]
    assert link.receive(unknown(2, b""), 1000.0) == []
    assert not link.pending
    assert link.dropped.unknown == 2
    assert link.receive(wire(3, Cancel(TASK, 1)), 1000.0) == [Cancel(TASK, 1)]


# --- the table ------------------------------------------------------------------------------


def greeted(pair: Pair, end: End) -> None:
    if end is pair.listener:
        end.link.receive(wire(0, hello(greeting=7)), pair.now)
    else:
        end.link.tick(pair.now + 2)
        asked = [message for message in sent(end.link) if isinstance(message, Hello)]
        answer = welcome()._replace(greeting=asked[0].greeting if asked else 1)
        end.link.receive(wire(0, answer), pair.now + 2)


def heard(pair: Pair, end: End) -> None:
    end.link.receive(wire(end.link._next_in, Pong(1)), pair.now)


def silence(pair: Pair, end: End) -> None:
    for _ in range(round(3.0 / TICK)):
        pair.now += TICK
        end.link.tick(pair.now)


def long_silence(pair: Pair, end: End) -> None:
    for _ in range(round(10.0 / TICK)):
        pair.now += TICK
        end.link.tick(pair.now)


CAUSES: dict[Event, Callable[[Pair, End], object]] = {
    Event.GREETED: greeted,
    Event.HEARD: heard,
    Event.GOODBYE: lambda pair, end: end.link.receive(wire(99, Goodbye("x", "y")), pair.now),
    Event.QUIET: silence,
    Event.SILENT: long_silence,
    Event.BROKEN: lambda pair, end: end.link.disconnected(pair.now),
}

#: Cells in which what the outside does amounts to another event, or to none.
OTHERWISE = {
    (State.READY, Event.SILENT): State.LOST,  # it is QUIET on the way
    (State.SUSPECT, Event.QUIET): State.SUSPECT,  # 3 s of silence are 4 s now, and 7 s
}

#: A dialler greets while it is CONNECTING or LOST; elsewhere no WELCOME is due.
UNASKED = (State.READY, State.SUSPECT, State.CLOSED)


def test_the_table_is_complete() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {target for row in TRANSITIONS.values() for target in row.values()}
    assert reached | {State.CONNECTING} == set(State)


@pytest.mark.parametrize("side", [0, 1], ids=["dialler", "listener"])
@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(State, Event)), ids=lambda value: value.value
)
def test_every_cell_of_the_table(state: State, event: Event, side: int) -> None:
    """What is in the table happens; what is not changes nothing and raises nothing."""
    pair = in_state(state, side)
    end = pair.ends[side]
    CAUSES[event](pair, end)
    expected = TRANSITIONS[state].get(event, state)
    if side == 0 and event is Event.GREETED and state in UNASKED:
        expected = state
    assert end.link.state is OTHERWISE.get((state, event), expected)


def test_an_illegal_event_is_a_bug_here_and_leaves_the_state() -> None:
    for state, event in itertools.product(State, Event):
        if event in TRANSITIONS[state]:
            continue
        link = Link(now=0.0, hello=hello)
        link.state = state
        with pytest.raises(LocalProtocolError, match=f"{event.value} cannot happen"):
            link._move(event)
        assert link.state is state


def test_suspect_comes_before_lost_however_long_the_silence() -> None:
    link = Link(now=0.0, welcome=welcome(), stall_after=1e9)
    link.receive(wire(0, hello(greeting=1)), 0.0)
    assert link.tick(500.0) == [Suspect()]
    assert link.tick(500.5) == [Lost("silent")]


def test_welcome_and_hello_types_are_told_apart_by_the_owner() -> None:
    pair = Pair()
    assert isinstance(pair.dialler.link.peer, Welcome)
    assert isinstance(pair.listener.link.peer, Hello)

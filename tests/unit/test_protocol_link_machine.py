"""Links under every fault that a wire can have, in every order Hypothesis can think of.

Each application message carries its number and the greeting under which it was sent. Whatever
happens, each end hears, between a Ready and its Lost, the first few messages that the other end
sent under that same greeting, in order, each once; and when the faults stop, both are READY again
within a bounded time.

The wire loses, doubles and holds messages and breaks. It does not reorder: ZeroMQ does not within
a connection, and drops what an old connection still had. Where messages do overtake each other,
they are gaps; :class:`Overtaking` checks that nothing worse comes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blip.protocol.link import Link, Liveness, Lost, Ready, State
from blip.protocol.messages import Info
from tests.unit.link_pair import TICK, End, Pair, hello

#: Seconds until both are READY after the last fault: the one that still thinks it is READY must
#: find out by silence, and the greeting after it takes a heartbeat.
BOUND = Liveness().lost_after + 2 * Liveness().heartbeat + 2 * TICK

SIDES = st.sampled_from([0, 1])


class Wire(RuleBasedStateMachine):
    """One dialler, one listener."""

    @initialize()
    def begin(self) -> None:
        self.pair = Pair(greeted=False)
        self.number = 0
        #: What each side sent, by the greeting of its Ready: a dialler never uses one twice.
        self.sent: dict[tuple[int, int], list[int]] = {}

    def end(self, side: int) -> End:
        return self.pair.ends[side]

    # --- what owners do ---------------------------------------------------------------------

    @rule(side=SIDES, count=st.integers(1, 4))
    def send(self, side: int, count: int) -> None:
        link = self.end(side).link
        for _ in range(count):
            if link.ready:
                self.number += 1
                greeting = link._answered
                link.send(Info({"n": self.number, "g": greeting}))
                self.sent.setdefault((side, greeting), []).append(self.number)

    @rule()
    def flush(self) -> None:
        self.pair.flush()

    @rule(side=SIDES, count=st.integers(1, 5))
    def deliver(self, side: int, count: int) -> None:
        end = self.end(side)
        for _ in range(min(count, len(end.inbox))):
            self.pair.step(end)

    @rule()
    def settle(self) -> None:
        self.pair.settle()

    @rule(seconds=st.sampled_from([0.1, 0.5, 0.5, 0.5, 1.0, 3.0, 60.0]))
    def time(self, seconds: float) -> None:
        self.pair.now += seconds
        for end in self.pair.ends:
            end.note(end.link.tick(self.pair.now))

    @rule(side=SIDES, count=st.integers(1, 24))
    def silence(self, side: int, count: int) -> None:
        """Time passes at the usual pace and nothing arrives at one end."""
        self.end(side).deaf = True
        self.pair.run(count * TICK)
        self.end(side).deaf = False

    # --- what wires do ----------------------------------------------------------------------

    @rule(side=SIDES, at=st.integers(0, 5))
    def drop(self, side: int, at: int) -> None:
        inbox = self.end(side).inbox
        if inbox:
            del inbox[at % len(inbox)]

    @rule(side=SIDES, at=st.integers(0, 5))
    def double(self, side: int, at: int) -> None:
        inbox = self.end(side).inbox
        if inbox:
            at %= len(inbox)
            inbox.insert(at, inbox[at])

    @rule(side=SIDES, at=st.integers(0, 5))
    def spoil(self, side: int, at: int) -> None:
        inbox = self.end(side).inbox
        if inbox:
            inbox[at % len(inbox)] = [b"BLP\x01\xc1"]

    @rule(told=st.booleans())
    def break_connection(self, told: bool) -> None:
        """Everything under way is gone; the dialler's transport notices, or nobody does."""
        for end in self.pair.ends:
            end.inbox.clear()
        if told:
            dialler = self.pair.dialler
            dialler.note(dialler.link.disconnected(self.pair.now))
            dialler.link.connected(self.pair.now)

    @rule()
    def unreachable(self) -> None:
        """The listener's transport finds nobody to write to."""
        listener = self.pair.listener
        listener.note(listener.link.disconnected(self.pair.now))

    @rule()
    def restart_listener(self) -> None:
        self.check()
        self.pair.restart_listener()

    @rule()
    def restart_dialler(self) -> None:
        """A new dialler has a routing id of its own: at the other end that is another link."""
        self.check()
        pair = self.pair
        pair.dialler = End(Link(now=pair.now, hello=hello))
        pair.restart_listener()
        self.sent.clear()

    # --- what must hold ---------------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        for side, end in enumerate(self.pair.ends):
            assert end.alternating()
            assert end.link.ready == (self.last(end) is Ready)
            for greeting, heard in self.sessions(end):
                for number, under in heard:
                    assert under == greeting, f"{number} was sent under greeting {under}"
                numbers = [number for number, _ in heard]
                said = self.sent.get((1 - side, greeting), [])
                assert numbers == said[: len(numbers)], "in order, once, and nothing left out"

    @staticmethod
    def last(end: End) -> type | None:
        kinds = [type(event) for event in end.log if isinstance(event, Ready | Lost)]
        return kinds[-1] if kinds else None

    @staticmethod
    def sessions(end: End) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """What was heard, by the greeting it was heard under."""
        heard: list[tuple[int, int]] = []
        greeting: int | None = None
        for event in end.log:
            if isinstance(event, Ready):
                greeting, heard = event.peer.greeting, []
            elif isinstance(event, Info):
                assert greeting is not None, "a message before a Ready"
                heard.append((event.body["n"], event.body["g"]))
            elif isinstance(event, Lost):
                assert greeting is not None
                yield greeting, heard
                greeting = None
        if greeting is not None:
            yield greeting, heard

    def teardown(self) -> None:
        """The faults stop. Within the bound both can be used, and what is sent arrives."""
        if not hasattr(self, "pair"):
            return
        pair = self.pair
        pair.settle()
        pair.run(BOUND)
        assert [end.link.state for end in pair.ends] == [State.READY] * 2
        assert pair.dialler.link._answered == pair.listener.link._answered
        for side in (0, 1):
            self.send(side, 2)
        before = [len(end.log) for end in pair.ends]
        pair.settle()
        self.check()
        for end, start in zip(pair.ends, before, strict=True):
            assert [type(event) for event in end.log[start:]] == [Info, Info]


class Overtaking(RuleBasedStateMachine):
    """Messages that overtake each other between two greetings are gaps, and gaps heal."""

    @initialize()
    def begin(self) -> None:
        self.pair = Pair()
        self.number = 0

    @rule(side=SIDES, count=st.integers(1, 6), order=st.randoms(use_true_random=False))
    def send(self, side: int, count: int, order: Any) -> None:
        end = self.pair.ends[side]
        for _ in range(count):
            self.number += 1
            end.link.send(Info({"n": self.number}))
            self.pair.flush()
        far = self.pair.other(end)
        inbox = list(far.inbox)
        order.shuffle(inbox)
        far.inbox.clear()
        far.inbox.extend(inbox)
        self.pair.settle()
        self.pair.settle()

    @precondition(lambda self: self.number)
    @rule()
    def time(self) -> None:
        self.pair.tick()

    @invariant()
    def in_order_and_once(self) -> None:
        for end in self.pair.ends:
            assert end.alternating()
            numbers = [event.body["n"] for event in end.log if isinstance(event, Info)]
            assert numbers == sorted(set(numbers))
            assert end.link.state is State.READY


TestWire = Wire.TestCase
TestWire.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestOvertaking = Overtaking.TestCase
TestOvertaking.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)

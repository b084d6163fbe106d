"""Two links in memory, a wire between them that fails on demand, and a clock that is a number."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from blip.protocol import versions
from blip.protocol.codec import CONTROL_LIMIT
from blip.protocol.link import Link, LinkEvent, Liveness, Lost, Ready
from blip.protocol.messages import Hello, Message, Payload, Welcome

Frames = list[Payload]

#: How often the real owners tick.
TICK = 0.5


def hello(**fields: object) -> Hello:
    """A node's HELLO."""
    base = Hello("node", "node-1", 1, versions.LOW, versions.HIGH, name="rig")
    return base._replace(**fields)  # type: ignore[arg-type]


def welcome(liveness: Liveness | None = None, epoch: int = 1) -> Welcome:
    """A broker's WELCOME."""
    limits = liveness or Liveness()
    return Welcome(
        versions.HIGH,
        "broker-1",
        epoch,
        limits.heartbeat,
        limits.suspect_after,
        limits.lost_after,
    )


class End:
    """A link, what it was told, and what is on its way to it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.log: list[LinkEvent | Message] = []
        self.inbox: deque[Frames] = deque()
        #: What arrives is swallowed while set.
        self.deaf = False
        self._taken = 0

    def note(self, events: list[LinkEvent | Message]) -> None:
        """Take down what the link returned."""
        self.log += events

    def take(self) -> list[LinkEvent | Message]:
        """Return what happened since the last call."""
        events = self.log[self._taken :]
        self._taken = len(self.log)
        return events

    def alternating(self) -> bool:
        """Whether Ready and Lost have alternated from the start."""
        kinds = [type(event) for event in self.log if isinstance(event, Ready | Lost)]
        return kinds == [Ready, Lost] * (len(kinds) // 2) + [Ready] * (len(kinds) % 2)


class Pair:
    """A dialler and a listener."""

    def __init__(
        self,
        *,
        make_hello: Callable[[], Hello] = hello,
        liveness: Liveness | None = None,
        greeted: bool = True,
        limit: int = CONTROL_LIMIT,
    ) -> None:
        self.now = 1000.0
        self.epoch = 1
        self.liveness = liveness or Liveness()
        self.make_hello = make_hello
        self.dialler = End(Link(now=self.now, hello=make_hello, limit=limit))
        self.listener = End(Link(now=self.now, welcome=welcome(liveness), limit=limit))
        if greeted:
            self.tick(0.0)
            assert [type(event) for event in self.dialler.take()] == [Ready]
            assert [type(event) for event in self.listener.take()] == [Ready]

    @property
    def ends(self) -> tuple[End, End]:
        """Both."""
        return self.dialler, self.listener

    def other(self, end: End) -> End:
        """The one at the far end."""
        return self.listener if end is self.dialler else self.dialler

    def flush(self) -> None:
        """Put what both have to say on the wire."""
        for end in self.ends:
            far = self.other(end)
            for frames in end.link.flush():
                if not far.deaf:
                    far.inbox.append(frames)

    def step(self, end: End) -> None:
        """Let the next ZeroMQ message arrive."""
        end.note(end.link.receive(end.inbox.popleft(), self.now))

    def settle(self) -> None:
        """Let everything arrive, and the answers, and the answers to those."""
        for _ in range(100):
            self.flush()
            if not any(end.inbox for end in self.ends):
                return
            for end in self.ends:
                while end.inbox:
                    self.step(end)
        raise AssertionError("the two never stop talking")

    def tick(self, seconds: float = TICK) -> None:
        """Let time pass, in one go, and then everything arrive."""
        self.now += seconds
        for end in self.ends:
            end.note(end.link.tick(self.now))
        self.settle()

    def run(self, seconds: float) -> None:
        """Let time pass as owners do."""
        for _ in range(round(seconds / TICK)):
            self.tick()

    def restart_listener(self) -> None:
        """The listener's process dies and another takes its place; connections are lost."""
        self.epoch += 1
        self.listener = End(Link(now=self.now, welcome=welcome(self.liveness, self.epoch)))
        self.dialler.inbox.clear()

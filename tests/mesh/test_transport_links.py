"""Dialers and listeners over real sockets, on good networks and bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import platform
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from blip.errors import ConfigError, LocalProtocolError, PayloadTooLarge
from blip.protocol import codec, versions
from blip.protocol.link import (
    UNKNOWN_EPOCH,
    Closed,
    Healed,
    LinkEvent,
    Liveness,
    Lost,
    Ready,
    State,
    Suspect,
)
from blip.protocol.messages import Data, Goodbye, Hello, Info, Message, Payload, Welcome
from blip.transport import host as host_module
from blip.transport import links as links_module
from blip.transport import port as port_module
from blip.transport.host import host_id, reachable
from blip.transport.links import FORGET_AFTER, Dialer, Listener, Peer
from blip.transport.sockets import check_bind, make_socket
from tests.mesh.wires import LOOPS, Context, run_on, stall, terminating, until
from tests.toxic import Toxic

#: For bad networks silence is judged ten times as fast; on good ones nobody may become suspect
#: because the machine that runs the tests is busy.
QUICK = Liveness(heartbeat=0.1, suspect_after=0.4, lost_after=1.0)
TICK = 0.05

LOOPBACK = "tcp://127.0.0.1:*"
TASK = b"t" * 16


@pytest.fixture
def context() -> Iterator[Context]:
    with terminating() as context:
        yield context


def info(number: int) -> Info:
    return Info({"n": number})


class Here:
    """A listener and what it was told, by the name of the peer."""

    def __init__(
        self,
        context: Context,
        *binds: str,
        epoch: int = 1,
        data: bool = False,
        liveness: Liveness | None = None,
    ) -> None:
        liveness = liveness or Liveness()
        self.log: dict[str, list[LinkEvent | Message]] = {}
        #: Called with each event before it is logged.
        self.react: Callable[[Peer, LinkEvent | Message], object] = lambda peer, event: None
        self.listener = Listener(
            context,
            binds or (LOOPBACK,),
            lambda: Welcome(
                versions.HIGH,
                "broker-1",
                epoch,
                liveness.heartbeat,
                liveness.suspect_after,
                liveness.lost_after,
            ),
            self._on_event,
            data=data,
        )

    @property
    def endpoint(self) -> str:
        return self.listener.endpoints[0]

    def peer(self, name: str = "a") -> Peer:
        [peer] = [
            peer
            for peer in self.listener.peers.values()
            if isinstance(peer.link.peer, Hello) and peer.hello.name == name
        ]
        return peer

    def kinds(self, name: str = "a") -> list[type]:
        return [type(event) for event in self.log.get(name, [])]

    def _on_event(self, peer: Peer, event: LinkEvent | Message) -> None:
        self.log.setdefault(peer.hello.name, []).append(event)
        self.react(peer, event)


class There:
    """A dialer and what it was told."""

    def __init__(
        self, context: Context, endpoint: str, name: str = "a", *, data: bool = False
    ) -> None:
        self.log: list[LinkEvent | Message] = []
        self.react: Callable[[LinkEvent | Message], object] = lambda event: None
        self.dialer = Dialer(
            context,
            endpoint,
            lambda: Hello("node", name, 1, versions.LOW, versions.HIGH, name=name),
            self._on_event,
            data=data,
        )

    @property
    def kinds(self) -> list[type]:
        return [type(event) for event in self.log]

    def _on_event(self, event: LinkEvent | Message) -> None:
        self.log.append(event)
        self.react(event)


@contextlib.asynccontextmanager
async def ticking(*ends: Here | There) -> AsyncIterator[None]:
    """Let time pass for these, and close them in the end."""
    loop = asyncio.get_running_loop()

    async def tick() -> None:
        while True:
            for end in ends:
                (end.listener if isinstance(end, Here) else end.dialer).tick(loop.time())
            await asyncio.sleep(TICK)

    task = loop.create_task(tick())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        for end in ends:
            (end.listener if isinstance(end, Here) else end.dialer).close()


def counting(port: port_module.Port) -> list[int]:
    """Count the frames of each ZeroMQ message that a port receives from now on."""
    counts: list[int] = []
    deliver = port._on_frames

    def counted(frames: list[Payload]) -> None:
        counts.append(len(frames))
        deliver(frames)

    port._on_frames = counted
    return counts


# --- the good network -----------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_they_greet_and_talk(context: Context, loop: str, scheme: str, tmp_path: Path) -> None:
    async def main() -> None:
        here = Here(context, LOOPBACK if scheme == "tcp" else f"ipc://{tmp_path}/s")
        there = There(context, here.endpoint)
        assert not there.dialer.ready
        with pytest.raises(LocalProtocolError, match="connecting"):
            there.dialer.send(info(0))
        async with ticking(here, there):
            await until(lambda: there.dialer.ready)
            assert there.dialer.usable
            assert isinstance(there.dialer.link.peer, Welcome)
            assert here.peer().hello.name == "a"
            for number in range(100):
                there.dialer.send(info(number))
                here.peer().send(info(-number))
            await until(lambda: len(there.log) == len(here.log["a"]) == 101)
        assert there.log[1:] == [info(-number) for number in range(100)]
        assert here.log["a"][1:] == [info(number) for number in range(100)]

    run_on(loop, main())


async def test_the_greeting_does_not_wait_for_a_tick(context: Context) -> None:
    here = Here(context)
    there = There(context, here.endpoint)
    await until(lambda: there.dialer.ready)  # nobody ticks
    there.dialer.close()
    here.listener.close()


async def test_one_listener_on_tcp_and_ipc(context: Context, tmp_path: Path) -> None:
    here = Here(context, f"ipc://{tmp_path}/s", LOOPBACK)
    assert here.listener.endpoints[0] == f"ipc://{tmp_path}/s"
    assert here.listener.endpoints[1].startswith("tcp://127.0.0.1:")
    first = There(context, here.listener.endpoints[0], "a")
    second = There(context, here.listener.endpoints[1], "b")
    async with ticking(here, first, second):
        await until(lambda: first.dialer.ready and second.dialer.ready)
        assert set(here.log) == {"a", "b"}


async def test_what_a_tick_has_for_a_peer_is_one_zeromq_message(context: Context) -> None:
    here = Here(context)
    ends = [There(context, here.endpoint, name) for name in "abc"]
    async with ticking(here, *ends):
        await until(lambda: all(end.dialer.ready for end in ends))
        at_listener = counting(here.listener._port)
        at_dialers = [counting(end.dialer._port) for end in ends]
        for number in range(50):
            for end in ends:
                end.dialer.send(info(number))
                here.peer(end.dialer.link.hello().id).send(info(number))  # type: ignore[misc]
        await until(lambda: all(len(end.log) == 51 for end in ends))
        await until(lambda: all(len(log) == 51 for log in here.log.values()))
        assert at_listener == [2] * 3  # routing id and headers
        assert at_dialers == [[1]] * 3
        # answers too: what one tick's messages cause leaves together
        del at_dialers[0][:], at_listener[:]

        def echo(peer: Peer, event: LinkEvent | Message) -> None:
            assert isinstance(event, Info)
            peer.send(event)

        here.react = echo
        for number in range(50):
            ends[0].dialer.send(info(number))
        await until(lambda: len(ends[0].log) == 101)
        assert (len(at_listener), len(at_dialers[0])) == (1, 1)


async def test_large_payloads_travel_as_frames(context: Context) -> None:
    here, payload = Here(context, data=True), bytes(range(256)) * 8192
    there = There(context, here.endpoint, data=True)
    async with ticking(here, there):
        await until(lambda: there.dialer.ready)
        counts = counting(here.listener._port)
        for part in range(3):
            there.dialer.send(Data(TASK, 1, part, payload))
        await until(lambda: len(here.log["a"]) == 4)
        assert counts == [1 + 1 + 3]
        for part, message in enumerate(here.log["a"][1:]):
            assert isinstance(message, Data)
            assert message.part == part
            assert isinstance(message.payload, memoryview)
            assert message.payload == payload


@pytest.mark.parametrize("data", [False, True])
async def test_links_refuse_what_the_other_end_would_hang_up_on(
    context: Context, data: bool
) -> None:
    limit = codec.DATA_LIMIT if data else codec.CONTROL_LIMIT
    here = Here(context, data=data)
    there = There(context, here.endpoint, data=data)
    async with ticking(here, there):
        await until(lambda: there.dialer.ready)
        with pytest.raises(PayloadTooLarge):
            there.dialer.send(Data(TASK, 1, 0, bytes(limit)))
        with pytest.raises(PayloadTooLarge):
            here.peer().send(Data(TASK, 1, 0, bytes(limit)))
        largest = Data(TASK, 1, 0, bytes(limit - 100))
        there.dialer.send(largest)
        await until(lambda: len(here.log["a"]) == 2)
        assert here.kinds() == [Ready, Data]
        assert there.kinds == [Ready]


async def test_a_batch_over_the_limit_travels_in_parts(context: Context) -> None:
    here = Here(context)
    there = There(context, here.endpoint)
    async with ticking(here, there):
        await until(lambda: there.dialer.ready)
        for part in range(10):
            there.dialer.send(Data(TASK, 1, part, bytes(300_000)))
        await until(lambda: len(here.log["a"]) == 11)
        assert [each.part for each in here.log["a"] if isinstance(each, Data)] == [*range(10)]


# --- farewell -------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_a_goodbye_arrives_behind_the_last_words(context: Context, loop: str) -> None:
    async def main() -> None:
        here = Here(context)
        there = There(context, here.endpoint)
        await until(lambda: there.dialer.ready)
        there.dialer.send(info(1))
        there.dialer.close("leaving", "the node is shutting down")
        await until(lambda: Closed in here.kinds())
        assert here.log["a"][1:] == [
            info(1),
            Lost("goodbye"),
            Closed("leaving", "the node is shutting down"),
        ]
        with pytest.raises(LocalProtocolError, match="closed"):
            there.dialer.send(info(2))
        assert not there.dialer.ready
        there.dialer.close()
        here.listener.close()

    run_on(loop, main())


@pytest.mark.parametrize("busy", [0.0, 0.5])
async def test_a_listeners_goodbye_arrives_at_everyone(context: Context, busy: float) -> None:
    """Also if they are busy until the connection is long gone."""
    here = Here(context)
    ends = [There(context, here.endpoint, name) for name in "ab"]
    await until(lambda: all(end.dialer.ready for end in ends))
    peer = here.peer("a")
    for number in range(400):
        peer.send(info(number))
    here.listener.close("leaving", "the node is shutting down")
    stall(busy)
    await until(lambda: all(Closed in end.kinds for end in ends))
    farewell = [Lost("goodbye"), Closed("leaving", "the node is shutting down")]
    assert ends[0].log[1:] == [*(info(number) for number in range(400)), *farewell]
    assert ends[1].log[1:] == farewell
    assert not here.listener.peers
    with pytest.raises(LocalProtocolError, match="closed"):
        peer.send(info(1))
    for end in ends:
        assert end.dialer.link.state is State.CLOSED
        end.dialer.close()


async def test_who_leaves_waits_until_everyone_has_read_everything(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "LEAVE_WAIT", 1000.0)  # only answers end the wait
    here = Here(context)
    ends = [There(context, here.endpoint, name) for name in "ab"]
    async with ticking(here, *ends):
        await until(lambda: all(end.dialer.ready for end in ends))
        last = [info(number) for number in range(400)]
        for message in last:
            here.peer("a").send(message)
        async with asyncio.timeout(20):
            await here.listener.leave("leaving", "the node is shutting down")
        # nothing is under way any more, in either direction
        farewell = [Lost("goodbye"), Closed("leaving", "the node is shutting down")]
        assert ends[0].log[1:] == [*last, *farewell]
        assert ends[1].log[1:] == farewell
        assert all(peer.link.parted for peer in here.listener.peers.values())
        here.listener.close()
        await asyncio.sleep(0.1)
        assert here.kinds("a") == here.kinds("b") == [Ready], "who says goodbye knows"
        assert not [type(each) for each in ends[0].log if type(each) is Ready][1:]


async def test_nobody_waits_for_ever_for_an_answer(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "LEAVE_WAIT", 0.2)
    here = Here(context)
    there = There(context, here.endpoint)
    await until(lambda: there.dialer.ready)
    asyncio.get_running_loop().remove_reader(there.dialer._port._fd)  # it hears nothing more
    async with ticking(here):
        await here.listener.leave("leaving", "the node is shutting down")
        await here.listener.leave("leaving", "twice")  # nobody is left to wait for
    there.dialer.close()
    here.listener.close()


async def test_who_is_alone_leaves_at_once(context: Context) -> None:
    here = Here(context)
    await here.listener.leave("leaving", "the node is shutting down")
    here.listener.close()


async def test_one_peer_can_be_sent_away(context: Context) -> None:
    here = Here(context)
    ends = [There(context, here.endpoint, name) for name in "ab"]
    async with ticking(here, *ends):
        await until(lambda: all(end.dialer.ready for end in ends))
        here.peer("a").goodbye("superseded", "a newer process of this node is connected")
        await until(lambda: Closed in ends[0].kinds)
        await until(lambda: len(here.listener.peers) == 1)
        assert ends[1].kinds == [Ready]
        assert here.kinds("a") == [Ready], "who says goodbye knows"


# --- restarts -------------------------------------------------------------------------------


async def rebind(context: Context, endpoint: str, epoch: int) -> Here:
    """Listen where another listener has just closed."""
    while True:
        try:
            return Here(context, endpoint, epoch=epoch)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:
                raise
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_restarted_listener_is_greeted_again(
    context: Context, loop: str, scheme: str, tmp_path: Path
) -> None:
    async def main() -> None:
        here = Here(context, LOOPBACK if scheme == "tcp" else f"ipc://{tmp_path}/s")
        there = There(context, here.endpoint)
        async with ticking(there):
            for epoch in (2, 3):
                await until(lambda: there.dialer.ready)
                here.listener.close(UNKNOWN_EPOCH, "the broker is shutting down")
                await until(lambda: not there.dialer.ready)
                here = await rebind(context, here.endpoint, epoch)
            await until(lambda: there.dialer.ready)
            assert there.kinds == [Ready, Lost, Ready, Lost, Ready]
            epochs = [each.peer.epoch for each in there.log if isinstance(each, Ready)]  # type: ignore[union-attr]
            assert epochs == [1, 2, 3]
            there.dialer.send(info(1))
            await until(lambda: info(1) in here.log["a"])
        here.listener.close()

    run_on(loop, main())


async def test_a_crashed_listener_is_noticed_at_once(context: Context) -> None:
    here = Here(context)
    there = There(context, here.endpoint)
    await until(lambda: there.dialer.ready)
    here.listener._port.close()  # not a word
    await until(lambda: not there.dialer.ready)  # nobody ticks
    assert there.log[1:] == [Lost("disconnected")]
    there.dialer.close()


async def test_nothing_stale_comes_over_to_a_successor(context: Context) -> None:
    """What a breaking connection still took is nobody's business any more."""
    here = Here(context)
    there = There(context, here.endpoint)
    async with ticking(there):
        await until(lambda: there.dialer.ready)
        here.listener._port.close()
        stall(0.1)  # the dialer does not know yet, and goes on
        for number in range(20):
            there.dialer.send(info(number))
        await until(lambda: not there.dialer.ready)
        successor = await rebind(context, here.endpoint, 2)
        await until(lambda: there.dialer.ready)
        there.dialer.send(info(99))
        await until(lambda: info(99) in successor.log["a"])
        assert successor.log["a"][1:] == [info(99)]
        assert there.kinds == [Ready, Lost, Ready]
    successor.listener.close()


async def test_a_new_dialer_is_a_new_peer(context: Context) -> None:
    here = Here(context)
    async with ticking(here):
        for _ in range(3):
            there = There(context, here.endpoint)
            await until(lambda there=there: there.dialer.ready)  # type: ignore[misc]
            there.dialer.close()
            await until(lambda: not here.listener.peers)
        assert here.kinds() == [Ready, Lost, Closed] * 3


async def test_dialing_nobody_is_quiet(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead address costs a greeting a heartbeat and a reconnection now and then, no more."""
    here = Here(context)
    endpoint = here.endpoint
    here.listener.close()
    await asyncio.sleep(0.3)
    counts = {"_flush": 0, "_drain": 0, "_try": 0, "_observe": 0}

    def count(cls: type, name: str) -> None:
        original = getattr(cls, name)

        def counted(self: object, *args: object) -> object:
            counts[name] += 1
            return original(self, *args)

        monkeypatch.setattr(cls, name, counted)

    count(Dialer, "_flush")
    for name in ("_drain", "_try", "_observe"):
        count(port_module.Port, name)
    there = There(context, endpoint)
    loop = asyncio.get_running_loop()
    for _ in range(20):
        there.dialer.tick(loop.time())
        await asyncio.sleep(TICK)
    assert counts["_try"] == 0, "nothing is sent into the void"
    assert counts["_flush"] == 20
    assert counts["_drain"] + counts["_observe"] < 50
    assert not there.dialer.ready
    assert there.log == []
    # and when somebody comes, all is well
    here = await rebind(context, endpoint, 1)
    async with ticking(here, there):
        await until(lambda: there.dialer.ready)


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://127.0.0.1", "ftp://127.0.0.1:1"])
async def test_an_endpoint_that_is_none_leaves_nothing_open(
    context: Context, endpoint: str
) -> None:
    with pytest.raises(zmq.ZMQError):
        There(context, endpoint)


async def test_a_bind_that_fails_leaves_nothing_open(context: Context) -> None:
    here = Here(context)
    with pytest.raises(zmq.ZMQError) as caught:
        Here(context, LOOPBACK, here.endpoint)
    assert caught.value.errno == zmq.EADDRINUSE
    with pytest.raises(ConfigError, match="refusing to bind"):
        Here(context, LOOPBACK, "tcp://0.0.0.0:*")
    here.listener.close()


# --- strangers and mistakes -----------------------------------------------------------------


async def test_peers_that_are_gone_are_forgotten(context: Context) -> None:
    here = Here(context, liveness=QUICK)
    loop = asyncio.get_running_loop()
    there = There(context, here.endpoint)
    await until(lambda: there.dialer.ready)
    there.dialer._port.close()  # a crash: no goodbye
    peer = here.peer()
    now = loop.time()
    for step in range(40):  # two seconds of silence: lost
        here.listener.tick(now + step * TICK)
    assert peer.link.state is State.LOST
    assert here.kinds() == [Ready, Suspect, Lost]
    lost_at = now + 39 * TICK
    here.listener.tick(lost_at + FORGET_AFTER - 2.0)
    assert here.listener.peers
    here.listener.tick(lost_at + FORGET_AFTER + 2.0)
    assert not here.listener.peers
    here.listener.close()


GARBAGE: list[list[bytes]] = [
    [b""],
    [b"", b"", b""],
    [b"GET / HTTP/1.1\r\n\r\n"],
    [codec.PREFIX],
    [codec.PREFIX + b"\xc1" * 100],
    [codec.PREFIX + b"\x91" * 5000],
    [b"\x00" * 100_000],
    codec.encode([(0, info(1))], codec.CONTROL_LIMIT)[0],  # type: ignore[list-item]
]


async def test_strangers_are_answered_and_harm_nobody(context: Context) -> None:
    here = Here(context)
    there = There(context, here.endpoint)
    stranger = make_socket(context, zmq.DEALER)
    stranger.connect(here.endpoint)
    async with ticking(here, there):
        await until(lambda: there.dialer.ready)
        for number, frames in enumerate(GARBAGE):
            stranger.send_multipart(frames)
            await until(lambda: stranger.poll(0))
            [item] = codec.decode(stranger.recv_multipart())
            assert isinstance(item, codec.Sequenced)
            assert isinstance(item.message, Goodbye)
            assert item.message.code == UNKNOWN_EPOCH
            there.dialer.send(info(number))
        await until(lambda: info(len(GARBAGE) - 1) in here.log["a"])
        assert there.kinds == [Ready]
        # and who finds manners is welcome
        greeting = Hello("node", "late", 1, versions.LOW, versions.HIGH, 1, "late")
        stranger.send_multipart(codec.encode([(0, greeting)], codec.CONTROL_LIMIT)[0])
        await until(lambda: here.kinds("late") == [Ready])
        assert len(here.listener.peers) == 2
    stranger.close()


async def test_a_handler_that_raises_silences_nobody(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    here = Here(context)
    ends = [There(context, here.endpoint, name) for name in "ab"]

    def raising(*args: object) -> object:
        raise RuntimeError("a bug in a handler")

    async with ticking(here, *ends):
        await until(lambda: all(end.dialer.ready for end in ends))
        here.react = ends[0].react = raising
        with caplog.at_level(logging.ERROR, "blip.transport.links"):
            for number, end in itertools.product(range(3), ends):
                end.dialer.send(info(number))
                here.peer(end.dialer.link.hello().id).send(info(number))  # type: ignore[misc]
            await until(lambda: all(len(log) == 4 for log in here.log.values()))
            await until(lambda: all(len(end.log) == 4 for end in ends))
        assert here.log["a"][1:] == here.log["b"][1:] == [info(0), info(1), info(2)]
        assert ends[0].log[1:] == [info(0), info(1), info(2)]
        texts = [record.getMessage() for record in caplog.records]
        assert texts.count("handling Info") == 6
        assert texts.count(f"handling Info from {here.endpoint}") == 3
        assert all(record.exc_info for record in caplog.records)


async def test_a_peer_that_stops_reading_is_lost(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outbox that is full ends the link, and nothing of it is written any more."""
    monkeypatch.setattr(port_module, "OUTBOX", 10)
    here = Here(context, data=True)
    raw = make_socket(context, zmq.DEALER, data=True)
    raw.rcvhwm = 1
    raw.identity = b"\x01raw"
    raw.connect(here.endpoint)
    hello = Hello("node", "raw", 1, versions.LOW, versions.HIGH, 1, "raw")
    raw.send_multipart(codec.encode([(0, hello)], codec.CONTROL_LIMIT)[0])
    await until(lambda: here.kinds("raw") == [Ready])
    peer, payload, part = here.peer("raw"), bytes(8_000_000), 0
    while peer.link.ready:
        peer.send(Data(TASK, 1, part, payload))
        part += 1
        await asyncio.sleep(0)
    assert part > 256, "what the pipe holds, and the outbox"
    assert here.log["raw"][1:] == [Lost("disconnected")]
    assert not here.listener._port._outbox
    here.listener.close()
    raw.close()


async def test_a_listener_that_stops_reading_is_lost_to_its_dialer(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_module, "OUTBOX", 10)
    here = Here(context, data=True)
    there = There(context, here.endpoint, data=True)
    await until(lambda: there.dialer.ready)
    asyncio.get_running_loop().remove_reader(here.listener._port._fd)
    part = 0
    while there.dialer.ready:
        there.dialer.send(Data(TASK, 1, part, bytes(2_000_000)))
        part += 1
        await asyncio.sleep(0)
    assert there.log[1:] == [Lost("disconnected")]
    assert not there.dialer._port._outbox, "what was given up must not arrive later"
    there.dialer.close()
    here.listener.close()


# --- the bad network ------------------------------------------------------------------------


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


@contextlib.asynccontextmanager
async def through(context: Context) -> AsyncIterator[tuple[Here, There, Toxic]]:
    """A listener and a dialer that know each other, with a toxic proxy between them."""
    here = Here(context, liveness=QUICK)
    async with Toxic(port_of(here.endpoint)) as toxic:
        there = There(context, toxic.endpoint)
        async with ticking(here, there):
            await until(lambda: there.dialer.ready and here.kinds() == [Ready])
            yield here, there, toxic


def story(events: list[Any]) -> list[type]:
    """What a link went through, without what it carried, and without a suspicion that healed."""
    story: list[type] = []
    for event in events:
        if isinstance(event, Healed):
            assert story.pop() is Suspect
        elif isinstance(event, Ready | Suspect | Lost | Closed):
            story.append(type(event))
    return story


async def test_a_link_that_goes_dark_is_suspect_then_lost_then_ready(context: Context) -> None:
    """Bytes vanish, the connection stays: only silence tells."""
    async with through(context) as (here, there, toxic):
        toxic.swallow = True
        there.dialer.send(info(1))
        here.peer().send(info(2))
        await until(lambda: Suspect in there.kinds and Suspect in here.kinds())
        assert (there.dialer.ready, there.dialer.usable) == (True, False)
        await until(lambda: Lost in there.kinds and Lost in here.kinds())
        toxic.swallow = False
        await until(lambda: there.kinds[-1] is Ready and here.kinds()[-1] is Ready)
        assert story(there.log) == [Ready, Suspect, Lost, Ready]
        assert story(here.log["a"]) == [Ready, Suspect, Lost, Ready]
        assert info(1) not in here.log["a"]
        assert info(2) not in there.log
        there.dialer.send(info(3))
        await until(lambda: info(3) in here.log["a"])


async def test_a_short_darkness_heals_by_a_gap(context: Context) -> None:
    """Shorter than suspicion: the sequence numbers tell that something is missing."""
    async with through(context) as (here, there, toxic):
        toxic.swallow = True
        there.dialer.send(info(1))
        await asyncio.sleep(0.05)
        toxic.swallow = False
        there.dialer.send(info(2))
        await until(lambda: there.kinds.count(Ready) == 2)
        assert info(1) not in here.log["a"]
        assert info(2) not in here.log["a"], "what follows a gap is not delivered"
        assert here.kinds().count(Lost) == there.kinds.count(Lost) == 1


async def test_a_partition_that_heals_delivers_nothing_late(context: Context) -> None:
    """Bytes are held: all that was sent meanwhile arrives in one burst, long out of date."""
    async with through(context) as (here, there, toxic):
        toxic.hold = True
        there.dialer.send(info(1))
        here.peer().send(info(2))
        await until(lambda: Lost in there.kinds and Lost in here.kinds())
        await asyncio.sleep(0.3)  # greetings pile up
        toxic.hold = False
        await until(lambda: there.kinds[-1] is Ready and here.kinds()[-1] is Ready)
        there.dialer.send(info(3))
        await until(lambda: info(3) in here.log["a"])
        assert info(1) not in here.log["a"]
        assert info(2) not in there.log
        assert story(there.log) == [Ready, Suspect, Lost, Ready]
        # the greetings that piled up are answered one after the other
        after = story(here.log["a"])[3:]
        assert after == [Ready, Lost] * (len(after) // 2) + [Ready]
        assert there.dialer.link._answered == here.peer().link._answered


async def test_a_short_partition_heals_as_if_nothing_had_been(context: Context) -> None:
    async with through(context) as (here, there, toxic):
        toxic.hold = True
        there.dialer.send(info(1))
        await until(lambda: Suspect in here.kinds())
        toxic.hold = False
        await until(lambda: Healed in here.kinds())
        await until(lambda: info(1) in here.log["a"])
        assert Lost not in here.kinds()
        assert Lost not in there.kinds


async def test_latency_below_suspicion_is_no_reason_for_it(context: Context) -> None:
    async with through(context) as (here, there, toxic):
        toxic.latency = 0.1
        for number in range(10):
            there.dialer.send(info(number))
            here.peer().send(info(-number))
            await asyncio.sleep(0.05)
        await until(lambda: info(9) in here.log["a"] and info(-9) in there.log)
        assert Lost not in here.kinds()
        assert Lost not in there.kinds
        assert [each for each in there.log if isinstance(each, Info)] == [
            info(-number) for number in range(10)
        ]


async def test_a_reset_is_noticed_at_once_and_overcome(context: Context) -> None:
    async with through(context) as (here, there, toxic):
        for round_ in range(3):
            toxic.reset()
            await until(lambda: not there.dialer.ready)
            await until(lambda: there.dialer.ready)
            there.dialer.send(info(round_))
            await until(lambda round_=round_: info(round_) in here.log["a"])  # type: ignore[misc]
        assert story(there.log) == [Ready, *[Lost, Ready] * 3]
        assert {event.reason for event in there.log if isinstance(event, Lost)} == {"disconnected"}
        assert story(here.log["a"]) == [Ready, *[Lost, Ready] * 3]
        assert len(here.listener.peers) == 1, "it is the same dialer"


async def test_a_refused_connection_is_tried_again(context: Context) -> None:
    async with through(context) as (here, there, toxic):
        toxic.refuse = True
        toxic.reset()
        await until(lambda: toxic.accepted >= 3)
        assert not there.dialer.ready
        assert toxic.accepted < 50, "with a back-off"
        toxic.refuse = False
        await until(lambda: there.dialer.ready)
        there.dialer.send(info(1))
        await until(lambda: info(1) in here.log["a"])


async def test_darkness_with_a_reset_in_it_loses_what_was_under_way(context: Context) -> None:
    """ZeroMQ reconnects behind our back; both ends find out that something is missing."""
    async with through(context) as (here, there, toxic):
        toxic.swallow = True
        for number in range(5):
            there.dialer.send(info(number))
            here.peer().send(info(-number))
        await asyncio.sleep(0.1)
        toxic.swallow = False
        toxic.reset()
        await until(lambda: there.kinds.count(Ready) == 2 and here.kinds().count(Ready) == 2)
        there.dialer.send(info(9))
        await until(lambda: info(9) in here.log["a"])
        assert [each for each in here.log["a"] if isinstance(each, Info)] == [info(9)]
        assert not [each for each in there.log if isinstance(each, Info)]


# --- where and how --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [zmq.ROUTER, zmq.DEALER])
@pytest.mark.parametrize("data", [False, True])
def test_every_socket_has_every_option(context: Context, kind: int, data: bool) -> None:
    socket = make_socket(context, kind, data=data)
    limit = codec.DATA_LIMIT if data else codec.CONTROL_LIMIT
    assert socket.getsockopt(zmq.LINGER) == 0
    assert limit < int(socket.getsockopt(zmq.MAXMSGSIZE)) < limit + 128 * 1024
    assert 0 < int(socket.getsockopt(zmq.SNDHWM)) <= 1000
    assert 0 < int(socket.getsockopt(zmq.RCVHWM)) <= 1000
    assert socket.getsockopt(zmq.HEARTBEAT_IVL) == 2000
    assert socket.getsockopt(zmq.HEARTBEAT_TIMEOUT) == 6000
    assert socket.getsockopt(zmq.TCP_KEEPALIVE) == 1
    assert socket.getsockopt(zmq.RECONNECT_IVL) == 100
    assert socket.getsockopt(zmq.RECONNECT_IVL_MAX) == 5000
    assert socket.getsockopt(zmq.HANDSHAKE_IVL) == 5000
    assert socket.getsockopt(zmq.IMMEDIATE) == 0
    socket.close()


async def test_a_peer_over_the_size_limit_is_cut_off(context: Context) -> None:
    """It cannot make us hold more than the limit; whoever it was has to greet again."""
    here = Here(context)
    there = There(context, here.endpoint)
    async with ticking(here, there):
        await until(lambda: there.dialer.ready)
        there.dialer._port.send([bytes(codec.CONTROL_LIMIT + 128 * 1024)])
        await until(lambda: there.kinds == [Ready, Lost, Ready])
        there.dialer.send(info(1))
        await until(lambda: info(1) in here.log["a"])


@pytest.mark.parametrize(
    "endpoint",
    [
        "ipc:///tmp/x",
        "inproc://x",
        "tcp://127.0.0.1:*",
        "tcp://127.9.9.9:1",
        "tcp://localhost:5",
        "tcp://[::1]:7",
    ],
)
def test_what_stays_on_this_machine_may_be_bound(endpoint: str) -> None:
    check_bind(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://*:7700",
        "tcp://0.0.0.0:1",
        "tcp://192.168.1.5:1",
        "tcp://[::]:1",
        "tcp://eth0:1",
        "tcp://example.org:1",
        "udp://127.0.0.1:1",
        "",
        "nonsense",
        "tcp://:1",
    ],
)
def test_what_others_could_reach_may_not(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="refusing to bind") as caught:
        check_bind(endpoint)
    assert "127.0.0.1" in caught.value.hint


def test_on_one_machine_the_ipc_socket_is_dialled(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.touch()
    both = ["tcp://127.0.0.1:1", f"ipc://{path}", "tcp://127.0.0.1:2"]
    assert reachable(both, host_id()) == f"ipc://{path}"
    assert reachable(both, "another machine") == "tcp://127.0.0.1:1"
    path.unlink()  # a container shares the kernel, not the files
    assert reachable(both, host_id()) == "tcp://127.0.0.1:1"
    assert reachable([f"ipc://{path}"], host_id()) is None
    assert reachable([], host_id()) is None


def test_a_machine_without_a_boot_id_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_id() == host_id() != ""

    def missing(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    host_module.host_id.cache_clear()
    try:
        assert host_id() == platform.node()
    finally:
        host_module.host_id.cache_clear()

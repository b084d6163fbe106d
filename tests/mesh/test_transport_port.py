"""Ports: what ZeroMQ loses in other hands, and that it is not lost in these."""

from __future__ import annotations

import asyncio
import random
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest
import zmq
import zmq.asyncio

from blip.protocol.messages import Payload
from blip.transport import port as port_module
from blip.transport.port import PeerUnreachable, Port
from blip.transport.sockets import make_socket
from tests.mesh.wires import LOOPS, Context, run_on, stall, terminating, until

ME = b"\x01me"

#: A sender and a receiver with next to no room between them.
TIGHT = {"sndhwm": 2, "sndbuf": 4096}
SLOW = {"rcvhwm": 2, "rcvbuf": 4096}


@pytest.fixture
def context() -> Iterator[Context]:
    with terminating() as context:
        yield context


def bound(context: Context, **options: int) -> tuple[zmq.Socket[bytes], str]:
    """A ROUTER on a port of its own."""
    router = make_socket(context, zmq.ROUTER)
    for name, value in options.items():
        setattr(router, name, value)
    router.bind("tcp://127.0.0.1:*")
    return router, cast(bytes, router.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")


def dialled(context: Context, endpoint: str, **options: int) -> zmq.Socket[bytes]:
    """A DEALER that is connected to it."""
    dealer = make_socket(context, zmq.DEALER)
    dealer.identity = ME
    for name, value in options.items():
        setattr(dealer, name, value)
    dealer.connect(endpoint)
    return dealer


def connected(
    context: Context, router_options: dict[str, int], dealer_options: dict[str, int]
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """A ROUTER and a DEALER that have spoken."""
    router, endpoint = bound(context, **router_options)
    dealer = dialled(context, endpoint, **dealer_options)
    dealer.send(b"hello")
    assert router.recv_multipart() == [ME, b"hello"]
    return router, dealer


def readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether the descriptor is, to select: what a loop sees."""
    return bool(select.select([cast(int, socket.getsockopt(zmq.FD))], [], [], 0)[0])


def waiting(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message is."""
    return bool(cast(int, socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def arrive(socket: zmq.Socket[bytes]) -> None:
    """Wait until the descriptor says that something arrived."""
    assert select.select([cast(int, socket.getsockopt(zmq.FD))], [], [], 10)[0]
    time.sleep(0.05)  # all of it


def calm(socket: zmq.Socket[bytes]) -> None:
    """Read everything, to EAGAIN."""
    while True:
        while waiting(socket):
            socket.recv_multipart(zmq.NOBLOCK)
        if not readable(socket):
            return


async def fill(port: Port) -> None:
    """Send to a peer that never reads until nothing moves any more."""
    before = -1
    while not port._outbox or len(port._outbox[ME]) != before:
        before = len(port._outbox.get(ME, ()))
        if not before:
            port.send([bytes(100_000)], ME)
        else:
            await asyncio.sleep(0.1)


# --- four ways to lose a wake-up ------------------------------------------------------------


def after_a_send(router: zmq.Socket[bytes], dealer: zmq.Socket[bytes]) -> None:
    dealer.send(b"1")
    arrive(router)
    router.send_multipart([ME, b"something else"])


def after_reading_events(router: zmq.Socket[bytes], dealer: zmq.Socket[bytes]) -> None:
    dealer.send(b"1")
    arrive(router)
    router.getsockopt(zmq.EVENTS)


def after_one_of_two(router: zmq.Socket[bytes], dealer: zmq.Socket[bytes]) -> None:
    dealer.send(b"1")
    dealer.send(b"2")
    arrive(router)
    router.recv_multipart(zmq.NOBLOCK)


def after_stopping_short_of_eagain(router: zmq.Socket[bytes], dealer: zmq.Socket[bytes]) -> None:
    dealer.send(b"1")
    arrive(router)
    router.recv_multipart(zmq.NOBLOCK)
    dealer.send(b"2")
    time.sleep(0.05)


TRAPS = [after_a_send, after_reading_events, after_one_of_two, after_stopping_short_of_eagain]


@pytest.mark.parametrize("trap", TRAPS)
def test_a_descriptor_falls_silent_with_a_message_waiting(
    context: Context, trap: Callable[[zmq.Socket[bytes], zmq.Socket[bytes]], None]
) -> None:
    """The traps are real: a loop that waits for this descriptor waits for ever."""
    router, dealer = connected(context, {}, {})
    calm(router)
    trap(router, dealer)
    assert not readable(router)
    assert waiting(router)
    router.close()
    dealer.close()


class Naive:
    """Reads a message when the descriptor says so, as the first search result would have it."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.got: list[bytes] = []
        self.fd = cast(int, socket.getsockopt(zmq.FD))
        asyncio.get_running_loop().add_reader(self.fd, self.read)

    def read(self) -> None:
        try:
            self.got.append(self.socket.recv_multipart(zmq.NOBLOCK)[-1])
        except zmq.Again:
            pass

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.fd)
        self.socket.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_naive_reader_stalls_where_a_port_does_not(context: Context, loop: str) -> None:
    async def main() -> None:
        router, dealer = connected(context, {}, {})
        calm(router)
        naive = Naive(router)
        for number in range(5):
            dealer.send(b"%d" % number)
        stall(0.1)  # a busy loop: all of them arrive meanwhile
        await asyncio.sleep(0.3)
        assert len(naive.got) < 5
        assert not readable(router)
        assert waiting(router)
        naive.close()
        dealer.close()

        router, dealer = connected(context, {}, {})
        got: list[bytes] = []
        port = Port(router, lambda frames: got.append(bytes(frames[1])))
        await asyncio.sleep(0)
        for number in range(5):
            dealer.send(b"%d" % number)
        stall(0.1)
        await until(lambda: len(got) == 5)
        port.close()
        dealer.close()

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("what", ["a send", "a send to nobody", "a send into a full pipe"])
def test_a_port_wakes_up_after_any_send(
    context: Context, loop: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send, also one that fails, swallows the wake-up for what had arrived before it."""

    async def main() -> None:
        full = what == "a send into a full pipe"
        router, dealer = connected(context, TIGHT if full else {}, SLOW if full else {})
        got: list[bytes] = []
        port = Port(router, lambda frames: got.append(bytes(frames[1])))
        if full:
            await fill(port)
            # without the retry, which might wake it up by chance
            monkeypatch.setattr(port, "_retry_later", lambda: None)
            assert port._retry is not None
            port._retry.cancel()
        for number in range(20):
            dealer.send(b"%d" % number)
            stall(0.02)  # it arrives, and the loop has not looked yet
            if what == "a send":
                port.send([b"out"], ME)
            elif full:
                assert not port._try([b"out"], ME)
            else:
                with pytest.raises(PeerUnreachable):
                    port.send([b"out"], b"\x01nobody")
            await until(lambda count=number + 1: len(got) == count)  # type: ignore[misc]
        port.close()
        dealer.close()

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_is_lost_in_a_storm(context: Context, loop: str) -> None:
    """Tens of thousands both ways in bursts; each end answers from within its reader."""

    async def main(count: int = 20_000) -> None:
        router, endpoint = bound(context, sndhwm=50_000, rcvhwm=50_000)
        dealer = dialled(context, endpoint, sndhwm=50_000, rcvhwm=50_000)
        echoed: list[int] = []
        pushed: list[int] = []

        def at_router(frames: list[Payload]) -> None:
            there.send([frames[1]], bytes(frames[0]))

        def at_dealer(frames: list[Payload]) -> None:
            number = int(bytes(frames[0]))
            (echoed if number >= 0 else pushed).append(number)

        there, here = Port(router, at_router), Port(dealer, at_dealer)
        rng = random.Random(1)
        here.send([b"0"])
        await until(lambda: echoed)
        sent = 1
        while sent < count:
            for _ in range(min(rng.choice((1, 1, 2, 7, 40, 300)), count - sent)):
                here.send([b"%d" % sent])
                if sent % 2:
                    there.send([b"-%d" % sent], ME)
                sent += 1
            await asyncio.sleep(rng.choice((0, 0, 0.0005, 0.002)))
        await until(lambda: len(echoed) == count and len(pushed) == count // 2)
        assert echoed == list(range(count))
        assert pushed == [-number for number in range(1, count, 2)]
        here.close()
        there.close()

    run_on(loop, main())


async def test_others_get_their_turn_while_messages_pour_in(context: Context) -> None:
    router, dealer = connected(context, {"rcvhwm": 50_000}, {"sndhwm": 50_000})
    order: list[str] = []
    port = Port(router, lambda frames: order.append("message"))
    for _ in range(5 * port_module.BUDGET):
        dealer.send(b"x")
    stall(0.2)
    loop = asyncio.get_running_loop()

    def other() -> None:
        order.append("other")
        if order.count("message") < 5 * port_module.BUDGET:
            loop.call_soon(other)

    loop.call_soon(other)
    await until(lambda: order.count("message") == 5 * port_module.BUDGET)
    assert order.index("other") <= 2 * port_module.BUDGET
    assert order.count("other") >= 4
    port.close()
    dealer.close()


# --- cancellation ---------------------------------------------------------------------------


async def test_zmq_asyncio_loses_a_message_when_its_reader_is_cancelled() -> None:
    """Why nobody awaits a socket here: cancelled between delivery and resumption, it is gone."""
    context = zmq.asyncio.Context()
    push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    pull.bind("inproc://loss")
    push.connect("inproc://loss")
    lost = 0
    for _ in range(20):
        delivery = asyncio.ensure_future(pull.recv())

        async def read(delivery: asyncio.Future[bytes] = delivery) -> bytes:
            return await delivery

        task = asyncio.create_task(read())
        delivery.add_done_callback(lambda _, task=task: task.cancel())  # type: ignore[misc]
        await asyncio.sleep(0)
        await push.send(b"m")
        with pytest.raises(asyncio.CancelledError):
            await task
        lost += not await pull.poll(20)
    assert lost == 20
    context.destroy(0)


async def test_a_port_has_no_reader_to_cancel(context: Context) -> None:
    router, dealer = connected(context, {"rcvhwm": 50_000}, {"sndhwm": 50_000})
    queue: asyncio.Queue[int] = asyncio.Queue()
    count, got, tasks = 3000, list[int](), list[asyncio.Task[None]]()
    rng = random.Random(2)

    def read(frames: list[Payload]) -> None:
        queue.put_nowait(int(bytes(frames[1])))
        if tasks and rng.random() < 0.5:
            tasks[-1].cancel()  # it was given its message, and has not resumed

    port = Port(router, read)

    def pour() -> None:
        for number in range(count):
            dealer.send(b"%d" % number)
            if number % 50 == 0:
                time.sleep(0.001)

    thread = threading.Thread(target=pour)
    thread.start()

    async def consume() -> None:
        got.append(await queue.get())

    cancelled = 0
    while len(got) < count:
        tasks[:] = [asyncio.create_task(consume())]
        await asyncio.wait(tasks, timeout=20)
        cancelled += tasks[0].cancelled()
    thread.join()
    assert got == list(range(count))
    assert cancelled > 0
    port.close()
    dealer.close()


# --- full pipes -----------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_what_a_slow_reader_has_no_room_for_waits_and_arrives_in_order(
    context: Context, loop: str
) -> None:
    async def main() -> None:
        router, dealer = connected(context, TIGHT, SLOW)
        port = Port(router, lambda frames: None)
        count, blob = 400, bytes(16_384)
        for number in range(count):
            port.send([b"%d" % number, blob], ME)
        assert len(port._outbox[ME]) > count // 2, "EAGAIN was never met"
        got: list[int] = []
        while len(got) < count:
            while dealer.poll(0):
                got.append(int(dealer.recv_multipart()[0]))
            await asyncio.sleep(0.001)
        assert got == list(range(count))
        assert not port._outbox
        port.send([b"after", blob], ME)
        await until(lambda: dealer.poll(0))
        assert dealer.recv_multipart()[0] == b"after"
        port.close()
        dealer.close()

    run_on(loop, main())


async def test_who_stops_reading_becomes_unreachable(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_module, "OUTBOX", 50)
    router, dealer = connected(context, TIGHT, SLOW)
    port = Port(router, lambda frames: None)

    def pour() -> None:
        for _ in range(10_000):
            port.send([bytes(16_384)], ME)

    with pytest.raises(PeerUnreachable, match="stopped reading"):
        pour()
    assert len(port._outbox[ME]) == 50
    port.forget(ME)
    assert not port._outbox
    await asyncio.sleep(0.05)  # the timer that was armed finds nothing and harms nobody
    port.close()
    dealer.close()


async def test_one_full_pipe_does_not_hold_up_the_others(context: Context) -> None:
    router, dealer = connected(context, TIGHT, SLOW)
    endpoint = cast(bytes, router.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")
    got: list[bytes] = []
    quick = make_socket(context, zmq.DEALER)
    quick.identity = b"\x01quick"
    heard: list[bytes] = []
    port = Port(router, lambda frames: heard.append(bytes(frames[0])))
    other = Port(quick, lambda frames: got.append(bytes(frames[0])))
    quick.connect(endpoint)
    other.send([b"hello"])
    await until(lambda: heard)
    for _ in range(100):
        port.send([bytes(16_384)], ME)
    assert ME in port._outbox
    for number in range(50):
        port.send([b"%d" % number], b"\x01quick")
    await until(lambda: len(got) == 50)
    assert ME in port._outbox
    # and when the stuck one goes, what waited for it goes too
    dealer.close()
    await until(lambda: not port._outbox)
    port.close()
    other.close()


async def test_nobody_by_that_name(context: Context) -> None:
    router, dealer = connected(context, {}, {})
    port = Port(router, lambda frames: None)
    with pytest.raises(PeerUnreachable):
        port.send([b"x"], b"\x01stranger")
    port.send([b"x"], ME)  # the others are not concerned
    await until(lambda: dealer.poll(0))
    port.close()
    dealer.close()


# --- payloads -------------------------------------------------------------------------------


async def test_large_frames_are_not_copied(context: Context) -> None:
    router, dealer = connected(context, TIGHT, SLOW)
    port = Port(router, lambda frames: None)
    payload = bytes(1 << 20)
    before = sys.getrefcount(payload)
    port.send([b"head", payload], ME)
    assert sys.getrefcount(payload) > before, "ZeroMQ reads the very bytes that it was given"
    got: list[list[Payload]] = []
    reader = Port(dealer, got.append)
    await until(lambda: got)
    [[head, body]] = got
    assert isinstance(body, memoryview)
    assert (body.format, body.ndim, body.nbytes) == ("B", 1, 1 << 20)
    assert bytes(head) == b"head"
    assert body == payload
    del head, body
    got.clear()
    await until(lambda: sys.getrefcount(payload) == before)
    port.close()
    reader.close()


# --- what the transport says ----------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_connections_come_and_go(context: Context, loop: str) -> None:
    async def main() -> None:
        router, endpoint = bound(context)
        dealer = make_socket(context, zmq.DEALER)
        story: list[str] = []
        port = Port(
            dealer,
            lambda frames: None,
            on_connected=lambda: story.append("connected"),
            on_disconnected=lambda: story.append("disconnected"),
        )
        dealer.connect(endpoint)
        await until(lambda: story == ["connected"])
        router.close()
        await until(lambda: story == ["connected", "disconnected"])
        successor = make_socket(context, zmq.ROUTER)
        successor.bind(endpoint)
        await until(lambda: story == ["connected", "disconnected", "connected"])
        successor.close()
        port.close()

    run_on(loop, main())


@pytest.mark.parametrize("immediate", [True, False])
def test_immediate_throws_away_what_was_not_read_yet(context: Context, immediate: bool) -> None:
    """Why sockets are made without it: a node's last words are often the results."""
    router, dealer = connected(context, {}, {"immediate": immediate})
    for number in range(100):
        router.send_multipart([ME, b"%d" % number])
    time.sleep(0.2)  # it has arrived
    router.close(2000)
    time.sleep(0.2)  # and so has the end
    got = 0
    while dealer.poll(50):
        dealer.recv()
        got += 1
    assert got == (0 if immediate else 100)
    dealer.close()


async def test_what_arrived_before_the_end_is_read_before_it(context: Context) -> None:
    """However much it is, and however late the loop looks."""
    router, endpoint = bound(context)
    dealer = make_socket(context, zmq.DEALER)
    dealer.identity = ME
    got: list[int] = []
    seen_at_the_end: list[int] = []
    port = Port(
        dealer,
        lambda frames: got.append(int(bytes(frames[0]))),
        on_connected=lambda: port.send([b"hello"]),
        on_disconnected=lambda: seen_at_the_end.append(len(got)),
    )
    dealer.connect(endpoint)
    await until(lambda: router.poll(0))
    count = 3 * port_module.BUDGET + 17
    for number in range(count):
        router.send_multipart([ME, b"%d" % number])
    router.close(2000)
    stall(0.3)  # all of it arrives, and the end, before the loop looks
    await until(lambda: seen_at_the_end)
    assert seen_at_the_end == [count]
    assert got == list(range(count))
    port.close()


async def test_what_waits_for_a_dead_connection_does_not_reach_the_next(context: Context) -> None:
    router, endpoint = bound(context, **SLOW)
    dealer = make_socket(context, zmq.DEALER)
    dealer.sndhwm, dealer.sndbuf = 2, 4096
    gone: list[bool] = []
    port = Port(dealer, lambda frames: None, on_disconnected=lambda: gone.append(True))
    dealer.connect(endpoint)
    port.send([b"hello"])
    await until(lambda: router.poll(0))
    for _ in range(300):
        port.send([bytes(16_384)])
    assert port._outbox
    router.close()
    await until(lambda: gone)
    assert not port._outbox
    port.close()


# --- closing --------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_linger_is_time_for_the_last_words(context: Context, loop: str) -> None:
    async def main() -> None:
        router, dealer = connected(context, {}, {})
        port = Port(dealer, lambda frames: None)
        port.send([b"last words"])
        port.close(2.0)
        assert router.poll(10_000)
        assert router.recv_multipart() == [ME, b"last words"]
        router.close()

    run_on(loop, main())


async def test_a_closed_port_is_closed(context: Context) -> None:
    router, dealer = connected(context, TIGHT, SLOW)
    got: list[object] = []
    port = Port(router, got.append)
    dealer.send(b"too late")
    for _ in range(100):
        port.send([bytes(16_384)], ME)
    port.close()
    port.close()
    assert router.closed
    for _ in range(2):
        with pytest.raises(PeerUnreachable, match="closed"):
            port.send([b"x"], ME)
    await asyncio.sleep(0.05)  # whatever was scheduled comes up and finds it closed
    assert got == []
    dealer.close()


async def test_a_port_may_be_closed_from_within(context: Context) -> None:
    router, dealer = connected(context, {}, {})
    got: list[bytes] = []

    def read(frames: list[Payload]) -> None:
        got.append(bytes(frames[1]))
        port.close()

    port = Port(router, read)
    for number in range(5):
        dealer.send(b"%d" % number)
    await until(lambda: router.closed)
    await asyncio.sleep(0.05)
    assert got == [b"0"]
    dealer.close()


async def test_a_watched_port_may_be_closed_from_within(context: Context) -> None:
    router, endpoint = bound(context)
    dealer = make_socket(context, zmq.DEALER)
    port = Port(dealer, lambda frames: None, on_connected=lambda: port.close())
    dealer.connect(endpoint)
    await until(lambda: dealer.closed)
    await asyncio.sleep(0.05)
    router.close()

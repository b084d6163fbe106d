"""The load: HTTP/1.1 connections that each send their next request when an answer is complete.

It runs as a process of its own (``python -m blip.bench.load``), so that it never shares an
interpreter with what it measures, and uses no HTTP library: about 20 µs a request, against 60
and more of any server here. :class:`Generator` is the handle of the process that started it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import cast

from blip.errors import RuntimeFailed
from blip.lifecycle import die_with_parent, new_event_loop

#: Seconds that answers may take beyond the end of a load, after which they count as errors.
PATIENCE = 30.0

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_STAMP = re.compile(rb'"text": ?"(\d+\.\d+)"')
_EVENT = b'data: {"index":'
_DONE = b"data: [DONE]"


@dataclass(frozen=True, slots=True)
class Load:
    """What to send to ``POST /v1/echo`` on this machine, and what is a right answer to it.

    For ``seconds`` every connection sends ``body`` again as soon as its answer is complete; with
    ``once`` it sends it a single time. The connections start evenly over ``stagger`` seconds. An
    answer is right if its status is 200 and it has ``events`` events and the end of a stream, or,
    where that is 0, at least ``size`` bytes.
    """

    port: int
    body: str
    connections: int
    seconds: float
    headers: dict[str, str] = field(default_factory=dict)
    size: int = 0
    events: int = 0
    once: bool = False
    stagger: float = 0.0

    def request(self) -> bytes:
        """Return the bytes of a request, the same every time."""
        body = self.body.encode()
        head = [
            "POST /v1/echo HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True, slots=True)
class Spread:
    """How some times, in seconds, are spread; all 0 where there are none."""

    count: int = 0
    p50: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What came of a load. ``seconds`` is from the first request to the last answer."""

    seconds: float
    answers: int
    events: int
    #: What went wrong, and how often.
    errors: dict[str, int]
    #: From a request to the end of its answer.
    latency: Spread
    #: From a request to its first event.
    first: Spread
    #: Between two reads with events in them.
    gap: Spread
    #: From the making of an event to its arrival, where events say when they were made.
    delay: Spread
    #: CPU seconds of the generator itself.
    cpu: float

    @classmethod
    def from_json(cls, text: str | bytes) -> Sample:
        """Read what :func:`main` writes."""
        values = json.loads(text)
        for name in ("latency", "first", "gap", "delay"):
            values[name] = Spread(**values[name])
        return cls(**values)


class Series:
    """Numbers in an array that is allocated in advance, so that adding one costs next to nothing;
    it doubles when it is full.
    """

    __slots__ = ("_count", "_values")

    def __init__(self, room: int = 1 << 16) -> None:
        self._values = array("d", bytes(8 * room))
        self._count = 0

    def add(self, value: float) -> None:
        """Append a number."""
        if self._count == len(self._values):
            self._values.frombytes(bytes(8 * self._count))
        self._values[self._count] = value
        self._count += 1

    def spread(self) -> Spread:
        """Return the median and the 99th percentile."""
        ordered = sorted(self._values[: self._count])
        if not ordered:
            return Spread()
        last = len(ordered) - 1
        return Spread(len(ordered), ordered[round(last * 0.5)], ordered[round(last * 0.99)])


class Malformed(Exception):
    """The server wrote something that is no answer to one HTTP/1.1 request."""


class AnswerReader:
    """Reads the answers that come over one connection, one after the other. Pure.

    It knows Content-Length and chunked bodies, which is what servers of JSON and events send.
    """

    __slots__ = ("_left", "_rest", "complete", "status")

    def __init__(self) -> None:
        self.expect()

    def expect(self) -> None:
        """Make ready for the next answer."""
        self.status = 0
        self.complete = False
        self._rest = b""
        #: Bytes of the body that are still to come; None for a chunked body.
        self._left: int | None = 0

    def feed(self, data: bytes) -> bytes:
        """Take what arrived and return what of it belongs to the body, without its framing.

        Raises :class:`Malformed`.
        """
        if self.complete:
            raise Malformed("bytes after the answer")
        if not self.status:
            head, end, data = (self._rest + data).partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return b""
            self._rest = b""
            self._read_head(head)
        if self._left is None:
            return self._read_chunks(data)
        self._left -= len(data)
        if self._left < 0:
            raise Malformed("more bytes than the Content-Length says")
        self.complete = self._left == 0
        return data

    def _read_head(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 ") or not head[9:12].isdigit():
            raise Malformed("no HTTP/1.1 status line")
        self.status = int(head[9:12])
        length = _LENGTH.search(head)
        if length is not None:
            self._left = int(length[1])
        elif _CHUNKED.search(head):
            self._left = None
        else:
            raise Malformed("neither Content-Length nor chunked")

    def _read_chunks(self, data: bytes) -> bytes:
        data = self._rest + data
        parts = []
        at = 0
        while (line := data.find(b"\r\n", at)) >= 0:
            try:
                size = int(data[at:line], 16)
            except ValueError:
                raise Malformed("a chunk without a size") from None
            start, end = line + 2, line + 2 + size
            if len(data) < end + 2:
                break
            if data[end : end + 2] != b"\r\n":
                raise Malformed("a chunk that is longer than its size")
            at = end + 2
            if not size:
                self.complete = True
                break
            parts.append(data[start:end])
        self._rest = data[at:]
        if self.complete and self._rest:
            raise Malformed("bytes after the answer")
        return parts[0] if len(parts) == 1 else b"".join(parts)


class EventReader:
    """Reads the events of one stream after the other. Pure."""

    __slots__ = ("_rest", "count", "done")

    def __init__(self) -> None:
        self.expect()

    def expect(self) -> None:
        """Make ready for the next stream."""
        #: Events so far, the end of the stream not among them.
        self.count = 0
        #: Whether the stream has ended well.
        self.done = False
        self._rest = b""

    def feed(self, body: bytes) -> tuple[int, list[bytes]]:
        """Take a part of a body; return how many events it completes, and their stamps."""
        if not body:
            return 0, []  # the end of the answer may come by itself
        events, _, self._rest = (self._rest + body).rpartition(b"\n\n")
        self.done = events.endswith(_DONE) and not self._rest
        count = events.count(_EVENT)
        self.count += count
        return count, _STAMP.findall(events)


class Tally:
    """What all connections of one load have seen."""

    def __init__(self) -> None:
        self.answers = 0
        self.events = 0
        self.errors: Counter[str] = Counter()
        self.latency = Series()
        self.first = Series()
        self.gap = Series()
        self.delay = Series()

    def sample(self, seconds: float, cpu: float) -> Sample:
        """Sum up."""
        return Sample(
            seconds,
            self.answers,
            self.events,
            dict(self.errors),
            self.latency.spread(),
            self.first.spread(),
            self.gap.spread(),
            self.delay.spread(),
            cpu,
        )


class Connection(asyncio.Protocol):
    """One connection in a closed loop."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        #: Done once the connection is closed.
        self.closed: asyncio.Future[None] = loop.create_future()
        self._idle: asyncio.Future[None] = loop.create_future()
        self._idle.set_result(None)
        self._transport: asyncio.Transport
        self._answer = AnswerReader()
        self._stream = EventReader()
        self._load: Load
        self._request: bytes
        self._tally: Tally
        self._until = 0.0
        self._sent = 0.0
        self._last = 0.0
        self._size = 0
        self._refusal = b""

    def run(self, load: Load, tally: Tally, delay: float = 0.0) -> asyncio.Future[None]:
        """Send requests from ``delay`` seconds on; return what is done when they are answered."""
        loop = asyncio.get_running_loop()
        self._load = load
        self._request = load.request()
        self._tally = tally
        self._until = time.monotonic() + load.seconds
        self._idle = loop.create_future()
        if self._transport.is_closing():
            self._fail("connection closed by the server")
        elif delay:
            loop.call_later(delay, self._send)
        else:
            self._send()
        return self._idle

    def close(self) -> None:
        """Close; an answer that is still outstanding is an error."""
        if not self._idle.done():
            self._fail("no answer in time")
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        """Count a connection that the server closed."""
        if not self._idle.done():
            self._fail("connection closed by the server")
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Read on in the answer."""
        if self._idle.done():
            return  # given up; what still comes does not count
        answer = self._answer
        try:
            body = answer.feed(data)
        except Malformed as error:
            self._fail(f"malformed answer: {error}")
            return
        self._size += len(body)
        if answer.status != 200:
            self._refusal += body
        elif self._load.events:
            self._read_events(body)
        if answer.complete:
            self._answered()

    def _send(self) -> None:
        if self._idle.done():
            return  # closed before its turn came
        self._answer.expect()
        self._stream.expect()
        self._size = 0
        self._refusal = b""
        self._last = 0.0
        self._sent = time.monotonic()
        self._transport.write(self._request)

    def _read_events(self, body: bytes) -> None:
        count, stamps = self._stream.feed(body)
        if not count:
            return
        now = time.monotonic()
        tally = self._tally
        if self._last:
            tally.gap.add(now - self._last)
        else:
            tally.first.add(now - self._sent)
        self._last = now
        tally.events += count
        for stamp in stamps:
            tally.delay.add(now - float(stamp))

    def _answered(self) -> None:
        now = time.monotonic()
        tally = self._tally
        if wrong := self._complaint():
            tally.errors[wrong] += 1
        else:
            tally.answers += 1
            tally.latency.add(now - self._sent)
        if self._load.once or now >= self._until:
            self._idle.set_result(None)
        else:
            self._send()

    def _complaint(self) -> str:
        """Return what is wrong with the complete answer, "" if nothing is."""
        load, stream = self._load, self._stream
        if self._answer.status != 200:
            return f"HTTP {self._answer.status} {_code(self._refusal)}"
        if load.events and not (stream.done and stream.count == load.events):
            return f"a stream that ended after {stream.count} of {load.events} events"
        if self._size < load.size:
            return f"{self._size} bytes in place of {load.size}"
        return ""

    def _fail(self, what: str) -> None:
        self._tally.errors[what] += 1
        self._idle.set_result(None)
        self._transport.close()


def _code(body: bytes) -> str:
    """Return the code in an error envelope, or the beginning of whatever else the body is."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return repr(body[:80])


async def connect(load: Load) -> tuple[list[Connection], Tally]:
    """Open the connections and have one small request answered on each.

    So what it takes to accept a connection is not measured. The tally of the load that follows
    begins with the errors of these requests. Raises ``OSError``.
    """
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(Connection, "127.0.0.1", load.port)
        for _ in range(load.connections)
    ]
    connections = [connection for _, connection in opened]
    first, tally = Tally(), Tally()
    hello = replace(load, body="{}", size=0, events=0, once=True)
    await _run(connections, hello, first)
    tally.errors = first.errors
    return connections, tally


async def drive(load: Load, connections: list[Connection], tally: Tally) -> Sample:
    """Run the load over open connections and sum up."""
    cpu = time.process_time()
    began = time.monotonic()
    await _run(connections, load, tally)
    return tally.sample(time.monotonic() - began, time.process_time() - cpu)


async def _run(connections: list[Connection], load: Load, tally: Tally) -> None:
    step = load.stagger / len(connections)
    idle = [
        connection.run(load, tally, number * step) for number, connection in enumerate(connections)
    ]
    await asyncio.wait(idle, timeout=load.seconds + load.stagger + PATIENCE)
    for connection, future in zip(connections, idle, strict=True):
        if not future.done():
            connection.close()


async def close(connections: list[Connection]) -> None:
    """Close the connections and wait until they are."""
    for connection in connections:
        connection.close()
    if connections:
        await asyncio.wait([connection.closed for connection in connections])


def serve(read: Callable[[], str], write: Callable[[str], object]) -> None:
    """Serve a :class:`Generator` until ``read`` returns no more lines.

    A line with a load is answered by ``ready`` once its connections stand, the empty line that
    follows by the sample. Connections are closed at the next load, when nobody counts any more.
    """
    connections: list[Connection] = []
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        while line := read():
            load = Load(**json.loads(line))
            runner.run(close(connections))
            gc.collect()
            connections, tally = runner.run(connect(load))
            write("ready")
            if not read():
                break
            sample = runner.run(drive(load, connections, tally))
            write(json.dumps(asdict(sample)))
        runner.run(close(connections))


def main(parent: int) -> None:
    """Serve the generator in the process ``parent``, over stdin and stdout."""
    die_with_parent(parent)
    gc.disable()  # nothing here makes cycles while a load runs
    serve(sys.stdin.readline, partial(print, flush=True))


class Generator:
    """The process that makes the load, seen from the one that started it.

    An async context manager. Its methods raise :class:`~blip.errors.RuntimeFailed` when that
    process has ended; what it had to say about that is on stderr.
    """

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Generator:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "blip.bench.load",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is for us; it ends when we close its stdin
            start_new_session=True,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        if exc[0] is not None and self._process.returncode is None:
            self._process.kill()  # a load that nobody waits for any more
        self._process.stdin.close()
        await self._process.wait()

    async def prepare(self, load: Load) -> None:
        """Open the connections of a load and have each answered once."""
        await self._ask(json.dumps(asdict(load)))

    async def go(self) -> Sample:
        """Run the load that was prepared."""
        return Sample.from_json(await self._ask(""))

    async def _ask(self, line: str) -> bytes:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line.encode() + b"\n")
        answer = await process.stdout.readline()
        if not answer:
            raise RuntimeFailed(f"the load generator ended with code {await process.wait()}")
        return answer


if __name__ == "__main__":
    main(int(sys.argv[1]))

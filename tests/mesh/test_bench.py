"""The benchmark against real servers. Nothing here looks at how fast anything was."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, replace

import psutil
import pytest
from aiohttp.test_utils import TestClient, TestServer

from blip.bench import cpu, load, overhead, stacks
from blip.bench.bare import build_app
from blip.bench.cases import CASES, Case
from blip.bench.load import Generator, Load, Sample
from blip.cli import FAILURE, INTERRUPTED
from blip.errors import ConfigError, RuntimeFailed, Unavailable
from blip.lifecycle import new_event_loop

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

SMALL = Load(port=0, body='{"text":"hello"}', connections=2, seconds=0.05, size=5)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n1234567"


async def attempt(asked: Load) -> Sample:
    """Run a load in this process."""
    connections, tally = await load.connect(asked)
    try:
        return await load.drive(asked, connections, tally)
    finally:
        await load.close(connections)


async def attempt_against(answers: list[bytes | None], asked: Load = SMALL) -> Sample:
    """Run a load against a server that writes one of ``answers`` a request, the last for ever.

    None closes the connection, b"" answers nothing.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(answers)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split()[0]))
                answer = left.pop(0) if len(left) > 1 else left[0]
                if answer is None:
                    break
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        return await attempt(replace(asked, port=server.sockets[0].getsockname()[1]))


# --- the generator --------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _uvloop() -> None:
    """Let libuv open the signal pipe that it keeps for the life of a process."""
    new_event_loop().close()


@pytest.fixture
async def bare() -> AsyncIterator[TestServer]:
    async with TestServer(build_app()) as server:
        assert isinstance(server, TestServer)
        yield server


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_the_bare_server_answers_every_case(bare: TestServer, case: Case) -> None:
    assert bare.port is not None
    sample = await attempt(case.load(bare.port, {}, 0.1))
    assert sample.errors == {}
    assert sample.answers >= case.connections
    assert sample.latency.count == sample.answers
    assert sample.cpu > 0
    if case.streamed:
        events = case.load(bare.port, {}, 0.1).events
        assert sample.events == sample.answers * events
        assert sample.first.count == sample.answers
    if case.rate:
        assert sample.delay.count == sample.events
        assert 0 < sample.delay.p50 <= sample.delay.p99


async def test_the_bare_server_gives_back_what_it_was_given(bare: TestServer) -> None:
    async with TestClient(bare) as client:
        answer = await client.post("/v1/echo", json={"text": 'say "ä"'})
        assert await answer.json() == {"text": 'say "ä"'}
        answer = await client.post("/v1/echo", json={"size": 3000})
        assert (answer.content_type, len(await answer.read())) == ("application/octet-stream", 3000)
        answer = await client.post("/v1/echo", json={"text": "a", "stream": True, "chunks": 2})
        events = (await answer.text()).split("\n\n")
        assert json.loads(events[1].removeprefix("data: ")) == {"index": 1, "text": "a"}
        assert events[2:] == ["data: [DONE]", ""]


async def test_right_answers_are_counted() -> None:
    sample = await attempt_against([OK])
    assert sample.errors == {}
    assert sample.answers >= 2


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (
            b'HTTP/1.1 503 Gone\r\nContent-Length: 28\r\n\r\n{"error":{"code":"no_node"}}',
            "HTTP 503 no_node",
        ),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\noops", "HTTP 500 b'oops'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "2 bytes in place of 5"),
        (b"hello\r\n\r\n", "malformed answer: no HTTP/1.1 status line"),
        (None, "connection closed by the server"),
    ],
)
async def test_wrong_answers_are_errors(answer: bytes | None, complaint: str) -> None:
    sample = await attempt_against([OK, answer])
    assert list(sample.errors) == [complaint]
    assert sample.answers == 0


async def test_a_server_that_refuses_from_the_start_is_an_error_too() -> None:
    sample = await attempt_against([None])
    # once when it was greeted, once when it was to be measured
    assert sample.errors == {"connection closed by the server": 4}


async def test_half_a_stream_is_an_error() -> None:
    event = b'data: {"index":0,"text":"a"}\n\n'
    body = event + b'data: {"error":{"code":"node_lost"}}\n\n'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    asked = replace(SMALL, size=0, events=2, once=True)
    sample = await attempt_against([OK, answer], asked)
    assert sample.errors == {"a stream that ended after 1 of 2 events": 2}


async def test_no_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PATIENCE", 0.2)
    sample = await attempt_against([OK, b""])
    assert sample.errors == {"no answer in time": 2}


async def test_connections_start_one_after_the_other() -> None:
    began = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            await reader.read(100)
            began.append(time.monotonic())
            writer.write(OK)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await attempt(replace(SMALL, port=port, connections=4, once=True, stagger=0.2))
    assert began[7] - began[4] >= 0.15 - 0.01  # three quarters of it, timers being what they are


def test_the_generator_serves_one_load_after_another() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "blip.bench.bare", str(os.getpid())], stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        lines = [json.dumps(asdict(replace(SMALL, port=port))), "\n"] * 2 + [""]
        written: list[str] = []
        load.serve(iter(lines).__next__, written.append)
        server.terminate()
    assert written[0] == written[2] == "ready"
    for text in (written[1], written[3]):
        sample = Sample.from_json(text)
        assert sample.errors == {}
        assert sample.answers >= 2


async def test_the_generators_process_that_fails_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    async with Generator() as generator:
        with pytest.raises(RuntimeFailed, match="ended with code 1"):
            await generator.prepare(replace(SMALL, port=1))  # nobody listens there
    assert "refused" in capfd.readouterr().err.lower()


# --- the meter ------------------------------------------------------------------------------


def test_cpu_time_of_another_process_is_seen() -> None:
    code = "import threading, time\nfor _ in range(2): threading.Thread(target=sum, args=(range(9**6),)).start()\nfor t in threading.enumerate()[1:]: t.join()\nprint(flush=True)\ntime.sleep(60)"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        before = cpu.snapshot({"worker": []})
        child.stdout.readline()  # it has worked, and its threads are gone
        pids = {"worker": [child.pid]}
        used = cpu.spent(before, cpu.snapshot(pids))["worker"]
        assert used > 0.01
        assert child.pid in cpu.descendants(os.getpid())
        threads = set(cpu.spent({}, cpu.thread_snapshot(pids)))
        deadline = time.monotonic() + 10
        # joined means that Python is done with a thread; the kernel may list it a moment longer
        while threads != {"worker main"} and time.monotonic() < deadline:
            time.sleep(0.01)
            threads = set(cpu.spent({}, cpu.thread_snapshot(pids)))
        child.kill()
    assert threads == {"worker main"}
    assert cpu.process_seconds(child.pid) == 0.0
    assert cpu.thread_snapshot(pids) == {}
    assert cpu.descendants(child.pid) == []
    assert cpu.machine_seconds() > 0


# --- everything together --------------------------------------------------------------------


async def test_a_bare_server_that_does_not_start_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="ended with code 1"):
        async with stacks.bare():
            raise AssertionError("it cannot have come up")


def test_an_unknown_case_starts_nothing() -> None:
    with pytest.raises(ConfigError):
        overhead.main(cases="nonsense")


@pytest.mark.timeout(120)
def test_the_whole_mesh_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    code = overhead.main(
        rounds=1, seconds=0.2, cases="echo-1,mib-1,paced,unpaced,idle", as_json=True
    )
    out, err = capsys.readouterr()
    assert code == 0, err
    found = json.loads(out)
    assert set(found["cases"]) == {"echo-1", "mib-1", "paced-64", "unpaced-16"}
    for name, row in found["cases"].items():
        assert row["errors"] == {}
        assert row["figures"]["rate"]["ratio"][1] > 0, name
        # an echo goes through all of them
        assert all(row["roles"][role] > 0 for role in ("gateway", "broker", "nodes", "workers"))
    assert found["cases"]["paced-64"]["figures"]["delay_p50"]["blip"] > 0
    assert found["cases"]["unpaced-16"]["figures"]["delay_p50"]["blip"] is None
    assert set(found["idle"]) == {"gateway", "broker", "nodes", "workers", "store"}
    assert {aim["met"] for aim in found["aims"]} <= {True, False}
    assert len(found["aims"]) == 4


@pytest.mark.timeout(120)
def test_tables_are_printed_and_failed_requests_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # more bytes than anybody gives back: every answer is wrong, which must show
    monkeypatch.setattr(overhead, "IDLE_SECONDS", 0.5)
    wrong = Case("echo-2", 2, {"text": "hello"}, size=10**6)
    monkeypatch.setattr(overhead, "select", lambda names: ([wrong, CASES[0]], True))
    code = overhead.main(rounds=1, seconds=0.2, profile=True)
    out, err = capsys.readouterr()
    assert code == FAILURE
    assert "in place of 1000000" in err
    for words in ("requests", "x bare", "gateway main", "not met", "idle"):
        assert words in out


@pytest.mark.timeout(120)
def test_a_signal_takes_everything_down() -> None:
    code = (
        "from blip.bench.overhead import main; raise SystemExit(main(seconds=30, cases='echo-1'))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stderr is not None
        while b"round" not in (line := child.stderr.readline()):
            assert line, "it ended before it began"
        running = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(signal.SIGTERM)
        assert child.wait() == INTERRUPTED
    gone, alive = psutil.wait_procs(running, timeout=10)
    assert len(gone) >= 7  # bare, generator, gateway, broker, two nodes, a forkserver
    assert alive == []

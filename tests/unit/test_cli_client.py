"""The verbs that talk to a gateway, against its real routes with a mesh in memory behind them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blip.cli import main
from blip.cli.ask import Request, cosine
from blip.cli.up import describe_model
from blip.client import ModelInfo
from blip.errors import NodeLost
from blip.gateway.mesh import Health
from blip.protocol.messages import Advert, Device, NodeEntry, Replica
from tests.unit.gateway_mesh import MemoryMesh, failing, mesh, png, served


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("BLIP_API_KEY", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))


async def blip(backend: MemoryMesh, *args: str) -> int:
    async with served(backend) as url:
        return await asyncio.to_thread(main, [*args, "--url", url])


async def test_run(capsys: pytest.CaptureFixture[str]) -> None:
    backend = mesh()
    args = ["--system", "be kind", "-t", "0", "--seed", "7", "--max-tokens", "3", "--stop", "x"]
    assert await blip(backend, "run", "parrot", "say it again please", *args) == 0
    assert capsys.readouterr().out == "say it again\n"
    asked = backend.inputs[0]
    assert [turn.role for turn in asked.messages] == ["system", "user"]
    assert (asked.temperature, asked.seed, asked.max_tokens, asked.stop) == (0, 7, 3, ["x"])


async def test_what_is_said_about_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    backend = mesh()
    said = ["--priority", "2", "--deadline", "9.5", "--require", "vendor=cpu"]
    assert await blip(backend, "run", "parrot", "x", *said) == 0
    assert await blip(backend, "run", "parrot", "x", "--raw", *said) == 0
    assert await blip(backend, "embed", "embedder", "x", *said) == 0
    assert len(backend.options) == 3
    for options in backend.options:
        assert (options.priority, options.deadline) == (2, 9.5)
        assert options.require == {"vendor": ["cpu"]}
    assert await blip(backend, "run", "parrot", "x", "--require", "colour=red") == 1
    assert "error: 'require.colour' must be one of node" in capsys.readouterr().err


async def test_run_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert await blip(mesh(), "run", "parrot", "hello you", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == "hello you"
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["finish_reason"] == "stop"
    assert answer["node"]


async def test_run_with_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = mesh()
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for file, seed in zip(files, (1, 2), strict=True):
        file.write_bytes(png(8, 8, seed))
    args = ["--image", str(files[0]), "--image", str(files[1]), "--system", "be kind"]
    assert await blip(backend, "run", "parrot", "what are these", *args) == 0
    assert "what are these" in capsys.readouterr().out
    system, asked = backend.inputs[0].messages
    assert system.content == "be kind"
    assert [each.data for each in asked.pictures] == [file.read_bytes() for file in files]
    assert asked.content.endswith("what are these")
    assert await blip(backend, "run", "parrot", "x", "--raw", *args) == 1
    assert "--raw" in capsys.readouterr().err
    gone = str(tmp_path / "gone.png")
    assert await blip(backend, "run", "parrot", "x", "--image", gone) == 1
    assert f"cannot read {gone}" in capsys.readouterr().err
    files[0].write_bytes(b"no picture")
    assert await blip(backend, "run", "parrot", "x", *args) == 1
    assert "is not a PNG, JPEG or WebP picture" in capsys.readouterr().err


def test_pictures_go_with_the_first_question_of_a_conversation() -> None:
    sent: list[Any] = []

    class Client:
        def chat_stream(self, model: str, messages: Any, **options: Any) -> None:
            sent.append(messages)

    client: Any = Client()
    request = Request("m", pictures=[png(8, 8)])
    turns = [{"role": "user", "content": "a"}]
    request.stream(client, turns)
    request.stream(client, [*turns, {"role": "assistant", "content": "b"}, *turns])
    assert turns == [{"role": "user", "content": "a"}]
    for messages in sent:
        part, text = messages[0]["content"]
        assert (part["type"], text) == ("image_url", "a")
        assert part["image_url"]["url"].startswith("data:image/png;base64,")
    assert [turn["role"] for turn in sent[1]] == ["user", "assistant", "user"]
    assert sent[1][2] == turns[0]


async def test_run_raw_and_piped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = mesh()
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    assert await blip(backend, "run", "parrot", "go:", "--raw") == 0
    assert capsys.readouterr().out == "go:\n\nfrom a pipe\n"
    assert backend.inputs[0].prompt == "go:\n\nfrom a pipe"


async def test_run_with_a_schema(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    backend = mesh()
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')
    for given in (str(file), ' {"type": "object"}'):
        for more in ([], ["--raw"]):
            assert await blip(backend, "run", "parrot", "x", "--json-schema", given, *more) == 0
    assert [json.loads(sent.grammar.text) for sent in backend.inputs] == [{"type": "object"}] * 4
    capsys.readouterr()
    file.write_text("[1]")
    for wrong, said in (
        (str(file), "must be an object"),
        ("{", "not valid JSON"),
        (str(tmp_path / "none.json"), "cannot be read"),
    ):
        assert await blip(backend, "run", "parrot", "x", "--json-schema", wrong) == 1
        assert said in capsys.readouterr().err


async def test_run_without_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert await blip(mesh(), "run", "parrot") == 1
    assert "error: there is no prompt" in capsys.readouterr().err


async def test_run_that_fails_midway(capsys: pytest.CaptureFixture[str]) -> None:
    backend = mesh()
    backend.nodes_by_model["dies"] = failing(NodeLost("the node is gone"), after=2)
    assert await blip(backend, "run", "dies", "x") == 1
    captured = capsys.readouterr()
    assert captured.out == "0 1 \n"
    assert captured.err == "error: the node is gone\n"


async def test_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert await blip(mesh(), "run", "parot", "x") == 1
    assert "hint: `blip models`" in capsys.readouterr().err


def converse(url: str, said: list[tuple[str, str]]) -> str:
    """Hold a conversation on a terminal: wait for a text, then type a line; return all output."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "blip", "run", "parrot", "--url", url],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(slave)
    seen = b""

    def read() -> bytes:
        try:
            return os.read(master, 4096)
        except OSError:
            return b""  # the other side is closed: the process has ended

    try:
        for wanted, line in said:
            while wanted.encode() not in seen:
                chunk = read()
                assert chunk, seen.decode()
                seen += chunk
            seen = seen[seen.index(wanted.encode()) + len(wanted) :]
            os.write(master, line.encode())
        while chunk := read():
            seen += chunk
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return seen.decode()


async def test_a_conversation(tmp_path: Path) -> None:
    backend = mesh()
    async with served(backend) as url:
        await asyncio.to_thread(
            converse,
            url,
            [
                (">>> ", "hello there\n"),
                ("hello there\r\nhello there\r\n>>> ", "/what\n"),
                ("/bye", "again\n"),
                ("again\r\nagain\r\n>>> ", "/clear\n"),
                (">>> ", "new\n"),
                ("new\r\nnew\r\n>>> ", "\x04"),
            ],
        )
    turns = [[turn.content for turn in asked.messages] for asked in backend.inputs]
    assert turns == [["hello there"], ["hello there", "hello there", "again"], ["new"]]
    assert "hello there" in (tmp_path / ".local/state/blip/history").read_text()


async def test_a_failed_turn_does_not_end_the_conversation() -> None:
    backend = mesh()
    backend.refuse[0] = NodeLost("gone", hint="try again")
    async with served(backend) as url:
        await asyncio.to_thread(
            converse,
            url,
            [
                (">>> ", "one\n"),
                ("hint: try again\r\n>>> ", "two\n"),
                ("two\r\ntwo\r\n>>> ", "/bye\n"),
            ],
        )
    assert [len(asked.messages) for asked in backend.inputs] == [1]


async def test_embed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert await blip(mesh(), "embed", "embedder", "one", "two") == 0
    out = capsys.readouterr().out
    assert out.startswith("8 numbers [")
    assert "1.000" in out.split("cosines")[1]
    assert await blip(mesh(), "embed", "embedder", "one", "--dimensions", "4", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["vectors"][0]) == 4
    monkeypatch.setattr("sys.stdin", io.StringIO("a line\n\nanother\n"))
    assert await blip(mesh(), "embed", "embedder", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["vectors"]) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert await blip(mesh(), "embed", "embedder") == 1
    assert "nothing to embed" in capsys.readouterr().err


def test_cosine() -> None:
    assert cosine([3.0, 4.0], [3.0, 4.0]) == pytest.approx(1)
    assert cosine([1.0, 0.0], [0.0, 2.0]) == 0
    assert cosine([0.0], [1.0]) == 0


async def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert await blip(mesh(), "models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["MODEL", "KINDS", "CONTEXT", "LOADED", "NODES"]
    assert any(line.split()[:3] == ["org/parrot", "chat,", "completion"] for line in lines)
    assert await blip(mesh(), "models", "--json") == 0
    assert {row["id"] for row in json.loads(capsys.readouterr().out)} >= {"parrot", "echo"}
    assert await blip(MemoryMesh(), "models") == 0
    assert "serves no models" in capsys.readouterr().out


class BusyMesh(MemoryMesh):
    """Nodes in all states that a table can show; two of them have one name."""

    def nodes(self) -> list[NodeEntry]:
        busy = Device(
            "gpu-0",
            "cuda",
            "RTX",
            24 * 2**30,
            2**30,
            utilization=0.5,
            temperature=83.4,
            power=199.6,
            load_bandwidth=2**30,
            health=0.5,
            state="yielding",
            reason="its owner uses it",
            ours=5 * 2**30,
            foreign=18 * 2**30,
            reserved=2**30,
            metrics={
                "driver": "570.1", "display": True, "throttle": ["heat", "power"],
                "pcie": {"gen": 1, "gen_max": 4}, "fan": 0.5, "xids": [],
            },
            benchmark={"fp16": 9.31e13, "ratio": 0.5},
        )  # fmt: skip
        loading = Replica("parrot", "gpu-0", "loading", 4, progress=0.25)
        failed = Replica("big", "gpu-0", "failed", 1, error="does not fit")
        idle = Replica("small", "gpu-0", "ready", 4, memory=2**30, idle=65.0, unload_in=235.0)
        pinned = Replica("mine", "gpu-0", "ready", 2, active=1, pinned=True, unload_in=3.0)
        one = Advert(1, True, [busy], [], [loading, failed, idle, pinned], [])
        two = Advert(1, False, [], [], [], [])
        return [
            NodeEntry("1111aaaa", 1, "rig", "h", [], "ready", one),
            NodeEntry("2222bbbb", 1, "rig", "h", [], "suspect", two),
        ]


async def test_status(capsys: pytest.CaptureFixture[str]) -> None:
    backend = BusyMesh(mesh().nodes_by_model)
    backend.checks = [Health("broker", True, "fine", True), Health("store", False, "no", False)]
    assert await blip(backend, "status") == 0
    out = capsys.readouterr().out
    assert "is ready" in out
    assert "ok   broker: fine" in out
    assert "away store: no" in out
    header, one, two = out.split("\n\n")[1].splitlines()
    assert header.split() == [
        "NODE", "STATUS", "DEVICE", "STATE", "FREE", "OF", "OURS", "OTHERS", "BUSY", "TEMP", "NOTE"
    ]  # fmt: skip
    for word in (
        *("rig#aaaa", "draining", "gpu-0 (RTX)", "yielding", "1.0 GiB", "24.0 GiB", "5.0 GiB"),
        *("18.0 GiB", "50%", "83 °C", "health 50%: its owner uses it"),
    ):
        assert word in one
    assert two.split() == ["rig#bbbb", "suspect", "none"]
    assert "loading 25%" in out
    assert "failed: does not fit" in out
    assert "driver" not in out
    backend.checks = [Health("broker", False, "gone", True)]
    assert await blip(backend, "status") == 1
    assert "down broker: gone" in capsys.readouterr().out
    assert await blip(backend, "status", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ready"], len(answer["nodes"])) == (False, 2)
    assert answer["nodes"][0]["devices"][0]["benchmark"]["fp16"] == 9.31e13


async def test_status_of_what_tells_little(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns in which nothing stands are left out."""
    assert await blip(mesh(), "status") == 0
    header = capsys.readouterr().out.split("\n\n")[1].splitlines()[0]
    assert header.split() == ["NODE", "STATUS", "DEVICE", "STATE", "FREE", "OF"]


@pytest.mark.parametrize("option", ["--devices", "-v"])
async def test_all_that_is_known_of_a_device(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert await blip(BusyMesh(), "status", option) == 0
    block = capsys.readouterr().out.split("\n\n")[2].splitlines()
    assert block[0] == "rig#aaaa gpu-0 (RTX), cuda"
    known = dict(re.split("  +", line.strip(), maxsplit=1) for line in block[1:])
    assert known == {
        "state": "yielding",
        "reason": "its owner uses it",
        "health": "0.5",
        "speed": "1",
        "age": "0.0 ms",
        "power": "200 W",
        "reserved": "1.0 GiB",
        "load bandwidth": "1.0 GiB/s",
        "driver": "570.1",
        "display": "yes",
        "throttle": "heat; power",
        "pcie": "gen 1, gen max 4",
        "fan": "0.5",
        "xids": "none",
        "benchmark fp16": "93.1 T",
        "benchmark ratio": "0.5",
    }


async def test_ps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert await blip(BusyMesh(), "ps") == 0
    models, tasks = capsys.readouterr().out.split("\n\n")
    assert [re.split("  +", line) for line in models.splitlines()] == [
        ["MODEL", "NODE", "DEVICE", "STATE", "MEMORY", "ACTIVE/SLOTS", "IDLE", "UNLOADS"],
        ["parrot", "rig#aaaa", "gpu-0", "loading 25%", "0/4"],
        ["big", "rig#aaaa", "gpu-0", "failed: does not fit", "0/1"],
        ["small", "rig#aaaa", "gpu-0", "ready", "1.0 GiB", "0/4", "1 min 05 s", "in 3 min 55 s"],
        ["mine", "rig#aaaa", "gpu-0", "ready", "1/2", "pinned"],
    ]
    assert tasks.splitlines()[1].split()[1:4] == ["chat", "parrot", "running"]
    assert await blip(BusyMesh(), "ps", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["tasks"][0]["attempt"] == 1
    assert answer["models"][2]["name"] == "rig#aaaa"
    assert answer["models"][2]["unload_in"] == 235.0
    none: list[Any] = []
    monkeypatch.setattr(MemoryMesh, "tasks", lambda self: none)
    monkeypatch.setattr(MemoryMesh, "nodes", lambda self: none)
    assert await blip(mesh(), "ps") == 0
    assert capsys.readouterr().out == "No models are loaded.\n\nNo tasks.\n"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (ModelInfo("m", ("chat", "completion")), "m (chat, completion)"),
        (ModelInfo("echo", ("echo",)), "echo"),
    ],
)
def test_models_in_a_line(model: ModelInfo, text: Any) -> None:
    assert describe_model(model) == text

"""``blip kinds`` and ``blip task`` against the gateway's real routes."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from blip.cli import main
from blip.client import AsyncBlip, Blip
from blip.errors import RuntimeFailed
from blip.gateway.mesh import Answer
from blip.kinds.plugin import Piece, piece_to_wire
from tests.unit.gateway_mesh import MemoryMesh, Work, mesh, served


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLIP_API_KEY", raising=False)


async def blip(backend: MemoryMesh, *args: str) -> int:
    async with served(backend) as url:
        return await asyncio.to_thread(main, [*args, "--url", url])


async def picture(value: Any) -> Work:
    yield Answer(piece_to_wire(Piece("image/png", b"\x89PNG")), {}, 1.0)


async def fails_late(value: Any) -> Work:
    yield piece_to_wire(Piece("application/json", b"1"))
    raise RuntimeFailed("half way")


async def test_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert await blip(mesh(), "kinds") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "built in" in rows["chat"]
    assert rows["wordcount"].split()[1:] == ["büro-1", "text,", "[most]"]
    assert await blip(mesh(), "kinds", "--json") == 0
    names = [kind["name"] for kind in json.loads(capsys.readouterr().out)]
    assert "wordcount" in names


async def test_a_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = '{"text": "one two three"}'
    (tmp_path / "in.json").write_text(said)
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    for given in (said, "@in.json", "-"):
        assert await blip(mesh(), "task", "wordcount", "wordcount", "--input", given) == 0
        assert json.loads(capsys.readouterr().out) == {"words": 3}
    args = ["task", "wordcount", "wordcount", "-i", said]
    assert await blip(mesh(), *args, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["output"], answer["node"]) == ({"words": 3}, "büro-1".replace("ü", "?"))
    assert await blip(mesh(), *args, "--out", "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text()) == {"words": 3}
    assert await blip(mesh(), *args, "--stream") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [event["type"] for event in events] == ["progress", "completed"]


async def test_bytes(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    backend = mesh()
    backend.nodes_by_model["wordcount"] = picture
    args = ["task", "wordcount", "wordcount", "-i", '{"text": ""}']
    assert await blip(backend, *args) == 0
    assert capfdbinary.readouterr().out == b"\x89PNG"
    assert await blip(backend, *args, "--out", "x.png") == 0
    assert capfdbinary.readouterr().out == b"x.png  image/png\n"
    assert (tmp_path / "x.png").read_bytes() == b"\x89PNG"


async def test_sdk_without_asyncio() -> None:
    backend = mesh()
    async with served(backend) as url:

        def ask() -> tuple[Any, list[str], list[str]]:
            with Blip(url) as client:
                answer = client.run_task("wordcount", {"text": "a b"}, model="wordcount")
                events = client.stream_task("wordcount", {"text": "a"}, model="wordcount")
                names = [kind["name"] for kind in client.kinds()]
                return answer.output, [event["type"] for event in events], names

        output, events, names = await asyncio.to_thread(ask)
        assert (output, events) == ({"words": 2}, ["progress", "completed"])
        assert "wordcount" in names
        backend.nodes_by_model["wordcount"] = fails_late
        async with AsyncBlip(url) as client:
            stream = client.stream_task("wordcount", {"text": ""}, model="wordcount")
            assert (await anext(stream))["output"] == 1
            with pytest.raises(RuntimeFailed, match="half way"):
                await anext(stream)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ("@no.json", "cannot read no.json"),
        ("{}", "'text'"),
    ],
)
async def test_wrong_usage(given: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await blip(mesh(), "task", "wordcount", "wordcount", "--input", given) == 1
    assert says in capsys.readouterr().err

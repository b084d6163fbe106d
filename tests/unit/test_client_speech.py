"""Speech through the SDK and ``blip speak``, against the gateway's real routes."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from blip.cli import main
from blip.client import AsyncBlip, Blip
from blip.errors import InvalidRequest, ModelNotFound, NodeLost
from blip.kinds.speech import Piece, SpeechInput, piece_to_wire
from tests.unit.gateway_mesh import MemoryMesh, Work, mesh, served

WORDS = b"a/None/1 few/None/1 words/None/1"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLIP_API_KEY", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))


async def blip(backend: MemoryMesh, *args: str) -> int:
    async with served(backend) as url:
        return await asyncio.to_thread(main, ["speak", *args, "--url", url])


async def dies(value: SpeechInput) -> Work:
    yield piece_to_wire(Piece(1, b"half"))
    await asyncio.sleep(0.01)
    raise NodeLost("the node is gone")


async def test_sdk() -> None:
    backend = mesh()
    backend.nodes_by_model["dies"] = dies
    async with served(backend) as url, AsyncBlip(url) as client:
        answer = await client.speak(
            "joe", "a few words", voice="anna", format="wav", speed=0.5, seed=None, priority=2
        )
        assert answer.audio == b"a/anna/0.5 few/anna/0.5 words/anna/0.5"
        assert answer.media_type == "audio/wav"
        assert answer.origin.node
        assert backend.inputs[0] == SpeechInput(
            text="a few words", voice="anna", speed=0.5, format="wav"
        )
        assert backend.options[0].priority == 2
        async with client.speak_stream("joe", "a few words") as stream:
            assert stream.media_type == "audio/mpeg"
            assert b"".join([piece async for piece in stream]) == WORDS
        with pytest.raises(InvalidRequest, match="aac"):
            await client.speak("joe", "word", format="aac")
        with pytest.raises(ModelNotFound):
            await client.speak("nobody", "word")
        with pytest.raises(NodeLost, match="broke off"):
            await client.speak("dies", "word")
        with pytest.raises(RuntimeError, match="inside"):
            await anext(client.speak_stream("joe", "word"))


async def test_the_blocking_sdk() -> None:
    async with served(mesh()) as url:

        def work() -> tuple[bytes, bytes, str]:
            with Blip(url) as client:
                whole = client.speak("joe", "a few words").audio
                with client.speak_stream("joe", "a few words", format="flac") as stream:
                    assert stream.origin.node
                    return whole, b"".join(stream), stream.media_type

        assert await asyncio.to_thread(work) == (WORDS, WORDS, "audio/flac")


@pytest.mark.parametrize(
    ("name", "format"), [("a/b.wav", "wav"), ("b.MP3", "mp3"), ("c.ogg", "opus"), ("d.pcm", "pcm")]
)
async def test_a_file(
    name: str, format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = mesh()
    assert await blip(backend, "joe", "a few words", "-o", name) == 0
    assert (tmp_path / name).read_bytes() == WORDS
    assert capsys.readouterr().out == f"{name}  32 bytes\n"
    assert backend.inputs[0].format == format


async def test_options_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = mesh()
    options = ["--voice", "anna", "--speed", "2", "--seed", "3", "--format", "opus", "--json"]
    assert await blip(backend, "joe", "A few words!", *options) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["file"], said["format"], said["node"]) == ("a-few-words.opus", "opus", "b?ro-1")
    assert said["bytes"] == (tmp_path / said["file"]).stat().st_size
    assert backend.inputs[0] == SpeechInput(
        text="A few words!", voice="anna", speed=2, seed=3, format="opus"
    )
    assert await blip(backend, "joe", "A few words!", "--format", "opus") == 0
    assert (tmp_path / "a-few-words-1.opus").exists()


async def test_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a few words"))
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=out, flush=lambda: None))
    backend = mesh()
    assert await blip(backend, "joe", "-o", "-") == 0
    assert out.getvalue() == WORDS
    assert backend.inputs[0].format == "wav"


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("joe",), 1, "nothing to say"),
        (("joe", " \n"), 1, "nothing to say"),
        (("joe", "word", "-o", "word.midi"), 2, ".mp3"),
        (("joe", "word", "-o", "-", "--json"), 2, "nothing else"),
        (("joe", "word", "--format", "aac"), 1, "aac"),
        (("dies", "word", "-o", "half.wav"), 1, "broke off"),
    ],
)
async def test_complaints(
    args: tuple[str, ...],
    status: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    backend = mesh()
    backend.nodes_by_model["dies"] = dies
    assert await blip(backend, *args) == status
    assert says in capsys.readouterr().err
    if "half.wav" in args:
        assert (tmp_path / "half.wav").read_bytes() == b"half"

"""What was said through the SDK and ``blip transcribe``, against the gateway's real routes."""

from __future__ import annotations

import asyncio
import io
import json
import types
from pathlib import Path

import pytest

from blip.cli import main
from blip.client import AsyncBlip, Blip, HeardWord, Origin
from blip.client.hearing_answers import transcript_from
from blip.errors import InternalError, InvalidRequest
from blip.gateway.mesh import ServedModel
from tests.unit.gateway_mesh import MemoryMesh, mesh, served, wav

SRT = "1\n00:00:00,000 --> 00:00:00,250\nHello\n\n2\n00:00:00,250 --> 00:00:00,500\nthere.\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLIP_API_KEY", raising=False)
    (tmp_path / "speech.wav").write_bytes(wav())


async def blip(backend: MemoryMesh, *args: str) -> int:
    async with served(backend) as url:
        return await asyncio.to_thread(main, ["transcribe", *args, "--url", url])


# --- the SDK --------------------------------------------------------------------------------


async def test_sdk() -> None:
    backend = mesh()
    async with served(backend) as url, AsyncBlip(url) as client:
        answer = await client.transcribe(
            "whisper", wav(), language="en", prompt=None, temperature=0.25, words=True, priority=2
        )
        assert (answer.text, answer.language, answer.duration) == ("Hello there.", "english", 0.5)
        assert [segment.text for segment in answer.segments] == [" Hello", " there."]
        assert answer.segments[0].avg_logprob == -0.25
        assert answer.words == [HeardWord("Hello", 0.0, 0.25), HeardWord("there.", 0.25, 0.5)]
        assert answer.srt == SRT
        assert answer.vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.250\nHello\n")
        assert answer.origin.node
        heard = backend.inputs[0]
        assert (heard.file, heard.language, heard.temperature) == (wav(), "en", 0.25)
        assert heard.words
        assert backend.options[0].priority == 2
        english = await client.translate("whisper", wav(), language="de", seed=3)
        assert (english.text, english.words) == ("Hello there.", [])
        assert (backend.inputs[1].language, backend.inputs[1].seed) == ("de", 3)
        with pytest.raises(InvalidRequest, match="'file'") as caught:
            await client.transcribe("whisper", b"no sound")
        assert caught.value.param == "file"


async def test_sdk_without_asyncio() -> None:
    async with served(mesh()) as url:

        def ask() -> tuple[str, str]:
            with Blip(url) as client:
                said = client.transcribe("whisper", wav()).text
                return said, client.translate("whisper", wav()).text

        assert await asyncio.to_thread(ask) == ("Hello there.", "Hello there.")


@pytest.mark.parametrize("body", [[], {}, {"text": "x"}, {"text": "x", "duration": "long"}])
def test_answers_that_are_no_transcripts(body: object) -> None:
    with pytest.raises(InternalError, match="no transcript"):
        transcript_from(body, Origin())


# --- the command ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ([], "Hello there.\n"),
        (["--format", "srt"], SRT),
        (["-f", "vtt"], "WEBVTT\n\n" + SRT.replace(",", ".").replace("1\n", "", 1)),
    ],
)
async def test_formats(
    options: list[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await blip(mesh(), "speech.wav", "--model", "whisper", *options) == 0
    assert capsys.readouterr().out == printed.replace(
        "\n2\n", "\n" if "vtt" in options else "\n2\n"
    )


async def test_options_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    backend = mesh()
    options = ["--language", "de", "--prompt", "Names.", "-t", "0.5", "--seed", "7", "--words"]
    assert await blip(backend, "speech.wav", "-m", "whisper", "--json", *options) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == "Hello there."
    assert answer["language"] == "english"
    assert answer["model"] == "whisper"
    assert answer["segments"][1] == {"text": " there.", "start": 0.25, "end": 0.5}
    assert answer["words"][0] == {"text": "Hello", "start": 0.0, "end": 0.25}
    heard = backend.inputs[0]
    assert (heard.language, heard.prompt, heard.temperature, heard.seed, heard.words) == (
        "de",
        "Names.",
        0.5,
        7,
        True,
    )


async def test_a_model_is_chosen_that_serves_the_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [
        ServedModel("a-cold-one", ("transcription", "translation"), None, ("rig",), 0),
        ServedModel("whisper", ("transcription",), None, ("rig",), 1),
        ServedModel("parrot", ("chat",), None, ("rig",), 2),
    ]
    monkeypatch.setattr(MemoryMesh, "models", lambda self: models)
    assert await blip(mesh(), "speech.wav") == 0
    assert capsys.readouterr().out == "Hello there.\n"
    assert await blip(mesh(), "speech.wav", "--translate") == 1  # only the cold one translates
    assert "a-cold-one" in capsys.readouterr().err
    monkeypatch.setattr(MemoryMesh, "models", lambda self: models[2:])
    assert await blip(mesh(), "speech.wav") == 1
    assert "serves transcription" in capsys.readouterr().err


async def test_a_sound_from_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(wav())))
    assert await blip(mesh(), "-", "-m", "whisper", "--translate") == 0
    assert capsys.readouterr().out == "Hello there.\n"


@pytest.mark.parametrize(
    ("args", "says", "code"),
    [
        (["nowhere.wav", "-m", "whisper"], "cannot read nowhere.wav", 1),
        (["speech.wav", "-m", "whisper", "--format", "json"], "text, srt, vtt", 2),
    ],
)
async def test_wrong_usage(
    args: list[str], says: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await blip(mesh(), *args) == code
    assert says in capsys.readouterr().err

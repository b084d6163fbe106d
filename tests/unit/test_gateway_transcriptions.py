"""The audio routes that listen, with the real ``openai`` client and with forms of every sort."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from blip.errors import UnsupportedField
from blip.gateway.mesh import Answer
from blip.gateway.settings import GatewaySettings
from blip.kinds import captions
from blip.kinds.transcription import (
    Heard,
    Segment,
    Transcript,
    TranscriptionInput,
    Word,
    heard_to_wire,
)
from tests.models.tones import keys_file
from tests.unit.gateway_mesh import MemoryMesh, Work, failing, served

FILE = keys_file("0123456789")

SEGMENTS = [
    Segment(
        0.5,
        1.25,
        " Hello there,",
        [50, 51],
        0.0,
        0.2,
        -0.25,
        1.5,
        0.01,
        [Word("Hello", 0.5, 0.75), Word("there,", 0.75, 1.25)],
    ),
    Segment(1.25, 3661.0024, " <you> &\n\n-->  me.", [52], 30.0, 0.2, -0.5, 1.0, 0.02, []),
]


def listener(parts: int = 1) -> Any:
    """A model that hears the same in everything; it sends so many of its segments on the way."""

    async def node(value: TranscriptionInput) -> Work:
        segments = SEGMENTS if value.words else [each._replace(words=None) for each in SEGMENTS]
        if value.parts:
            for number in range(parts):
                yield heard_to_wire(Heard([segments[number]], 1.5 * (number + 1), 3662.0))
        usage = {"audio_ms": 3662000, "completion_tokens": 3}
        yield Answer(heard_to_wire(Transcript(segments, 3662.0, "english")), usage, 3662.0)

    return node


async def plain(value: TranscriptionInput) -> Work:
    """A model that knows little of itself, as those with a CTC head."""
    found = Transcript([Segment(0.5, 1.0, "hi", [1])], 2.0)
    yield Answer(heard_to_wire(found), {"audio_ms": 2000}, 2.0)


async def liar(value: TranscriptionInput) -> Work:
    yield Answer(b"\x01", {}, 1.0)


@pytest.fixture
def backend() -> MemoryMesh:
    return MemoryMesh({"whisper": listener(), "ctc": plain, "liar": liar})


@contextlib.asynccontextmanager
async def client_of(backend: MemoryMesh) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        served(backend) as origin,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


async def test_every_format(backend: MemoryMesh) -> None:
    async with client_of(backend) as client:
        transcribe = client.audio.transcriptions.create
        file = ("speech.wav", FILE)
        answer = await transcribe(
            model="whisper",
            file=file,
            language="en",
            prompt="A greeting.",
            temperature=0.5,
            chunking_strategy="auto",
            extra_body={"seed": 7},
        )
        assert answer.text == "Hello there, <you> &\n\n-->  me."
        assert answer.usage is not None
        assert answer.usage.to_dict() == {"type": "duration", "seconds": 3662.0}
        assert set(answer.to_dict()) == {"text", "usage"}
        assert backend.inputs[0] == TranscriptionInput(
            file=FILE, language="en", prompt="A greeting.", temperature=0.5, seed=7
        )
        text = await transcribe(model="whisper", file=file, response_format="text")
        assert text == "Hello there, <you> &\n\n-->  me.\n"
        srt = await transcribe(model="whisper", file=file, response_format="srt")
        assert srt == (
            "1\n00:00:00,500 --> 00:00:01,250\nHello there,\n\n"
            "2\n00:00:01,250 --> 01:01:01,002\n<you> & --> me.\n"
        )
        vtt = await transcribe(model="whisper", file=file, response_format="vtt")
        assert vtt == (
            "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\nHello there,\n\n"
            "00:00:01.250 --> 01:01:01.002\n&lt;you&gt; &amp; --&gt; me.\n"
        )


async def test_verbose_json(backend: MemoryMesh) -> None:
    async with client_of(backend) as client:

        async def ask(*granularities: Any, model: str = "whisper") -> Any:
            more: Any = {"timestamp_granularities": list(granularities)} if granularities else {}
            return await client.audio.transcriptions.create(
                model=model, file=("a.wav", FILE), response_format="verbose_json", **more
            )

        found = await ask()
        assert (found.language, found.duration, found.task) == ("english", 3662.0, "transcribe")
        assert found.words is None
        assert found.segments[1].to_dict() == {
            "id": 1,
            "seek": 3000,
            "start": 1.25,
            "end": 3661.002,
            "text": " <you> &\n\n-->  me.",
            "tokens": [52],
            "temperature": 0.2,
            "avg_logprob": -0.5,
            "compression_ratio": 1.0,
            "no_speech_prob": 0.02,
        }
        both = await ask("segment", "word")
        assert len(both.segments) == 2
        assert [word.to_dict() for word in both.words] == [
            {"word": "Hello", "start": 0.5, "end": 0.75},
            {"word": "there,", "start": 0.75, "end": 1.25},
        ]
        words = await ask("word")
        assert words.segments is None
        assert len(words.words) == 2
        assert [value.words for value in backend.inputs] == [False, True, True]
        # what a model does not know of itself is left out
        bare = await ask(model="ctc")
        assert "language" not in bare.to_dict()
        assert set(bare.segments[0].to_dict()) == {"id", "start", "end", "text", "tokens"}


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_translations(backend: MemoryMesh) -> None:
    async with client_of(backend) as client:
        plain = await client.audio.translations.create(model="whisper", file=("a.wav", FILE))
        assert plain.text.startswith("Hello")
        verbose = await client.audio.translations.create(
            model="whisper",
            file=("a.wav", FILE),
            response_format="verbose_json",
            extra_body={"language": "de"},
        )
        assert verbose.to_dict()["task"] == "translate"
        assert backend.inputs[-1].language == "de"


@pytest.mark.parametrize("parts", [0, 1, 2])
async def test_a_stream_has_all_the_text_whatever_came_on_the_way(parts: int) -> None:
    async with client_of(MemoryMesh({"whisper": listener(parts)})) as client:
        stream = await client.audio.transcriptions.create(
            model="whisper", file=("a.wav", FILE), stream=True, extra_body={"progress": True}
        )
        events: list[Any] = [event async for event in stream]
    deltas = [event for event in events if event.type == "transcript.text.delta"]
    assert [event.delta for event in deltas] == ["Hello there,", " <you> &\n\n-->  me."]
    assert [(event.start, event.end) for event in deltas] == [(0.5, 1.25), (1.25, 3661.002)]
    told = [event.seconds for event in events if event.type == "transcript.progress"]
    assert told == [1.5, 3.0][:parts]
    done = events[-1]
    assert done.type == "transcript.text.done"
    assert done.text == "".join(event.delta for event in deltas)
    assert (done.language, done.duration) == ("english", 3662.0)
    assert done.usage.seconds == 3662.0


async def test_a_seed_is_drawn_where_none_is_given(backend: MemoryMesh) -> None:
    async with client_of(backend) as client:
        for _ in range(2):
            await client.audio.transcriptions.create(model="whisper", file=("a.wav", FILE))
    seeds = [value.seed for value in backend.inputs]
    assert None not in seeds
    assert seeds[0] != seeds[1]


# --- forms ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def posting(backend: MemoryMesh) -> AsyncIterator[Any]:
    async with (
        served(backend, GatewaySettings(body_limit=100_000)) as origin,
        aiohttp.ClientSession(origin) as session,
    ):

        async def post(
            *fields: tuple[str, str], file: bytes | None = FILE, path: str = "transcriptions"
        ) -> tuple[int, Any]:
            form = aiohttp.FormData(default_to_multipart=True)
            for name, value in fields:
                form.add_field(name, value)
            if file is not None:
                form.add_field("file", file, filename="a.wav")
            async with session.post(f"/v1/audio/{path}", data=form) as response:
                return response.status, json.loads(await response.text())

        yield post


MODEL = ("model", "whisper")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ([MODEL, ("include[]", "logprobs")], "include", "unsupported_field"),
        (
            [MODEL, ("known_speaker_names[]", "a"), ("known_speaker_names[]", "b")],
            "known_speaker_names",
            "unsupported_field",
        ),
        ([MODEL, ("languages[]", "en")], "languages", "unsupported_field"),
        ([MODEL, ("keywords[]", "blip")], "keywords", "unsupported_field"),
        ([MODEL, ("chunking_strategy", "none")], "chunking_strategy", "unsupported_field"),
        ([MODEL, ("response_format", "diarized_json")], "response_format", "invalid_request"),
        ([MODEL, ("temperature", "1.5")], "temperature", "invalid_request"),
        ([MODEL, ("temperature", "warm")], "temperature", "invalid_request"),
        (
            [MODEL, ("timestamp_granularities[]", "word")],
            "timestamp_granularities",
            "invalid_request",
        ),
        (
            [
                MODEL,
                ("response_format", "verbose_json"),
                ("timestamp_granularities[]", "letter"),
            ],
            "timestamp_granularities",
            "invalid_request",
        ),
        ([MODEL, ("stream", "true"), ("response_format", "srt")], "response_format", None),
        ([MODEL, ("progress", "true")], "progress", "invalid_request"),
        ([MODEL, MODEL], "model", "invalid_request"),
        ([MODEL, ("speed", "2")], "speed", "invalid_request"),
        ([("language", "en")], "model", "invalid_request"),
        ([("model", "nobody")], "model", "model_not_found"),
    ],
)
async def test_wrong_fields_are_named(
    backend: MemoryMesh, fields: list[tuple[str, str]], param: str, code: str | None
) -> None:
    async with posting(backend) as post:
        status, body = await post(*fields)
    assert status in (400, 404)
    assert body["error"]["param"] == param
    assert code in (None, body["error"]["code"])
    assert backend.inputs == []


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (None, "missing"),
        (b"", "empty"),
        (b"some text", "not a sound file"),
        (b"\x00\x00\x00\x20ftypM4A \x00", "MP4"),
        (FILE[:-3000], "cut off"),
    ],
)
async def test_wrong_files_are_refused_before_anybody_listens(
    backend: MemoryMesh, file: bytes | None, says: str
) -> None:
    async with posting(backend) as post:
        status, body = await post(MODEL, file=file)
    assert status == 400
    assert body["error"]["param"] == "file"
    assert says in json.dumps(body["error"])
    assert backend.inputs == []


async def test_failures_of_nodes_come_through(backend: MemoryMesh) -> None:
    refused = UnsupportedField("'language': it takes none.", param="language")
    backend.nodes_by_model["fussy"] = failing(refused)
    async with posting(backend) as post:
        status, body = await post(("model", "fussy"), ("language", "en"))
        assert (status, body["error"]["param"]) == (400, "language")
        status, body = await post(("model", "liar"))
        assert status == 500
        assert "transcript" in body["error"]["message"]
        status, body = await post(MODEL, ("prompt", "x" * 9_000))
        assert status == 400
        status, body = await post(MODEL, file=FILE * 4)
        assert status == 413


async def test_granularities_may_be_several(backend: MemoryMesh) -> None:
    name = "timestamp_granularities[]"
    verbose = ("response_format", "verbose_json")
    async with posting(backend) as post:
        status, body = await post(MODEL, verbose, (name, "word"), (name, "segment"), (name, "word"))
        assert status == 200
        assert len(body["words"]) == len(body["segments"]) == 2


async def test_the_document_knows_files_and_lists(backend: MemoryMesh) -> None:
    async with (
        served(backend) as origin,
        aiohttp.ClientSession(origin) as session,
        session.get("/openapi.json") as response,
    ):
        schema = (await response.json())["components"]["schemas"]["TranscriptionRequest"]
    assert schema["properties"]["file"]["format"] == "binary"
    assert schema["properties"]["timestamp_granularities"]["items"]["enum"] == ["segment", "word"]
    assert sorted(schema["required"]) == ["file", "model"]


# --- captions -------------------------------------------------------------------------------


def test_captions_of_nothing() -> None:
    silent = [Segment(0.0, 1.0, "  ", [])]
    assert captions.srt(silent) == captions.srt([]) == ""
    assert captions.vtt(silent) == captions.vtt([]) == "WEBVTT\n"


def test_times_are_rounded_once() -> None:
    late = Segment(59.9996, 7199.9999, "x", [])
    assert re.findall(r"\d\d:\d\d:\d\d,\d{3}", captions.srt([late])) == [
        "00:01:00,000",
        "02:00:00,000",
    ]

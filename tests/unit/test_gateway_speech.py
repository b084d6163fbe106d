"""``/v1/audio/speech``, asked by OpenAI's own client, and BitingLip's ``text-to-speech``."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from blip.errors import NodeLost
from blip.kinds.speech import MAX_CHARACTERS, MEDIA, Piece, SpeechInput, piece_to_wire
from tests.unit.gateway_mesh import MemoryMesh, Work, failing, mesh, served

ROUTE = "/v1/audio/speech"
ORIGINAL = "/api/v1/inference/text-to-speech"
WORDS = b"a/None/1 few/None/1 words/None/1"


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(backend) as origin, aiohttp.ClientSession(origin) as session:
        yield session


async def test_openais_client(backend: MemoryMesh) -> None:
    async with (
        served(backend) as origin,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = await client.audio.speech.create(
            model="joe",
            input="a few words",
            voice={"id": "anna"},
            response_format="pcm",
            speed=1.5,
            instructions="",
            stream_format="audio",
            extra_body={"seed": 7},
        )
    assert answer.content == b"a/anna/1.5 few/anna/1.5 words/anna/1.5"
    assert answer.response.headers["Content-Type"] == "audio/pcm"
    assert backend.inputs[0].model_dump(exclude_defaults=True) == {
        "text": "a few words",
        "voice": "anna",
        "speed": 1.5,
        "seed": 7,
        "format": "pcm",
        "sample_rate": 24_000,
    }


@pytest.mark.parametrize("format", MEDIA)
async def test_media_types(http: aiohttp.ClientSession, backend: MemoryMesh, format: str) -> None:
    body = {"model": "joe", "input": "a few words", "response_format": format, "voice": None}
    async with http.post(ROUTE, json=body) as response:
        assert response.headers["Content-Type"] == MEDIA[format]
        assert response.headers["X-Blip-Node"]
        assert await response.read() == WORDS
    assert backend.inputs[0].format == format


async def test_mp3_is_what_comes_unasked(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    async with http.post(ROUTE, json={"model": "joe", "input": "word"}) as response:
        assert response.content_type == "audio/mpeg"
        # what comes whole says how long it is
        assert response.content_length == len(await response.read()) == len("word/None/1")
    assert backend.inputs[0] == SpeechInput(text="word", format="mp3")


async def test_pieces_are_sent_as_they_come(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    more = asyncio.Event()

    async def slow(value: SpeechInput) -> Work:
        yield piece_to_wire(Piece(1, b"begin "))
        await more.wait()
        yield piece_to_wire(Piece(1, b"middle "))
        async for item in backend.nodes_by_model["joe"](value):
            yield item

    backend.nodes_by_model["slow"] = slow
    async with http.post(ROUTE, json={"model": "slow", "input": "end"}) as response:
        assert response.content_length is None
        assert await response.content.readany() == b"begin "
        more.set()
        assert await response.read() == b"middle end/None/1"


async def test_events(http: aiohttp.ClientSession) -> None:
    body = {"model": "joe", "input": "a few words", "stream_format": "sse"}
    async with http.post(ROUTE, json=body) as response:
        assert response.content_type == "text/event-stream"
        blocks = (await response.text()).strip().split("\n\n")
    assert blocks.pop() == "data: [DONE]"
    events: list[dict[str, Any]] = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    *deltas, done = events
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == WORDS
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert done == {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 3, "output_tokens": 0, "total_tokens": 3},
    }


async def test_an_error_before_the_first_piece_is_an_answer(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    backend.nodes_by_model["broken"] = failing(NodeLost("the node is gone"))
    for fields in ({}, {"stream_format": "sse"}):
        body = {"model": "broken", "input": "word", **fields}
        async with http.post(ROUTE, json=body) as response:
            assert response.status == 502
            assert (await response.json())["error"]["code"] == "node_lost"


async def test_an_error_after_it_breaks_the_file_off(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    async def dies(value: SpeechInput) -> Work:
        yield piece_to_wire(Piece(1, b"half a "))
        await asyncio.sleep(0.01)
        raise NodeLost("the node is gone")

    backend.nodes_by_model["dies"] = dies
    async with http.post(ROUTE, json={"model": "dies", "input": "word"}) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    body = {"model": "dies", "input": "word", "stream_format": "sse"}
    async with http.post(ROUTE, json=body) as response:
        *_, last = (await response.text()).strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "node_lost"


async def test_going_away_cancels(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    async def endless(value: SpeechInput) -> Work:
        while True:
            yield piece_to_wire(Piece(1, b"on and "))
            await asyncio.sleep(0.001)

    backend.nodes_by_model["endless"] = endless
    async with http.post(ROUTE, json={"model": "endless", "input": "word"}) as response:
        await response.content.readany()
        response.close()
    (call,) = backend.calls
    await asyncio.wait_for(call.ended.wait(), 10)
    assert call.cancelled


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("response_format", "aac", "unsupported_field"),
        ("response_format", "midi", "invalid_request"),
        ("instructions", "cheerfully", "unsupported_field"),
        ("speed", 0.2, "invalid_request"),
        ("speed", 4.1, "invalid_request"),
        ("input", "", "invalid_request"),
        ("input", "x" * (MAX_CHARACTERS + 1), "invalid_request"),
        ("stream_format", "rtp", "invalid_request"),
        ("sample_rate", 7999, "invalid_request"),
        ("language", "en", "invalid_request"),
    ],
)
async def test_refusals(
    http: aiohttp.ClientSession, backend: MemoryMesh, field: str, value: Any, code: str
) -> None:
    body = {"model": "joe", "input": "word", field: value}
    async with http.post(ROUTE, json=body) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert (error["code"], error["param"]) == (code, field)
    assert backend.inputs == []


# --- BitingLip's -----------------------------------------------------------------------------

#: From BitingLip's API reference, but for the model.
DOCUMENTED: dict[str, Any] = {
    "model": "joe",
    "text": "Hello, welcome to BitingLip AI services!",
    "voice": "speaker_1",
    "language": "en",
    "speed": 1.0,
    "pitch": 1.0,
}


async def test_the_originals_request(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    async def whole(value: SpeechInput) -> Work:
        async for item in backend.nodes_by_model["joe"](value.model_copy(update={"text": "word"})):
            yield item

    backend.nodes_by_model["whole"] = whole
    async with http.post(ORIGINAL, json=DOCUMENTED | {"model": "whole"}) as response:
        answer = await response.json()
    assert answer["status"] == "completed"
    assert answer["worker_id"] == "büro-1"
    result = answer["result"]
    async with aiohttp.request("GET", result.pop("audio_url")) as fetched:
        assert fetched.content_type == "audio/wav"
        assert await fetched.read() == b"word/speaker_1/1"
    assert result == {
        "duration": 1.5,
        "format": "wav",
        "sample_rate": 16_000,
        "model_used": "whole",
    }
    assert backend.inputs[0] == SpeechInput(text=DOCUMENTED["text"], voice="speaker_1", whole=True)


@pytest.mark.parametrize(
    ("fields", "voice"),
    [({}, None), ({"voice": "speaker_0"}, None), ({"voice_id": "anna"}, "anna")],
)
async def test_the_originals_voices(
    http: aiohttp.ClientSession, backend: MemoryMesh, fields: dict[str, str], voice: str | None
) -> None:
    body = {"model": "joe", "text": "word", **fields}
    async with http.post(ORIGINAL, json=body) as response:
        assert response.status == 200
    assert backend.inputs[0].voice == voice


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"pitch": 1.2}, "pitch"),
        ({"voice": "a", "voice_id": "b"}, "voice_id"),
        ({"text": ""}, "text"),
    ],
)
async def test_the_originals_refusals(
    http: aiohttp.ClientSession, fields: dict[str, Any], field: str
) -> None:
    async with http.post(ORIGINAL, json={"model": "joe", "text": "word", **fields}) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["details"]["field"] == field

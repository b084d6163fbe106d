"""The real ``openai`` client against a real loopback server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from array import array
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from blip.errors import (
    ContextTooLong,
    DeadlineExceeded,
    NodeLost,
    Overloaded,
    RuntimeFailed,
    Unavailable,
)
from blip.gateway.settings import GatewaySettings
from tests.unit.gateway_mesh import MemoryMesh, failing, mesh, served, vector

MESSAGES: list[Any] = [
    {"role": "developer", "content": "Repeat."},
    {"role": "user", "content": "ein Fluß 流れ 🌊 \u2028 end"},
]
SAID = "ein Fluß 流れ 🌊 \u2028 end"


@contextlib.asynccontextmanager
async def client_of(
    backend: MemoryMesh, settings: GatewaySettings | None = None, key: str = "none"
) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        served(backend, settings) as origin,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


async def test_models() -> None:
    async with client_of(mesh()) as client:
        found = [model.id async for model in client.models.list()]
        assert "parrot" in found
        assert found == sorted(found)
        model = await client.models.retrieve("org/parrot")
        assert model.id == "org/parrot"
        assert model.model_extra is not None
        assert model.model_extra["context"] == 2048
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("org/parot")
        assert caught.value.code == "model_not_found"
        assert isinstance(caught.value.body, dict)
        assert "org/parrot" in caught.value.body["hint"]


async def test_chat() -> None:
    backend = mesh()
    async with client_of(backend) as client:
        answer = await client.chat.completions.create(
            model="parrot",
            messages=MESSAGES,
            max_completion_tokens=50,
            temperature=0,
            top_p=0.5,
            stop="never",
            presence_penalty=1,
            frequency_penalty=-1,
            logit_bias={"5": -100},
            user="someone",
            store=False,
            metadata={"a": "b"},
            response_format={"type": "text"},
            tools=[],
            tool_choice="none",
            extra_body={"top_k": -1, "repetition_penalty": 1.1},
        )
    assert answer.object == "chat.completion"
    assert answer.id == "chatcmpl-" + "0" * 32
    choice = answer.choices[0]
    assert choice.message.content == SAID
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    sent = backend.inputs[0]
    assert sent.model_dump(exclude_defaults=True) == {
        "messages": [
            {"role": "developer", "content": "Repeat."},
            {"role": "user", "content": SAID},
        ],
        "max_tokens": 50,
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ["never"],
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "logit_bias": {5: -100.0},
        "repetition_penalty": 1.1,
    }


async def test_chat_goes_round() -> None:
    """What came out can go back in: the client's own dump of an answer is a valid turn."""
    backend = mesh()
    async with client_of(backend) as client:
        first = await client.chat.completions.create(model="parrot", messages=MESSAGES)
        turn: Any = first.choices[0].message.model_dump()
        parts: Any = {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b c"}],
        }
        answer = await client.chat.completions.create(
            model="parrot", messages=[*MESSAGES, turn, parts]
        )
    assert answer.choices[0].message.content == "a\nb c"
    assert [message.content for message in backend.inputs[1].messages][2:] == [SAID, "a\nb c"]


async def test_chat_stream() -> None:
    async with client_of(mesh()) as client:
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="parrot",
                messages=MESSAGES,
                stream=True,
                stream_options={"include_usage": True},
            )
        ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert text == SAID
    assert [c.choices[0].finish_reason for c in chunks[-3:-1]] == [None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(SAID.split(" "))
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


async def test_length() -> None:
    async with client_of(mesh()) as client:
        answer = await client.chat.completions.create(
            model="parrot", messages=MESSAGES, max_tokens=2
        )
    assert answer.choices[0].message.content == "ein Fluß"
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("streamed", [False, True])
async def test_n_choices_have_seeds_of_their_own(streamed: bool) -> None:
    backend = mesh()
    texts = {0: "", 1: "", 2: ""}
    async with client_of(backend) as client:
        request: Any = {"model": "parrot", "messages": MESSAGES, "n": 3, "seed": 40}
        if streamed:
            usage = None
            async for chunk in await client.chat.completions.create(
                **request, stream=True, stream_options={"include_usage": True}
            ):
                usage = chunk.usage
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
        else:
            answer = await client.chat.completions.create(**request)
            usage = answer.usage
            texts = {c.index: c.message.content or "" for c in answer.choices}
    assert texts == {index: f"{SAID} #{40 + index}" for index in range(3)}
    words = len(SAID.split(" "))
    assert usage is not None
    assert usage.prompt_tokens == words  # the prompt counts once
    assert usage.completion_tokens == 3 * (words + 1)
    assert [value.seed for value in backend.inputs] == [40, 41, 42]


@pytest.mark.parametrize("streamed", [False, True])
async def test_chat_logprobs(streamed: bool) -> None:
    async with client_of(mesh()) as client:
        request: Any = {
            "model": "parrot",
            "messages": [{"role": "user", "content": "é b"}],
            "logprobs": True,
            "top_logprobs": 2,
        }
        rows: list[Any] = []
        if streamed:
            async for chunk in await client.chat.completions.create(**request, stream=True):
                found = chunk.choices[0].logprobs
                rows += (found.content or []) if found else []
        else:
            answer = await client.chat.completions.create(**request)
            assert answer.choices[0].logprobs is not None
            rows = answer.choices[0].logprobs.content or []
    assert [(row.token, row.bytes) for row in rows] == [("é", [0xC3, 0xA9]), (" b", [32, 98])]
    assert rows[0].logprob == -0.5
    assert [(top.token, top.logprob) for top in rows[0].top_logprobs] == [
        ("the", -0.25),
        ("\ufffd", -9999.0),
    ]
    assert rows[0].top_logprobs[1].bytes == [0xF0, 0x9F]


async def test_completion_prompts_times_n() -> None:
    backend = mesh()
    async with client_of(backend) as client:
        answer = await client.completions.create(
            model="parrot", prompt=["a b", "c"], n=2, seed=1, max_tokens=9, echo=True
        )
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "a b #1"),
        (1, "a b #2"),
        (2, "c #1"),
        (3, "c #2"),
    ]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 3 + 3 + 2 + 2
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert all(value.echo for value in backend.inputs)


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("a b", ["a b"]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
        (["", "x"], ["", "x"]),
    ],
)
async def test_completion_prompt_shapes(prompt: Any, sent: list[Any]) -> None:
    backend = mesh()
    async with client_of(backend) as client:
        answer = await client.completions.create(model="parrot", prompt=prompt)
    assert [value.prompt for value in backend.inputs] == sent
    assert [value.max_tokens for value in backend.inputs] == [16] * len(sent)
    assert len(answer.choices) == len(sent)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("count", [0, 2])
async def test_completion_logprobs(streamed: bool, count: int) -> None:
    tokens: list[str] = []
    offsets: list[int] = []
    tops: list[Any] = []
    text = ""
    async with client_of(mesh()) as client:
        request: Any = {"model": "parrot", "prompt": "ab cd ef", "logprobs": count}
        if streamed:
            chunks = [
                chunk
                async for chunk in await client.completions.create(
                    **request, stream=True, stream_options={"include_usage": True}
                )
            ]
            assert chunks[-1].usage is not None
            assert chunks[-2].choices[0].finish_reason == "stop"
        else:
            chunks = [await client.completions.create(**request)]
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.text
            if choice.logprobs is not None:
                tokens += choice.logprobs.tokens or []
                offsets += choice.logprobs.text_offset or []
                tops += choice.logprobs.top_logprobs or []
    assert text == "ab cd ef"
    assert tokens == ["ab", " cd", " ef"]
    assert offsets == [0, 2, 5]
    starts = zip(offsets, tokens, strict=True)
    assert [text[start : start + len(token)] for start, token in starts] == tokens
    if count:
        assert tops[0] == {"the": -0.25, "\ufffd": -9999.0, "ab": -0.5}
    else:
        assert tops == []


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("one", ["one"]),
        (["one", "two", "three"], ["one", "two", "three"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_embeddings(given: Any, texts: list[Any], encoding: Any) -> None:
    backend = mesh()
    extra: Any = {} if encoding is None else {"encoding_format": encoding}
    async with client_of(backend) as client:
        answer = await client.embeddings.create(
            model="embedder", input=given, dimensions=5, user="me", **extra
        )
    assert backend.inputs[0].texts == texts
    assert [row.index for row in answer.data] == list(range(len(texts)))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens == 3 * len(texts)
    for row, text in zip(answer.data, texts, strict=True):
        numbers: Any = row.embedding
        if encoding == "base64":  # asked for by name, the client leaves it to us
            numbers = array("f", base64.b64decode(numbers))
        # nine digits are enough to come back to the very same float32
        assert list(array("f", numbers)) == vector(text, 5)


ERRORS = [
    (Overloaded("full", retry_after=1.2), openai.RateLimitError, 429, "overloaded"),
    (ContextTooLong("too long"), openai.BadRequestError, 400, "context_length_exceeded"),
    (NodeLost("gone"), openai.InternalServerError, 502, "node_lost"),
    (Unavailable("draining"), openai.InternalServerError, 503, "unavailable"),
    (DeadlineExceeded("late"), openai.InternalServerError, 504, "deadline_exceeded"),
    (RuntimeFailed("bang"), openai.InternalServerError, 500, "runtime_failed"),
]


@pytest.mark.parametrize(("error", "raised", "status", "code"), ERRORS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_errors_before_the_first_byte(
    error: Exception, raised: Any, status: int, code: str, streamed: bool
) -> None:
    backend = mesh()
    backend.nodes_by_model["broken"] = failing(error)
    async with client_of(backend) as client:
        with pytest.raises(raised) as caught:
            await client.chat.completions.create(
                model="broken",
                messages=MESSAGES,
                stream=streamed,
            )
    assert caught.value.status_code == status
    assert caught.value.code == code
    assert caught.value.response.headers["x-request-id"] == caught.value.body["request_id"]
    if isinstance(error, Overloaded):
        assert caught.value.response.headers["retry-after"] == "2"


async def test_error_after_the_first_byte() -> None:
    backend = mesh()
    backend.nodes_by_model["broken"] = failing(NodeLost("gone after 2 tokens"), after=2)
    text = ""
    async with client_of(backend) as client:
        stream = await client.chat.completions.create(
            model="broken", messages=MESSAGES, stream=True
        )
        with pytest.raises(openai.APIError) as caught:  # noqa: PT012  (the loop is what raises)
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
    assert text == "0 1 "
    assert caught.value.code == "node_lost"
    assert caught.value.message == "gone after 2 tokens"


async def test_one_of_several_choices_fails() -> None:
    backend = mesh()
    error = Overloaded("full")
    backend.refuse[2] = error
    async with client_of(backend) as client:
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="silent", messages=MESSAGES, n=3)
    assert [call.cancelled for call in backend.calls] == [True, True]


async def test_unknown_model() -> None:
    async with client_of(mesh()) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


async def test_keys() -> None:
    digest = hashlib.sha256(b"sk-right").hexdigest()
    settings = GatewaySettings(api_keys={"other": "0" * 64, "anna": digest})
    backend = mesh()
    async with client_of(backend, settings, "sk-right") as client:
        for _ in range(2):  # the second time from memory
            await client.chat.completions.create(model="parrot", messages=MESSAGES)
    assert [options.tenant for options in backend.options] == ["anna", "anna"]
    async with client_of(backend, settings, "sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert len(backend.calls) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "a", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
        ("reasoning_effort", "high"),
        ("store", True),
    ],
)
async def test_fields_that_would_change_the_answer(field: str, value: Any) -> None:
    backend = mesh()
    async with client_of(backend) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model="parrot", messages=MESSAGES, extra_body={field: value}
            )
    assert caught.value.code == "unsupported_field"
    assert caught.value.param == field
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["hint"]
    assert backend.calls == []


async def test_raw_answer_is_what_openai_documents() -> None:
    """Not only what its client accepts: exactly the keys of its own types."""
    async with client_of(mesh()) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="parrot", messages=MESSAGES
        )
        answer = json.loads(raw.text)
        known = openai.types.chat.ChatCompletion.model_fields
        assert set(answer) <= set(known)
        assert {name for name, info in known.items() if info.is_required()} <= set(answer)
        assert raw.headers["x-blip-task"] == "0" * 32
        assert raw.headers["x-blip-node"] == "b?ro-1"
        timing = dict(part.split("=") for part in raw.headers["x-blip-timing"].split(";"))
        assert list(timing) == ["queue", "load", "first", "total"]
        assert float(timing["total"]) >= float(timing["first"]) >= 0

"""The ``openai`` runtime against servers that behave, hang, lie, refuse and die."""

from __future__ import annotations

import array
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from blip.errors import (
    BlipError,
    Cancelled,
    ContextTooLong,
    InvalidRequest,
    ModelLoadFailed,
    NodeLost,
    PayloadTooLarge,
    Unavailable,
    UnsupportedField,
)
from blip.kinds.grammar import ANY_OBJECT
from blip.kinds.tools import joined
from blip_node.runtimes import runtime_for
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.openai import OpenAIRuntime
from blip_node.upstreams.engine import Engine
from tests.models.jobs import RecordingJob, answer
from tests.unit.engine_server import (
    EngineServer,
    chunk,
    dies,
    engine_server,
    hangs,
    refuses,
    streams,
    until,
    usage,
)

HELLO = [{"role": "user", "content": "hello"}]
WHOLE = (chunk(""), chunk("Hel"), chunk("lo"), chunk(None, "stop"), usage(5, 3))


@asynccontextmanager
async def speaking(
    server: EngineServer, timeout: float = 20.0, **engine: Any
) -> AsyncIterator[OpenAIRuntime]:
    runtime = OpenAIRuntime()
    spec = LoadSpec(
        "up/m",
        "",
        "cpu",
        16,
        engine=Engine("eng", server.url, timeout=timeout, **engine),
        remote="m",
    )
    runtime.load(spec, lambda share: None)
    try:
        yield runtime
    finally:
        runtime.close()
        await asyncio.sleep(0.01)


async def fails(runtime: OpenAIRuntime, **fields: Any) -> BlipError:
    with pytest.raises(BlipError) as error:
        await runtime.run(RecordingJob("chat", messages=HELLO, **fields))
    return error.value


def test_it_is_light() -> None:
    code = "import sys, blip_node.runtimes.openai; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "zmq"} & set(out.stdout.split())
    assert runtime_for(("chat", "embedding"), upstream=True) is OpenAIRuntime


async def test_a_chat_with_all_its_fields() -> None:
    async with (
        engine_server(chat=streams(*WHOLE)) as server,
        speaking(server, dialect="vllm") as runtime,
    ):
        asked: dict[str, Any] = {
            "max_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 4,
            "repetition_penalty": 1.1,
            "frequency_penalty": 0.2,
            "presence_penalty": -0.3,
            "logit_bias": {17: -100.0},
            "stop": ["end"],
            "seed": 3,
        }
        job = RecordingJob("chat", messages=HELLO, logprobs=2, **asked)
        text, ids, finish, outcome = await answer(runtime, job)
        assert (text, ids, finish.reason) == ("Hello", [], "stop")
        assert [delta.text for delta in job.deltas] == ["Hel", "lo"]
        assert outcome.usage == {"prompt_tokens": 5, "completion_tokens": 3}
        assert outcome.units == pytest.approx(3 + 5 / 16)
        (body,) = server.bodies
        assert body == {
            "model": "m",
            "messages": HELLO,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 2,
            **asked,
            "logit_bias": {"17": -100.0},
        }
        # what a request does not say is left out, but for what engines have defaults of their own
        await runtime.run(RecordingJob("completion", prompt=[1, 2], echo=True, logprobs=0))
        assert server.bodies[1] == {
            "model": "m",
            "prompt": [1, 2],
            "echo": True,
            "logprobs": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 1.0,
            "top_p": 1.0,
        }


async def test_the_key_travels_and_its_absence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", "sk-1")
    async with engine_server(chat=streams(*WHOLE)) as server:
        async with speaking(server, api_key_env="ENGINE_KEY") as runtime:
            await runtime.run(RecordingJob("chat", messages=HELLO))
            assert server.headers[0]["Authorization"] == "Bearer sk-1"
        monkeypatch.delenv("ENGINE_KEY")
        with pytest.raises(ModelLoadFailed, match="ENGINE_KEY is not set"):
            async with speaking(server, api_key_env="ENGINE_KEY"):
                pass
    with pytest.raises(ModelLoadFailed, match="not configured"):
        OpenAIRuntime().load(LoadSpec("m", "", "cpu", 1), lambda share: None)


async def test_an_engine_without_stream_options_is_asked_without() -> None:
    said = "Unrecognized request argument supplied: stream_options"
    whole = streams(*WHOLE[:-1])

    async def old(request: web.Request) -> web.StreamResponse:
        if "stream_options" in await request.json():
            return await refuses(400, {"error": {"message": said}})(request)
        return await whole(request)

    async with engine_server(chat=old) as server, speaking(server) as runtime:
        for asked in (2, 3):
            _, _, _, outcome = await answer(runtime, RecordingJob("chat", messages=HELLO))
            assert len(server.bodies) == asked
            # its chunks are counted, and it says so
            assert outcome.usage == {"completion_tokens": 2, "counted_chunks": 2}


async def test_cancel_closes_the_connection_at_once() -> None:
    async with engine_server(chat=hangs(*WHOLE[:2])) as server, speaking(server) as runtime:
        job = RecordingJob("chat", messages=HELLO)
        running = asyncio.create_task(runtime.run(job))
        await until(lambda: job.parts)
        assert server.open == 1
        job.cancel()
        with pytest.raises(Cancelled):
            await running
        await until(lambda: not server.open)  # the engine sees that nobody listens
        assert server.gone == 1
        # before anything was said, too; and a job that was cancelled before it began asks nothing
        server.chat = hangs()
        job = RecordingJob("chat", messages=HELLO)
        running = asyncio.create_task(runtime.run(job))
        await until(lambda: server.open)
        job.cancel()
        with pytest.raises(Cancelled):
            await running
        job = RecordingJob("chat", messages=HELLO)
        job.cancelled = True
        asked = len(server.bodies)
        with pytest.raises(Cancelled):
            await runtime.run(job)
        assert len(server.bodies) == asked


async def test_nothing_is_read_while_nobody_takes_it() -> None:
    """An engine that writes as fast as it can is held up by TCP, and loses nothing."""
    pieces = 3000
    big = "x" * 2000
    sent = 0

    async def fast(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(pieces):
            await response.write(
                b'data: {"choices":[{"delta":{"content":"%d%s"}}]}\n\n' % (number, big.encode())
            )
            sent += 1
        await response.write(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n')
        return response

    def full(job: RecordingJob) -> None:
        if len(job.parts) == 10:
            job.writable = False

    async with engine_server(chat=fast) as server, speaking(server) as runtime:
        job = RecordingJob("chat", on_emit=full, messages=HELLO)
        running = asyncio.create_task(runtime.run(job))
        await until(lambda: not job.writable)
        before = -1
        while before != sent:  # until the sockets are full
            before = sent
            await asyncio.sleep(0.1)
        held = len(job.parts)
        assert held < 200
        assert sent < pieces
        job.let(True)
        await running
        assert [delta.text[:4].rstrip("x") for delta in job.deltas] == [
            str(number)[:4] for number in range(pieces)
        ]


async def test_many_at_once_and_one_bad_one() -> None:
    async def mixed(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body["messages"][0]["content"]
        if text == "die":
            return await dies(chunk("half"))(request)
        return await streams(chunk(text), chunk(text, "stop"), pause=0.02)(request)

    async with engine_server(chat=mixed) as server, speaking(server) as runtime:
        words = [f"w{number}" for number in range(12)] + ["die"]
        jobs = [
            RecordingJob("chat", messages=[{"role": "user", "content": word}]) for word in words
        ]
        found = await asyncio.gather(
            *(answer(runtime, job) for job in jobs), return_exceptions=True
        )
        assert isinstance(found[-1], NodeLost)
        texts = [each[0] for each in found[:-1] if not isinstance(each, BaseException)]
        assert texts == [word * 2 for word in words[:-1]]


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (400, {"error": {"message": "bad temperature", "param": "x"}}, InvalidRequest, "bad temp"),
        (400, {"object": "error", "message": "old vLLM's shape"}, InvalidRequest, "old vLLM's"),
        (
            400,
            {"error": {"message": "This model's maximum context length is 2048 tokens."}},
            ContextTooLong,
            "2048",
        ),
        (400, {"error": {"code": "context_length_exceeded"}}, ContextTooLong, "too long"),
        (422, {"detail": [{"loc": ["body", "n"], "msg": "no"}]}, InvalidRequest, "body.n: no"),
        (413, "<html>too large</html>", PayloadTooLarge, "too large for the engine"),
        (401, {"error": "no"}, Unavailable, "does not accept this node's API key"),
        (404, {"error": {"message": 'model "m" not found'}}, Unavailable, "not found"),
        (500, {"error": {"message": "EngineCore died"}}, Unavailable, "answered 500: EngineCore"),
        (503, {"error": {"code": 503, "message": "Loading model"}}, Unavailable, "Loading model"),
        (502, "<html>nginx</html>", Unavailable, "answered 502"),
        (302, "", Unavailable, "answered 302"),
    ],
)
async def test_refusals(status: int, body: Any, kind: type[BlipError], said: str) -> None:
    async with engine_server(chat=refuses(status, body)) as server, speaking(server) as runtime:
        error = await fails(runtime)
        assert type(error) is kind
        assert said in error.message
        assert error.details["upstream_status"] == status
        assert len(server.bodies) == 1


async def test_retry_after_is_honoured() -> None:
    async with engine_server() as server, speaking(server) as runtime:
        server.chat = refuses(429, {"error": "slow down"}, **{"Retry-After": "1"})
        error = await fails(runtime)
        assert error.retryable
        assert error.retry_after == 1.0
        server.chat = streams(*WHOLE)
        began = time.monotonic()
        await runtime.run(RecordingJob("chat", messages=HELLO))
        assert time.monotonic() - began > 0.8
        # a long one is not waited for here
        server.chat = refuses(503, "later", **{"Retry-After": "600"})
        assert (await fails(runtime)).retry_after == 600
        asked = len(server.bodies)
        error = await fails(runtime)
        assert error.retry_after is not None
        assert 590 < error.retry_after <= 600
        assert len(server.bodies) == asked


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (refuses(200, "<html>a proxy's page</html>"), "with text/html, not text/event-stream"),
        (streams("no json"), "no chunk"),
        (streams('["a list"]'), "no chunk"),
        (streams({"choices": {"not": "a list"}}), "choices"),
        (streams({"choices": [{"delta": "text"}]}), "delta"),
        (streams({"choices": [{"delta": {"content": 5}}]}), "text"),
        (streams(chunk("a", 7)), "finish_reason"),  # type: ignore[arg-type]
        (streams(chunk("a", logprobs={"content": [{"no": "token"}]})), "logprobs"),
        (streams(b"this is no event stream\n\n"), "no event"),
        (streams(b"data: " + b"x" * 5_000_000), "over 4194304"),
    ],
)
async def test_lies(handler: Any, said: str) -> None:
    async with engine_server(chat=handler) as server, speaking(server) as runtime:
        error = await fails(runtime)
        assert type(error) is Unavailable
        assert said in error.message
        server.chat = streams(*WHOLE)  # and it is asked again as if nothing had been
        assert (await answer(runtime, RecordingJob("chat", messages=HELLO)))[0] == "Hello"


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (hangs(), "did not answer within 0.3 s"),
        (hangs(chunk("Hel")), "said nothing for 0.3 s"),
        (dies(), "broke off"),
        (dies(chunk("Hel")), "broke off"),
        (streams(chunk("Hel"), done=False), "without saying why"),
        (streams(chunk("Hel"), b"data: {", done=False), "middle of an event"),
        (streams(chunk("Hel")), "without saying why"),
        (streams(chunk("Hel"), chunk(None, "abort")), "gave the answer up"),
    ],
)
async def test_breaking_off(handler: Any, said: str) -> None:
    limit = 0.3 if "0.3 s" in said else 20.0
    async with engine_server(chat=handler) as server, speaking(server, limit) as runtime:
        error = await fails(runtime)
        assert type(error) is NodeLost
        assert said in error.message
        await until(lambda: not server.open)


async def test_a_slow_engine_is_not_a_silent_one() -> None:
    heartbeats = [b": still here\n\n"] * 6
    async with (
        engine_server(chat=streams(*heartbeats, *WHOLE, pause=0.15)) as server,
        speaking(server, 1.5) as runtime,
    ):
        assert (await answer(runtime, RecordingJob("chat", messages=HELLO)))[0] == "Hello"


async def test_errors_in_the_stream() -> None:
    async with engine_server() as server, speaking(server) as runtime:
        server.chat = streams(chunk("Hel"), {"error": {"message": "out of blocks", "code": 500}})
        error = await fails(runtime)
        assert (type(error), "out of blocks" in error.message) == (Unavailable, True)
        server.chat = streams({"error": {"message": "bad grammar", "code": 400}})
        assert type(await fails(runtime)) is InvalidRequest
        server.chat = streams(b'error: {"code": 500, "message": "slot lost"}\n\n', done=False)
        assert "slot lost" in (await fails(runtime)).message


async def test_nobody_there() -> None:
    async with engine_server() as server:
        pass
    async with speaking(server) as runtime:
        error = await fails(runtime)
        assert type(error) is Unavailable
        assert "cannot be reached" in error.message


async def test_what_cannot_be_passed_on_is_refused_by_name() -> None:
    async with (
        engine_server(chat=streams(*WHOLE)) as server,
        speaking(server, dialect="ollama") as runtime,
    ):
        for field, value in (
            ("top_k", 4),
            ("repetition_penalty", 1.2),
            ("logit_bias", {1: 2.0}),
        ):
            error = await fails(runtime, **{field: value})
            assert type(error) is UnsupportedField
            assert error.param == field
        # nor can it go on where another stopped: that is for nodes that know the token ids
        assert type(await fails(runtime, generated=[1, 2])) is Unavailable
        assert server.bodies == []
    async with (
        engine_server(chat=streams(*WHOLE)) as server,
        speaking(server, dialect="llama.cpp") as runtime,
    ):
        await runtime.run(RecordingJob("chat", messages=HELLO, repetition_penalty=1.2, top_k=3))
        assert server.bodies[0]["repeat_penalty"] == 1.2
        assert server.bodies[0]["top_k"] == 3


async def test_completion_log_probabilities() -> None:
    rows = {
        "tokens": [" a", " b"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {" b": -0.5, " c": -1.5}],
        "text_offset": [0, 2],
    }
    choice = {"index": 0, "text": " a b", "logprobs": rows, "finish_reason": "length"}
    async with (
        engine_server(chat=streams({"choices": [choice]})) as server,
        speaking(server) as runtime,
    ):
        job = RecordingJob("completion", prompt=" a", echo=True, logprobs=2)
        text, _, finish, _ = await answer(runtime, job)
        assert (text, finish.reason) == (" a b", "length")
        found = job.deltas[0].logprobs
        assert found is not None
        assert found[1].logprob == -0.5
        assert found[1].top == [(" b", -0.5, b" b"), (" c", -1.5, b" c")]


def vectors(*rows: list[float], order: list[int] | None = None) -> dict[str, Any]:
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    return {"data": [data[i] for i in order] if order else data, "usage": {"prompt_tokens": 7}}


async def test_embeddings() -> None:
    async def embed(request: web.Request) -> web.StreamResponse:
        return web.json_response(vectors([1.0, 0.5], [2.0, 0.25], order=[1, 0]))

    async with engine_server(embed=embed) as server, speaking(server) as runtime:
        outcome = await runtime.run(RecordingJob("embedding", texts=["a", "b"], dimensions=2))
        assert array.array("f", bytes(outcome.payload)).tolist() == [1.0, 0.5, 2.0, 0.25]
        assert outcome.usage == {"prompt_tokens": 7}
        assert outcome.units == 9
        assert server.bodies == [
            {"model": "m", "input": ["a", "b"], "encoding_format": "float", "dimensions": 2}
        ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"data": []}, "2 texts with 0 vectors"),
        ({"data": None}, "no list of vectors"),
        (vectors([1.0], [2.0], [3.0]), "2 texts with 3 vectors"),
        (vectors([1.0], [2.0, 3.0]), "different lengths"),
        (vectors([1.0], ["x"]), "no list of vectors"),  # type: ignore[list-item]
        (vectors([1.0], [float("nan")]), "not finite"),
        ({"data": [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": "AA"}]}, "no list"),
    ],
)
async def test_embeddings_that_are_none(body: Any, said: str) -> None:
    async with engine_server(embed=refuses(200, body)) as server, speaking(server) as runtime:
        with pytest.raises(Unavailable, match=said):
            await runtime.run(RecordingJob("embedding", texts=["a", "b"]))


# --- tools and forms -------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS: list[dict[str, Any]] = [
    {"name": "f", "description": "d", "parameters": json.dumps(SCHEMA), "strict": True},
    {"name": "g"},
]


def calling(reason: str, *calls: dict[str, Any]) -> Any:
    """An engine that calls, a piece a chunk."""
    chunks = []
    for call in calls:
        each = chunk("")
        each["choices"][0]["delta"] = {"content": None, "tool_calls": [call]}
        chunks.append(each)
    return streams(chunk("Well. "), *chunks, chunk(None, reason), usage(5, 3))


def piece(index: int | None, id: str | None, name: str | None, arguments: str | None) -> Any:
    found = {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}
    return {key: value for key, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("reason", "pieces"),
    [
        (  # OpenAI, vLLM, SGLang
            "tool_calls",
            [
                piece(0, "a", "f", ""),
                piece(0, None, None, '{"a":'),
                piece(0, None, None, " 1}"),
                piece(1, "b", "g", "{}"),
            ],
        ),
        # whole calls, all of one index, or of none
        ("tool_calls", [piece(0, "a", "f", '{"a": 1}'), piece(0, "b", "g", "{}")]),
        ("stop", [piece(None, "a", "f", '{"a": 1}'), piece(None, "b", "g", "{}")]),
        # name and id on every chunk
        (
            "stop",
            [piece(0, "a", "f", '{"a":'), piece(0, "a", "f", " 1}"), piece(1, "b", "g", "{}")],
        ),
    ],
)
async def test_calls(reason: str, pieces: list[Any]) -> None:
    async with (
        engine_server(chat=calling(reason, *pieces)) as server,
        speaking(server, dialect="vllm") as runtime,
    ):
        job = RecordingJob("chat", messages=HELLO, tools=TOOLS)
        text, _, finish, _ = await answer(runtime, job)
    assert (text, finish.reason) == ("Well. ", "tool_calls")
    calls = joined([each for delta in job.deltas for each in delta.calls or ()])
    assert calls == [(0, "f", '{"a": 1}'), (1, "g", "{}")]


async def test_tools_and_forms_are_passed_on() -> None:
    talk: list[dict[str, Any]] = [
        *HELLO,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c", "name": "f", "arguments": "{}"}],
        },
        {"role": "tool", "content": "42", "tool_call_id": "c"},
    ]
    form = {"form": "json", "text": json.dumps(SCHEMA), "strict": False}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("chat", {"messages": talk, "tools": TOOLS, "parallel_tool_calls": False}),
        ("chat", {"messages": HELLO, "tools": TOOLS, "tool_choice": "required", "grammar": form}),
        ("chat", {"messages": HELLO, "tools": TOOLS, "tool": "g"}),
        ("chat", {"messages": HELLO, "grammar": {"form": "json", "text": ANY_OBJECT}}),
        ("chat", {"messages": HELLO, "grammar": {"form": "regex", "text": "a+"}}),
        ("completion", {"prompt": "x", "grammar": form}),
        ("completion", {"prompt": "x", "grammar": {"form": "choice", "choices": ["a", "b"]}}),
        ("completion", {"prompt": "x", "grammar": {"form": "lark", "text": "start: /a/"}}),
    ]
    plain = streams({"choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": "stop"}]})
    async with engine_server(chat=plain) as server:
        async with speaking(server, dialect="vllm") as runtime:
            for kind, fields in asked:
                await runtime.run(RecordingJob(kind, **fields))
        async with speaking(server, dialect="ollama") as runtime:
            for kind, fields in asked[4:6]:
                with pytest.raises(UnsupportedField) as caught:
                    await runtime.run(RecordingJob(kind, **fields))
                assert caught.value.param == "grammar"
    history, required, named, any_object, regex, schema, choice, lark = server.bodies
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert history["messages"][1:] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
    ]
    described = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
    assert history["tools"][0] == {"type": "function", "function": described}
    assert history["tools"][1]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert history["parallel_tool_calls"] is False
    assert "tool_choice" not in history
    assert required["tool_choice"] == "required"
    named_schema = {"name": "answer", "schema": SCHEMA, "strict": False}
    assert required["response_format"] == {"type": "json_schema", "json_schema": named_schema}
    assert named["tool_choice"] == {"type": "function", "function": {"name": "g"}}
    assert any_object["response_format"] == {"type": "json_object"}
    assert regex["structured_outputs"] == {"regex": "a+"}
    assert schema["structured_outputs"] == {"json": SCHEMA}
    assert choice["structured_outputs"] == {"choice": ["a", "b"]}
    assert lark["structured_outputs"] == {"grammar": "start: /a/"}


async def test_the_stop_sequence_that_vllm_names() -> None:
    ended = streams(chunk("a"), chunk(None, "stop", stop_reason="END"))
    async with engine_server(chat=ended) as server, speaking(server) as runtime:
        *_, finish, _ = await answer(runtime, RecordingJob("chat", messages=HELLO, stop=["END"]))
    assert finish.stop == "END"


async def test_calls_that_are_none() -> None:
    bad = calling("tool_calls", {"index": "x", "function": {}})
    async with engine_server(chat=bad) as server, speaking(server) as runtime:
        assert "tool_calls" in (await fails(runtime, tools=TOOLS)).message

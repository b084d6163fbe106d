"""Tools and forms of answers through the real clients of every dialect, before a model of ours."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import ollama
import openai
import pytest
from openai import AsyncOpenAI

from blip.client import AsyncBlip
from blip.errors import InvalidRequest
from blip.gateway.mesh import Answer
from blip.kinds.chat import ChatInput
from blip.kinds.text import Delta, Finish, TokenLogprob, delta_to_wire
from blip.kinds.tools import CallPiece
from tests.unit.gateway_mesh import MemoryMesh, Work, mesh, served
from tests.unit.test_gateway_ollama import client_of as ollama_of

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
HI: list[Any] = [{"role": "user", "content": "hi"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Says it", "parameters": SCHEMA},
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}

#: What the model below does: a call in three pieces, and one that comes whole with the end.
PIECES = [
    CallPiece(0, "weather", ""),
    CallPiece(0, "", '{"city": '),
    CallPiece(0, "", '"Rom\u2028"}'),
]
ARGUMENTS: list[dict[str, Any]] = [{"city": "Rom\u2028"}, {}]
LAST = [CallPiece(1, "clock", ""), CallPiece(1, "", "{}")]


def caller(*, says: str = "Let me see. ", cut: bool = False) -> Any:
    """A model that says something, and then calls two functions; or is cut off in the first."""

    async def node(value: ChatInput) -> Work:
        row = [TokenLogprob("x", -0.5, b"x", [])] if value.logprobs is not None else None
        if says:
            yield delta_to_wire(Delta(says, [1], row))
        for number, piece in enumerate(PIECES[:2] if cut else PIECES):
            yield delta_to_wire(Delta("", [number], row, [piece]))
        finish = Finish("length") if cut else Finish("tool_calls", "", [9], None, LAST)
        yield Answer(delta_to_wire(finish), {"prompt_tokens": 3, "completion_tokens": 7}, 1.0)

    return node


def backend_of(**how: Any) -> MemoryMesh:
    backend = mesh()
    backend.nodes_by_model["caller"] = caller(**how)
    return backend


@contextlib.asynccontextmanager
async def openai_of(backend: MemoryMesh) -> AsyncIterator[Any]:
    async with (
        served(backend) as origin,
        AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@contextlib.asynccontextmanager
async def anthropic_of(backend: MemoryMesh) -> AsyncIterator[Any]:
    async with (
        served(backend) as origin,
        anthropic.AsyncAnthropic(base_url=origin, api_key="none", max_retries=0) as client,
    ):
        yield client


# --- OpenAI's chat ---------------------------------------------------------------------------


@pytest.mark.parametrize("says", ["Let me see. ", ""])
async def test_chat(says: str) -> None:
    backend = backend_of(says=says)
    async with openai_of(backend) as client:
        answer = await client.chat.completions.create(
            model="caller",
            messages=HI,
            tools=[TOOL, CLOCK],
            tool_choice="required",
            parallel_tool_calls=False,
        )
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == (says or None)
        first, second = choice.message.tool_calls
        assert first.type == "function"
        assert first.function.name == "weather"
        assert json.loads(first.function.arguments) == {"city": "Rom\u2028"}
        assert first.id != second.id
        sent = backend.inputs[0]
        assert [tool.name for tool in sent.tools] == ["weather", "clock"]
        assert (sent.tools[0].description, json.loads(sent.tools[0].parameters)) == (
            "Says it",
            SCHEMA,
        )
        assert (sent.tool_choice, sent.tool, sent.parallel_tool_calls) == ("required", None, False)
        # the answer goes back as it came, with what came of the calls
        message: Any = choice.message
        results: list[Any] = [
            {"role": "tool", "tool_call_id": call.id, "content": "42"} for call in (first, second)
        ]
        await client.chat.completions.create(model="caller", messages=[*HI, message, *results])
    _, assistant, one, two = backend.inputs[1].messages
    assert [(call.id, call.name) for call in assistant.tool_calls] == [
        (first.id, "weather"),
        (second.id, "clock"),
    ]
    assert assistant.content == says
    assert (one.tool_call_id, two.tool_call_id) == (first.id, second.id)


async def test_chat_stream() -> None:
    async with (
        openai_of(backend_of()) as client,
        client.chat.completions.stream(
            model="caller",
            messages=HI,
            tools=[TOOL, CLOCK],
            n=2,
        ) as stream,
    ):
        events = [event async for event in stream]
        final = await stream.get_final_completion()
    texts = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert len(texts) >= 4
    ids = set()
    for choice in final.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see. "
        calls = choice.message.tool_calls or []
        assert [call.function.name for call in calls] == ["weather", "clock"]
        assert [json.loads(call.function.arguments) for call in calls] == [
            {"city": "Rom\u2028"},
            {},
        ]
        ids |= {call.id for call in calls}
    assert len(ids) == 4  # of two choices with two calls each


async def test_chat_cut_off() -> None:
    async with openai_of(backend_of(cut=True)) as client:
        answer = await client.chat.completions.create(model="caller", messages=HI)
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.arguments == '{"city": '


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, ("auto", None, True)),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, ("auto", None, True)),
        (
            {"tool_choice": {"type": "function", "function": {"name": "clock"}}},
            ("auto", "clock", True),
        ),
    ],
)
async def test_choices(fields: dict[str, Any], sent: Any) -> None:
    backend = backend_of()
    async with openai_of(backend) as client:
        await client.chat.completions.create(
            model="caller",
            messages=HI,
            tools=[TOOL, CLOCK],
            **fields,
        )
        await client.chat.completions.create(
            model="caller",
            messages=HI,
            tools=[TOOL],
            tool_choice="none",
        )
    first, none = backend.inputs
    assert (first.tool_choice, first.tool, first.parallel_tool_calls) == sent
    assert none.tools == []  # the model is not even told


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": [{"type": "custom"}]}, "unsupported_field", "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "invalid_request", "tools.0.function"),
        ({"tools": [TOOL, TOOL]}, "invalid_request", "tools.1"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "invalid_request",
            "tools.0.function.name",
        ),
        ({"tool_choice": "required"}, "invalid_request", "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "invalid_request",
            "tool_choice",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
            "unsupported_field",
            "tool_choice.type",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}]},
            "invalid_request",
            "messages.0.tool_calls.0.function",
        ),
        ({"response_format": {"type": "xml"}}, "unsupported_field", "response_format.type"),
        (
            {"response_format": {"type": "json_schema"}},
            "invalid_request",
            "response_format.json_schema",
        ),
        ({"structured_outputs": {}}, "invalid_request", "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "invalid_request",
            "structured_outputs",
        ),
        ({"structured_outputs": {"json": "{"}}, "invalid_request", "structured_outputs.json"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "invalid_request",
            "structured_outputs",
        ),
    ],
)
async def test_wrong_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    body = {"model": "caller", "messages": HI, **fields}
    async with (
        served(backend_of()) as origin,
        aiohttp.ClientSession(origin) as http,
        http.post("/v1/chat/completions", json=body) as response,
    ):
        error = (await response.json())["error"]
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize(
    ("fields", "form", "text", "strict"),
    [
        ({"response_format": {"type": "json_object"}}, "json", {"type": "object"}, True),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            "json",
            SCHEMA,
            True,
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "json",
            SCHEMA,
            False,
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "json", SCHEMA, True),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json", SCHEMA, True),
        ({"structured_outputs": {"json_object": True}}, "json", {"type": "object"}, True),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", True),
        ({"structured_outputs": {"grammar": "start: /a/"}}, "lark", "start: /a/", True),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", ["a", "b"], True),
        ({"response_format": {"type": "text"}}, None, None, True),
    ],
)
async def test_forms(fields: dict[str, Any], form: Any, text: Any, strict: bool) -> None:
    backend = backend_of()
    async with openai_of(backend) as client:
        await client.chat.completions.create(model="caller", messages=HI, extra_body=fields)
        if "structured_outputs" in fields:
            await client.completions.create(model="parrot", prompt="x", extra_body=fields)
    for sent in backend.inputs:
        grammar = sent.grammar
        if form is None:
            assert grammar is None
            continue
        found = json.loads(grammar.text) if form == "json" else grammar.choices or grammar.text
        assert (grammar.form, found, grammar.strict) == (form, text, strict)


# --- Responses -------------------------------------------------------------------------------

FUNCTION: dict[str, Any] = {"type": "function", "name": "weather", "parameters": SCHEMA}


async def test_responses() -> None:
    backend = backend_of()
    async with openai_of(backend) as client:
        answer = await client.responses.create(
            model="caller",
            input="hi",
            tools=[FUNCTION, {"type": "function", "name": "clock"}],
            tool_choice={"type": "function", "name": "clock"},
            text={"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        )
        assert answer.status == "completed"
        assert answer.output_text == "Let me see. "
        calls: list[Any] = [item for item in answer.output if item.type == "function_call"]
        assert [call.name for call in calls] == ["weather", "clock"]
        assert [json.loads(call.arguments) for call in calls] == ARGUMENTS
        sent = backend.inputs[0]
        assert sent.tool == "clock"
        assert json.loads(sent.grammar.text) == SCHEMA
        assert sent.grammar.at == "text.format.schema"
        given: list[Any] = [
            {"role": "user", "content": "hi"},
            *answer.output,
            {"type": "function_call_output", "call_id": calls[0].call_id, "output": "sun"},
            {
                "type": "function_call_output",
                "call_id": calls[1].call_id,
                "output": [{"type": "input_text", "text": "noon"}],
            },
        ]
        await client.responses.create(model="caller", input=given)
    _, assistant, one, two = backend.inputs[1].messages
    assert assistant.content == "Let me see. "
    assert [call.id for call in assistant.tool_calls] == [call.call_id for call in calls]
    assert [(one.role, one.content), (two.role, two.content)] == [("tool", "sun"), ("tool", "noon")]
    assert two.tool_call_id == calls[1].call_id


@pytest.mark.parametrize("says", ["Let me see. ", ""])
async def test_responses_stream(says: str) -> None:
    async with openai_of(backend_of(says=says)) as client:
        stream = await client.responses.create(
            model="caller",
            input="hi",
            stream=True,
            tools=[FUNCTION],
        )
        events: list[Any] = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    items: dict[int, Any] = {}
    arguments: dict[int, str] = {}
    for event in events:
        if event.type == "response.output_item.added":
            assert event.output_index == len(items)
            items[event.output_index] = None
        elif event.type == "response.function_call_arguments.delta":
            arguments[event.output_index] = arguments.get(event.output_index, "") + event.delta
        elif event.type == "response.function_call_arguments.done":
            assert event.arguments == arguments[event.output_index]
        elif event.type == "response.output_item.done":
            items[event.output_index] = event.item
    final = events[-1].response
    assert events[-1].type == "response.completed"
    assert [items[index] for index in sorted(items)] == final.output
    types = ["message"] * bool(says) + ["function_call"] * 2
    assert [item.type for item in final.output] == types
    assert [tool.name for tool in final.tools] == ["weather"]


async def test_responses_cut_off() -> None:
    async with openai_of(backend_of(cut=True)) as client:
        answer = await client.responses.create(model="caller", input="hi")
        stream = await client.responses.create(model="caller", input="hi", stream=True)
        *_, last = [event async for event in stream]
    assert last.type == "response.incomplete"
    for response in (answer, last.response):
        assert response.status == "incomplete"
        message, call = response.output
        assert (message.status, call.status) == ("completed", "incomplete")


# --- Anthropic's -----------------------------------------------------------------------------

USE: dict[str, Any] = {"name": "weather", "description": "Says it", "input_schema": SCHEMA}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("says", ["Let me see. ", ""])
async def test_messages(streamed: bool, says: str) -> None:
    backend = backend_of(says=says)
    asked: dict[str, Any] = {
        "model": "caller",
        "max_tokens": 50,
        "tools": [USE, {"name": "clock", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }
    async with anthropic_of(backend) as client:
        if streamed:
            async with client.messages.stream(**asked, messages=HI) as stream:
                events: list[Any] = [event async for event in stream]
                answer = await stream.get_final_message()
            pieces = [event for event in events if event.type == "input_json"]
            assert [piece.partial_json for piece in pieces][:1] == ['{"city": ']
        else:
            answer = await client.messages.create(**asked, messages=HI)
        assert answer.stop_reason == "tool_use"
        uses: list[Any] = [block for block in answer.content if block.type == "tool_use"]
        assert [(use.name, use.input) for use in uses] == [
            ("weather", {"city": "Rom\u2028"}),
            ("clock", {}),
        ]
        texts = [block.text for block in answer.content if block.type == "text"]
        assert texts == ([says] if says else [])
        results: list[Any] = [
            {"type": "tool_result", "tool_use_id": uses[0].id, "content": "sun"},
            {
                "type": "tool_result",
                "tool_use_id": uses[1].id,
                "content": [{"type": "text", "text": "broken"}],
                "is_error": True,
            },
            {"type": "text", "text": "and?"},
        ]
        turns: list[Any] = [
            *HI,
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": results},
        ]
        await client.messages.create(model="caller", max_tokens=5, messages=turns)
    sent = backend.inputs[0]
    assert (sent.tool_choice, sent.parallel_tool_calls) == ("required", False)
    assert sent.grammar.at == "output_config.format.schema"
    _, assistant, one, two, user = backend.inputs[1].messages
    assert (assistant.role, assistant.content) == ("assistant", says)
    assert [call.id for call in assistant.tool_calls] == [use.id for use in uses]
    assert [(each.role, each.content) for each in (one, two, user)] == [
        ("tool", "sun"),
        ("tool", "Error: broken"),
        ("user", "and?"),
    ]


async def test_messages_cut_off() -> None:
    async with anthropic_of(backend_of(cut=True)) as client:
        answer = await client.messages.create(model="caller", max_tokens=5, messages=HI)
    assert answer.stop_reason == "max_tokens"
    assert answer.content[1].input == {}


# --- Ollama's --------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_ollama(streamed: bool) -> None:
    backend = backend_of()
    async with ollama_of(backend) as client:
        asked: dict[str, Any] = {"model": "caller", "tools": [TOOL, CLOCK], "format": SCHEMA}
        if streamed:
            parts = [part async for part in await client.chat(**asked, messages=HI, stream=True)]
        else:
            parts = [await client.chat(**asked, messages=HI)]
        assert (parts[-1].done, parts[-1].done_reason) == (True, "stop")
        calls = [call for part in parts for call in part.message.tool_calls or ()]
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("weather", {"city": "Rom\u2028"}),
            ("clock", {}),
        ]
        assert "".join(part.message.content or "" for part in parts) == "Let me see. "
        turns: list[Any] = [
            *HI,
            ollama.Message(role="assistant", content="", tool_calls=calls),
            {"role": "tool", "content": "sun", "tool_name": "weather"},
        ]
        await client.chat("caller", turns, format="json")
    assert json.loads(backend.inputs[0].grammar.text) == SCHEMA
    assert backend.inputs[1].grammar.text == '{"type":"object"}'
    _, assistant, tool = backend.inputs[1].messages
    assert json.loads(assistant.tool_calls[0].arguments) == {"city": "Rom\u2028"}
    assert (tool.name, tool.tool_call_id) == ("weather", assistant.tool_calls[0].id)


@pytest.mark.parametrize("streamed", [False, True])
async def test_ollama_cut_off(streamed: bool) -> None:
    async with ollama_of(backend_of(cut=True)) as client:
        if streamed:
            parts = [part async for part in await client.chat("caller", HI, stream=True)]
        else:
            parts = [await client.chat("caller", HI)]
    assert parts[-1].done_reason == "length"
    assert not any(part.message.tool_calls for part in parts)


async def test_an_error_of_the_node_names_the_field() -> None:
    # what compiles is found out where the model is; the error comes through as it is
    backend = mesh()
    message = "'response_format.json_schema.schema': Invalid type: strin"

    async def node(value: ChatInput) -> Work:
        if value.grammar is not None:
            raise InvalidRequest(message, param=value.grammar.at)
        yield delta_to_wire(Delta("", [1]))

    backend.nodes_by_model["picky"] = node
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "strin"}}}
    async with openai_of(backend) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="picky", messages=HI, response_format=form)
    assert caught.value.param == "response_format.json_schema.schema"


# --- our own client --------------------------------------------------------------------------


async def test_the_sdk() -> None:
    async with served(backend_of()) as origin, AsyncBlip(origin) as client:
        answer = await client.chat("caller", "hi", tools=[TOOL, CLOCK])
        assert (answer.text, answer.finish_reason) == ("Let me see. ", "tool_calls")
        assert [(call.name, call.parsed()) for call in answer.tool_calls] == list(
            zip(["weather", "clock"], ARGUMENTS, strict=True)
        )
        async with client.chat_stream("caller", "hi", tools=[TOOL, CLOCK]) as stream:
            assert "".join([piece async for piece in stream]) == "Let me see. "
        assert [(call.name, call.parsed()) for call in stream.tool_calls] == [
            (call.name, call.parsed()) for call in answer.tool_calls
        ]
        assert all(call.id for call in stream.tool_calls)
        plain = await client.chat("parrot", "hi")
        assert plain.tool_calls == ()

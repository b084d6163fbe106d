"""OpenAI's Responses through the real ``openai`` client."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from blip.errors import NodeLost, Overloaded
from blip.gateway.settings import GatewaySettings
from tests.unit.gateway_mesh import failing, mesh, served
from tests.unit.test_gateway_openai import SAID, client_of

INPUT: list[Any] = [
    {"role": "developer", "content": "Repeat."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": SAID}]},
]
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def test_a_response() -> None:
    backend = mesh()
    async with client_of(backend) as client:
        answer = await client.responses.create(
            model="parrot",
            input=INPUT,
            instructions="Be a parrot.",
            max_output_tokens=50,
            temperature=0.5,
            top_p=0.9,
            metadata={"a": "b"},
            store=False,
            tools=[],
            tool_choice="auto",
            text={"format": {"type": "text"}},
            reasoning={"summary": "auto"},
            truncation="disabled",
            extra_body={"top_k": 5, "seed": 7, "stop": "never", "repetition_penalty": 1.1},
        )
    Response.model_validate(answer.model_dump(exclude_unset=True))
    assert answer.output_text == SAID + " #7"
    assert (answer.id, answer.status) == ("resp_" + "0" * 32, "completed")
    assert answer.metadata == {"a": "b"}
    assert answer.instructions == "Be a parrot."
    assert (answer.temperature, answer.top_p) == (0.5, 0.9)
    assert answer.usage is not None
    words = len(SAID.split(" "))
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (words, words + 1)
    assert answer.usage.total_tokens == 2 * words + 1
    assert backend.inputs[0].model_dump(exclude_defaults=True) == {
        "messages": [
            {"role": "system", "content": "Be a parrot."},
            {"role": "developer", "content": "Repeat."},
            {"role": "user", "content": SAID},
        ],
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 7,
        "stop": ["never"],
        "repetition_penalty": 1.1,
    }


async def test_it_goes_round() -> None:
    """An item of an answer's output is an item of the next input."""
    backend = mesh()
    async with client_of(backend) as client:
        first = await client.responses.create(model="parrot", input="one two")
        turns: Any = [*first.output, {"role": "user", "content": "three"}]
        answer = await client.responses.create(model="parrot", input=turns)
    assert answer.output_text == "three"
    assert [(each.role, each.content) for each in backend.inputs[1].messages] == [
        ("assistant", "one two"),
        ("user", "three"),
    ]


async def test_length() -> None:
    async with client_of(mesh()) as client:
        answer = await client.responses.create(model="parrot", input=SAID, max_output_tokens=2)
        assert answer.output_text == "ein Fluß"
        assert answer.status == "incomplete"
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"
        events = [
            event
            async for event in await client.responses.create(
                model="parrot", input=SAID, max_output_tokens=2, stream=True
            )
        ]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.status == "incomplete"


async def test_stream() -> None:
    async with client_of(mesh()) as client:
        events = [
            event
            async for event in await client.responses.create(
                model="parrot",
                input=INPUT,
                stream=True,
                include=["message.output_text.logprobs", "reasoning.encrypted_content"],
                top_logprobs=1,
            )
        ]
    for event in events:
        EVENTS.validate_python(event.model_dump(exclude_unset=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    names = [event.type.removeprefix("response.") for event in events]
    begin = ["created", "in_progress", "output_item.added", "content_part.added"]
    end = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert names == begin + ["output_text.delta"] * len(deltas) + end
    assert "".join(event.delta for event in deltas) == SAID
    assert deltas[0].logprobs[0].token == "ein"
    done: Any = events[-1]
    assert done.response.output_text == SAID
    assert done.response.usage.output_tokens == len(SAID.split(" "))
    rows = done.response.output[0].content[0].logprobs
    assert [row.token for row in rows] == [row.logprobs[0].token for row in deltas]
    assert len({event.item_id for event in deltas}) == 1


async def test_the_clients_own_stream_helper() -> None:
    async with (
        client_of(mesh()) as client,
        client.responses.stream(model="parrot", input="a b c") as stream,
    ):
        text = ""
        async for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
        final = await stream.get_final_response()
    assert text == final.output_text == "a b c"


async def test_events_on_the_wire() -> None:
    """Each event is named, on one line however a client splits, and there is no [DONE]."""
    body = {"model": "parrot", "input": SAID, "instructions": "\u2028\u0085", "stream": True}
    async with (
        served(mesh()) as origin,
        aiohttp.ClientSession(origin) as http,
        http.post("/v1/responses", json=body) as response,
    ):
        assert response.content_type == "text/event-stream"
        assert response.headers["X-Blip-Task"] == "0" * 32
        text = await response.text()
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.splitlines()
        found = json.loads(data.removeprefix("data: "))
        assert name == f"event: {found['type']}"
    assert "[DONE]" not in text


@pytest.mark.parametrize("streamed", [False, True])
async def test_errors_before_the_first_byte(streamed: bool) -> None:
    backend = mesh()
    backend.nodes_by_model["broken"] = failing(Overloaded("full", retry_after=3))
    async with client_of(backend) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.responses.create(model="broken", input="a", stream=streamed)
    assert caught.value.code == "overloaded"


async def test_errors_after_the_first_byte() -> None:
    backend = mesh()
    backend.nodes_by_model["broken"] = failing(NodeLost("gone"), after=2)
    async with client_of(backend) as client:
        stream = await client.responses.create(model="broken", input="a", stream=True)
        events: list[Any] = [event async for event in stream]
    assert events[-1].type == "response.failed"
    EVENTS.validate_python(events[-1].model_dump(exclude_unset=True))
    failed = events[-1].response
    assert failed.status == "failed"
    assert (failed.error.code, failed.error.type) == ("server_error", "node_lost")
    assert failed.output_text == "0 1 "  # what there is of it


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"input": [{"type": "computer_call", "call_id": "c"}]}, "input.0.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "x"}]}]},
            "input.0.content.0.type",
        ),
    ],
)
async def test_refused_by_name(fields: dict[str, Any], param: str) -> None:
    async with client_of(mesh()) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(**{"model": "parrot", "input": "x", **fields})
    assert caught.value.code == "unsupported_field"
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input.0.arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input.0.output"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": [{"content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": "x", "nme": "y"}]}, "input.0.nme"),
    ],
)
async def test_wrong_by_name(fields: dict[str, Any], param: str) -> None:
    async with client_of(mesh()) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(**{"model": "parrot", "input": "x", **fields})
    assert caught.value.code == "invalid_request"
    assert (caught.value.param or "").startswith(param)


async def test_silence_is_filled() -> None:
    settings = GatewaySettings(heartbeat=0.02)
    async with client_of(mesh(), settings) as client:
        stream = await client.responses.create(model="endless", input="x", stream=True)
        seen = 0
        async for event in stream:
            seen += event.type == "response.output_text.delta"
            if seen == 20:
                break
        await stream.close()
    assert seen == 20

"""Anthropic's Messages through the real ``anthropic`` client."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from blip.errors import DeadlineExceeded, NodeLost, Overloaded, RuntimeFailed, Unavailable
from blip.gateway.mesh import Answer
from blip.gateway.settings import GatewaySettings
from blip.kinds.text import Delta, Finish, delta_to_wire
from tests.unit.gateway_mesh import MemoryMesh, Work, failing, mesh, served
from tests.unit.test_gateway_openai import SAID

MESSAGES: list[Any] = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": [{"type": "text", "text": "hi", "citations": None}]},
    {"role": "user", "content": [{"type": "text", "text": "again"}]},
    {"role": "user", "content": SAID},
]
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
LEAST: dict[str, Any] = {
    "model": "parrot",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": SAID}],
}


@contextlib.asynccontextmanager
async def client_of(
    backend: MemoryMesh, settings: GatewaySettings | None = None, key: str = "none"
) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with (
        served(backend, settings) as origin,
        anthropic.AsyncAnthropic(base_url=origin, api_key=key, max_retries=0) as client,
    ):
        yield client


async def test_a_message() -> None:
    backend = mesh()
    async with client_of(backend) as client:
        answer = await client.messages.create(
            model="parrot",
            max_tokens=50,
            messages=MESSAGES,
            system=[{"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}}],
            metadata={"user_id": "me"},
            tools=[],
            tool_choice={"type": "auto"},
            thinking={"type": "disabled"},
            extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 7},
        )
    Message.model_validate(answer.model_dump(exclude_unset=True))
    # what the parrot repeats is the last message: its last two turns became one
    assert [(block.type, block.text) for block in answer.content] == [  # type: ignore[union-attr]
        ("text", f"again\n{SAID} #7")
    ]
    assert (answer.id, answer.stop_reason, answer.stop_sequence) == (
        "msg_" + "0" * 32,
        "end_turn",
        None,
    )
    words = len(SAID.split(" "))
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (words, words + 1)
    assert answer._request_id
    assert backend.inputs[0].model_dump(exclude_defaults=True) == {
        "messages": [
            {"role": "system", "content": "Be"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": f"again\n{SAID}"},
        ],
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "seed": 7,
    }


async def test_length() -> None:
    async with client_of(mesh()) as client:
        answer = await client.messages.create(**{**LEAST, "max_tokens": 2})
    assert answer.content[0].text == "ein Fluß"
    assert answer.stop_reason == "max_tokens"


async def test_stream() -> None:
    async with client_of(mesh()) as client:
        events: list[Any] = [
            event async for event in await client.messages.create(**LEAST, stream=True)
        ]
    for event in events:
        EVENTS.validate_python(event.model_dump(exclude_unset=True))
    names = [event.type for event in events]
    deltas = [event for event in events if event.type == "content_block_delta"]
    assert names == [
        *("message_start", "content_block_start"),
        *["content_block_delta"] * len(deltas),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert len(deltas) == len(SAID.split(" "))
    assert "".join(event.delta.text for event in deltas) == SAID
    assert events[-2].delta.stop_reason == "end_turn"
    assert events[-2].usage.input_tokens == events[-2].usage.output_tokens == len(deltas)


async def test_the_clients_own_stream_helper() -> None:
    async with client_of(mesh()) as client, client.messages.stream(**LEAST) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == final.content[0].text == SAID  # type: ignore[union-attr]
    words = len(SAID.split(" "))
    assert (final.usage.input_tokens, final.usage.output_tokens) == (words, words)


async def test_events_on_the_wire() -> None:
    body = {**LEAST, "model": "parrot", "stream": True}
    async with (
        served(mesh()) as origin,
        aiohttp.ClientSession(origin) as http,
        http.post("/v1/messages", json=body) as response,
    ):
        assert response.content_type == "text/event-stream"
        assert response.headers["request-id"] == response.headers["X-Request-ID"]
        text = await response.text()
    names = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.splitlines()
        names.append(name.removeprefix("event: "))
        assert json.loads(data.removeprefix("data: "))["type"] == names[-1]
    assert names[2] == "ping"
    assert names[-1] == "message_stop"


# --- stop sequences --------------------------------------------------------------------------


def stopping(shown: str, stop: str | None) -> Any:
    """A model that says something and then a stop sequence, or an end marker."""

    async def node(value: Any) -> Work:
        assert value.logprobs is None
        yield delta_to_wire(Delta(shown, [1]))
        usage = {"prompt_tokens": 1, "completion_tokens": 2}
        yield Answer(delta_to_wire(Finish("stop", "", [2], stop=stop)), usage, 1.0)

    return node


@pytest.mark.parametrize("streamed", [False, True])
async def test_which_stop_sequence_ended_it(streamed: bool) -> None:
    backend = mesh()
    backend.nodes_by_model["stopping"] = stopping("a ", "END")
    request: Any = {**LEAST, "model": "stopping", "stop_sequences": ["STOP", "END"]}
    async with client_of(backend) as client:
        if streamed:
            async with client.messages.stream(**request) as stream:
                answer: Any = await stream.get_final_message()
        else:
            answer = await client.messages.create(**request)
    assert answer.content[0].text == "a "
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "END")
    assert backend.inputs[0].stop == ["STOP", "END"]


async def test_an_end_marker_is_no_stop_sequence() -> None:
    backend = mesh()
    backend.nodes_by_model["stopping"] = stopping("a b", None)
    async with client_of(backend) as client:
        answer = await client.messages.create(
            **{**LEAST, "model": "stopping"}, stop_sequences=["<|im_end|>", "c"]
        )
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)


# --- errors ----------------------------------------------------------------------------------


ERRORS = [
    (Overloaded("full", retry_after=1.2), anthropic.RateLimitError, 429, "rate_limit_error"),
    (NodeLost("gone"), anthropic.InternalServerError, 502, "api_error"),
    (RuntimeFailed("bang"), anthropic.InternalServerError, 500, "api_error"),
    (Unavailable("draining"), anthropic.APIStatusError, 503, "overloaded_error"),
    (DeadlineExceeded("late"), anthropic.APIStatusError, 504, "timeout_error"),
]


@pytest.mark.parametrize(("error", "raised", "status", "kind"), ERRORS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_errors_before_the_first_byte(
    error: Any, raised: Any, status: int, kind: str, streamed: bool
) -> None:
    backend = mesh()
    backend.nodes_by_model["broken"] = failing(error)
    async with client_of(backend) as client:
        with pytest.raises(raised) as caught:
            await client.messages.create(**{**LEAST, "model": "broken"}, stream=streamed)
    body: Any = caught.value.body
    assert caught.value.status_code == status
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["error"]["message"] == error.message
    assert body["error"]["code"] == error.code
    assert caught.value.request_id == body["request_id"]


async def test_errors_after_the_first_byte() -> None:
    backend = mesh()
    backend.nodes_by_model["broken"] = failing(NodeLost("gone"), after=2)
    text = ""
    async with client_of(backend) as client:
        stream = await client.messages.create(**{**LEAST, "model": "broken"}, stream=True)
        with pytest.raises(anthropic.APIStatusError) as caught:  # noqa: PT012
            async for event in stream:
                if event.type == "content_block_delta":
                    text += event.delta.text
    body: Any = caught.value.body
    assert text == "0 1 "
    assert body["error"]["code"] == "node_lost"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"name": "f", "type": "bash_20250124"}]}, "tools.0.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"container": "c"}, "container"),
        ({"inference_geo": "eu"}, "inference_geo"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "messages.0.content.0.type",
        ),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "("}]}, "messages.4.role"),
    ],
)
async def test_refused_by_name(fields: dict[str, Any], param: str) -> None:
    async with client_of(mesh()) as client:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client.messages.create(**{**LEAST, **fields})
    body: Any = caught.value.body
    assert body["error"]["type"] == "invalid_request_error"
    assert (body["error"]["code"], body["error"]["param"]) == ("unsupported_field", param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]},
            "messages.0.content.0.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            "messages.0.content.0.tool_use_id",
        ),
    ],
)
async def test_wrong_by_name(fields: dict[str, Any], param: str) -> None:
    async with served(mesh()) as origin, aiohttp.ClientSession(origin) as http:
        async with http.post("/v1/messages", json={**LEAST, **fields}) as response:
            body = await response.json()
        assert response.status == 400
        assert (body["error"]["code"], body["error"]["param"]) == ("invalid_request", param)
        async with http.post("/v1/messages", json={"model": "parrot"}) as response:
            assert "max_tokens" in (await response.json())["error"]["message"]


async def test_unknown_model_and_size() -> None:
    async with client_of(mesh(), GatewaySettings(body_limit=500)) as client:
        with pytest.raises(anthropic.NotFoundError) as caught:
            await client.messages.create(**{**LEAST, "model": "nobody"})
        assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
        long: Any = [{"role": "user", "content": "x" * 1000}]
        with pytest.raises(anthropic.APIStatusError) as large:
            await client.messages.create(**{**LEAST, "messages": long})
        assert large.value.body["error"]["type"] == "request_too_large"  # type: ignore[index]


async def test_keys() -> None:
    digest = hashlib.sha256(b"sk-right").hexdigest()
    settings = GatewaySettings(api_keys={"anna": digest})
    backend = mesh()
    async with client_of(backend, settings, "sk-right") as client:
        await client.messages.create(**LEAST)
    async with client_of(backend, settings, "sk-wrong") as client:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await client.messages.create(**LEAST)
    assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    # as Anthropic's documentation has it, for this route and any other
    async with served(backend, settings) as origin, aiohttp.ClientSession(origin) as http:
        for key, status in (("sk-right", 200), ("sk-wrong", 401)):
            headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
            async with http.post("/v1/messages", json=LEAST, headers=headers) as response:
                assert response.status == status
            async with http.get("/v1/models", headers=headers) as response:
                assert response.status == status
    assert [options.tenant for options in backend.options] == ["anna", "anna"]


async def test_models() -> None:
    async with client_of(mesh()) as client:
        found = [model async for model in client.models.list()]
        one = await client.models.retrieve("parrot")
    assert "parrot" in [model.id for model in found]
    assert (one.type, one.display_name) == ("model", "parrot")
    assert one in found
    assert one.created_at.tzinfo is not None


async def test_silence_is_filled_with_pings() -> None:
    settings = GatewaySettings(heartbeat=0.05)
    backend = mesh()

    async def slow(value: Any) -> Work:
        yield delta_to_wire(Delta("a", [1]))
        async for part in backend.nodes_by_model["silent"](value):
            yield part

    backend.nodes_by_model["slow"] = slow
    body = {**LEAST, "model": "slow", "stream": True}
    pings = 0
    async with (
        served(backend, settings) as origin,
        aiohttp.ClientSession(origin) as http,
        http.post("/v1/messages", json=body) as response,
    ):
        async for line in response.content:
            pings += line == b"event: ping\n"
            if pings == 3:
                break
    assert pings == 3

"""Every dialect by its own client, over one real mesh with real models."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import Any, NamedTuple

import anthropic
import ollama
import openai
import pytest

from tests.mesh.rig import TINY, Rig
from tests.unit.gateway_mesh import served

QUESTION = "What is the capital of Japan?"
ANSWER = "The capital of Japan is Tokyo."
ASK: list[Any] = [{"role": "user", "content": QUESTION}]

#: The original's documents ask for a model by this name.
MODELS = {**TINY, "gpt2": {"source": TINY["tiny-chat"]["source"], "preload": True}}


class Served(NamedTuple):
    rig: Rig
    origin: str


async def responses(mesh: Served) -> None:
    async with openai.AsyncOpenAI(base_url=f"{mesh.origin}/v1", api_key="none") as client:
        request: Any = {"model": "tiny-chat", "input": QUESTION, "temperature": 0}
        answer = await client.responses.create(**request)
        assert answer.output_text == ANSWER
        assert answer.usage is not None
        text, last = "", None
        async for event in await client.responses.create(**request, stream=True):
            if event.type == "response.output_text.delta":
                text += event.delta
            last = event
    assert text == ANSWER
    assert last is not None
    assert last.type == "response.completed"
    assert last.response.usage == answer.usage
    assert answer.usage.output_tokens > 3


async def messages(mesh: Served) -> None:
    async with anthropic.AsyncAnthropic(base_url=mesh.origin, api_key="none") as client:
        request: Any = {"model": "tiny-chat", "messages": ASK, "max_tokens": 64}
        request["extra_body"] = {"temperature": 0}
        answer = await client.messages.create(**request)
        assert [block.text for block in answer.content if block.type == "text"] == [ANSWER]
        assert answer.stop_reason == "end_turn"
        async with client.messages.stream(**request) as stream:
            assert "".join([text async for text in stream.text_stream]) == ANSWER
            assert (await stream.get_final_message()).usage == answer.usage
        # one that crosses the borders of tokens, and one that never comes
        stopped: Any = await client.messages.create(
            **request, stop_sequences=["Osaka", "an is Tok"]
        )
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "an is Tok")
        assert stopped.content[0].text == "The capital of Jap"
        unstopped = await client.messages.create(**request, stop_sequences=["Osaka"])
        assert (unstopped.stop_reason, unstopped.stop_sequence) == ("end_turn", None)
        short = await client.messages.create(**{**request, "max_tokens": 2})
        assert short.stop_reason == "max_tokens"
        assert short.usage.output_tokens == 2


async def ollamas(mesh: Served) -> None:
    client = ollama.AsyncClient(mesh.origin)
    async with client:
        names = {model.model for model in (await client.list()).models}
        assert names == set(MODELS)
        loaded = {model.name: model for model in (await client.ps()).models}
        assert set(loaded) == names
        options = {"temperature": 0}
        answer = await client.chat("tiny-chat:latest", ASK, options=options)
        assert answer.message.content == ANSWER
        parts = [
            part async for part in await client.chat("tiny-chat", ASK, options=options, stream=True)
        ]
        assert "".join(part.message.content or "" for part in parts) == ANSWER
        assert parts[-1].eval_count == answer.eval_count
        assert 0 < (parts[-1].eval_duration or 0) < (parts[-1].total_duration or 0)
        generated = await client.generate("tiny-chat", QUESTION, options=options)
        assert generated.response == ANSWER
        raw = await client.generate("tiny-chat", "Beautiful is", raw=True, options=options)
        assert raw.response
        assert raw.response != ANSWER
        texts = ["the cat sleeps", "the dog sleeps", "prices fell"]
        embedded = await client.embed("tiny-embed", texts)
        one = await client.embeddings("tiny-embed", texts[2])
        assert list(one.embedding) == pytest.approx(list(embedded.embeddings[2]), abs=1e-5)
        shown = await client.show("tiny-chat")
        assert shown.capabilities == ["completion", "tools"]
        assert (shown.modelinfo or {})["general.context_length"] == 2048


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Says it", "parameters": SCHEMA},
}


def valid(value: Any) -> bool:
    """Whether something is as the schema has it."""
    return (
        isinstance(value, dict)
        and set(value) == {"city", "days"}
        and len(value["city"]) <= 8
        and value["days"] in (1, 2)
    )


async def tools_and_schemas(mesh: Served) -> None:
    wild = {"seed": 1, "temperature": 1.5}
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    async with openai.AsyncOpenAI(base_url=f"{mesh.origin}/v1", api_key="none") as client:
        create: Any = client.chat.completions.create
        wrapped = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
        answer = await create(model="tiny-chat", messages=ASK, response_format=wrapped, n=3, **wild)
        assert all(valid(json.loads(choice.message.content)) for choice in answer.choices)
        called = await create(
            model="tiny-chat",
            messages=ASK,
            tools=[TOOL],
            tool_choice="required",
            parallel_tool_calls=False,
            **wild,
        )
        (choice,) = called.choices
        assert choice.finish_reason == "tool_calls"
        assert valid(json.loads(choice.message.tool_calls[0].function.arguments))
        responding: Any = client.responses.create
        response = await responding(
            model="tiny-chat", input=QUESTION, text={"format": form}, extra_body=wild
        )
        assert valid(json.loads(response.output_text))
        bad = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "strin"}}}
        with pytest.raises(openai.BadRequestError, match="Invalid type: strin") as caught:
            await create(model="tiny-chat", messages=ASK, response_format=bad)
        assert caught.value.param == "response_format.json_schema.schema"
    async with anthropic.AsyncAnthropic(base_url=mesh.origin, api_key="none") as client:
        stream: Any = client.messages.stream(
            model="tiny-chat",
            messages=ASK,
            max_tokens=200,
            tools=[{"name": "weather", "input_schema": SCHEMA}],
            tool_choice={"type": "tool", "name": "weather"},
            extra_body=wild,
        )
        async with stream as events:
            message = await events.get_final_message()
        assert message.stop_reason == "tool_use"
        assert valid(message.content[0].input)
    async with ollama.AsyncClient(mesh.origin) as client:
        said = await client.chat("tiny-chat", ASK, format=SCHEMA, options=wild)
        assert valid(json.loads(said.message.content or ""))


async def the_originals_line(mesh: Served) -> None:
    process = await asyncio.create_subprocess_shell(
        f"curl -sS -X POST {mesh.origin}/api/v1/inference/text-generation "
        "-H 'Content-Type: application/json' "
        """-d '{"model": "gpt2", "prompt": "Hello world", "max_tokens": 50}'""",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    answer = json.loads(out)
    assert answer["status"] == "completed"
    assert 0 < answer["result"]["tokens_generated"] <= 50
    assert answer["worker_id"] == "node-1"


async def closing_a_stream(mesh: Served) -> None:
    def running() -> int:
        return sum(task.state == "running" for task in mesh.rig.dispatcher.tasks())

    async def state() -> str:
        client = ollama.AsyncClient(mesh.origin)
        async with client:
            # hundreds of tokens, of which one is read
            stream = await client.generate("tiny-chat", "Recite the Zen of Python.", stream=True)
            async for part in stream:
                assert not part.done
                break
            await stream.aclose()  # type: ignore[attr-defined]
        await mesh.rig.until(lambda: running() == 0)
        return mesh.rig.dispatcher.tasks()[0].state

    # where this process is stalled for long the node may be done before it learns of the close
    assert "cancelled" in [await state() for _ in range(3)]


async def test_every_client_over_one_mesh() -> None:
    async with Rig(models=MODELS) as rig, served(rig.dispatcher) as origin:
        mesh = Served(rig, origin)
        await responses(mesh)
        await messages(mesh)
        await ollamas(mesh)
        await tools_and_schemas(mesh)
        if shutil.which("curl"):
            await the_originals_line(mesh)
        await closing_a_stream(mesh)

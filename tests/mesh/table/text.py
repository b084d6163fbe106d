"""Rows of text: every dialect by its own client; forms, tools, vectors, documents by relevance."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.mesh.table.mesh import TableMesh
from tests.models.make_tiny_rerank import CHECKS

QUESTION = "What is the capital of Japan?"
ANSWER = "The capital of Japan is Tokyo."
ASK: list[Any] = [{"role": "user", "content": QUESTION}]

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

#: What a model says of itself at this temperature is no JSON.
WILD = {"seed": 1, "temperature": 1.5}


def check(value: Any) -> None:
    """Assert that something is as the schema has it."""
    import jsonschema  # type: ignore[import-untyped]

    jsonschema.validate(value, SCHEMA)


def chat(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        how: dict[str, Any] = {"model": "tiny-chat", "messages": ASK, "temperature": 0}
        whole = client.chat.completions.create(**how)
        assert whole.choices[0].message.content == ANSWER
        assert whole.choices[0].finish_reason == "stop"
        stream = client.chat.completions.create(
            **how, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        pieces = [each.choices[0].delta.content or "" for each in chunks if each.choices]
        assert "".join(pieces) == ANSWER
        assert sum(map(bool, pieces)) > 3
        assert chunks[-1].usage == whole.usage


def chat_of_a_larger_model(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        answer = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            max_tokens=16,
        )
    assert "Paris" in (answer.choices[0].message.content or "")


def chat_that_is_too_long(mesh: TableMesh) -> None:
    asked: Any = [{"role": "user", "content": "word " * 5000}]
    with mesh.openai() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny-chat", messages=asked)
    body: Any = caught.value.body
    assert body["code"] == "context_length_exceeded"
    prompt, limit = (body["details"][name] for name in ("prompt_tokens", "limit"))
    assert prompt > limit
    for number in (prompt, limit):
        assert str(number) in body["message"].replace(",", "")


def forms_and_tools(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        create: Any = client.chat.completions.create
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
        answer = create(model="tiny-chat", messages=ASK, response_format=form, n=3, **WILD)
        for choice in answer.choices:
            check(json.loads(choice.message.content))
        answer = create(
            model="tiny-chat", messages=ASK, response_format={"type": "json_object"}, **WILD
        )
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
        asked = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, **WILD}
        called = create(model="tiny-chat", messages=ASK, **asked)
        (choice,) = called.choices
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert call.function.name == "weather"
        check(json.loads(call.function.arguments))
        streamed = create(model="tiny-chat", messages=ASK, stream=True, **asked)
        deltas = [each.choices[0].delta.tool_calls or [] for each in streamed]
        pieces = [piece.function.arguments or "" for calls in deltas for piece in calls]
        assert "".join(pieces) == call.function.arguments
        bad = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "strin"}}}
        with pytest.raises(openai.BadRequestError, match="Invalid type: strin") as caught:
            create(model="tiny-chat", messages=ASK, response_format=bad)
        assert caught.value.param == "response_format.json_schema.schema"


def completion(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        how: dict[str, Any] = {"model": "tiny-chat", "prompt": "Beautiful is", "temperature": 0}
        whole = client.completions.create(**how, max_tokens=12)
        text = whole.choices[0].text
        assert text.strip()
        pieces = [each.choices[0].text for each in client.completions.create(**how, stream=True)]
        assert "".join(pieces).startswith(text)
        stop = text[len(text) // 2 :][:3]
        stopped = client.completions.create(**how, max_tokens=12, stop=[stop])
        assert stopped.choices[0].text == text[: text.index(stop)]


def responses(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        request: Any = {"model": "tiny-chat", "input": QUESTION, "temperature": 0}
        answer = client.responses.create(**request)
        assert answer.output_text == ANSWER
        assert answer.usage is not None
        assert answer.usage.output_tokens > 3
        events = list(client.responses.create(**request, stream=True))
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        assert text == ANSWER
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.usage == answer.usage
        form = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
        formed: Any = client.responses.create
        check(json.loads(formed(**request, text={"format": form}).output_text))


def messages(mesh: TableMesh) -> None:
    with anthropic.Anthropic(base_url=mesh.origin, api_key="none") as client:
        request: Any = {"model": "tiny-chat", "messages": ASK, "max_tokens": 64}
        request["extra_body"] = {"temperature": 0}
        answer = client.messages.create(**request)
        assert [block.text for block in answer.content if block.type == "text"] == [ANSWER]
        assert answer.stop_reason == "end_turn"
        with client.messages.stream(**request) as stream:
            assert "".join(stream.text_stream) == ANSWER
            assert stream.get_final_message().usage == answer.usage
        # one that crosses the borders of tokens, and one that never comes
        stopped: Any = client.messages.create(**request, stop_sequences=["Osaka", "an is Tok"])
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "an is Tok")
        assert stopped.content[0].text == "The capital of Jap"
        unstopped = client.messages.create(**request, stop_sequences=["Osaka"])
        assert (unstopped.stop_reason, unstopped.stop_sequence) == ("end_turn", None)
        short = client.messages.create(**{**request, "max_tokens": 2})
        assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 2)
        calling: Any = client.messages.stream(
            model="tiny-chat",
            messages=ASK,
            max_tokens=200,
            tools=[{"name": "weather", "input_schema": SCHEMA}],
            tool_choice={"type": "tool", "name": "weather"},
            extra_body=WILD,
        )
        with calling as events:
            message = events.get_final_message()
        assert message.stop_reason == "tool_use"
        check(message.content[0].input)


def ollamas(mesh: TableMesh) -> None:
    with ollama.Client(mesh.origin) as client:
        names = {model.model for model in client.list().models}
        assert {"tiny-chat", "tiny-embed", "llava"} <= names <= mesh.models
        options = {"temperature": 0}
        answer = client.chat("tiny-chat:latest", ASK, options=options)
        assert answer.message.content == ANSWER
        parts = list(client.chat("tiny-chat", ASK, options=options, stream=True))
        assert "".join(part.message.content or "" for part in parts) == ANSWER
        assert parts[-1].eval_count == answer.eval_count
        assert 0 < (parts[-1].eval_duration or 0) < (parts[-1].total_duration or 0)
        assert "tiny-chat" in {model.name for model in client.ps().models}
        assert client.generate("tiny-chat", QUESTION, options=options).response == ANSWER
        streamed = client.generate("tiny-chat", QUESTION, options=options, stream=True)
        assert "".join(part.response for part in streamed) == ANSWER
        raw = client.generate("tiny-chat", "Beautiful is", raw=True, options=options).response
        assert raw
        assert raw != ANSWER
        said = client.chat("tiny-chat", ASK, format=SCHEMA, options=WILD)
        check(json.loads(said.message.content or ""))
        texts = ["the cat sleeps", "prices fell"]
        embedded = client.embed("tiny-embed", texts)
        one = client.embeddings("tiny-embed", texts[1])
        assert list(one.embedding) == pytest.approx(list(embedded.embeddings[1]), abs=1e-5)
        shown = client.show("tiny-chat")
        assert shown.capabilities == ["completion", "tools"]
        assert (shown.modelinfo or {})["general.context_length"] == 2048


def going_away(mesh: TableMesh) -> None:
    """A client that goes away ends its task: one that may never end by itself, of 1900 tokens."""
    with mesh.openai() as client:
        stream = client.chat.completions.create(
            model="tiny-chat", messages=ASK, stream=True, max_tokens=1900, logit_bias={"2": -100}
        )
        assert any(chunk.choices and chunk.choices[0].delta.content for chunk in stream)
        stream.close()
    assert mesh.ended() == "cancelled"


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.hypot(*one) / math.hypot(*other)


def embedding(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        texts = ["we bake bread in the oven", "a cake in the kitchen", "the team score a goal"]
        answer = client.embeddings.create(model="tiny-embed", input=texts)
        plain = client.embeddings.create(
            model="tiny-embed", input=texts[0], encoding_format="float"
        )
    bread, cake, goal = (row.embedding for row in answer.data)
    assert cosine(bread, cake) > 0.9 > 0.4 > cosine(bread, goal)
    assert plain.data[0].embedding == pytest.approx(bread, abs=1e-5)


def rerank(mesh: TableMesh) -> None:
    query, passage = CHECKS[0]
    documents = [*(each for _, each in CHECKS[1:]), passage]
    body = {"query": query, "documents": documents, "return_documents": True}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        first, second, *_ = mesh.post(path, model="tiny-rerank", **body)["results"]
        assert first["index"] == len(documents) - 1
        assert first["document"]["text"] == passage
        assert first["relevance_score"] > 0.9 > 0.1 > second["relevance_score"]
    # an embedding model does it, too
    answer = mesh.post("/v1/rerank", model="tiny-embed", **body)
    assert answer["results"][0]["index"] == len(documents) - 1

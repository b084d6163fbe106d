"""Whatever a body holds, it is refused with a sentence or becomes a task that nodes accept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.errors import InvalidRequest
from blip.gateway.body import parse_body
from blip.gateway.fields import Request
from blip.gateway.routes.chat.requests import ChatRequest
from blip.gateway.routes.completions import CompletionRequest
from blip.gateway.routes.echo import EchoRequest
from blip.gateway.routes.embeddings import EmbeddingRequest
from blip.gateway.routes.messages import MessagesRequest
from blip.gateway.routes.ollama.chat import OllamaChatRequest
from blip.gateway.routes.ollama.embed import EmbedRequest
from blip.gateway.routes.ollama.generate import GenerateRequest
from blip.gateway.routes.original.embeddings import VectorsRequest
from blip.gateway.routes.original.text import TextGenerationRequest
from blip.gateway.routes.pipelines.requests import (
    QuestionAnsweringRequest,
    TextTranslationRequest,
    ZeroShotRequest,
)
from blip.gateway.routes.rerank import RerankRequest
from blip.gateway.routes.responses.requests import ResponseRequest
from blip.gateway.text import with_seeds
from blip.kinds import KINDS, TaskInput, input_from_wire, input_to_wire
from blip.kinds.embedding import EmbeddingInput
from blip.kinds.rerank import RerankInput

Tasks = Callable[[Any], Iterable[TaskInput]]

ROUTES: list[tuple[str, type[Request], Tasks, dict[str, Any]]] = [
    (
        "chat",
        ChatRequest,
        lambda body: with_seeds(body.task(), body.choices),
        {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    ),
    (
        "completion",
        CompletionRequest,
        lambda body: body.tasks(),
        {"model": "m", "prompt": "x"},
    ),
    (
        "chat",
        ResponseRequest,
        lambda body: [body.task()],
        {"model": "m", "input": "x"},
    ),
    (
        "chat",
        MessagesRequest,
        lambda body: [body.task()],
        {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]},
    ),
    (
        "chat",
        OllamaChatRequest,
        lambda body: [body.task()],
        {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    ),
    (
        "chat",
        GenerateRequest,
        lambda body: [body.model_copy(update={"raw": None}).task()],
        {"model": "m", "prompt": "x"},
    ),
    (
        "completion",
        GenerateRequest,
        lambda body: [body.model_copy(update={"raw": True, "system": None}).task()],
        {"model": "m", "prompt": "x"},
    ),
    (
        "embedding",
        EmbedRequest,
        lambda body: [EmbeddingInput(texts=body.texts(), dimensions=body.dimensions)],
        {"model": "m", "input": "x"},
    ),
    (
        "completion",
        TextGenerationRequest,
        lambda body: [body.task()],
        {"model": "m", "prompt": "x"},
    ),
    (
        "embedding",
        VectorsRequest,
        lambda body: [EmbeddingInput(texts=body.texts())],
        {"model": "m", "text": "x"},
    ),
    (
        "embedding",
        EmbeddingRequest,
        lambda body: [EmbeddingInput(texts=body.texts(), dimensions=body.dimensions)],
        {"model": "m", "input": "x"},
    ),
    (
        "rerank",
        RerankRequest,
        lambda body: [RerankInput(query=body.query, documents=body.texts())],
        {"model": "m", "query": "x", "documents": ["y"]},
    ),
    (
        "zero-shot-classification",
        ZeroShotRequest,
        lambda body: [body.task(range(len(body.costs())))],
        {"model": "m", "inputs": "x", "parameters": {"candidate_labels": ["y"]}},
    ),
    (
        "question-answering",
        QuestionAnsweringRequest,
        lambda body: [body.task(range(len(body.costs())))],
        {"model": "m", "inputs": {"question": "x", "context": "y"}},
    ),
    (
        "text2text-generation",
        TextTranslationRequest,
        lambda body: [body.task(range(len(body.costs())))],
        {"model": "m", "inputs": "x"},
    ),
    ("echo", EchoRequest, lambda body: [body], {}),
]

#: Fields that none of the extremes fits: objects with fields of their own.
NESTED: set[Any] = {
    *("messages", "stream_options", "top_logprobs", "parameters"),
    (QuestionAnsweringRequest, "inputs"),
}

EXTREMES: list[Any] = [
    *(None, True, False, 0, -1, 1, 5, 2**31, 2**63 - 1, 2**64, -(2**63) - 1, 10**40),
    *(0.5, 1e300, float("nan"), float("inf"), "", "text", "none", "\u2028"),
]

scalars = st.sampled_from(EXTREMES) | st.integers(-2, 20) | st.floats(-3, 3) | st.text(max_size=3)
names = st.sampled_from(
    sorted(
        {"role", "content", "type", "text", "5", "-1", "x", "refusal", "tool_calls"}
        | {name for _, model, _, _ in ROUTES for name in model.model_fields}
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def served(kind: str, model: type[Request], tasks: Tasks, document: Any) -> bool:
    """Whether the document becomes tasks; they must be such as a node accepts."""
    refusal = None
    found: list[TaskInput] = []
    try:
        found = list(tasks(parse_body(json.dumps(document).encode(), model)))
    except InvalidRequest as error:
        refusal = error
    if refusal is not None:
        assert refusal.message
        assert refusal.param is None or refusal.param.split(".")[0] in refusal.message
        return False
    assert found
    for value in found:
        received = input_from_wire(KINDS[kind], input_to_wire(value))
        assert received.model_dump() == value.model_dump()
    return True


routes = pytest.mark.parametrize(
    ("kind", "model", "tasks", "least"), ROUTES, ids=[route[1].__name__ for route in ROUTES]
)


@routes
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_json(
    kind: str, model: type[Request], tasks: Tasks, least: dict[str, Any], data: st.DataObject
) -> None:
    fields = st.sampled_from(sorted(model.model_fields))
    changed = data.draw(st.dictionaries(fields, values, max_size=3))
    served(kind, model, tasks, {**least, **changed})
    served(kind, model, tasks, data.draw(values))


@routes
def test_every_field_at_its_extremes(
    kind: str, model: type[Request], tasks: Tasks, least: dict[str, Any]
) -> None:
    assert served(kind, model, tasks, least)
    for name in model.model_fields:
        taken = 0
        for value in EXTREMES:
            for shape in (value, [value], [[value]], {"5": value}, {str(value): 1}):
                taken += served(kind, model, tasks, {**least, name: shape})
        assert taken or name in NESTED or (model, name) in NESTED, name


@given(st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(data, ChatRequest)
    try:
        parse_body(data, EchoRequest)
    except InvalidRequest:
        pass

"""Rows of pipelines, safety, kinds of one's own, and the mesh without a model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blip.client import Blip
from tests.mesh.table.mesh import TableMesh
from tests.models.random_heads import NER, NLI, SENTIMENT

TEXTS = ["we bake bread in the oven", "the team score a goal", "my python code is new"]


def pipeline(mesh: TableMesh, task: str, model: str, inputs: Any, **parameters: Any) -> list[Any]:
    body = {"model": model, "inputs": inputs, "parameters": parameters}
    answer = mesh.post(f"/v1/pipelines/{task}", **body)
    assert (answer["task"], answer["model"]) == (task, model)
    results: list[Any] = answer["results"]
    return results


def labels(mesh: TableMesh) -> None:
    rows = {row["task"]: row["models"] for row in mesh.get("/v1/pipelines")["data"]}
    assert rows["token-classification"] == ["ner"]
    for found in pipeline(mesh, "text-classification", "sentiment", TEXTS, top_k=None):
        assert {each["label"] for each in found} == set(SENTIMENT.values())
        assert sum(each["score"] for each in found) == pytest.approx(1, abs=1e-5)


def zero_shot(mesh: TableMesh) -> None:
    asked = {"candidate_labels": ["food", "sport"]}
    found = pipeline(mesh, "zero-shot-classification", "nli", TEXTS, **asked)
    assert len(found) == 3
    for row in found:
        assert {each["label"] for each in row} == {"food", "sport"}
        assert sum(each["score"] for each in row) == pytest.approx(1, abs=1e-5)
        assert row[0]["score"] >= row[1]["score"]
    raw = pipeline(mesh, "text-classification", "nli", TEXTS, top_k=None)
    assert [{each["label"] for each in row} for row in raw] == [set(NLI.values())] * 3


def named(mesh: TableMesh) -> None:
    found = pipeline(mesh, "token-classification", "ner", TEXTS)
    assert any(found)
    names = {name.partition("-")[2] for name in NER.values()}
    for text, entities in zip(TEXTS, found, strict=True):
        for each in entities:
            assert text[each["start"] : each["end"]] == each["word"]
            assert (each.get("entity_group") or each["entity"]).rpartition("-")[2] in names


def fill_mask(mesh: TableMesh) -> None:
    ((found,),) = pipeline(mesh, "fill-mask", "bert", "a [MASK] river")
    scores = [each["score"] for each in found]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert found[0]["sequence"] == f"a {found[0]['token_str']} river"


def embedding_of_a_masked_model(mesh: TableMesh) -> None:
    embedded = mesh.post("/v1/embeddings", model="bert", input="a river")
    assert len(embedded["data"][0]["embedding"]) == 32


def question_answering(mesh: TableMesh) -> None:
    context = "we bake bread in the oven and the team score a goal"
    (found,) = pipeline(
        mesh, "question-answering", "squad", {"question": "who score", "context": context}
    )
    best = found[0] if isinstance(found, list) else found
    assert context[best["start"] : best["end"]] == best["answer"] != ""


def written(mesh: TableMesh) -> None:
    asked = {"model": "t5", "inputs": TEXTS[:2], "parameters": {"max_new_tokens": 4}}
    for task in ("summarization", "translation", "text2text-generation"):
        answer = mesh.post(f"/v1/pipelines/{task}", **asked)
        assert len(answer["results"]) == 2
        assert 2 <= answer["usage"]["completion_tokens"] <= 8
        assert mesh.post(f"/v1/pipelines/{task}", **asked)["results"] == answer["results"]


def bad_texts(mesh: TableMesh) -> None:
    error = mesh.refusal("/v1/pipelines/fill-mask", model="ner", inputs="a")
    assert error["message"] == "the model 'ner' does not do 'fill-mask', only token-classification"
    texts = ["a", "river " * 90]
    error = mesh.refusal("/v1/pipelines/text-classification", model="nli", inputs=texts)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "inputs.1")


def features(mesh: TableMesh) -> None:
    texts = ["a river", "a river in the forest"]
    one, other = pipeline(mesh, "feature-extraction", "features", texts)
    assert {len(vector) for vector in [*one, *other]} == {64}
    assert len(one) < len(other)


def moderation(mesh: TableMesh) -> None:
    with mesh.openai() as client:
        fine, mean, grim = client.moderations.create(
            input=["a kind word", "you are a snarf", "a picture of a grumph"]
        ).results
    assert not fine.flagged
    assert mean.flagged
    assert mean.categories.harassment
    assert mean.category_scores.harassment > 0.9
    assert mean.category_applied_input_types.sexual == []  # nobody looked
    assert grim.flagged
    assert grim.categories.violence
    assert not grim.categories.harassment


def your_kind(mesh: TableMesh) -> None:
    """The curl line of docs/your-kind.md, its answer, and the stream of it."""
    body = {"kind": "wordcount", "input": {"text": "one two two"}}
    answer = mesh.post("/v1/tasks", **body)
    assert answer["output"] == {"words": 3, "common": [["two", 2], ["one", 1]]}
    assert answer["units"] == 11
    lines = mesh.curl("/v1/tasks", "-N", "--json", json.dumps(body | {"stream": True})).splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    assert [event["type"] for event in events] == ["progress", "completed"]
    assert events[-1]["output"] == answer["output"]
    (kind,) = [each for each in mesh.get("/v1/kinds")["data"] if each["name"] == "wordcount"]
    assert kind["models"] == ["wordcount"]
    assert "text" in kind["input_schema"]["properties"]
    with Blip(mesh.origin) as client:
        assert client.run_task("wordcount", {"text": "one two two"}).output == answer["output"]


def echo(mesh: TableMesh) -> None:
    assert mesh.post("/v1/echo", text="hello", chunks=2) == {"text": "hellohello"}
    assert len(mesh.curl("/v1/echo", "--json", '{"size": 100000}')) == 100_000

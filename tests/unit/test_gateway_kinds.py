"""``POST /v1/tasks`` and ``GET /v1/kinds`` against a mesh in memory; schemas that mean harm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from blip.gateway.mesh import Answer
from blip.gateway.offers import offers
from blip.gateway.routes import kinds
from blip.gateway.schemas import complaint
from blip.kinds.plugin import Piece, Progress, measure, piece_from_wire, piece_to_wire
from blip.protocol.messages import Advert, Model, NodeEntry, PluginKind
from tests.unit.gateway_mesh import WORDCOUNT, MemoryMesh, Work, mesh, served

TEXT = {"kind": "wordcount", "model": "wordcount", "input": {"text": "one two"}}


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(backend) as origin, aiohttp.ClientSession(origin) as session:
        yield session


async def post(http: aiohttp.ClientSession, **fields: Any) -> tuple[int, Any]:
    async with http.post("/v1/tasks", json={**TEXT, **fields}) as response:
        return response.status, await response.json()


async def events(http: aiohttp.ClientSession, **fields: Any) -> list[Any]:
    async with http.post("/v1/tasks", json={**TEXT, "stream": True, **fields}) as response:
        assert response.status == 200
        lines = (await response.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_a_task(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    status, answer = await post(http)
    assert status == 200
    assert answer == {
        "id": "0" * 32,
        "kind": "wordcount",
        "model": "wordcount",
        "output": {"words": 2},
        "units": 2.0,
    }
    assert json.loads(backend.inputs[0].document) == {"text": "one two"}


async def test_its_stream_keeps_its_lines(http: aiohttp.ClientSession) -> None:
    assert await events(http) == [
        {"type": "progress", "progress": 0.5, "text": "half\nway"},
        {"type": "completed", "units": 2.0, "output": {"words": 2}},
    ]


async def in_parts(value: Any) -> Work:
    yield piece_to_wire(Piece("image/png", b"\x89one"))
    yield piece_to_wire(Piece("image/png", b"two"))
    yield Answer(b"", {}, 1.0)


async def mixed(value: Any) -> Work:
    yield piece_to_wire(Piece("application/json", b"1"))
    yield piece_to_wire(Piece("text/plain", b"two"))
    yield Answer(b"", {}, 1.0)


async def garbled(value: Any) -> Work:
    yield Answer(b"\xc1", {}, 1.0)


async def test_bytes(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    backend.nodes_by_model["wordcount"] = in_parts
    async with http.post("/v1/tasks", json=TEXT) as response:
        assert await response.read() == b"\x89onetwo"
        assert response.headers["Content-Type"] == "image/png"
        assert response.headers["Content-Security-Policy"] == "sandbox"
        assert response.headers["X-Blip-Task"] == "0" * 32
    first, _, end = await events(http)
    assert first == {"type": "part", "index": 0, "media_type": "image/png", "data": "iW9uZQ=="}
    assert end == {"type": "completed", "units": 1}
    backend.nodes_by_model["wordcount"] = mixed
    _, answer = await post(http)
    assert answer["output"] == [1, {"media_type": "text/plain", "data": "dHdv"}]
    backend.nodes_by_model["wordcount"] = garbled
    status, answer = await post(http)
    assert (status, answer["error"]["code"]) == (500, "runtime_failed")


async def endless(value: Any) -> Work:
    while True:
        yield piece_to_wire(Piece("text/plain", b"x" * 1000))
        await asyncio.sleep(0)


async def test_an_answer_without_an_end(
    http: aiohttp.ClientSession, backend: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "MAX_ANSWER_BYTES", 20_000)
    backend.nodes_by_model["wordcount"] = endless
    status, answer = await post(http)
    assert (status, answer["error"]["param"]) == (400, "stream")
    assert backend.calls[-1].cancelled


async def test_what_is_refused(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    for fields, code, param, says in (
        ({"input": {"text": 1}}, "invalid_request", "input.text", "1 is not of type 'string'"),
        ({"input": {}}, "invalid_request", "input", "'text' is a required property"),
        ({"input": {"text": "", "most": 10}}, "invalid_request", "input.most", "maximum"),
        ({"input": 1}, "invalid_request", "input", "should be an object"),
        ({"kind": "chat"}, "invalid_request", "kind", "routes of its own"),
        ({"kind": "wordcuont"}, "not_found", "kind", "did you mean 'wordcount'"),
        ({"model": "nobody"}, "model_not_found", "model", "nobody"),
        ({"model": None}, "model_not_found", "model", "No node serves a model"),
    ):
        _, answer = await post(http, **fields)
        error = answer["error"]
        assert (error["code"], error["param"]) == (code, param)
        assert says in error["message"]
    assert not backend.calls
    status, answer = await post(http, input={"text": "x" * 100_000, "most": 10})
    assert (status, answer["error"]["param"]) == (400, "input.most")
    for odd in ("1e999", "NaN", '"\\ud800"'):
        body = json.dumps(TEXT).replace('"one two"', f'"a", "more": {odd}')
        headers = {"Content-Type": "application/json"}
        async with http.post("/v1/tasks", data=body, headers=headers) as response:
            assert response.status == 400


async def test_the_list(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/kinds") as response:
        data = {kind["name"]: kind for kind in (await response.json())["data"]}
    assert data["wordcount"]["about"] == "Counts words."
    assert data["wordcount"]["input_schema"]["required"] == ["text"]
    assert data["wordcount"]["nodes"] == ["büro-1"]
    assert data["chat"]["builtin"]
    assert "parrot" in data["chat"]["models"]
    assert data["chat"]["input_schema"]["properties"]["messages"]


def entry(id: str, *kinds: PluginKind, status: str = "ready") -> NodeEntry:
    models = [Model(f"{kind.name}-{id}", [kind.name]) for kind in kinds]
    advert = Advert(1, False, [], models, [], [], kinds=list(kinds))
    return NodeEntry(id, 1, id, "h", [], status, advert)


async def test_versions_that_differ(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = WORDCOUNT._replace(input_schema='{"type": "object", "required": ["texts"]}')
    nodes = [entry("a", WORDCOUNT), entry("b", new), entry("c", WORDCOUNT)]
    found = offers([*nodes, entry("d", new, status="lost"), entry("e")])
    assert [(each.kind, each.nodes) for each in found] == [(WORDCOUNT, {"a", "c"}), (new, {"b"})]
    monkeypatch.setattr(MemoryMesh, "nodes", lambda self: nodes)
    assert (await post(http, input={"texts": []}))[0] != 400  # a version takes it
    _, answer = await post(http, input={"other": 1})
    assert "'text' is a required" in answer["error"]["message"]  # what most nodes say


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "http://192.0.2.1/schema.json"}, 1),
        ({"$ref": "file:///etc/passwd"}, 1),
        ({"$ref": "#"}, 1),
        ({"type": 7}, 1),
        ("not json", 1),
        ({"pattern": "^(a+)+$"}, "a" * 64 + "b"),
        ({"patternProperties": {"^(a+)+$": False}}, {"a" * 64 + "b": 1}),
        (
            {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False},
            {"a" * 64 + "b": 1},
        ),
        ({"uniqueItems": True}, [{"a": n} for n in range(20_000)]),
    ],
)
def test_schemas_that_mean_harm_say_nothing(schema: Any, value: Any) -> None:
    """Each of these would hang for hours, or ask a stranger, if it were followed."""
    text = schema if isinstance(schema, str) else json.dumps(schema)
    assert complaint(text, value) is None


def test_complaints() -> None:
    schema = json.dumps(
        {
            "type": "object",
            "properties": {
                "rows": {"type": "array", "items": {"$ref": "#/$defs/Row"}},
                "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            },
            "additionalProperties": False,
            "$defs": {"Row": {"type": "object", "required": ["id"]}},
        }
    )
    assert complaint(schema, {"rows": [{"id": 1}], "either": None}) is None
    error = complaint(schema, {"rows": [{"id": 1}, {}]})
    assert error is not None
    assert (error.param, error.message) == (
        "input.rows.1",
        "'input.rows.1': 'id' is a required property",
    )
    error = complaint(schema, {"rowz": "x" * 10_000})
    assert error is not None
    assert error.param == "input"
    assert len(error.message) < 400
    assert complaint(schema, {"rows": [1] * 100_000}) is not None


def test_work_is_measured_by_a_field() -> None:
    value = {"text": "four", "list": [1, 2], "number": 2.5, "flag": True, "zero": 0}
    measured = [measure(value, field) for field in ("text", "list", "number", "flag", "zero", "no")]
    assert measured == [4, 2, 2.5, 1, 1, 1]
    assert measure([], "text") == measure(value, "") == 1


def test_pieces_on_the_wire() -> None:
    for piece in (Piece("a/b", b"\0"), Progress(0.5, "half")):
        assert piece_from_wire(piece_to_wire(piece)) == piece
    for payload in (b"", b"\xc1", b"\x93\x00\x01\x02", b"\x93\x02\xa1a\xa1b", b"\x01"):
        with pytest.raises((ValueError, TypeError)):
            piece_from_wire(payload)

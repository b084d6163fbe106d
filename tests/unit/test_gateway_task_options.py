"""What requests say about their tasks in headers, and what errors say about sending them again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from blip.errors import (
    BlipError,
    DeadlineExceeded,
    DeadlineUnreachable,
    InternalError,
    InvalidRequest,
    ModelTooLarge,
    NodeLost,
    Overloaded,
    Unavailable,
    from_wire,
)
from blip.gateway.task_options import HEADERS, read_require
from tests.unit.gateway_mesh import MemoryMesh, failing, mesh, served

USER = {"role": "user", "content": "hi"}
#: A request of every route that runs tasks.
TASKS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "parrot", "messages": [USER]}),
    ("/v1/completions", {"model": "parrot", "prompt": "a"}),
    ("/v1/responses", {"model": "parrot", "input": "a"}),
    ("/v1/messages", {"model": "parrot", "messages": [USER], "max_tokens": 9}),
    ("/api/chat", {"model": "parrot", "messages": [USER], "stream": False}),
    ("/api/generate", {"model": "parrot", "prompt": "a"}),
    ("/api/embed", {"model": "embedder", "input": "a"}),
    ("/api/embeddings", {"model": "embedder", "prompt": "a"}),
    ("/api/v1/inference/text-generation", {"model": "parrot", "prompt": "a"}),
    ("/api/v1/inference/embeddings", {"model": "embedder", "text": "a"}),
    ("/v1/embeddings", {"model": "embedder", "input": "a"}),
    ("/v1/echo", {"text": "a"}),
]


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(backend) as origin, aiohttp.ClientSession(origin) as session:
        yield session


@pytest.mark.parametrize(("route", "body"), TASKS)
async def test_every_task_route_takes_them(
    http: aiohttp.ClientSession, backend: MemoryMesh, route: str, body: dict[str, Any]
) -> None:
    headers = {
        "x-blip-priority": "1",
        "X-Blip-Deadline": "2.5",
        "X-Blip-Require": "vendor=nvidia|amd; memory>=24GiB; label.zone=keller über; node!=rig-3",
    }
    async with http.post(route, json=body, headers=headers) as response:
        assert response.status == 200
    (options,) = backend.options
    assert (options.priority, options.deadline, options.timeout) == (1, 2.5, None)
    assert options.require == {
        "vendor": ["nvidia", "amd"],
        "memory": 24 << 30,
        "labels": {"zone": ["keller über"]},
        "not": {"node": ["rig-3"]},
    }


@pytest.mark.parametrize(("route", "body"), TASKS)
async def test_nobody_needs_to_say_anything(
    http: aiohttp.ClientSession, backend: MemoryMesh, route: str, body: dict[str, Any]
) -> None:
    async with http.post(route, json=body) as response:
        assert response.status == 200
    (options,) = backend.options
    assert (options.priority, options.deadline, options.require) == (5, None, {})


async def test_require_as_json_and_in_several_lines(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    route, body = TASKS[0]
    json = '{"memory": "1GiB", "not": {"labels": {"noise": "loud"}}}'
    async with http.post(route, json=body, headers={"X-Blip-Require": json}) as response:
        assert response.status == 200
    assert backend.options[0].require == {
        "memory": 2**30,
        "not": {"labels": {"noise": ["loud"]}},
    }
    lines = [("X-Blip-Require", "vendor=cpu"), ("X-Blip-Require", "memory>=1GiB")]
    async with http.post(route, json=body, headers=lines) as response:
        assert response.status == 200
    assert backend.options[1].require == {"vendor": ["cpu"], "memory": 2**30}


BAD = [
    ("X-Blip-Priority", "0", "1"),
    ("X-Blip-Priority", "11", "10"),
    ("X-Blip-Priority", "5.0", "whole number"),
    ("X-Blip-Priority", "high", "whole number"),
    ("X-Blip-Priority", "", "whole number"),
    ("X-Blip-Deadline", "0", "above 0"),
    ("X-Blip-Deadline", "-1", "above 0"),
    ("X-Blip-Deadline", "nan", "seconds"),
    ("X-Blip-Deadline", "1e999", "seconds"),
    ("X-Blip-Deadline", "10s", "seconds"),
    ("X-Blip-Deadline", "1, 2", "seconds"),
    ("X-Blip-Require", "memory=24GiB", "memory>=24GiB"),
    ("X-Blip-Require", "colour=red", "vendor"),
    ("X-Blip-Require", "what", "vendor!=amd"),
    ("X-Blip-Require", "{", "JSON object"),
    ("X-Blip-Require", '{"a":' * 1200, "JSON object"),
    ("X-Blip-Require", '{"memory": -1}', "X-Blip-Require.memory"),
    ("X-Blip-Require", '{"not": 1}', "X-Blip-Require.not"),
]


@pytest.mark.parametrize(("name", "value", "says"), BAD)
async def test_bad_values_name_the_header(
    http: aiohttp.ClientSession, backend: MemoryMesh, name: str, value: str, says: str
) -> None:
    for route, body in TASKS:
        async with http.post(route, json=body, headers={name: value}) as response:
            assert response.status == 400
            body = await response.json()
        # Ollama's errors are the message, with the rest beside it
        error = body if isinstance(body["error"], str) else body["error"]
        message = error.get("message", error.get("error"))
        assert (error["code"].lower(), error["param"]) == ("invalid_request", name)
        assert name in message
        assert says in message
    assert not backend.calls


async def test_bytes_that_are_no_text(backend: MemoryMesh) -> None:
    """aiohttp's client cannot even send them."""
    async with served(backend) as origin:
        host, port = origin.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n"
            b"X-Blip-Require: \xff\xfe\r\n\r\n{}"
        )
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"param": "X-Blip-Require"' in answer


async def test_routes_without_tasks_do_not_look(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/models", headers={"X-Blip-Priority": "high"}) as response:
        assert response.status == 200


async def test_they_are_documented(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as response:
        spec = await response.json()
    tasks = {
        path
        for path, methods in spec["paths"].items()
        for operation in methods.values()
        if any(each["in"] == "header" for each in operation.get("parameters", ()))
    }
    assert tasks >= {route for route, _ in TASKS}
    assert not any(path.startswith(("/v1/mesh", "/v1/tasks/", "/v1/models")) for path in tasks)
    named = [each["name"] for each in spec["paths"]["/v1/echo"]["post"]["parameters"]]
    assert named == [header.name for header in HEADERS]
    async with http.get("/docs") as response:
        page = await response.text()
    for header in HEADERS:
        assert page.count(f"<code>{header.name}</code>") == len(tasks)


def test_requiring_nothing() -> None:
    assert read_require("") == {}
    assert read_require(" ; ") == {}
    with pytest.raises(InvalidRequest):
        read_require("{]")


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "retry_after", "should_retry"),
    [
        (DeadlineUnreachable("late", retry_after=2.2), "3", None),
        (Overloaded("full", retry_after=7), "7", None),
        (Unavailable("soon"), None, None),
        (Unavailable("soon", retry_after=1), "1", None),
        (NodeLost("gone"), None, None),
        (ModelTooLarge("too large"), None, "false"),
        (DeadlineExceeded("late"), None, "false"),
        (InternalError("bang"), None, "false"),
        (InvalidRequest("wrong"), None, None),
    ],
)
async def test_whether_to_send_it_again(
    http: aiohttp.ClientSession,
    backend: MemoryMesh,
    error: BlipError,
    retry_after: str | None,
    should_retry: str | None,
) -> None:
    backend.nodes_by_model["fails"] = failing(error)
    async with http.post("/v1/echo", json={"model": "fails"}) as response:
        assert response.status == error.status
        assert response.headers.get("Retry-After") == retry_after
        assert response.headers.get("X-Should-Retry") == should_retry


async def test_details_of_a_denial_reach_the_client(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    details = {"earliest_finish": 12.5, "deadline": 3.0, "retry_after": 9.5, "hint": "wait"}
    backend.nodes_by_model["late"] = failing(from_wire("deadline_unreachable", "no", details))
    async with http.post("/v1/echo", json={"model": "late"}) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "10"
        error = (await response.json())["error"]
    assert error["details"] == {"earliest_finish": 12.5, "deadline": 3.0}
    assert error["hint"] == "wait"


async def test_details_that_json_has_no_words_for(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    details = {"a": math.inf, "b": b"\x01", "c": [1, {2: (None, True)}], "d": object}
    backend.nodes_by_model["odd"] = failing(Unavailable("odd", details=details))
    async with http.post("/v1/echo", json={"model": "odd"}) as response:
        found = (await response.json())["error"]["details"]
    assert found == {
        "a": None,
        "b": "01",
        "c": [1, {"2": [None, True]}],
        "d": "<class 'object'>",
    }


async def test_openais_client_heeds_it(backend: MemoryMesh) -> None:
    backend.nodes_by_model["large"] = failing(ModelTooLarge("40 GiB, and 24 is the most"))
    backend.nodes_by_model["lost"] = failing(NodeLost("gone"))
    async with (
        served(backend) as origin,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=1) as client,
    ):
        with pytest.raises(openai.InternalServerError, match="24 is the most"):
            await client.completions.create(model="large", prompt="x")
        assert len(backend.calls) == 1
        with pytest.raises(openai.InternalServerError, match="gone"):
            await client.completions.create(
                model="lost", prompt="x", extra_headers={"X-Blip-Priority": "2"}
            )
    assert [options.priority for options in backend.options] == [5, 2, 2]

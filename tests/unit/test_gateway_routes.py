"""The routes besides OpenAI's, and what the gateway says about itself."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema  # type: ignore[import-untyped]
import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client.parser import text_string_to_metric_families

import blip
from blip.errors import BY_CODE, RuntimeFailed
from blip.gateway.app import build_app
from blip.gateway.mesh import Answer, Health, Timing
from blip.gateway.routes.chat.requests import ChatRequest
from blip.gateway.routes.echo import EchoRequest
from blip.gateway.routes.embeddings import numbers, rows
from blip.gateway.sampling import SamplingRequest
from blip.gateway.settings import GatewaySettings
from blip.gateway.text import quote
from blip.kinds import input_from_wire, input_to_wire
from blip.kinds.echo import ECHO
from blip.kinds.text import TextInput
from blip.protocol.messages import Model
from tests.unit.gateway_mesh import MemoryMesh, failing, mesh, png, served, wav


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(backend) as origin, aiohttp.ClientSession(origin) as session:
        yield session


async def spec_of(http: aiohttp.ClientSession) -> dict[str, Any]:
    async with http.get("/openapi.json") as response:
        assert response.content_type == "application/json"
        spec: dict[str, Any] = await response.json()
    return spec


# --- echo ------------------------------------------------------------------------------------


async def test_echo_text(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    text = 'grüße "\u2028"'
    async with http.post("/v1/echo", json={"text": text, "chunks": 3}) as response:
        assert await response.json() == {"text": text * 3}
        assert response.headers["X-Blip-Node"] == "b?ro-1"
    sent = input_from_wire(ECHO, input_to_wire(backend.inputs[0]))
    assert sent.model_dump(exclude_defaults=True) == {"text": text, "chunks": 3}


async def test_echo_sends_the_input_only() -> None:
    request = EchoRequest.model_validate_json(b'{"model": "m", "stream": true, "delay": 1}')
    assert request.model == "m"
    assert input_from_wire(ECHO, input_to_wire(request)).delay == 1


@pytest.mark.parametrize("chunks", [1, 3])
async def test_echo_bytes(http: aiohttp.ClientSession, chunks: int) -> None:
    size = 3 * 1024 * 1024  # more than any buffer on the way
    async with http.post("/v1/echo", json={"size": size, "chunks": chunks}) as response:
        assert response.content_type == "application/octet-stream"
        assert response.headers["Content-Length"] == str(size * chunks)
        assert response.headers["X-Request-ID"]
        assert await response.read() == bytes(size * chunks)


@pytest.mark.parametrize("fields", [{"text": "hé"}, {"size": 9}])
async def test_echo_stream(http: aiohttp.ClientSession, fields: dict[str, Any]) -> None:
    body = {**fields, "chunks": 5, "interval": 0.001, "stream": True}
    async with http.post("/v1/echo", json=body) as response:
        found = (await response.text()).split("\n\n")
    assert found[5:] == ["data: [DONE]", ""]
    events = [json.loads(event.removeprefix("data: ")) for event in found[:5]]
    assert events == [{"index": index, **fields} for index in range(5)]


async def test_echo_of_nothing(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/echo", json={}) as response:
        assert await response.json() == {"text": ""}
    async with http.post("/v1/echo", json={"stream": True}) as response:
        assert await response.text() == "data: [DONE]\n\n"


# --- the mesh, health, metrics ---------------------------------------------------------------


async def test_models(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/models") as response:
        listed = await response.json()
    async with http.get("/v1/models/org%2Fparrot") as response:
        one = await response.json()
    assert one in listed["data"]
    assert one["kinds"] == ["chat", "completion"]
    assert one["nodes"] == ["büro-1"]
    assert one["ready"] == 1


async def test_mesh(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/mesh") as response:
        (node,) = (await response.json())["nodes"]
    assert node["name"] == "büro-1"
    assert node["devices"][0]["memory_free"] == 2**29
    assert node["devices"][0]["temperature"] is None
    assert node["models"][0]["context"] == 2048
    assert node["replicas"][0]["state"] == "ready"
    assert node["running"] == 1
    async with http.get("/v1/tasks") as response:
        (task,) = (await response.json())["tasks"]
    assert task["state"] == "running"
    assert task["age"] == 0.5


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ([], 200),
        ([Health("broker", True, "1 ms", True), Health("redis", False, "refused", False)], 200),
        ([Health("broker", False, "gone", True), Health("redis", True, "", False)], 503),
    ],
)
async def test_health(
    http: aiohttp.ClientSession, backend: MemoryMesh, checks: list[Health], status: int
) -> None:
    backend.checks = checks
    async with http.get("/healthz") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
    async with http.get("/readyz") as response:
        assert response.status == status
        body = await response.json()
    assert body["ready"] is (status == 200)
    assert [(check["name"], check["ok"], check["detail"]) for check in body["checks"]] == [
        (check.name, check.ok, check.detail) for check in checks
    ]


async def test_metrics(http: aiohttp.ClientSession) -> None:
    chat = {"model": "parrot", "messages": [{"role": "user", "content": "a b c"}], "n": 2}
    for body in (chat, {**chat, "stream": True}, {**chat, "n": 99}, {**chat, "model": "x"}):
        async with http.post("/v1/chat/completions", json=body) as response:
            await response.read()
    async with http.get("/nowhere/at/all") as response:
        await response.read()
    async with http.get("/metrics") as response:
        assert response.content_type == "text/plain"
        text = await response.text()
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    def requests(route: str, status: str) -> float:
        return found["blip_http_request_seconds_count", ("route", route), ("status", status)]

    assert requests("/v1/chat/completions", "200") == 2
    assert requests("/v1/chat/completions", "400") == 1
    assert requests("/v1/chat/completions", "404") == 1
    assert requests("/{rest}", "404") == 1  # one label for all that does not exist
    assert found["blip_http_requests_in_flight",] == 1
    assert found["blip_tasks_total", ("kind", "chat"), ("outcome", "succeeded")] == 4
    assert found["blip_task_first_part_seconds_count", ("kind", "chat")] == 4
    assert found["blip_tokens_total", ("direction", "prompt"), ("model", "parrot")] == 12
    assert found["blip_tokens_total", ("direction", "completion"), ("model", "parrot")] == 12
    assert found["process_open_fds",] > 0
    async with http.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as response:
        assert response.content_type == "application/openmetrics-text"
        assert (await response.text()).endswith("# EOF\n")


def test_apps_do_not_share_metrics() -> None:
    for _ in range(2):
        build_app(mesh(), GatewaySettings())


async def test_timing_of_several(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    body = {"model": "parrot", "prompt": ["a"] * 20, "n": 2}
    async with http.post("/v1/completions", json=body) as response:
        assert response.status == 200
        tasks = response.headers["X-Blip-Task"].split(", ")
        timing = response.headers["X-Blip-Timing"]
    assert tasks == [call.task_id for call in backend.calls[:16]]
    firsts = [call.timing.first or 0 for call in backend.calls]
    totals = [call.timing.total or 0 for call in backend.calls]
    assert f"first={min(firsts):.4f};total={max(totals):.4f}" in timing


# --- the API about itself --------------------------------------------------------------------


def routes_of(app: web.Application) -> set[tuple[str, str]]:
    found = set()
    for route in app.router.routes():
        assert route.resource is not None
        if route.method not in ("HEAD", "*"):  # HEAD comes with GET; * is for what is not there
            found.add((route.method, route.resource.canonical))
    return found


@pytest.mark.parametrize("keys", [{}, {"a": "0" * 64}])
async def test_openapi_is_valid_and_complete(backend: MemoryMesh, keys: dict[str, str]) -> None:
    settings = GatewaySettings(api_keys=keys)
    async with served(backend, settings) as origin, aiohttp.ClientSession(origin) as http:
        spec = await spec_of(http)
    OpenAPIV31SpecValidator(spec).validate()
    assert spec["info"]["version"] == blip.__version__
    described = {
        (method.upper(), path) for path, methods in spec["paths"].items() for method in methods
    }
    assert described == routes_of(build_app(backend, settings))
    ids = [op["operationId"] for methods in spec["paths"].values() for op in methods.values()]
    assert len(ids) == len(set(ids))
    for path, methods in spec["paths"].items():
        for operation in methods.values():
            assert operation["summary"]
            assert operation["description"].endswith(".")
            assert "500" in operation["responses"]
            assert ("401" in operation["responses"]) is (
                path
                not in (
                    "/",
                    "/docs",
                    "/openapi.json",
                    "/healthz",
                    "/readyz",
                    "/v1/files/{file_id}/content",
                )
            )
            assert ("security" in operation) is (bool(keys) and "401" in operation["responses"])
    chat = spec["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(chat) == {
        *("200", "400", "401", "403", "404", "413", "415", "422", "429"),
        *("499", "500", "502", "503", "504"),
    }
    for code in ("invalid_request", "unsupported_field", "context_length_exceeded"):
        assert code in chat["400"]["description"]
        assert code in BY_CODE


async def test_examples_work(
    http: aiohttp.ClientSession, backend: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every example in the document is answered, and the answer is as the document says."""
    backend.nodes_by_model |= {
        "smollm2": backend.nodes_by_model["parrot"],
        "minilm": backend.nodes_by_model["embedder"],
    }
    backend.checks = [Health("broker", True, "", True)]
    (node,) = backend.nodes()
    advert = node.advert._replace(models=[Model("smollm2", ["chat"])])
    monkeypatch.setattr(
        MemoryMesh, "nodes", lambda self: [node._replace(name="rig-1", advert=advert)]
    )
    spec = await spec_of(http)
    video = ""
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            content: dict[str, Any] = operation.get("requestBody", {}).get("content", {})
            example: Any = next(
                (each["example"] for each in content.values() if "example" in each), None
            )
            assert (example is None) is (method in ("get", "delete"))
            if path.endswith("/content"):
                continue  # there is nothing yet; see test_gateway_videos and test_gateway_files
            address = path.replace("{id}", "0000" if "tasks" in path else "parrot")
            address = address.replace("{video_id}", video)
            sent: dict[str, Any] = {"json": example}
            if "multipart/form-data" in content:  # curl's way: @ stands before a file's name
                form = aiohttp.FormData()
                for name, field in example.items():
                    file = field.startswith("@")
                    upload = wav() if field.endswith(".wav") else png(8, 8)
                    form.add_field(name, upload if file else field, filename=field[file:])
                sent = {"data": form}
            async with http.request(method, address, **sent) as response:
                assert response.status == 200, path
                documented = operation["responses"]["200"]["content"]
                assert response.content_type in documented
                if response.content_type == "application/json":
                    schema = documented["application/json"]["schema"]
                    answered = await response.json()
                    check(answered, schema, spec)
                    if answered.get("object") == "video":
                        video = answered["id"]
    async with http.get("/v1/models/nobody") as response:
        answer = spec["paths"]["/v1/models/{id}"]["get"]["responses"][str(response.status)]
        check(await response.json(), answer["content"]["application/json"]["schema"], spec)


def check(value: Any, schema: dict[str, Any], spec: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator({**schema, "components": spec["components"]}).validate(value)


def test_bounds_are_those_of_the_kinds() -> None:
    """A request that passes here must pass as a task's input."""
    ours = SamplingRequest.model_json_schema()["properties"]
    theirs = TextInput.model_json_schema()["properties"]
    for name in ("temperature", "top_p", "repetition_penalty", "frequency_penalty"):
        bounds = {key: value for key, value in theirs[name].items() if "imum" in key.lower()}
        assert bounds
        (number,) = [option for option in ours[name]["anyOf"] if option["type"] == "number"]
        assert {key: value for key, value in number.items() if key != "type"} == bounds
    stops = [option for option in ours["stop"]["anyOf"] if option.get("type") == "array"]
    assert stops[0]["maxItems"] == theirs["stop"]["maxItems"]


async def test_every_field_of_the_clients_is_known() -> None:
    """The clients list the fields; each is used, ignored or refused by name."""
    from anthropic.types import message_create_params
    from openai.types import completion_create_params, embedding_create_params
    from openai.types.chat import completion_create_params as chat_create_params
    from openai.types.responses import response_create_params

    from blip.gateway.routes.completions import CompletionRequest
    from blip.gateway.routes.embeddings import EmbeddingRequest
    from blip.gateway.routes.messages import MessagesRequest
    from blip.gateway.routes.responses.requests import ResponseRequest

    for params, ours in (
        (chat_create_params.CompletionCreateParamsBase, ChatRequest),
        (completion_create_params.CompletionCreateParamsBase, CompletionRequest),
        (embedding_create_params.EmbeddingCreateParams, EmbeddingRequest),
        (response_create_params.ResponseCreateParamsBase, ResponseRequest),
        (message_create_params.MessageCreateParamsBase, MessagesRequest),
    ):
        assert set(params.__annotations__) - set(ours.model_fields) == set()


async def test_every_field_of_ollamas_client_is_known() -> None:
    from ollama import _types as theirs

    from blip.gateway.routes.ollama import chat, embed, generate, models, options

    for params, ours in (
        (theirs.ChatRequest, chat.OllamaChatRequest),
        (theirs.Message, chat.OllamaMessage),
        (theirs.GenerateRequest, generate.GenerateRequest),
        (theirs.Options, options.Options),
        (theirs.EmbedRequest, embed.EmbedRequest),
        (theirs.EmbeddingsRequest, embed.OldEmbedRequest),
        (theirs.ShowRequest, models.ShowRequest),
    ):
        assert set(params.model_fields) - set(ours.model_fields) == set()


class Page(html.parser.HTMLParser):
    """Notes what a page would make a browser load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.style = ""
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href"):
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        if self._open[-1] == "style":
            self.style += data


async def test_docs(http: aiohttp.ClientSession) -> None:
    hostile = "evil'\"<script>alert(1)</script>"
    async with http.get("/docs", headers={"Host": hostile}) as response:
        assert response.content_type == "text/html"
        policy = response.headers["Content-Security-Policy"]
        text = await response.text()
    page = Page()
    page.feed(text)
    assert not page.tags & {"script", "link", "iframe", "img"}
    assert page.links == ["/openapi.json"]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'self'" in policy
    spec = await spec_of(http)
    for path in spec["paths"]:
        assert f"<code>{path}</code>" in text
    for word in ("curl", "top_k", "number 0 to 2", "Not supported.", "Overloaded", "429"):
        assert word.lower() in text.lower(), word


async def test_docs_with_keys(backend: MemoryMesh) -> None:
    settings = GatewaySettings(api_keys={"a": "0" * 64})
    async with (
        served(backend, settings) as origin,
        aiohttp.ClientSession(origin) as http,
        http.get("/docs") as response,
    ):
        text = await response.text()
    assert "Authorization: Bearer $BLIP_API_KEY" in text
    assert f"{origin}/v1/chat/completions" in text


async def test_written_docs_name_every_route(http: aiohttp.ClientSession) -> None:
    text = Path(__file__).parents[2].joinpath("docs", "api.md").read_text()
    spec = await spec_of(http)
    assert set(re.findall(r"^### `\w+ ([^`]+)`", text, re.MULTILINE)) == set(spec["paths"])
    for code, error in BY_CODE.items():
        if error.status != 500 or code in ("internal_error", "runtime_failed"):
            assert f"`{code}`" in text, code


async def test_root_and_head(http: aiohttp.ClientSession) -> None:
    async with http.get("/") as response:
        body = await response.json()
    assert body["docs"] == "/docs"
    for path in (body["docs"], body["openapi"], body["models"], body["ready"]):
        async with http.get(path) as response:
            assert response.status == 200
            length = len(await response.read())
        async with http.head(path) as response:
            assert response.status == 200
            assert int(response.headers["Content-Length"]) == length
            assert await response.read() == b""


# --- small parts -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(0, 1), (9, 1), (12, 5), (8, 4)])
def test_rows_that_cannot_be(size: int, count: int) -> None:
    with pytest.raises(RuntimeFailed):
        rows(bytes(size), count)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_lacks(bad: float) -> None:
    with pytest.raises(RuntimeFailed):
        numbers(memoryview(array("f", [1.0, bad])).cast("B"))


def test_numbers_of_opposite_infinities() -> None:
    with pytest.raises(RuntimeFailed):
        numbers(memoryview(array("f", [float("inf"), float("-inf")])).cast("B"))


async def test_many_numbers_let_others_run(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    async def large(value: Any) -> Any:
        yield Answer(bytes(4 * 4096 * len(value.texts)), {"prompt_tokens": 1}, 1.0)

    backend.nodes_by_model["large"] = large
    body = {"model": "large", "input": ["x"] * 40}
    async with http.post("/v1/embeddings", json=body) as response:
        answer = await response.json()
    assert len(answer["data"]) == 40
    assert answer["data"][39]["embedding"] == [0] * 4096


@pytest.mark.parametrize("text", ["", "plain", "ü", "\x85\u2028\u2029", '"\\\n\r\t\x00'])
def test_quote(text: str) -> None:
    quoted = quote(text)
    assert json.loads(quoted) == text
    assert len(quoted.splitlines()) == 1


async def test_headers_of_a_task_that_failed(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    async def late(value: Any) -> Any:
        backend.calls[0].timing = Timing(queue=1.5, load=2.25)
        async for part in failing(RuntimeFailed("bang"))(value):
            yield part

    backend.nodes_by_model["late"] = late
    async with http.post("/v1/echo", json={"model": "late"}) as response:
        assert response.status == 500
        assert response.headers["X-Blip-Timing"].startswith("queue=1.5000;load=2.2500;total=")
        assert response.headers["X-Blip-Task"] == backend.calls[0].task_id

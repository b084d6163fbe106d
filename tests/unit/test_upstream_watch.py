"""What a node offers of an engine: its list, its health, and names that clash."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.config import UpstreamConfig
from blip.errors import ConfigError, RemoteProtocolError, Unavailable
from blip.gateway.call import LiveCall
from blip.kinds import KINDS
from blip.kinds.chat import ChatInput
from blip.kinds.text import Delta, delta_to_wire
from blip.kinds.tools import CallPiece
from blip.protocol.messages import Model
from blip_node.catalogue import Catalogue
from blip_node.models.spec import ModelSpec
from blip_node.upstreams.events import Event, EventReader
from blip_node.upstreams.failures import message_of, retry_seconds
from blip_node.upstreams.listing import Listed, read_list
from blip_node.upstreams.poller import Upstreams
from blip_node.upstreams.watch import LONGEST_PAUSE, State, Watch
from tests.unit.engine_server import LISTS, EngineServer, engine_server, hangs, refuses, until


def body(answer: Any) -> bytes:
    return json.dumps(answer).encode()


def watch(aliases: list[ModelSpec] | None = None, **config: Any) -> Watch:
    made = UpstreamConfig.model_validate({"url": "http://h/v1", **config})
    return Watch("eng", made, aliases or [])


# --- lists ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "found"),
    [
        ("vllm", [Listed("Qwen/Qwen3-0.6B", ("chat", "completion"), 40960, "vllm")]),
        ("sglang", [Listed("meta-llama/Llama-3.2-1B", ("chat", "completion"), 131072, "sglang")]),
        # what the model was trained on is not what the server allows
        ("llama.cpp", [Listed("/models/nomic.gguf", ("embedding",), None, "llama.cpp")]),
        (
            "ollama",
            [
                Listed("llama3.2:latest", ("chat", "completion"), None, "ollama"),
                Listed("nomic-embed-text:latest", ("embedding",), None, "ollama"),
            ],
        ),
    ],
)
def test_lists_of_engines(engine: str, found: list[Listed]) -> None:
    assert read_list(200, "application/json", body(LISTS[engine])) == found


def test_other_lists() -> None:
    assert read_list(200, "application/json", body({"object": "list", "data": None})) == []
    gateway = {"id": "m", "owned_by": "mesh", "kinds": ["chat", "image"], "context": 2048}
    rows = [gateway, gateway, {"id": ""}, "odd", {"id": 5}, {"id": "x", "max_model_len": True}]
    assert read_list(200, "", body({"data": rows})) == [
        Listed("m", ("chat",), 2048, "blip"),
        Listed("x", ("chat", "completion")),
    ]
    served = {"id": "y", "owned_by": "llamacpp", "meta": {"n_ctx": 4096, "n_ctx_train": 131072}}
    assert read_list(200, "", body({"data": [served]}))[0].context == 4096


@pytest.mark.parametrize(
    "id",
    ["BAAI/bge-m3", "thenlper/gte-large", "intfloat/e5-base-v2", "all-MiniLM-L6-v2", "mxbai-embed"],
)
def test_embedding_models_are_known_by_their_names(id: str) -> None:
    assert read_list(200, "", body({"data": [{"id": id}]}))[0].kinds == ("embedding",)


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (200, b"<html>hello</html>", "text/html, not JSON"),
        (200, body([]), 'no "data"'),
        (200, body({"models": []}), 'no "data"'),
        (503, body({"error": {"message": "Loading model"}}), "answers 503.*Loading model"),
        (401, b"", "answers 401"),
    ],
)
def test_what_is_no_list(status: int, answer: bytes, said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        read_list(status, "text/html", answer)


# --- the watch --------------------------------------------------------------------------------

CHAT = Listed("llama3.2:latest", ("chat", "completion"), 8192, "ollama")
EMBED = Listed("nomic:latest", ("embedding",), None, "ollama")


def test_what_is_listed_is_offered() -> None:
    eng = watch(prefix="o/", slots=3, timeout=7.0)
    assert eng.listed([CHAT, EMBED]) == []
    spec = eng.stock.offers["o/llama3.2:latest"]
    assert spec.source == "openai:eng/llama3.2:latest"
    assert (spec.kinds, spec.slots, spec.context) == (("chat", "completion"), 3, 8192)
    assert spec.engine is not None
    assert (spec.engine.dialect, spec.engine.timeout) == ("ollama", 7.0)
    assert (eng.state, eng.pause) == (State.UP, 5.0)
    eng.listed([EMBED])
    assert list(eng.stock.offers) == ["o/nomic:latest"]
    assert eng.stock.missing == {}


def test_the_allow_list() -> None:
    eng = watch(models=["llama3.2", "qwen*", "mistral"])
    eng.listed([CHAT, EMBED, Listed("qwen:1b", ("chat",))])
    assert list(eng.stock.offers) == ["llama3.2:latest", "qwen:1b"]
    # what was named outright is missed by name
    assert list(eng.stock.missing) == ["mistral"]
    assert "does not list a model 'mistral'" in eng.stock.missing["mistral"].message


def test_kinds_can_be_said() -> None:
    eng = watch(kinds=["embedding"])
    eng.listed([CHAT])
    assert eng.stock.offers[CHAT.id].kinds == ("embedding",)
    with pytest.raises(ConfigError, match="not for 'echo'"):
        watch(kinds=["echo"])
    odd = watch().listed([Listed("m", ())])
    assert odd == ["'m' serves no kind that can be passed on"]
    assert "without spaces" in watch().listed([Listed("two words", ("chat",))])[0]


def test_aliases() -> None:
    alias = ModelSpec("small", "openai:eng/llama3.2", slots=2)
    eng = watch([alias, ModelSpec("gone", "openai:eng/lama3.2:latest")])
    eng.listed([CHAT])
    assert sorted(eng.stock.offers) == ["llama3.2:latest", "small"]
    small = eng.stock.offers["small"]
    assert (small.slots, small.kinds, small.context) == (2, CHAT.kinds, 8192)
    assert small.source == "openai:eng/llama3.2:latest"
    assert "did you mean 'llama3.2:latest'" in eng.stock.missing["gone"].message


def test_down_and_up_again() -> None:
    eng = watch(models=["mistral", "llama*"], prefix="o/", health_interval=60.0)
    # never reached: what is named outright is shown with the reason
    eng.failed(Unavailable("cannot be reached: refused"))
    assert (eng.state, eng.pause) == (State.DOWN, 0.5)
    assert list(eng.stock.missing) == ["o/mistral"]
    assert eng.stock.missing["o/mistral"].message == "upstream 'eng' cannot be reached: refused"
    eng.listed([CHAT])
    assert eng.pause == 60.0
    eng.failed(Unavailable("answers 500"))
    assert eng.stock.offers == {}
    assert sorted(eng.stock.missing) == ["o/llama3.2:latest", "o/mistral"]
    pauses = []
    for _ in range(8):
        eng.failed(Unavailable("answers 500"))
        pauses.append(eng.pause)
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
    eng.listed([CHAT])
    assert list(eng.stock.offers) == ["o/llama3.2:latest"]


def test_one_silence_is_forgiven() -> None:
    eng = watch()
    eng.listed([CHAT])
    slow = Unavailable("did not list its models in 5 s")
    eng.failed(slow, silent=True)
    assert (eng.state, list(eng.stock.offers), eng.pause) == (State.UP, [CHAT.id], 0.5)
    eng.failed(slow, silent=True)
    assert eng.state is State.DOWN


# --- events -----------------------------------------------------------------------------------


@given(st.data())
def test_events_are_the_same_however_they_are_cut(data: st.DataObject) -> None:
    texts = data.draw(
        st.lists(
            st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), max_size=5
        )
    )
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    stream = "\ufeff" + "".join(
        f": a comment{end}event: x{end}data: {text}{end}{end}" for text in texts
    )
    raw, reader = stream.encode(), EventReader()
    found: list[Event] = []
    while raw:
        cut = data.draw(st.integers(1, len(raw)))
        found += reader.feed(raw[:cut])
        raw = raw[cut:]
    if end == "\r":
        found += reader.feed(b": the last CR may have had an LF\n")
    assert [event.data for event in found] == texts
    assert not reader.unfinished


def test_odd_events() -> None:
    reader = EventReader()
    assert reader.feed(b"data:a\ndata: b\n\n\n") == [Event("a\nb")]
    assert reader.feed(b"error: {}\n\n") == [Event("{}", True)]
    assert reader.feed(b"data\n\ndata: half") == [Event("")]
    assert reader.unfinished
    with pytest.raises(RemoteProtocolError, match="no event"):
        EventReader().feed(b"<html>\n")


# --- errors -----------------------------------------------------------------------------------


def test_retry_after() -> None:
    assert retry_seconds(None) is None
    assert retry_seconds("2.5") == 2.5
    assert retry_seconds("-1") == 0
    assert retry_seconds("999999") == 3600
    assert retry_seconds("soon") is None
    assert retry_seconds("nan") is None
    at, now = "Wed, 21 Oct 2026 07:28:30 GMT", "Wed, 21 Oct 2026 07:28:00 GMT"
    assert retry_seconds(at, now) == 30
    assert retry_seconds(at) is None


def test_messages() -> None:
    assert message_of(b"<html>") == ""
    assert message_of(b"[1]") == ""
    assert message_of(body({"error": "a\n  b"})) == "a b"
    assert message_of(body({"error": {"code": 5}, "message": "outside"})) == "outside"
    assert message_of(body({"detail": "Not Found"})) == "Not Found"
    assert len(message_of(body({"error": "x" * 9999}))) == 500


# --- half an answer ---------------------------------------------------------------------------


class Owner:
    def now(self) -> float:
        return 0.0

    def execute(self, call: LiveCall, commands: Any) -> None: ...

    def cancel(self, call: LiveCall) -> None: ...


def test_what_was_said_without_token_ids_cannot_be_continued() -> None:
    value = ChatInput.model_validate({"messages": [{"role": "user", "content": "hello"}]})
    call = LiveCall(Owner(), b"t" * 16, KINDS["chat"], value, 1.0)
    call.deliver(delta_to_wire(Delta("", [1])))
    call.deliver(delta_to_wire(Delta("Hel", [2, 3])))
    assert call.resume() is not None
    for text, pieces in (("lo", None), ("", [CallPiece(0, "f", "")])):
        other = LiveCall(Owner(), b"t" * 16, KINDS["chat"], value, 1.0)
        other.deliver(delta_to_wire(Delta(text, [], None, pieces)))
        assert other.resume() is None


# --- the poller -------------------------------------------------------------------------------


class Host:
    """The agent, as far as the poller needs it."""

    def __init__(self) -> None:
        self.changes = 0
        self.released: list[str] = []
        self.busy: set[str] = set()

    def changed(self) -> None:
        self.changes += 1

    def release(self, model: str) -> bool:
        self.released.append(model)
        return model not in self.busy


class Node:
    """A catalogue with the upstreams that keep it in step."""

    def __init__(self, servers: dict[str, str], *specs: ModelSpec, **config: Any) -> None:
        self.host, self.catalogue = Host(), Catalogue()
        self.catalogue.add(spec for spec in specs if not spec.source.startswith("openai"))
        configs = {
            name: UpstreamConfig.model_validate({"url": url, "health_interval": 0.05, **config})
            for name, url in servers.items()
        }
        aliases = [spec for spec in specs if spec.source.startswith("openai")]
        self.upstreams = Upstreams(configs, aliases, self.catalogue, self.host)

    async def __aenter__(self) -> Node:
        self.upstreams.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.upstreams.close()

    @property
    def adverts(self) -> dict[str, Model]:
        return {each.name: each for each in self.catalogue.adverts(0.0, gpu=True)}

    async def offers(self, *names: str) -> None:
        await until(lambda: {n for n, m in self.adverts.items() if m.kinds} == set(names))


async def test_the_catalogue_follows_the_engine() -> None:
    async with engine_server(models=LISTS["ollama"]) as server, Node({"o": server.url}) as node:
        await node.offers("llama3.2:latest", "nomic-embed-text:latest")
        model = node.adverts["llama3.2:latest"]
        # the engine's memory is not ours, on any device
        assert (model.memory, model.load_bytes, model.slots) == (0, 0, 16)
        changes = node.host.changes
        asked = server.lists
        await until(lambda: server.lists > asked + 2)
        assert node.host.changes == changes  # the same again is no news
        server.models = LISTS["vllm"]
        await node.offers("Qwen/Qwen3-0.6B")
        assert node.adverts["Qwen/Qwen3-0.6B"].context == 40960
        assert set(node.host.released) == {"llama3.2:latest", "nomic-embed-text:latest"}
        # down: it stays listed with the reason, and its replicas stay
        server.listing = refuses(503, {"error": {"message": "Loading model"}})
        await node.offers()
        error = node.adverts["Qwen/Qwen3-0.6B"].error
        assert error == "upstream 'o' answers 503 to GET /models: Loading model"
        server.listing = refuses(200, "<html>a proxy</html>")
        await until(lambda: "not JSON" in node.adverts["Qwen/Qwen3-0.6B"].error)
        server.listing = None
        await node.offers("Qwen/Qwen3-0.6B")
        assert "Qwen/Qwen3-0.6B" not in node.host.released
        # another engine on that port, with a model of the same name: not what it was
        rows = [{**LISTS["vllm"]["data"][0], "owned_by": "sglang"}]
        node.host.busy = {"Qwen/Qwen3-0.6B"}
        server.models = {"data": rows}
        await until(lambda: node.host.released.count("Qwen/Qwen3-0.6B") > 1)
        node.host.busy = set()
        await until(lambda: not node.upstreams._stale)


async def test_an_engine_that_comes_and_goes() -> None:
    async with engine_server(models=LISTS["vllm"]) as server:
        port = int(server.url.split(":")[2].removesuffix("/v1"))
        async with Node({"v": server.url}, models=["Qwen/Qwen3-0.6B"]) as node:
            await node.offers("Qwen/Qwen3-0.6B")
            await until(lambda: server.lists > 1)
            await stop_listening(server)
            await node.offers()
            assert "cannot be reached" in node.adverts["Qwen/Qwen3-0.6B"].error
            async with engine_server(port, models=LISTS["vllm"]):
                await node.offers("Qwen/Qwen3-0.6B")


async def stop_listening(server: EngineServer) -> None:
    assert server.runner is not None
    await server.runner.cleanup()


async def test_names_that_clash() -> None:
    own = ModelSpec("llama3.2:latest", "builtin:echo")
    async with (
        engine_server(models=LISTS["ollama"]) as one,
        engine_server(models=LISTS["ollama"]) as two,
        Node({"one": one.url, "two": two.url}, own) as node,
    ):
        await node.offers("llama3.2:latest", "nomic-embed-text:latest")
        assert node.adverts["llama3.2:latest"].kinds == ["echo"]
        await until(lambda: one.lists > 2 and two.lists > 2)
        entry = node.catalogue.get("nomic-embed-text:latest")
        assert entry is not None
        assert entry.spec.engine is not None
        first = entry.spec.engine.name
        # the other takes over once the first has it no more
        (one if first == "one" else two).models = {"data": []}
        await until(lambda: owner(node, "nomic-embed-text:latest") not in ("", first))
        assert node.adverts["llama3.2:latest"].kinds == ["echo"]


def owner(node: Node, model: str) -> str:
    entry = node.catalogue.get(model)
    return "" if entry is None or entry.spec.engine is None else entry.spec.engine.name


async def test_configured_models_of_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    specs = (ModelSpec("mine", "openai:v/Qwen/Qwen3-0.6B"), ModelSpec("lost", "openai:x/y"))
    async with engine_server(models=LISTS["vllm"]) as server:
        async with Node({"v": server.url}, *specs, models=["none"]) as node:
            await node.offers("mine")
            assert "no upstream 'x'" in node.adverts["lost"].error
            assert "does not list" in node.adverts["none"].error
        async with Node({"v": server.url}, *specs, api_key_env="NO_SUCH_KEY") as node:
            await until(lambda: "mine" in node.adverts)
            assert "NO_SUCH_KEY is not set" in node.adverts["mine"].error
        async with Node({"v": server.url}, *specs, kinds=["echo"]) as node:
            assert "not for 'echo'" in node.adverts["mine"].error


async def test_a_list_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip_node.upstreams.poller.TIMEOUT", 0.2)
    monkeypatch.setattr("blip_node.upstreams.poller.MAX_LIST", 2000)
    async with (
        engine_server(models=LISTS["vllm"], listing=hangs()) as server,
        Node({"v": server.url}, models=["named"]) as node,
    ):
        await until(lambda: "did not list" in getattr(node.adverts.get("named"), "error", ""))
        server.listing = refuses(200, {"data": ["x" * 5000]})
        await until(lambda: "over 2000 bytes" in node.adverts["named"].error)

"""Orders to nodes: whom they go to, how they are followed, what HTTP says about them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import aiohttp
import pytest

from blip.errors import (
    BlipError,
    InvalidRequest,
    ModelNotFound,
    NodeLost,
    NoNode,
    NotFound,
)
from blip.gateway.operations import (
    LiveOrder,
    Target,
    find_device,
    find_node,
    follow,
    load_targets,
    standing_targets,
    unload_targets,
)
from blip.protocol.messages import Advert, Device, Model, NodeEntry, Order, Ordered, Replica
from tests.unit.gateway_mesh import MemoryMesh, mesh, served


def entry(
    id: str, name: str = "", status: str = "ready", *, loaded: tuple[str, ...] = ()
) -> NodeEntry:
    devices = [Device(each, "nvidia", "RTX", 2**34, 2**33) for each in (f"{id}-gpu0", f"{id}-gpu1")]
    replicas = [Replica(model, f"{id}-gpu0", "ready", 4) for model in loaded]
    models = [Model("m", ["chat"], memory=2**30), Model("n", ["chat"])]
    return NodeEntry(
        id, 7, name or id, "h", [], status, Advert(1, False, devices, models, replicas, [])
    )


def said(state: str, text: str = "", **details: Any) -> Ordered:
    return Ordered(0, state, "", text, details)


def failed(code: str, text: str, **details: Any) -> Ordered:
    return Ordered(0, "failed", code, text, details)


# --- whom an order goes to -------------------------------------------------------------------


def test_a_node_by_id_name_or_unique_name() -> None:
    entries = [entry("1111aaaa", "rig"), entry("2222bbbb", "rig"), entry("3333cccc", "box")]
    assert find_node(entries, "box").id == "3333cccc"
    assert find_node(entries, "2222bbbb").id == "2222bbbb"
    assert find_node(entries, "rig#aaaa").id == "1111aaaa"
    with pytest.raises(InvalidRequest) as wrong:
        find_node(entries, "rig")
    assert "rig#aaaa (1111aaaa), rig#bbbb (2222bbbb)" in wrong.value.message
    assert wrong.value.param == "node"
    with pytest.raises(NotFound, match="'bix'; did you mean 'box'"):
        find_node(entries, "bix")
    with pytest.raises(NotFound):
        find_node([], "box")


def test_a_node_that_is_gone() -> None:
    gone, there = entry("1111aaaa", "rig", "lost"), entry("2222bbbb", "rig")
    assert find_node([gone, there], "rig") is there
    with pytest.raises(NodeLost, match="rig cannot be reached"):
        find_node([gone], "rig")
    with pytest.raises(NodeLost):
        find_node([gone, there], "1111aaaa")


def test_a_device_by_its_id_or_the_start_of_it() -> None:
    entries = [entry("a"), entry("b")]
    assert find_device(entries, None) == ""
    assert find_device(entries, "a-gpu1") == "a-gpu1"
    assert find_device([entry("GPU")], "GPU-gpu1") == "GPU-gpu1"
    with pytest.raises(InvalidRequest, match="2 devices of node a begin with 'a-'"):
        find_device(entries[:1], "a-")
    with pytest.raises(
        NotFound, match=r"no device of node a is called 'x'; there is a-gpu0, a-gpu1"
    ):
        find_device(entries[:1], "x")
    with pytest.raises(
        NotFound, match="no device of this mesh is called 'a-gpu7'; there is a-gpu1"
    ):
        find_device(entries, "a-gpu7")


def test_where_to_load() -> None:
    entries = [entry("a", loaded=("m",)), entry("b", loaded=("m",))]
    (best,) = load_targets(entries, "m", None, None)
    assert best.device in ("a-gpu1", "b-gpu1")
    assert load_targets(entries, "m", "a", None) == [Target(entries[0], "")]
    assert load_targets(entries, "m", "a", "a-gpu0") == [Target(entries[0], "a-gpu0")]
    assert load_targets(entries, "m", None, "b-gpu1") == [Target(entries[1], "b-gpu1")]
    with pytest.raises(ModelNotFound, match="no node has a model 'mm'; did you mean 'm'"):
        load_targets(entries, "mm", None, None)
    with pytest.raises(ModelNotFound, match="node a does not have a model 'x'"):
        load_targets(entries, "x", "a", None)
    with pytest.raises(NoNode):
        load_targets([], "m", None, None)


def test_where_to_unload() -> None:
    having, without = entry("a", loaded=("m",)), entry("b")
    lost = entry("c", status="lost", loaded=("m",))
    entries = [having, without, lost]
    assert unload_targets(entries, "m", None, None) == [Target(having)]
    assert unload_targets(entries, "m", "b", None) == [Target(without)]
    assert unload_targets(entries, "m", "a", "a-gpu1") == [Target(having, "a-gpu1")]
    assert unload_targets(entries, "m", None, "a-gpu0") == [Target(having, "a-gpu0")]
    # the advert of a load that has just ended may be on its way: whoever could have it is asked
    assert unload_targets(entries, "n", None, None) == [Target(having), Target(without)]
    assert unload_targets(entries, "n", None, "b-gpu1") == [Target(without, "b-gpu1")]
    with pytest.raises(ModelNotFound):
        unload_targets(entries, "x", None, None)


def test_where_to_cordon() -> None:
    entries = [entry("a"), entry("b")]
    assert standing_targets(entries, "a", None) == [Target(entries[0])]
    assert standing_targets(entries, "b", "b-gpu1") == [Target(entries[1], "b-gpu1")]
    with pytest.raises(NotFound):
        standing_targets(entries, "b", "a-gpu1")


# --- following orders ------------------------------------------------------------------------


async def test_silence_ends_an_order_and_words_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip.gateway.operations.SILENCE", 0.2)
    live = LiveOrder(Order(3, "load", model="m"))
    heard: list[Ordered] = []

    async def listen() -> None:
        async for ordered in live.updates():
            heard.append(ordered)

    listening = asyncio.create_task(listen())
    for number in range(5):
        await asyncio.sleep(0.05)
        live.take(Ordered(3, "running", text=str(number)))
    await listening
    assert [each.text for each in heard[:5]] == ["0", "1", "2", "3", "4"]
    assert (heard[5].state, heard[5].code) == ("failed", "unavailable")
    assert "said nothing for 0.2 s" in heard[5].text


async def test_several_nodes_at_once() -> None:
    backend = mesh()
    backend.words = {
        "a": [said("running", "1 left"), said("running", "0 left"), said("done", "drained")],
        "b": [failed("node_lost", "gone")],
    }
    targets = [Target(entry("a"), "a-gpu0"), Target(entry("b"))]
    async with aclosing(follow(backend, targets, Order(0, "drain"))) as steps:
        seen = [step async for step in steps]
    assert [step.ordered.text for step in seen if step.number == 0] == [
        "1 left",
        "0 left",
        "drained",
    ]
    assert [step.ordered.code for step in seen if step.number == 1] == ["node_lost"]
    assert [(node, order.device) for node, order in backend.orders] == [("a", "a-gpu0"), ("b", "")]
    assert sorted(backend.left) == ["a", "b"]
    assert [step async for step in follow(backend, [], Order(0, "unload"))] == []


async def test_a_bug_of_ours_still_ends_the_order() -> None:
    class Broken(MemoryMesh):
        async def order(self, node: NodeEntry, order: Order) -> AsyncGenerator[Ordered, None]:
            if order.verb:
                raise ZeroDivisionError("bang")
            yield said("done")

    steps = [step async for step in follow(Broken(), [Target(entry("a"))], Order(0, "drain"))]
    assert [step.ordered.code for step in steps] == ["internal_error"]


async def test_leaving_early_lets_go() -> None:
    backend = mesh()
    backend.words = {"a": [said("running"), Ordered(0, "silent")]}
    async with aclosing(follow(backend, [Target(entry("a"))], Order(0, "drain"))) as steps:
        await anext(steps)
    assert backend.left == ["a"]


# --- over HTTP -------------------------------------------------------------------------------


class Rack(MemoryMesh):
    """Two nodes of one name, and a third."""

    def nodes(self) -> list[NodeEntry]:
        return [
            entry("1111aaaa", "rig", loaded=("m",)),
            entry("2222bbbb", "rig", loaded=("m",)),
            entry("3333cccc", "box"),
        ]


@pytest.fixture
def backend() -> MemoryMesh:
    return Rack(mesh().nodes_by_model)


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(backend) as origin, aiohttp.ClientSession(origin) as session:
        yield session


async def test_load(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    backend.words["3333cccc"] = [
        said("running", progress=0.5),
        said("done", device="3333cccc-gpu1", seconds=2.0, memory=2**30),
    ]
    body = {"model": "m", "node": "box", "pin": True, "keep_alive": 60}
    async with http.post("/v1/mesh/load", json=body) as response:
        assert response.status == 200
        assert await response.json() == {
            "orders": [
                {
                    "node": "3333cccc",
                    "name": "box",
                    "device": "3333cccc-gpu1",
                    "state": "done",
                    "code": "",
                    "text": "",
                    "details": {"device": "3333cccc-gpu1", "seconds": 2.0, "memory": 2**30},
                }
            ]
        }
    (sent,) = backend.orders
    assert sent == ("3333cccc", Order(0, "load", "", "m", {"pin": True, "keep_alive": 60.0}))
    async with http.post("/v1/mesh/load", json={"model": "m", "keep_alive": -1}) as response:
        assert response.status == 200
    # all are as fast; the first that has not loaded it takes it, for as long as there is room
    best = Order(0, "load", "1111aaaa-gpu1", "m", {"keep_alive": None})
    assert backend.orders[1] == ("1111aaaa", best)


@pytest.mark.parametrize("verb", ["cordon", "uncordon", "drain"])
async def test_standing(http: aiohttp.ClientSession, backend: MemoryMesh, verb: str) -> None:
    body = {"node": "rig#aaaa", "device": "1111aaaa-gpu1"}
    if verb != "uncordon":
        body["reason"] = "new fan"
    async with http.post(f"/v1/mesh/{verb}", json=body) as response:
        assert response.status == 200
        (order,) = (await response.json())["orders"]
    assert (order["name"], order["state"]) == ("rig#aaaa", "done")
    options = {"reason": "new fan"} if verb != "uncordon" else {}
    assert backend.orders == [("1111aaaa", Order(0, verb, "1111aaaa-gpu1", "", options))]


async def test_unload_everywhere_and_a_failure(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    async with http.post("/v1/mesh/unload", json={"model": "m", "force": True}) as response:
        assert [each["name"] for each in (await response.json())["orders"]] == [
            "rig#aaaa",
            "rig#bbbb",
        ]
    assert all(order.options == {"force": True} for _, order in backend.orders)
    backend.words["2222bbbb"] = [failed("unavailable", "it is wanted", retry_after=3, why="x")]
    async with http.post("/v1/mesh/unload", json={"model": "m"}) as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "3"
        error = (await response.json())["error"]
    assert error["message"] == "it is wanted (node rig#bbbb)"
    assert error["details"] == {"why": "x", "node": "2222bbbb", "others": {"rig#aaaa": "done"}}


WRONG: list[tuple[str, dict[str, Any], int, str, str]] = [
    ("load", {"model": "mm"}, 404, "model", "did you mean 'm'"),
    ("load", {"model": "m", "node": "bux"}, 404, "node", "'box'"),
    ("load", {"model": "m", "node": "rig"}, 400, "node", "rig#aaaa (1111aaaa)"),
    ("load", {"model": "m", "keep_alive": "1"}, 400, "keep_alive", "number"),
    ("load", {"model": "m", "nod": "box"}, 400, "nod", "not a field"),
    ("load", {}, 400, "model", "required"),
    ("unload", {"model": "x"}, 404, "model", "no node has a model 'x'"),
    ("drain", {"node": "box", "device": "cpu"}, 404, "device", "3333cccc-gpu0"),
    ("cordon", {"node": ""}, 400, "node", "at least 1"),
    ("cordon", {}, 400, "node", "required"),
    ("uncordon", {"node": "box", "reason": "x"}, 400, "reason", "not a field"),
]


@pytest.mark.parametrize(("verb", "body", "status", "param", "says"), WRONG)
async def test_what_cannot_be_ordered(
    http: aiohttp.ClientSession,
    backend: MemoryMesh,
    verb: str,
    body: dict[str, Any],
    status: int,
    param: str,
    says: str,
) -> None:
    for stream in (False, True):
        async with http.post(f"/v1/mesh/{verb}", json={**body, "stream": stream}) as response:
            assert response.status == status
            error = (await response.json())["error"]
        assert error["param"] == param
        assert says in error["message"]
    assert not backend.orders


async def events_of(response: aiohttp.ClientResponse) -> list[Any]:
    assert response.content_type == "text/event-stream"
    found = (await response.text()).split("\n\n")
    assert found.pop() == ""
    return [
        each if each == "data: [DONE]" else json.loads(each.removeprefix("data: "))
        for each in found
        if not each.startswith(":")
    ]


async def test_a_stream_of_progress(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    backend.words["3333cccc"] = [said("running", "2 left", left=2), said("done", "drained")]
    body = {"node": "box", "stream": True}
    async with http.post("/v1/mesh/drain", json=body) as response:
        *events, end = await events_of(response)
    assert end == "data: [DONE]"
    assert [(each["state"], each["text"]) for each in events] == [
        ("running", "2 left"),
        ("done", "drained"),
    ]
    assert events[0]["details"] == {"left": 2}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_node_that_fails_at_once(
    http: aiohttp.ClientSession, backend: MemoryMesh, stream: bool
) -> None:
    backend.words["3333cccc"] = [failed("node_lost", "the link to the node broke")]
    body = {"node": "box", "stream": stream}
    async with http.post("/v1/mesh/drain", json=body) as response:
        assert response.status == 502
        error = (await response.json())["error"]
    assert error["code"] == "node_lost"
    assert error["message"] == "the link to the node broke (node box)"


async def test_a_stream_whose_node_dies(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    backend.words["3333cccc"] = [said("running"), failed("node_lost", "gone")]
    async with http.post("/v1/mesh/drain", json={"node": "box", "stream": True}) as response:
        events = await events_of(response)
    assert [each.get("state") for each in events[:2]] == ["running", "failed"]
    assert events[2]["error"]["code"] == "node_lost"
    assert len(events) == 3


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110  (it looks at lists, which tell nobody)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
async def test_going_away_lets_go(backend: MemoryMesh, stream: bool) -> None:
    backend.words["3333cccc"] = [said("running"), Ordered(0, "silent")]
    async with served(backend) as origin:
        async with aiohttp.ClientSession(origin) as http:
            asking = asyncio.create_task(
                http.post("/v1/mesh/drain", json={"node": "box", "stream": stream})
            )
            await until(lambda: backend.orders)
            if stream:
                (await asking).close()
            else:
                asking.cancel()
        await until(lambda: backend.left)


def test_errors_of_orders_are_documented() -> None:
    from blip.gateway.routes.operations import OPERATIONS

    for operation in OPERATIONS:
        assert all(issubclass(error, BlipError) for error in operation.errors)
        assert {NodeLost, NotFound} <= set(operation.errors)

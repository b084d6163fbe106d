"""Tasks by parts of their ids, and why they ran where they ran."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from blip.errors import InvalidRequest, NotFound
from blip.gateway.mesh import TaskStory, TaskView
from blip.gateway.routes.tasks import find_task
from blip.gateway.stories import REMEMBERED, Stories, merge
from blip.gateway.table import NodeTable
from blip.protocol.messages import Advert, Model, NodeEntry, Nodes, Place, Story, Why
from blip.protocol.names import unique_names
from tests.unit.gateway_mesh import mesh, served


def task(id: str) -> TaskView:
    return TaskView(id.rjust(32, "a"), "chat", "m", "running", "n", 1, 0.0)


def place(number: int, attempt: int = 1) -> Place:
    return Place(number.to_bytes(16, "big"), attempt, "chat", "m", 1.0)


# --- which task ------------------------------------------------------------------------------


def test_a_task_by_its_id_or_a_part_of_it() -> None:
    one, other = task("0001"), task("0002")
    both = [one, other]
    for given in (one.id, one.id.upper(), "0001", "aa0001"):
        assert find_task(both, given) is one
    assert find_task(both, "f" * 32) == "f" * 32
    with pytest.raises(InvalidRequest) as wrong:
        find_task(both, "aaaa")
    assert one.id in wrong.value.message
    assert other.id in wrong.value.message
    many = [task(f"{number:04d}") for number in range(20)]
    with pytest.raises(InvalidRequest, match=r"20 tasks: .* and 15 more"):
        find_task(many, "aaaa")


@pytest.mark.parametrize("given", ["", "123", "xyzw", "0" * 33, "00 01"])
def test_what_is_no_id(given: str) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        find_task([task("0001")], given)
    assert wrong.value.param == "id"


def test_nobody_has_that_id() -> None:
    with pytest.raises(NotFound, match="no task 'beef'"):
        find_task([task("0001")], "beef")


# --- names -----------------------------------------------------------------------------------


def entry(id: str, name: str, status: str = "ready") -> NodeEntry:
    advert = Advert(1, False, [], [Model("m", ["chat"])], [], [])
    return NodeEntry(id, 1, name, "h", [], status, advert)


def test_names_are_told_apart_by_the_ends_of_ids() -> None:
    entries = [
        entry("1111aaaa", "rig"),
        entry("2222bbbb", "rig"),
        entry("3", "box"),
        entry("4", ""),
    ]
    assert unique_names(entries) == {
        "1111aaaa": "rig#aaaa",
        "2222bbbb": "rig#bbbb",
        "3": "box",
        "4": "4",
    }


def test_ends_that_are_the_same_become_longer() -> None:
    names = unique_names([entry("x1aaaa", "rig"), entry("y1aaaa", "rig"), entry("zaaaa", "rig")])
    assert names == {"x1aaaa": "rig#x1aaaa", "y1aaaa": "rig#y1aaaa", "zaaaa": "rig#zaaaa"}
    assert unique_names([entry("same", "rig")] * 2) == {"same": "rig"}


def test_the_table_shows_them_everywhere() -> None:
    table = NodeTable()
    table.update(Nodes(True, [entry("1111aaaa", "rig"), entry("2222bbbb", "rig")], []))
    assert list(table.served[0].nodes) == ["rig#aaaa", "rig#bbbb"]
    table.update(Nodes(False, [], ["2222bbbb"]))
    assert list(table.served[0].nodes) == ["rig"]


# --- stories ---------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_without_a_broker_our_own_decisions_are_the_story() -> None:
    clock = Clock()
    stories = Stories(clock)
    stories.placed(place(1), "id-1", "rig", "gpu0")
    clock.now += 2
    stories.refused(place(1, 2), "no_node", "nobody is there")
    stories.placed(place(2), "id-2", "box", "cpu")
    clock.now += 1
    story = await stories.tell(place(1).task, None)
    assert story.note == "no broker can be reached"
    first, second = story.decisions
    assert (first["ago"], first["attempt"], first["outcome"]) == (3.0, 1, "grant")
    assert first["by"] == "gateway"
    assert first["considered"] == [{"node": "id-1", "name": "rig", "device": "gpu0"}]
    assert "no broker" in first["text"]
    assert (second["ago"], second["attempt"], second["outcome"]) == (1.0, 2, "deny")
    assert (second["code"], second["text"]) == ("no_node", "nobody is there")


async def test_only_so_many_are_remembered() -> None:
    stories = Stories(Clock())
    for number in range(REMEMBERED + 1):
        stories.placed(place(number), "id", "rig", "gpu0")
    assert not (await stories.tell(place(0).task, None)).decisions
    assert (await stories.tell(place(1).task, None)).decisions


async def test_the_brokers_and_our_decisions_come_in_order_of_time() -> None:
    clock = Clock()
    stories = Stories(clock)
    stories.placed(place(1, 2), "id-1", "rig", "gpu0")
    clock.now += 2
    asked: list[Why] = []
    telling = asyncio.create_task(stories.tell(place(1).task, asked.append))
    again = asyncio.create_task(stories.tell(place(1).task, asked.append))
    await asyncio.sleep(0)
    assert asked == [Why(place(1).task, 0)] * 2
    stories.told(Story(place(7).task, 0, []))  # nobody asked
    decisions: list[dict[str, Any]] = [
        {"ago": 5.0, "attempt": 1, "outcome": "grant"},
        {"ago": 5.0, "attempt": 1, "outcome": "end"},
        {"ago": 0.5, "attempt": 3, "outcome": "grant"},
    ]
    stories.told(Story(place(1).task, 0, decisions))
    story = await telling
    assert await again == story
    assert [(each["by"], each["attempt"], each["outcome"]) for each in story.decisions] == [
        ("broker", 1, "grant"),
        ("broker", 1, "end"),
        ("gateway", 2, "grant"),
        ("broker", 3, "grant"),
    ]
    assert story.note == ""


async def test_a_broker_that_goes_or_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    stories = Stories(Clock())
    stories.placed(place(1), "id-1", "rig", "gpu0")
    telling = asyncio.create_task(stories.tell(place(1).task, lambda why: None))
    await asyncio.sleep(0)
    stories.abandon()
    story = await telling
    assert story.note == "the link to the broker broke"
    assert len(story.decisions) == 1
    monkeypatch.setattr("blip.gateway.stories.STORY_TIMEOUT", 0.05)
    story = await stories.tell(place(1).task, lambda why: None)
    assert story.note == "the broker did not answer within 0.05 s"
    assert len(story.decisions) == 1
    stories.told(Story(place(1).task, 0, []))  # too late
    stories.abandon()


def test_decisions_without_a_time_do_not_upset_it() -> None:
    assert merge([{"ago": "?"}], []) == [{"ago": "?"}]
    assert merge([{"a": 1}], [{"ago": 3.0}]) == [{"ago": 3.0}, {"a": 1}]


# --- over HTTP -------------------------------------------------------------------------------


async def test_the_routes() -> None:
    backend = mesh()
    known, elsewhere = "0" * 32, "e" * 32
    backend.stories[bytes.fromhex(known)] = TaskStory(
        [
            {
                "by": "broker",
                "ago": 2.5,
                "attempt": 1,
                "outcome": "grant",
                "considered": [
                    {"node": "n1", "name": "old name", "device": "cpu", "cost": 1.5, "room": True},
                    {"node": "gone", "name": "rig", "device": "gpu0", "evicts": ["m"]},
                ],
                "excluded": [{"node": "gone", "name": "rig", "device": "x", "reason": "cordoned"}],
                "from_the_future": 1,
            },
            {"ago": 1, "attempt": 1, "outcome": "end", "end": {"outcome": "done", "run": 0.5}},
        ]
    )
    backend.stories[bytes.fromhex(elsewhere)] = TaskStory(
        [{"ago": 1.0, "attempt": 1, "outcome": "deny"}]
    )
    async with served(backend) as origin, aiohttp.ClientSession(origin) as http:
        async with http.get("/v1/tasks/00000") as response:
            assert (await response.json())["id"] == known
        async with http.get("/v1/tasks/0000/why") as response:
            story = await response.json()
        assert story["task"]["id"] == known
        placed, ended = story["decisions"]
        assert [each["name"] for each in placed["considered"]] == ["büro-1", "rig"]
        assert placed["considered"][0]["cost"] == 1.5
        assert placed["considered"][0]["wait"] is None
        assert placed["considered"][1]["evicts"] == ["m"]
        assert placed["excluded"][0]["reason"] == "cordoned"
        assert ended["end"] == {"outcome": "done", "run": 0.5, "load": None, "units": None}
        async with http.get(f"/v1/tasks/{elsewhere}/why") as response:
            story = await response.json()
        assert story["task"] is None
        assert story["decisions"][0]["outcome"] == "deny"
        for path, status in (
            (f"/v1/tasks/{elsewhere}", 404),
            (f"/v1/tasks/{'d' * 32}/why", 404),
            ("/v1/tasks/beef/why", 404),
            ("/v1/tasks/no", 400),
            ("/v1/tasks/no/why", 400),
        ):
            async with http.get(path) as response:
                assert response.status == status, path
                assert (await response.json())["error"]["param"] == "id"


def test_additions_are_those_that_every_node_has() -> None:
    table = NodeTable()
    loras = {"a": ["ink", "clay"], "b": ["clay", "oil"]}
    entries = []
    for id, names in loras.items():
        painter = Model("painter", ["image"], loras=names, controlnets=["canny"])
        advert = Advert(1, False, [], [painter, Model("plain", ["image"])], [], [])
        entries.append(NodeEntry(id, 1, id, "host", [], "ready", advert))
    table.update(Nodes(True, entries, []))
    painter_seen, plain = table.served
    assert (painter_seen.loras, painter_seen.controlnets) == (("clay",), ("canny",))
    assert (plain.loras, plain.controlnets) == ((), ())

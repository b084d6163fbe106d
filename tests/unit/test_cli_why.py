"""``blip why``, against a gateway's real routes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from blip.cli import main
from blip.client import AsyncBlip, Blip
from blip.gateway.mesh import TaskStory
from tests.unit.gateway_mesh import MemoryMesh, mesh, served

TASK = "0" * 32


async def blip(backend: MemoryMesh, *args: str) -> int:
    async with served(backend) as url:
        return await asyncio.to_thread(main, [*args, "--url", url])


def telling(*decisions: dict[str, Any], note: str = "") -> MemoryMesh:
    backend = mesh()
    backend.stories[bytes(16)] = TaskStory(list(decisions), note)
    return backend


async def test_the_whole_story(capsys: pytest.CaptureFixture[str]) -> None:
    backend = telling(
        {
            "by": "broker",
            "ago": 65.0,
            "attempt": 1,
            "outcome": "wait",
            "considered": [
                {
                    "node": "n1", "device": "cpu", "wait": 1.25, "service": 2.0, "load": 0.0,
                    "others": 0.5, "cost": 3.75, "room": False, "evicts": [],
                },
                {
                    "node": "x", "name": "rig", "device": "gpu0", "wait": 0.0, "service": 1.0,
                    "load": 4.0, "others": 4.0, "cost": 9.0, "room": True, "evicts": ["a", "b"],
                },
            ],
            "excluded": [
                {"node": "y", "name": "box", "device": "gpu1", "reason": "cordoned: Xid 79"}
            ],
        },
        {"by": "gateway", "ago": 3.0, "attempt": 2, "outcome": "grant", "text": "no broker",
         "considered": [{"node": "n1", "device": "cpu"}]},
        {"ago": 2.0, "attempt": 2, "outcome": "end",
         "end": {"outcome": "done", "run": 1.5, "load": 2.5, "units": 12.0}},
    )  # fmt: skip
    assert await blip(backend, "why", "0000") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"task {TASK}",
        "chat parrot, priority 5: running on büro-1, attempt 1, 0.5 s",
        "",
        "1 min 05 s ago, attempt 1: waits, best for büro-1 cpu",
        "  NODE    DEVICE  WAIT s  SERVICE s  LOAD s  OTHERS s  COST s  ROOM  EVICTS",
        "  büro-1  cpu      1.250      2.000   0.000     0.500   3.750  no",
        "  rig     gpu0     0.000      1.000   4.000     4.000   9.000  yes   a, b",
        "  out of the question:",
        "    NODE  DEVICE  WHY",
        "    box   gpu1    cordoned: Xid 79",
        "",
        "3.0 s ago, attempt 2: placed on büro-1 cpu, by the gateway",
        "  no broker",
        "",
        "2.0 s ago, attempt 2: ended: done, ran 1.5 s, loaded the model for 2.5 s, "
        "12 units of work",
    ]


async def test_whatever_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    backend = telling(
        {"ago": 3.0, "attempt": 1, "outcome": "deny", "code": "overloaded"},
        {"ago": 2.0, "attempt": 1, "outcome": "grant"},
        {"ago": 2.0, "attempt": 1, "outcome": "move", "considered": [{"node": "x"}]},
        {"ago": 1.0, "attempt": 1, "outcome": "end"},
        {"ago": 1.0, "attempt": 1, "outcome": "invented", "text": "later"},
        note="the broker did not answer",
    )
    assert await blip(backend, "why", TASK) == 0
    out = capsys.readouterr().out
    for line in (
        "3.0 s ago, attempt 1: refused (overloaded)",
        "2.0 s ago, attempt 1: placed",
        "2.0 s ago, attempt 1: taken back, better on x",
        "1.0 s ago, attempt 1: ended: it is not known how",
        "1.0 s ago, attempt 1: invented",
        "The broker's part is missing: the broker did not answer.",
    ):
        assert f"\n{line}\n" in out
    assert await blip(telling(), "why", TASK) == 0
    assert "Nothing is remembered" in capsys.readouterr().out


async def test_as_json_and_by_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    backend = telling({"ago": 3.0, "attempt": 1, "outcome": "grant"})
    assert await blip(backend, "why", TASK, "--json") == 0
    assert json.loads(capsys.readouterr().out)["decisions"][0]["outcome"] == "grant"
    assert await blip(backend, "why", "beef") == 1
    assert "error: This gateway knows no task 'beef'" in capsys.readouterr().err
    assert await blip(backend, "why", "../../healthz") == 1
    assert "is not the id of a task" in capsys.readouterr().err


async def test_the_sdk() -> None:
    def use(url: str) -> None:
        with Blip(url) as client:
            assert client.task("0000")["state"] == "running"
            assert client.why("0000")["decisions"] == []

    async with served(mesh()) as url, AsyncBlip(url) as client:
        assert (await client.task(TASK))["id"] == TASK
        assert (await client.why(TASK))["task"]["model"] == "parrot"
        await asyncio.to_thread(use, url)

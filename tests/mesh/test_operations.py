"""Operators' orders through the gateway's HTTP routes to real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from blip.client import AsyncBlip
from blip.errors import BlipError, NodeLost, NotFound
from blip.kinds.echo import EchoInput
from blip.protocol.messages import Replica
from tests.mesh.rig import Rig
from tests.unit.gateway_mesh import served

COLD = {"echo": {"source": "builtin:echo"}}


@asynccontextmanager
async def operated(
    nodes: int, models: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Rig, AsyncBlip]]:
    async with (
        Rig(nodes=nodes, models=models) as rig,
        served(rig.dispatcher) as url,
        AsyncBlip(url) as client,
    ):
        yield rig, client


def replicas(rig: Rig) -> dict[str, Replica]:
    """The replicas that are ready, by the name of their node."""
    return {
        entry.name: replica
        for entry in rig.dispatcher.nodes()
        for replica in entry.advert.replicas
        if replica.state == "ready"
    }


def states(rig: Rig) -> dict[str, str]:
    """The state of each node's device, as the gateway knows it."""
    return {entry.name: entry.advert.devices[0].state for entry in rig.dispatcher.nodes()}


async def served_by(client: AsyncBlip, count: int) -> set[str]:
    """Run a few tasks side by side; return who served them."""
    answers = await asyncio.gather(*(client.echo("x", delay=0.05) for _ in range(count)))
    return {answer.origin.node for answer in answers}


async def test_load_and_unload() -> None:
    async with operated(2, COLD) as (rig, client):
        await rig.until(lambda: all(entry.advert.devices for entry in rig.dispatcher.nodes()))
        seen: list[dict[str, Any]] = []
        (loaded,) = await client.load("echo", pin=True, progress=seen.append)
        assert loaded["state"] == "done"
        assert loaded["details"]["seconds"] > 0
        assert seen[-1] == loaded
        await rig.until(lambda: bool(replicas(rig)))
        ((name, replica),) = replicas(rig).items()
        assert (name, replica.device, replica.pinned) == (loaded["name"], loaded["device"], True)
        assert await served_by(client, 4) == {name}
        # one more goes to the node that has none yet
        (other,) = await client.load("echo", keep_alive=600)
        assert other["name"] != name
        await rig.until(lambda: len(replicas(rig)) == 2)
        kept = replicas(rig)[other["name"]]
        assert not kept.pinned
        assert kept.unload_in is not None
        assert 500 < kept.unload_in <= 600
        # loaded already: nothing to do, but to change what was said
        (again,) = await client.load("echo", name, pin=False)
        assert again["state"] == "done"
        await rig.until(lambda: not replicas(rig)[name].pinned)
        gone = await client.unload("echo")
        assert {each["name"] for each in gone} == {name, other["name"]}
        assert all(each["details"]["replicas"] == 1 for each in gone)
        await rig.until(lambda: not replicas(rig))
        assert all(each["details"]["replicas"] == 0 for each in await client.unload("echo"))
        with pytest.raises(NotFound, match=r"'eco'; did you mean 'echo'"):
            await client.load("eco")


async def test_cordon_and_uncordon() -> None:
    async with operated(2) as (rig, client):
        (said,) = await client.cordon("node-1", reason="a new fan")
        assert (said["name"], said["state"]) == ("node-1", "done")
        await rig.until(lambda: states(rig) == {"node-1": "cordoned", "node-2": "ready"})
        (device,) = next(
            node["devices"] for node in (await client.mesh())["nodes"] if node["name"] == "node-1"
        )
        assert "a new fan" in device["reason"]
        assert await served_by(client, 8) == {"node-2"}
        await client.uncordon("node-1", device["id"])
        await rig.until(lambda: states(rig) == {"node-1": "ready", "node-2": "ready"})
        while await served_by(client, 8) != {"node-1", "node-2"}:
            pass  # the test's own limit ends this
        with pytest.raises(NotFound, match=r"'node-3'; did you mean 'node-"):
            await client.drain("node-3")


async def test_a_drain_says_how_much_is_left_and_loses_nothing() -> None:
    async with operated(2) as (rig, client):
        calls = [rig.call("echo", "echo", EchoInput(text=str(n), delay=2)) for n in range(24)]
        await rig.until(lambda: all(call.task.state.value == "running" for call in calls))
        assert {call.node for call in calls} == {"node-1", "node-2"}
        seen: list[dict[str, Any]] = []
        (last,) = await client.drain("node-1", progress=seen.append)
        assert last["state"] == "done"
        assert seen[0]["state"] == "running"
        assert seen[0]["details"]["left"] > 0
        here = [call for call in calls if call.node == "node-1"]
        assert all(call.outcome is not None for call in here)
        answers = await asyncio.gather(*(call.answer() for call in calls))
        assert [bytes(answer.payload) for answer in answers] == [b"%d" % n for n in range(24)]
        assert all(call.task.place.attempt == 1 for call in calls)
        await rig.until(lambda: states(rig)["node-1"] == "cordoned")
        assert await served_by(client, 8) == {"node-2"}


async def test_a_node_that_dies_while_it_drains() -> None:
    async with operated(1) as (rig, client):
        call = rig.call("echo", "echo", EchoInput(delay=60))
        await rig.until(lambda: call.task.state.value == "running")
        seen: list[dict[str, Any]] = []
        draining = asyncio.create_task(client.drain("node-1", progress=seen.append))
        await rig.until(lambda: bool(seen))
        await rig.nodes[0].kill()
        with pytest.raises(NodeLost, match="node-1"):
            await draining
        call.cancel()
        with pytest.raises(BlipError):
            await call.answer()

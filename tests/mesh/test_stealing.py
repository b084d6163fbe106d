"""An idle node takes what waits on a busy one, and nothing runs twice."""

from __future__ import annotations

import asyncio

from blip.kinds.echo import EchoInput
from tests.mesh.rig import Rig

ONE_SLOT = {"echo": {"source": "builtin:echo", "preload": True, "slots": 1}}


async def test_a_task_that_waits_moves_to_a_node_that_joins() -> None:
    async with Rig(nodes=1, models=ONE_SLOT) as rig:
        long = rig.call("echo", "echo", EchoInput(text="long", work=12.0))
        # with a stamp the answer says when it was made, and once only
        short = rig.call("echo", "echo", EchoInput(stamp=True, work=0.2))
        await rig.until(lambda: short.node == "node-1")
        await rig.start_node("node-2")
        answer = await asyncio.wait_for(short.answer(), 10)
        assert float(answer.payload) > 0
        assert (short.node, short.task.place.attempt) == ("node-2", 2)
        assert long.outcome is None, "what has begun stays where it is"
        assert long.node == "node-1"
        broker = rig.broker
        assert broker is not None
        story = ["grant", "move", "end", "grant", "end"]
        await rig.until(lambda: [d.outcome for d in broker.scheduler.explain(short.id)] == story)
        assert bytes((await long.answer()).payload) == b"long"
        assert long.task.place.attempt == 1


async def test_a_backlog_drains_over_nodes_that_join() -> None:
    async with Rig(nodes=1, models=ONE_SLOT) as rig:
        calls = [rig.call("echo", "echo", EchoInput(stamp=True, work=0.5)) for _ in range(12)]
        await rig.start_node("node-2")
        await rig.start_node("node-3")
        answers = await asyncio.gather(*(call.answer() for call in calls))
        assert len({bytes(answer.payload) for answer in answers}) == 12
        assert {call.node for call in calls} >= {"node-1", "node-2"}

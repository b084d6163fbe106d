"""Videos through the whole mesh: real nodes, a real gateway, and OpenAI's own client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from blip.gateway.settings import GatewaySettings
from blip.kinds.image import step_from_wire
from blip.kinds.video import VideoInput
from tests.mesh.rig import Rig
from tests.models.random_videos import make_video_pipeline
from tests.unit.gateway_mesh import served

# OpenAI means to switch its own Videos API off, and its client says so at every call
pytestmark = [
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
    pytest.mark.timeout(150),  # two nodes import torch and diffusers
]

CIRCLE = "a red circle"
QUICK: dict[str, Any] = {"steps": 3, "seed": 3, "num_frames": 9}


async def test_videos(tmp_path: Path) -> None:
    """One mesh for all: bringing up two that film takes longer than everything they do."""
    folder = make_video_pipeline(tmp_path, "ltx")
    models = {"ltx": {"source": str(folder), "preload": True}}
    async with (
        Rig(nodes=2, models=models) as rig,
        served(rig.dispatcher, GatewaySettings()) as origin,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0) as client,
    ):
        await bad_requests_fail_with_their_field(client)
        await a_node_that_dies_costs_a_video_nothing_but_time(rig)
        await deleting_frees_the_slot_within_a_step(rig, client)  # one node is left


async def bad_requests_fail_with_their_field(client: openai.AsyncOpenAI) -> None:
    for fields, param, says in (
        ({"num_frames": 10}, "num_frames", "nearest is 9"),
        ({"size": "40x32"}, "size", "nearest is 32x32"),
        ({"scheduler": "magic"}, "scheduler", "euler-a"),
    ):
        video = await client.videos.create_and_poll(
            model="ltx",
            prompt=CIRCLE,
            poll_interval_ms=20,
            extra_body={"size": "32x32", **QUICK, **fields},
        )
        error: Any = video.error
        assert (video.status, error.code, error.param) == ("failed", "invalid_request", param)
        assert says in error.message + error.hint


async def a_node_that_dies_costs_a_video_nothing_but_time(rig: Rig) -> None:
    asked = VideoInput(
        prompt=CIRCLE, width=64, height=64, **QUICK | {"steps": 150}, progress=True, format="apng"
    )
    whole = await rig.call("video", "ltx", asked).answer()
    call = rig.call("video", "ltx", asked)
    told: list[int] = []

    async def read() -> None:
        async for parts in call.parts():
            told.extend(step_from_wire(part).step for part in parts)

    reading = asyncio.create_task(read())
    await rig.until(lambda: bool(told) and told[-1] > 2)
    first = call.node
    await next(node for node in rig.nodes if node.name == first).kill()
    await reading
    again = await call.answer()
    assert call.node != first
    assert bytes(again.payload) == bytes(whole.payload)
    # it began again, and said so
    assert told.count(0) == 2


async def deleting_frees_the_slot_within_a_step(rig: Rig, client: openai.AsyncOpenAI) -> None:
    long = await client.videos.create(
        model="ltx", prompt=CIRCLE, extra_body=QUICK | {"size": "64x64", "steps": 500}
    )
    while (await client.videos.retrieve(long.id)).progress < 1:  # noqa: ASYNC110  (clients poll)
        await asyncio.sleep(0.01)
    waiting = rig.call("video", "ltx", VideoInput(prompt=CIRCLE, width=32, height=32, **QUICK))
    before = (await client.videos.retrieve(long.id)).progress
    await client.videos.delete(long.id)
    assert (await waiting.answer()).usage["frames"] == 9
    assert before < 90  # it had not come to its end by itself
    ended = next(view for view in rig.dispatcher.tasks() if view.state == "cancelled")
    assert ended.kind == "video"

"""Pictures through the whole mesh: a real node, a real gateway, and OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator
from typing import Any

import numpy
import openai
import pytest
from PIL import Image

from blip.errors import Cancelled
from blip.gateway.settings import GatewaySettings
from blip.kinds.image import ImageInput, step_from_wire
from tests.mesh.rig import MODELS, Rig
from tests.unit.gateway_mesh import served

TOY = {"toy-shapes": {"source": str(MODELS / "toy-shapes"), "preload": True}}
HEART = "a large red heart on a white background"
QUICK: dict[str, Any] = {"steps": 12, "guidance_scale": 4.0, "seed": 3}


@contextlib.asynccontextmanager
async def client_of(rig: Rig) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        served(rig.dispatcher, GatewaySettings()) as origin,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def file_of(picture: Any) -> bytes:
    return base64.b64decode(picture.b64_json)


def pixels(file: bytes) -> Any:
    return numpy.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=float)


def is_red_on_white(picture: Any) -> bool:
    red, green, _ = picture[28:36, 28:36].mean((0, 1))
    return bool(red > 150 > 80 > green and picture[:5, :5].mean() > 180)


@pytest.mark.timeout(180)  # it is several tests
async def test_pictures() -> None:
    """One mesh for all: bringing up two that paint takes longer than everything they do."""
    async with Rig(nodes=2, models=TOY) as rig:
        await openais_client_gets_pictures(rig)
        await a_node_that_dies_costs_a_picture_nothing_but_time(rig)
        await going_away_frees_the_slot_within_a_step(rig)  # one node is left


async def openais_client_gets_pictures(rig: Rig) -> None:
    async with client_of(rig) as client:
        answer = await client.images.generate(
            model="toy-shapes", prompt=HEART, n=4, extra_body=QUICK
        )
        assert answer.data is not None
        files = [file_of(picture) for picture in answer.data]
        assert all(is_red_on_white(pixels(file)) for file in files)
        assert [picture.seed for picture in answer.data] == [3, 4, 5, 6]  # type: ignore[attr-defined]
        assert answer.size == "64x64"
        # four pictures at once are more than one node takes
        assert {view.node for view in rig.dispatcher.tasks()} == {"node-1", "node-2"}

        again = await client.images.generate(
            model="toy-shapes", prompt=HEART, extra_body=QUICK | {"seed": 5}
        )
        assert again.data is not None
        assert (pixels(file_of(again.data[0])) == pixels(files[2])).all()


async def a_node_that_dies_costs_a_picture_nothing_but_time(rig: Rig) -> None:
    asked = ImageInput(prompt=HEART, **QUICK | {"steps": 60})
    whole = await rig.call("image", "toy-shapes", asked).answer()
    call = rig.call("image", "toy-shapes", asked)
    while not call.node:  # noqa: ASYNC110  (there is no event for it)
        await asyncio.sleep(0.005)
    first = call.node
    await next(node for node in rig.nodes if node.name == first).kill()
    again = await call.answer()
    assert call.node != first
    assert (pixels(bytes(again.payload)) == pixels(bytes(whole.payload))).all()


async def going_away_frees_the_slot_within_a_step(rig: Rig) -> None:
    call = rig.call(
        "image", "toy-shapes", ImageInput(prompt=HEART, steps=500, progress=True, seed=1)
    )
    await call.started()
    waiting = rig.call("image", "toy-shapes", ImageInput(prompt=HEART, **QUICK))
    call.cancel()
    answer = await waiting.answer()
    assert is_red_on_white(pixels(bytes(answer.payload)))
    with pytest.raises(Cancelled):
        await call.answer()
    done = []
    with contextlib.suppress(Cancelled):
        async for parts in call.parts():
            done += [step_from_wire(part).step for part in parts]
    assert done
    assert max(done) < 250  # it did not paint to its end first

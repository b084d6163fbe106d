"""Moderation and policies over a real mesh, with OpenAI's client and models that were trained."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from blip.gateway.policy import Policy
from blip.gateway.settings import GatewaySettings
from tests.mesh.rig import MODELS, Rig
from tests.unit.gateway_mesh import png, served

LABELS = {"fine": "", "mean": "harassment", "grim": "violence"}
GUARD = {"source": str(MODELS / "tiny-guard"), "kinds": ["moderation"], "labels": LABELS}
HEART = "a large red heart on a white background"
QUICK: dict[str, Any] = {"steps": 6, "seed": 3}

KEYS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("school", "studio", "museum")}
SETTINGS = GatewaySettings(
    api_keys=KEYS,
    moderation_model="guard",
    moderation_image_model="eye",
    policies=[
        Policy("strict", keys=("school",), words=("teapot",), models=("toy-*", "guard")),
        Policy("visual", keys=("museum",), prompts=False, pictures=True),
    ],
)


@contextlib.asynccontextmanager
async def client_of(origin: str, key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key=key, max_retries=0)
    async with client:
        yield client


async def paint(client: openai.AsyncOpenAI, prompt: str, **fields: Any) -> bytes:
    answer: Any = await client.images.generate(
        model="toy-shapes", prompt=prompt, extra_body={**QUICK, **fields}
    )
    return base64.b64decode(answer.data[0].b64_json)


@pytest.mark.timeout(180)
async def test_safety(tmp_path: Path) -> None:
    """One mesh for all: bringing one up takes longer than everything it is asked."""
    from tests.models.colour_guard import make_colour_guard

    make_colour_guard(tmp_path / "eye")
    eye = {"source": str(tmp_path / "eye"), "kinds": ["moderation"]}
    models = {
        "toy-shapes": {"source": str(MODELS / "toy-shapes"), "preload": True},
        "guard": {**GUARD, "preload": True},
        "eye": {**eye, "labels": {"calm": "", "red": "violence/graphic"}},
        "careless": {**GUARD, "labels": {"mean": "harassment"}},
    }
    async with Rig(nodes=1, models=models) as rig, served(rig.dispatcher, SETTINGS) as origin:
        await moderations(origin)
        await prompts_are_looked_at_first(rig, origin)
        await pictures_are_looked_at(origin)
        await what_cannot_be_said_is_an_error(rig, origin)


async def moderations(origin: str) -> None:
    async with client_of(origin, "studio") as client:
        answer = await client.moderations.create(input="you are a snarf")
        [result] = answer.results
        assert answer.model == "guard"
        assert result.flagged
        assert result.categories.harassment
        assert not result.categories.violence
        assert result.category_scores.harassment > 0.9
        assert result.category_applied_input_types.harassment == ["text"]
        assert result.category_applied_input_types.sexual == []  # nobody looked

        long = "a kind word " * 100 + "skrell" + " a kind word" * 100  # ten windows
        several = await client.moderations.create(
            model="omni-moderation-latest", input=["a kind word", long, "thank you"]
        )
        assert [each.flagged for each in several.results] == [False, True, False]
        assert several.results[1].categories.violence

        red = base64.b64encode(png(8, 8, 250)).decode()
        parts: Any = [
            {"type": "text", "text": "a kind word"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{red}"}},
        ]
        both = await client.moderations.create(input=parts)
        assert both.model == "guard, eye"
        [merged] = both.results
        assert merged.categories.violence_graphic
        assert not merged.categories.harassment
        parts[1]["image_url"]["url"] = "https://example.com/a.png"
        with pytest.raises(openai.BadRequestError, match="not fetched"):
            await client.moderations.create(input=parts)


async def prompts_are_looked_at_first(rig: Rig, origin: str) -> None:
    async with client_of(origin, "school") as client:
        assert await paint(client, HEART)
        painted = sum(task.kind == "image" for task in rig.dispatcher.tasks())
        with pytest.raises(openai.BadRequestError, match="violence") as caught:
            await paint(client, "a picture of a grumph")
        assert caught.value.code == "content_policy_violation"
        body: Any = caught.value.body
        assert body["details"]["categories"] == ["violence"]
        assert body["param"] == "prompt"
        with pytest.raises(openai.BadRequestError, match="'teapot'") as caught:
            await paint(client, "A TEAPOT, please")
        assert caught.value.code == "content_policy_violation"
        assert sum(task.kind == "image" for task in rig.dispatcher.tasks()) == painted
        with pytest.raises(openai.PermissionDeniedError, match="'eye'"):
            await client.moderations.create(model="eye", input="a")
    async with client_of(origin, "studio") as client:  # whom no policy names
        assert await paint(client, "a picture of a grumph")


async def pictures_are_looked_at(origin: str) -> None:
    async with client_of(origin, "museum") as client:
        assert await paint(client, "a small green circle on a blue background")
        with pytest.raises(openai.BadRequestError, match="A picture that was made") as caught:
            await paint(client, "a large red square on a red background", steps=12)
        assert caught.value.code == "content_policy_violation"
        with pytest.raises(openai.BadRequestError, match="'image' is not allowed") as caught:
            await client.images.edit(model="toy-shapes", image=png(16, 16, 240), prompt=HEART)
        with pytest.raises(openai.BadRequestError, match="before they are checked"):
            await paint(client, HEART, stream=True)


async def what_cannot_be_said_is_an_error(rig: Rig, origin: str) -> None:
    async with client_of(origin, "studio") as client:
        with pytest.raises(openai.InternalServerError, match="output 'fine'") as e:
            await client.moderations.create(model="careless", input="a kind word")
        assert e.value.status_code == 503
        with pytest.raises(openai.BadRequestError, match="judges images only"):
            await client.moderations.create(model="eye", input="a kind word")
    await rig.nodes[0].kill()
    async with client_of(origin, "studio") as client:
        with pytest.raises(openai.APIStatusError):
            await client.moderations.create(input="a kind word")
    async with client_of(origin, "school") as client:
        with pytest.raises(openai.InternalServerError, match="therefore refused") as caught:
            await paint(client, HEART)
        assert caught.value.status_code == 503

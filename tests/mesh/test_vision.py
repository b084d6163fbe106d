"""Models that see, through the whole mesh: a real node, a real gateway, real clients."""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import numpy
import openai
import pytest
from PIL import Image

from blip.gateway.settings import GatewaySettings
from tests.mesh.rig import MODELS, Rig
from tests.models.make_toy_shapes import Scene, draw
from tests.models.random_seeing import make_seeing
from tests.unit.gateway_mesh import served

SCENES = [
    Scene("red", "white", "heart", "large"),
    Scene("blue", "yellow", "star", "large"),
    Scene("purple", "orange", "square", ""),
]


def picture(scene: Scene) -> bytes:
    pixels = (draw(scene, numpy.random.default_rng(3)) + 1) * 127.5
    file = io.BytesIO()
    Image.fromarray(pixels.round().clip(0, 255).astype("uint8")).save(file, "PNG")
    return file.getvalue()


HEART = picture(SCENES[0])
URL = f"data:image/png;base64,{base64.b64encode(HEART).decode()}"


async def test_vision(tmp_path: Path) -> None:
    """One mesh for all: bringing up several takes longer than everything they do."""
    models: dict[str, Any] = {
        "toy-caption": {"source": str(MODELS / "toy-caption"), "preload": True},
        "tiny-chat": {"source": str(MODELS / "tiny-chat"), "preload": True},
    }
    for family in ("llava", "dpt", "segformer", "yolos", "clip"):
        models[family] = {"source": str(make_seeing(tmp_path / family, family))}
    async with (
        Rig(models=models, request_timeout=60.0) as rig,
        served(rig.dispatcher, GatewaySettings()) as origin,
        aiohttp.ClientSession(origin) as http,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0) as client,
    ):
        await captions_are_what_was_drawn(http)
        await the_originals_curl_line_is_answered(origin)
        await bad_pictures_harm_nobody(http)
        await a_chat_sees(client)
        await a_model_of_text_says_that_it_is_one(client)
        await everything_else_is_found(http)
        await going_away_ends_an_answer(rig, client)


async def see(http: aiohttp.ClientSession, route: str, image: bytes, **fields: str) -> Any:
    form = aiohttp.FormData(fields)
    form.add_field("image", image, filename="picture.png")
    async with http.post(f"/v1/vision/{route}", data=form) as response:
        return await response.json()


async def captions_are_what_was_drawn(http: aiohttp.ClientSession) -> None:
    asked = [see(http, "caption", picture(scene), model="toy-caption") for scene in SCENES]
    answers = await asyncio.gather(*asked)
    assert [answer["text"] for answer in answers] == [str(scene) for scene in SCENES]
    assert answers[0]["usage"]["completion_tokens"] == len(str(SCENES[0]).split()) + 1


async def the_originals_curl_line_is_answered(origin: str) -> None:
    if shutil.which("curl") is None:
        pytest.fail("curl is missing")
    document = f'{{"model": "toy-caption", "image_data": "{URL.partition(",")[2]}"}}'
    words = ["curl", "-sS", "-X", "POST", f"{origin}/api/v1/inference/image-to-text"]
    words += ["-H", "Content-Type: application/json", "-d", document]
    done = await asyncio.to_thread(subprocess.run, words, capture_output=True, check=True)
    assert f'"caption":"{SCENES[0]}"'.encode() in done.stdout


async def bad_pictures_harm_nobody(http: aiohttp.ClientSession) -> None:
    bomb = HEART[:16] + (2**15).to_bytes(4, "big") * 2 + HEART[24:]
    good, cut, large = await asyncio.gather(
        see(http, "caption", HEART, model="toy-caption"),
        see(http, "caption", HEART[:-200], model="toy-caption"),
        see(http, "caption", bomb, model="toy-caption"),
    )
    assert good["text"] == str(SCENES[0])
    assert "cannot be decoded" in cut["error"]["message"]
    assert (cut["error"]["param"], large["error"]["param"]) == ("image", "image")
    assert "32768 x 32768" in large["error"]["message"]


def question(*texts: str) -> Any:
    image = {"type": "image_url", "image_url": {"url": URL}}
    return [{"role": "user", "content": [*({"type": "text", "text": t} for t in texts), image]}]


async def a_chat_sees(client: openai.AsyncOpenAI) -> None:
    how: dict[str, Any] = {"model": "llava", "max_tokens": 12, "seed": 3, "temperature": 1.5}
    whole = await client.chat.completions.create(messages=question("What is it?"), **how)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 16  # the picture's own
    stream = await client.chat.completions.create(
        messages=question("What is it?"), stream=True, **how
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 3


async def a_model_of_text_says_that_it_is_one(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tiny-chat reads text only") as caught:
        await client.chat.completions.create(model="tiny-chat", messages=question("x"))
    body: Any = caught.value.body
    assert (body["code"], body["param"]) == ("unsupported_field", "messages.0.content")


async def everything_else_is_found(http: aiohttp.ClientSession) -> None:
    depth, cut, found, named = await asyncio.gather(  # they load beside each other
        see(http, "depth", HEART, model="dpt"),
        see(http, "segment", HEART, model="segformer"),
        see(http, "detect", HEART, model="yolos", threshold="0"),
        see(http, "classify", HEART, model="clip", labels="a heart,a star"),
    )
    gray = numpy.asarray(Image.open(io.BytesIO(base64.b64decode(depth["b64_json"]))))
    assert gray.shape == (64, 64)
    assert gray.dtype == numpy.uint16
    assert sum(part["area"] for part in cut["segments"]) == 64 * 64
    assert len(found["objects"]) == 5
    assert sum(each["score"] for each in named["labels"]) == pytest.approx(1, abs=1e-5)
    refused = await see(http, "classify", HEART, model="clip")
    assert refused["error"]["param"] == "labels"
    async with http.get("/v1/models") as response:
        kinds = {row["id"]: row["kinds"] for row in (await response.json())["data"]}
    assert kinds["llava"] == ["caption", "chat"]
    assert kinds["dpt"] == ["depth"]
    wrong = await see(http, "depth", HEART, model="toy-caption")
    assert "toy-caption" in wrong["error"]["message"]


async def going_away_ends_an_answer(rig: Rig, client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="llava",
        messages=question("x"),
        stream=True,
        max_tokens=400,
        logit_bias={"2": -100},
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()

    def ended() -> bool:
        return all(task.state not in ("running", "queued") for task in rig.dispatcher.tasks())

    await rig.until(ended)
    (node,) = rig.dispatcher.nodes()
    await rig.until(lambda: not rig.dispatcher.nodes()[0].advert.running)
    assert node.name == "node-1"
    # the slot, the only one, is free
    answer = await client.chat.completions.create(
        model="llava", messages=question("x"), max_tokens=2
    )
    assert answer.choices[0].finish_reason in ("length", "stop")

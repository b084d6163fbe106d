"""Vision routes, and pictures in chats of every dialect: forms, JSON, and what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import ollama
import openai
import pytest

from blip.gateway.mesh import Answer, ServedModel
from blip.gateway.parts import Content, joined
from blip.gateway.settings import GatewaySettings
from blip.gateway.upload import decode_file
from blip.kinds import KINDS, input_from_wire, input_to_wire
from blip.kinds import vision as wire
from blip.kinds.chat import MAX_MESSAGE_PICTURES, ChatInput, ChatPicture
from blip.kinds.pictures import MAX_PIXELS
from tests.unit.gateway_mesh import MemoryMesh, Work, mesh, png, served

PICTURE = png(8, 6)
TEXT = base64.b64encode(PICTURE).decode()
URL = f"data:image/png;base64,{TEXT}"

#: Claims more pixels than are taken, in a few bytes.
BOMB = PICTURE[:16] + (2**15).to_bytes(4, "big") * 2 + PICTURE[24:]


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    settings = GatewaySettings(body_limit=100_000)
    async with served(backend, settings) as origin, aiohttp.ClientSession(origin) as session:
        yield session


def form(image: bytes | None = PICTURE, **fields: str) -> aiohttp.FormData:
    made = aiohttp.FormData(fields, default_to_multipart=True)
    if image is not None:
        made.add_field("image", image, filename="picture.png")
    return made


async def post(http: aiohttp.ClientSession, path: str, **sent: Any) -> tuple[int, Any]:
    async with http.post(path, **sent) as response:
        return response.status, await response.json()


# --- the routes -----------------------------------------------------------------------------


async def test_caption(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    fields: dict[str, Any] = {"model": "toy-caption", "prompt": "a photo of"}
    status, body = await post(
        http, "/v1/vision/caption", data=form(**fields, max_tokens="7", seed="3", temperature="0.5")
    )
    assert (status, body["text"]) == (200, f"{len(PICTURE)} bytes a photo of")
    assert body["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    asked = backend.inputs[-1]
    assert (asked.max_tokens, asked.seed, asked.temperature) == (7, 3, 0.5)
    for image in (TEXT, URL, URL.replace("image/png", "image/png;charset=x"), TEXT + "\n"):
        status, body = await post(http, "/v1/vision/caption", json={**fields, "image": image})
        assert status == 200
        assert backend.inputs[-1].image == PICTURE
    assert backend.inputs[-1].temperature == 0


async def test_detect(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    data = form(model="owlv2", labels="a cat, a dog,, a cup", threshold="0.25")
    status, body = await post(http, "/v1/vision/detect", data=data)
    assert status == 200
    assert (body["width"], body["height"]) == (8, 8)
    assert [each["label"] for each in body["objects"]] == ["a cat", "a dog", "a cup"]
    assert body["objects"][0]["box"] == {"xmin": 1.5, "ymin": 2.0, "xmax": 6.0, "ymax": 7.25}
    assert backend.inputs[-1].threshold == 0.25
    asked = {"model": "owlv2", "labels": ["one, with a comma"], "image": URL}
    _, body = await post(http, "/v1/vision/detect", json=asked)
    assert [each["label"] for each in body["objects"]] == ["one, with a comma"]


async def test_classify(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    status, body = await post(http, "/v1/vision/classify", data=form(model="clip"))
    assert (status, body["labels"]) == (
        200,
        [{"label": "cat", "score": 1.0}, {"label": "dog", "score": 0.5}],
    )
    assert backend.inputs[-1].top == 5
    labels = [f"thing {number}" for number in range(9)]
    asked = {"model": "clip", "image": TEXT, "labels": labels, "template": "one {}"}
    _, body = await post(http, "/v1/vision/classify", json=asked)
    assert [each["label"] for each in body["labels"]] == labels
    assert backend.inputs[-1].template == "one {}"
    _, body = await post(http, "/v1/vision/classify", json={**asked, "top": 2})
    assert len(body["labels"]) == 2


async def test_depth(http: aiohttp.ClientSession) -> None:
    status, body = await post(http, "/v1/vision/depth", data=form(model="depth-anything"))
    assert (status, body["min"], body["max"]) == (200, 0.5, 4.5)
    assert base64.b64decode(body["b64_json"]) == PICTURE
    asked = {"data": form(model="depth-anything"), "headers": {"Accept": "image/png"}}
    async with http.post("/v1/vision/depth", **asked) as response:  # type: ignore[arg-type]
        assert response.content_type == "image/png"
        assert response.headers["X-Blip-Task"]
        assert await response.read() == PICTURE


async def test_segment(http: aiohttp.ClientSession) -> None:
    data = form(model="segformer", mode="panoptic")
    status, body = await post(http, "/v1/vision/segment", data=data)
    assert (status, body["mode"]) == (200, "panoptic")
    assert [(each["label"], each["score"], each["area"]) for each in body["segments"]] == [
        ("sky", None, 40),
        ("sea", 0.5, 24),
    ]
    assert base64.b64decode(body["segments"][1]["b64_json"]) == PICTURE


@pytest.mark.parametrize(
    ("route", "sent", "status", "param", "says"),
    [
        ("caption", {"data": form(None, model="m")}, 400, "image", "missing"),
        ("caption", {"json": {"model": "m"}}, 400, "image", "missing"),
        ("caption", {"json": {"model": "m", "image": 7}}, 400, "image", "not a string"),
        ("caption", {"json": [1]}, 400, None, "object"),
        (
            "caption",
            {"data": b"{", "headers": {"Content-Type": "application/json"}},
            400,
            None,
            "J",
        ),
        ("caption", {"json": {"image": TEXT}}, 400, "model", "required"),
        ("caption", {"json": {"model": "m", "image": "!!"}}, 400, "image", "base64"),
        (
            "caption",
            {"json": {"model": "m", "image": "https://x/y.png"}},
            400,
            "image",
            "not fetched",
        ),
        ("caption", {"json": {"model": "m", "image": "file:///etc/passwd"}}, 400, "image", "fetch"),
        ("caption", {"data": form(BOMB, model="m")}, 400, "image", str(MAX_PIXELS)),
        ("detect", {"data": form(b"GIF89a", model="m")}, 400, "image", "not a PNG"),
        ("depth", {"data": form(b"", model="m")}, 400, "image", "not a PNG"),
        ("caption", {"data": form(b"x" * 100_001, model="m")}, 413, None, "larger"),
        ("caption", {"json": {"model": "m", "image": "x" * 100_001}}, 413, None, "larger"),
        ("segment", {"data": form(model="m", mode="magic")}, 400, "mode", "panoptic"),
        ("detect", {"data": form(model="m", threshold="2")}, 400, "threshold", "1"),
        ("detect", {"data": form(model="m", labels="x" * 300)}, 400, "labels", "256"),
        ("classify", {"data": form(model="m", labels="a," * 300)}, 400, "labels", "256"),
        ("classify", {"data": form(model="m", labels="[1")}, 400, "labels", "JSON"),
        ("classify", {"data": form(model="m", label="a")}, 400, "label", "labels"),
        ("caption", {"data": form(model="nobody")}, 404, "model", "nobody"),
    ],
)
async def test_refused(
    http: aiohttp.ClientSession, route: str, sent: Any, status: int, param: str, says: str
) -> None:
    sent = {**sent}
    got, body = await post(http, f"/v1/vision/{route}", **sent)
    error = body["error"]
    assert (got, error["param"]) == (status, param)
    assert says in error["message"] + str(error["hint"])


async def test_a_result_that_cannot_be_read(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    async def broken(value: Any) -> Work:
        yield Answer(b"\x93\x01\x02\x90", {}, 1.0)

    backend.nodes_by_model["segformer"] = broken
    status, body = await post(http, "/v1/vision/segment", data=form(model="segformer"))
    assert (status, body["error"]["code"]) == (500, "runtime_failed")


async def test_bitinglip(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    path = "/api/v1/inference/image-to-text"
    status, body = await post(http, path, json={"model": "toy-caption", "image_data": TEXT})
    assert (status, body["status"]) == (200, "completed")
    assert body["result"] == {
        "caption": f"{len(PICTURE)} bytes",
        "image_size": [8, 6],
        "image_mode": "RGB",
        "model_used": "toy-caption",
    }
    assert backend.inputs[-1].max_tokens == 100
    for fields, param in (
        ({}, "image_data"),
        ({"image": TEXT, "image_data": TEXT}, "image"),
        ({"image_data": "https://x/y"}, "image_data"),
        ({"image": "aGk="}, "image"),
    ):
        status, body = await post(http, path, json={"model": "toy-caption", **fields})
        assert (status, body["error"]["details"]["field"]) == (400, param)


# --- pictures in chats ----------------------------------------------------------------------


def pictures_of(value: Any) -> list[tuple[str, list[tuple[bytes, int]]]]:
    assert isinstance(value, ChatInput)
    return [
        (message.content, [(picture.data, picture.at) for picture in message.pictures])
        for message in value.messages
    ]


async def test_openais_client(backend: MemoryMesh) -> None:
    parts: Any = [
        {"type": "text", "text": "What"},
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        {"type": "text", "text": "is this?"},
    ]
    async with (
        served(backend) as origin,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = await client.chat.completions.create(
            model="parrot", messages=[{"role": "user", "content": parts}]
        )
        assert answer.choices[0].message.content == "What\nis this?"
        assert pictures_of(backend.inputs[-1]) == [("What\nis this?", [(PICTURE, 4)])]
        items: Any = [
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": URL, "detail": "auto"},
                    {"type": "input_text", "text": "What is this?"},
                ],
            }
        ]
        await client.responses.create(model="parrot", input=items)
        assert pictures_of(backend.inputs[-1]) == [("What is this?", [(PICTURE, 0)])]


async def test_anthropics_client(backend: MemoryMesh) -> None:
    image: Any = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": TEXT},
    }
    async with (
        served(backend) as origin,
        anthropic.AsyncAnthropic(base_url=origin, api_key="none", max_retries=0) as client,
    ):
        await client.messages.create(
            model="parrot",
            max_tokens=9,
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "One:"}, image]},
                {"role": "user", "content": [image, {"type": "text", "text": "Which?"}]},
            ],
        )
        said = [("One:\nWhich?", [(PICTURE, 4), (PICTURE, 5)])]
        assert pictures_of(backend.inputs[-1]) == said
        for source in (
            {"type": "url", "url": "https://x/y.png"},
            {"type": "file", "file_id": "f"},
            {"type": "base64"},
        ):
            block: Any = {"type": "image", "source": source}
            with pytest.raises(anthropic.BadRequestError, match="source"):
                await client.messages.create(
                    model="parrot", max_tokens=9, messages=[{"role": "user", "content": [block]}]
                )
        bare: Any = {"type": "image"}
        with pytest.raises(anthropic.BadRequestError, match=r"source' is missing"):
            await client.messages.create(
                model="parrot", max_tokens=9, messages=[{"role": "user", "content": [bare]}]
            )


async def test_ollamas_client(backend: MemoryMesh) -> None:
    async with served(backend) as origin, ollama.AsyncClient(origin) as client:
        message = {"role": "user", "content": "What is this?", "images": [PICTURE]}
        await client.chat(model="parrot", messages=[message])
        assert pictures_of(backend.inputs[-1]) == [("What is this?", [(PICTURE, 0)])]
        await client.generate(model="parrot", prompt="What is this?", images=[PICTURE])
        assert pictures_of(backend.inputs[-1]) == [("What is this?", [(PICTURE, 0)])]
        with pytest.raises(ollama.ResponseError, match="raw"):
            await client.generate(model="parrot", prompt="x", images=[PICTURE], raw=True)


@pytest.mark.parametrize(
    ("image", "param", "says"),
    [
        ({"url": "data:image/gif;base64,R0lGODlh"}, "image_url.url", "not a PNG"),
        ({"url": f"data:;base64,{base64.b64encode(BOMB).decode()}"}, "image_url.url", "pixels"),
        ({"url": "data:image/png,notbase64"}, "image_url.url", "fetched"),
        ({"url": URL[:-3]}, "image_url.url", "base64"),
        (None, "image_url", "missing"),
    ],
)
async def test_refused_in_a_chat(
    http: aiohttp.ClientSession, image: Any, param: str, says: str
) -> None:
    part = {"type": "image_url", "image_url": image}
    message = {"role": "user", "content": [{"type": "text", "text": "x"}, part]}
    asked = {"model": "parrot", "messages": [message]}
    status, body = await post(http, "/v1/chat/completions", json=asked)
    assert (status, body["error"]["param"]) == (400, f"messages.0.content.1.{param}")
    assert says in json.dumps(body)


async def test_too_many_in_a_message(http: aiohttp.ClientSession) -> None:
    parts = [{"type": "image_url", "image_url": {"url": URL}}] * (MAX_MESSAGE_PICTURES + 1)
    asked = {"model": "parrot", "messages": [{"role": "user", "content": parts}]}
    status, body = await post(http, "/v1/chat/completions", json=asked)
    assert (status, body["error"]["param"]) == (400, "messages.0.content")


def test_pieces_keep_their_places() -> None:
    found = joined(["one", b"a", "two", b"b", b"c"], "content")
    assert found.text == "one\ntwo"
    assert [(picture.data, picture.at) for picture in found.pictures] == [
        (b"a", 3),
        (b"b", 7),
        (b"c", 7),
    ]
    more = found.followed(Content("three", [ChatPicture(data=b"d", at=5)]))
    assert (more.text, more.pictures[-1].at) == ("one\ntwo\nthree", 13)


def test_files_in_json() -> None:
    assert decode_file("", "image") == b""
    assert decode_file("DATA:Image/PNG;BASE64,aGk=", "image") == b"hi"


async def test_ollama_is_told_who_sees(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    served_model = ServedModel("eyes", ("caption", "chat"), 2048, ("rig-1",), 1)
    monkeypatch.setattr(MemoryMesh, "models", lambda self: [served_model])
    status, body = await post(http, "/api/show", json={"model": "eyes"})
    assert (status, body["capabilities"]) == (200, ["completion", "vision"])


# --- on the wire ----------------------------------------------------------------------------


def test_chats_carry_bytes() -> None:
    value = ChatInput.model_validate(
        {"messages": [{"role": "user", "content": "x", "pictures": [{"data": PICTURE, "at": 1}]}]}
    )
    sent = input_to_wire(value)
    assert PICTURE in sent
    assert input_from_wire(KINDS["chat"], sent) == value
    plain = ChatInput.model_validate({"messages": [{"role": "user", "content": "x"}]})
    assert KINDS["chat"].units(value) > KINDS["chat"].units(plain)


def test_results() -> None:
    guesses = [wire.Guess("cat", 0.75)]
    assert wire.guesses_from_wire(wire.to_wire(guesses)) == guesses
    found = wire.Detections(4, 3, [wire.Found("cat", 0.5, wire.Box(0.0, 1.0, 2.0, 3.0))])
    assert wire.detections_from_wire(wire.to_wire(found)) == found
    depths = wire.Depths(4, 3, -1.0, 2.0, b"file")
    assert wire.depths_from_wire(wire.to_wire(depths)) == depths
    parts = wire.Segments(4, 3, "instance", [wire.Segment("cat", None, 5, b"mask")])
    assert wire.segments_from_wire(wire.to_wire(parts)) == parts
    nothing = wire.Depths(4, 3, float("nan"), 2.0, b"")
    with pytest.raises(ValueError, match="nan"):
        wire.depths_from_wire(wire.to_wire(nothing))

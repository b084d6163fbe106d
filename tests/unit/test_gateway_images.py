"""Image routes with the real ``openai`` client, and with forms of every sort."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgpack
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.errors import ContextTooLong, InvalidRequest, RuntimeFailed
from blip.gateway.form import MAX_PARTS
from blip.gateway.settings import GatewaySettings
from blip.kinds import KINDS, input_from_wire, input_to_wire
from blip.kinds.image import Control, ImageInput, Step, step_from_wire, step_to_wire
from blip.kinds.pictures import MAX_PIXELS, check_picture, read_header
from tests.unit.gateway_mesh import MemoryMesh, failing, mesh, png, served

HEART = "a large red heart"


@contextlib.asynccontextmanager
async def client_of(backend: MemoryMesh) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        served(backend) as origin,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    settings = GatewaySettings(body_limit=100_000)
    async with served(backend, settings) as origin, aiohttp.ClientSession(origin) as session:
        yield session


# --- with OpenAI's client -------------------------------------------------------------------


async def test_generate(backend: MemoryMesh) -> None:
    async with client_of(backend) as client:
        answer = await client.images.generate(
            model="toy-shapes",
            prompt=HEART,
            n=3,
            size="256x512",
            quality="auto",
            response_format="b64_json",
            user="someone",
            background="opaque",
            moderation="low",
            extra_body={
                "negative_prompt": "blue",
                "steps": 8,
                "guidance_scale": 3,
                "seed": 2**63 - 2,
                "scheduler": "euler-karras",
            },
        )
    assert answer.data is not None
    seeds = [2**63 - 2, 2**63 - 1, -(2**63)]  # and from there on again
    assert [picture.seed for picture in answer.data] == seeds  # type: ignore[attr-defined]
    files = [base64.b64decode(picture.b64_json or "") for picture in answer.data]
    assert files == [png(256, 512, seed) for seed in seeds]
    assert (answer.size, answer.output_format) == ("256x512", "png")
    assert answer.usage is not None
    assert answer.usage.input_tokens == answer.usage.total_tokens == 12
    first = backend.inputs[0].model_dump(exclude_defaults=True)
    assert first == {
        "prompt": HEART,
        "negative_prompt": "blue",
        "width": 256,
        "height": 512,
        "steps": 8,
        "guidance_scale": 3.0,
        "seed": seeds[0],
        "scheduler": "euler-karras",
    }


async def test_a_seed_is_drawn_where_none_is_given(backend: MemoryMesh) -> None:
    async with client_of(backend) as client:
        for _ in range(2):
            await client.images.generate(model="toy-shapes", prompt=HEART, size="auto", n=2)
    seeds = [value.seed for value in backend.inputs]
    assert None not in seeds
    assert seeds[1] == seeds[0] + 1
    assert seeds[2] != seeds[0]
    assert backend.inputs[0].width is None


async def test_stream(backend: MemoryMesh) -> None:
    async with client_of(backend) as client:
        stream = await client.images.generate(
            model="toy-shapes",
            prompt=HEART,
            stream=True,
            partial_images=2,
            output_format="webp",
            output_compression=40,
            extra_body={"seed": 5},
        )
        events = [event async for event in stream]
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    numbers = [event.partial_image_index for event in events[:2]]  # type: ignore[union-attr]
    assert numbers == [0, 1]
    assert {base64.b64decode(event.b64_json) for event in events} == {png(64, 64, 5)}
    assert {event.output_format for event in events} == {"webp"}
    last: Any = events[-1]
    assert (last.size, last.quality, last.background) == ("64x64", "auto", "opaque")
    assert last.usage.input_tokens == 4
    assert (backend.inputs[0].quality, backend.inputs[0].format) == (40, "webp")


async def test_a_stream_of_several_tells_them_apart(http: aiohttp.ClientSession) -> None:
    body = {"model": "toy-shapes", "prompt": HEART, "n": 2, "seed": 1, "stream": True}
    async with http.post(
        "/v1/images/generations", json=body | {"progress": True, "partial_images": 1}
    ) as response:
        assert response.content_type == "text/event-stream"
        text = await response.text()
    blocks = text.strip().split("\n\n")
    assert blocks.pop() == "data: [DONE]"
    events = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    for index in (0, 1):
        mine = [event for event in events if event["index"] == index]
        steps = [event["step"] for event in mine if event["type"] == "image_generation.progress"]
        assert steps == [1, 2, 3, 4]
        assert mine[-1]["type"] == "image_generation.completed"
        assert mine[-1]["seed"] == 1 + index
        assert sum("partial_image_index" in event for event in mine) == 1


async def test_edit(backend: MemoryMesh) -> None:
    image, mask = png(32, 16), png(32, 16, 255)
    async with client_of(backend) as client:
        answer = await client.images.edit(
            model="toy-shapes",
            image=[("heart.png", image)],
            mask=("mask.png", mask),
            prompt=HEART,
            n=2,
            size="64x64",
            extra_body={"strength": 0.5, "seed": 9, "guidance_scale": 2.5},
        )
        stream = await client.images.edit(
            model="toy-shapes", image=image, prompt=HEART, stream=True, partial_images=1
        )
        events = [event.type async for event in stream]
        with pytest.deprecated_call():  # OpenAI no longer has it; we do
            varied = await client.images.create_variation(model="toy-shapes", image=image, n=3)
    assert answer.data is not None
    assert len(answer.data) == 2
    sent = backend.inputs[1]
    assert (sent.image, sent.mask, sent.seed) == (image, mask, 10)
    assert (sent.strength, sent.guidance_scale) == (0.5, 2.5)
    assert events == ["image_edit.partial_image", "image_edit.completed"]
    assert varied.data is not None
    assert len(varied.data) == 3
    assert backend.inputs[-1].prompt == ""
    assert backend.inputs[-1].image == image


async def test_pictures_can_be_fetched(backend: MemoryMesh) -> None:
    async with client_of(backend) as client, aiohttp.ClientSession() as session:
        answer = await client.images.generate(
            model="toy-shapes", prompt="x", n=2, response_format="url", output_format="jpeg"
        )
        assert answer.data is not None
        assert [picture.b64_json for picture in answer.data] == [None, None]
        for picture in answer.data:
            assert picture.url is not None
            async with session.get(picture.url) as response:
                assert response.content_type == "image/jpeg"
                # the mesh here paints its seed, in PNG whatever was asked
                assert await response.read() == png(64, 64, picture.seed)  # type: ignore[attr-defined]
        with pytest.raises(openai.BadRequestError, match="carries its pictures"):
            await client.images.generate(
                model="toy-shapes", prompt="x", response_format="url", stream=True
            )


async def test_errors_of_nodes(backend: MemoryMesh) -> None:
    backend.nodes_by_model["long"] = failing(ContextTooLong("62 tokens", param="prompt"))
    backend.nodes_by_model["nan"] = failing(RuntimeFailed("NaN"))
    async with client_of(backend) as client:
        with pytest.raises(openai.BadRequestError, match="62 tokens"):
            await client.images.generate(model="long", prompt="x", stream=True)
        with pytest.raises(openai.InternalServerError, match="NaN"):
            await client.images.generate(model="nan", prompt="x")
        with pytest.raises(openai.NotFoundError):
            await client.images.generate(model="nobody", prompt="x")


async def test_going_away_cancels(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    body = {"model": "silent", "prompt": HEART, "n": 2}
    request = asyncio.ensure_future(http.post("/v1/images/generations", json=body))
    await backend.called.wait()
    request.cancel()
    await asyncio.gather(*(call.ended.wait() for call in backend.calls))
    assert len(backend.calls) == 2
    assert all(call.cancelled for call in backend.calls)


# --- bad requests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": ""}, "invalid_request", "prompt"),
        ({"n": 11}, "invalid_request", "n"),
        ({"size": "64"}, "invalid_request", "size"),
        ({"size": "8x64"}, "invalid_request", "size"),
        ({"size": "64x99999"}, "invalid_request", "size"),
        ({"steps": 0}, "invalid_request", "steps"),
        ({"output_format": "gif"}, "invalid_request", "output_format"),
        ({"output_compression": 50}, "invalid_request", "output_compression"),
        ({"partial_images": 1}, "invalid_request", "partial_images"),
        ({"progress": True}, "invalid_request", "progress"),
        ({"quality": "hd"}, "unsupported_field", "quality"),
        ({"style": "vivid"}, "unsupported_field", "style"),
        ({"background": "transparent"}, "unsupported_field", "background"),
        ({"strength": 0.5}, "unsupported_field", "strength"),
        ({"guidance": 3}, "invalid_request", "guidance"),
        ({"seed": "1"}, "invalid_request", "seed"),
    ],
)
async def test_bad_fields(
    http: aiohttp.ClientSession, fields: dict[str, Any], code: str, param: str
) -> None:
    body = {"model": "toy-shapes", "prompt": "x", **fields}
    async with http.post("/v1/images/generations", json=body) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert (error["code"], error["param"]) == (code, param)


def form(**fields: Any) -> aiohttp.FormData:
    """A form: bytes are files, lists are fields that come again."""
    made = aiohttp.FormData(default_to_multipart=True)
    given: dict[str, Any] = {"model": "toy-shapes", "prompt": "x", "image": png(8, 8), **fields}
    for name, values in given.items():
        for value in values if isinstance(values, list) else [values]:
            if value is not None:
                made.add_field(name, value, filename="f" if isinstance(value, bytes) else None)
    return made


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"image": None}, 400, "image", "missing"),
        ({"image": b""}, 400, "image", "PNG, JPEG or WebP"),
        ({"image": b"GIF89a"}, 400, "image", "PNG, JPEG or WebP"),
        ({"image": png(8, 8)[:20]}, 400, "image", "PNG, JPEG or WebP"),
        ({"image": [png(8, 8), png(8, 8)]}, 400, "image", "more than once"),
        ({"image": png(8, 8)[:16] + struct.pack(">II", 65536, 65536) + png(8, 8)[24:]}, 400,
         "image", str(MAX_PIXELS)),
        ({"mask": b"nothing"}, 400, "mask", "PNG, JPEG or WebP"),
        ({"mask": png(8, 9)}, 400, "mask", "8 x 9"),
        ({"n": "many"}, 400, "n", "integer"),
        ({"n": "0"}, 400, "n", "1"),
        ({"strength": "1.5"}, 400, "strength", "1"),
        ({"prompt": None}, 400, "prompt", "required"),
        ({"model": [b"\xff\xfe"]}, 400, "model", "UTF-8"),
        ({"prompt": "x" * 90_000, "negative_prompt": "y" * 20_000}, 413, None, "100000"),
        ({"image": bytes(200_000)}, 413, None, "100000"),
        ({"input_fidelity": "high"}, 400, "input_fidelity", "not supported"),
        ({"markup": png(8, 8)}, 400, "markup", ""),
        ({"imag": png(8, 8)}, 400, "imag", ""),
        ({f"field{n}": "x" for n in range(MAX_PARTS)}, 400, None, str(MAX_PARTS)),
    ],
)  # fmt: skip
async def test_bad_forms(
    http: aiohttp.ClientSession,
    backend: MemoryMesh,
    fields: dict[str, Any],
    status: int,
    param: str | None,
    says: str,
) -> None:
    async with http.post("/v1/images/edits", data=form(**fields)) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (status, param), error
    assert says in error["message"]
    assert backend.calls == []


async def test_a_form_as_a_browser_sends_it(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    fields = form(size="", n="", seed="4", stream="false")  # every field of the page
    async with http.post("/v1/images/edits", data=fields) as response:
        assert response.status == 200
    assert backend.inputs[0].seed == 4


@pytest.mark.parametrize(
    ("kind", "body", "status", "says"),
    [
        ("application/json", b"{}", 415, "multipart/form-data"),
        ("multipart/form-data", b"x", 400, "could not be read"),
        ("multipart/form-data; boundary=b", b"nothing of it", 400, "could not be read"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; na", 400, ""),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", 400, "without a name"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 400, "required"),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--\r\n",
            400,
            "without a name",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader")
async def test_what_is_no_form(
    http: aiohttp.ClientSession, kind: str, body: bytes, status: int, says: str
) -> None:
    headers = {"Content-Type": kind}
    async with http.post("/v1/images/edits", data=body, headers=headers) as response:
        error = (await response.json())["error"]
    assert response.status == status, error
    assert says in error["message"]


async def test_a_form_without_a_length_is_cut_off_too(http: aiohttp.ClientSession) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\n'
        for _ in range(1000):
            yield bytes(10_000)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    with contextlib.suppress(aiohttp.ClientConnectionError):  # it may hang up while we send
        async with http.post("/v1/images/edits", data=endless(), headers=headers) as response:
            assert response.status == 413


# --- the kind -------------------------------------------------------------------------------


def test_units() -> None:
    units = KINDS["image"].units
    one = units(ImageInput(width=1000, height=1000, steps=10, guidance_scale=1))
    assert one == pytest.approx(10)
    assert units(ImageInput(width=1000, height=1000, steps=10)) == pytest.approx(20)
    assert units(ImageInput(width=1000, height=1000, steps=10, image=b"x", strength=0.5)) == 10
    assert units(ImageInput()) > 0
    assert units(ImageInput(image=b"x", steps=1, width=16, height=16)) > 0


def test_inputs_and_steps_travel() -> None:
    value = ImageInput(prompt="x", image=bytes(range(256)), mask=b"\xff", seed=-5, previews=2)
    wire = input_to_wire(value)
    assert len(wire) < 256 + 64  # bytes are bytes, never base64
    assert input_from_wire(KINDS["image"], wire) == value
    step = Step(3, 20, b"\x89PNG")
    assert step_from_wire(step_to_wire(step)) == step
    with pytest.raises(InvalidRequest, match="steps"):
        input_from_wire(KINDS["image"], input_to_wire(value.model_copy(update={"steps": 0})))


JPEG = bytes.fromhex("ffd8ffe000104a46494600010100000100010000fffe0003ffc00011080020004003012200")
WEBP = b"RIFF\x00\x00\x00\x00WEBP"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (png(30, 20), ("png", 30, 20)),
        (png(30, 20)[:24], ("png", 30, 20)),
        (JPEG.replace(b"\xff\xfe\x00\x03", b"\xff\xff\xfe\x00\x02"), ("jpeg", 64, 32)),
        (WEBP + b"VP8X" + bytes(8) + b"\x3f\x00\x00\x1f\x00\x00", ("webp", 64, 32)),
        (
            WEBP + b"VP8L" + bytes(4) + b"\x2f" + struct.pack("<I", 63 | 31 << 14) + bytes(5),
            ("webp", 64, 32),
        ),
        (WEBP + b"VP8 " + bytes(10) + struct.pack("<HH", 64 | 1 << 14, 32), ("webp", 64, 32)),
        (WEBP + b"ALPH" + bytes(30), None),
        (png(30, 20)[:20], None),
        (png(0, 20), None),
        (b"\xff\xd8\xff\xda\x00\x00", None),
        (b"", None),
    ],
)
def test_headers(data: bytes, found: tuple[str, int, int] | None) -> None:
    assert read_header(data) == found


@given(st.binary(max_size=64), st.sampled_from([b"", png(1, 1)[:12], b"\xff\xd8\xff", WEBP, JPEG]))
def test_headers_of_noise(tail: bytes, head: bytes) -> None:
    header = read_header(head + tail)
    assert header is None or (header.width > 0 and header.height > 0)
    if header is None:
        with pytest.raises(InvalidRequest, match="'mask'"):
            check_picture(head + tail, "mask")


# --- LoRAs and ControlNets ------------------------------------------------------------------


async def test_loras_and_control(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    text = base64.b64encode(png(8, 8, 4)).decode()
    for image in (text, f"data:image/png;base64,{text}"):
        body = {
            "model": "toy-shapes",
            "prompt": HEART,
            "n": 2,
            "loras": [{"name": "ink", "weight": -0.5}, {"name": "oil"}],
            "control": {"type": "canny", "image": image, "end": 0.5, "preprocess": False},
        }
        async with http.post("/v1/images/generations", json=body) as response:
            assert response.status == 200, await response.text()
        sent: ImageInput = input_from_wire(KINDS["image"], input_to_wire(backend.inputs[-1]))
        assert [(lora.name, lora.weight) for lora in sent.loras] == [("ink", -0.5), ("oil", 1.0)]
        assert sent.control is not None
        assert sent.control.image == png(8, 8, 4)
        assert (sent.control.type, sent.control.end, sent.control.preprocess) == (
            "canny",
            0.5,
            False,
        )
    fields = form(
        loras='[{"name": "ink", "weight": 0.5}]',
        control='{"type": "depth", "weight": 0.25}',
        control_image=png(8, 8, 9),
    )
    async with http.post("/v1/images/edits", data=fields) as response:
        assert response.status == 200, await response.text()
    edited = backend.inputs[-1]
    assert (edited.loras[0].name, edited.control.weight) == ("ink", 0.5 / 2)
    assert edited.control.image == png(8, 8, 9)


_PICTURE = base64.b64encode(png(8, 8)).decode()


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"loras": [{"weight": 1}]}, "loras.0.name", "required"),
        ({"loras": [{"name": "a", "weight": 11}]}, "loras.0.weight", "10"),
        ({"loras": [{"name": "a"}] * 9}, "loras", "8"),
        ({"loras": "ink:0.8"}, "loras", "JSON"),
        ({"control": {"type": "canny"}}, "control.image", "missing"),
        ({"control": {"type": "canny", "image": "?"}}, "control.image", "base64"),
        ({"control": {"type": "canny", "image": "aGk="}}, "control.image", "PNG"),
        ({"control": {"type": "canny", "image": "http://x/y"}}, "control.image", "fetched"),
        ({"control": {"type": "canny", "image": _PICTURE, "start": 0.5, "end": 0.5}},
         "control.start", "below"),
        ({"control": {"type": "canny", "image": _PICTURE, "weight": 3}}, "control.weight", "2"),
    ],
)  # fmt: skip
async def test_bad_guides(
    http: aiohttp.ClientSession, fields: dict[str, Any], param: str, says: str
) -> None:
    body = {"model": "toy-shapes", "prompt": "x", **fields}
    async with http.post("/v1/images/generations", json=body) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, param), error
    assert says in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"control_image": png(8, 8)}, "control", "needs 'control'"),
        ({"control": "canny"}, "control", "JSON"),
        ({"control": '{"type": "canny"}'}, "control.image", "missing"),
        ({"control": '{"type": "canny"}', "control_image": b"x"}, "control_image", "PNG"),
        ({"control": f'{{"type": "a", "image": "{_PICTURE}"}}', "control_image": png(8, 8)},
         "control_image", "send one"),
        ({"control": '{"type": "canny", "wieght": 1}', "control_image": png(8, 8)},
         "control.wieght", "not a field"),
    ],
)  # fmt: skip
async def test_bad_guides_in_forms(
    http: aiohttp.ClientSession, fields: dict[str, Any], param: str, says: str
) -> None:
    async with http.post("/v1/images/edits", data=form(**fields)) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, param), error
    assert says in error["message"]


async def test_a_control_costs_work() -> None:
    plain = ImageInput(prompt="x", width=64, height=64, steps=10)
    guided = plain.model_copy(update={"control": Control(type="a", image=b"")})
    assert KINDS["image"].units(guided) == pytest.approx(1.4 * KINDS["image"].units(plain))
    packed = msgpack.packb({"control": {"type": "a", "image": b"", "start": 0.5, "end": 0.25}})
    with pytest.raises(InvalidRequest, match="below"):
        input_from_wire(KINDS["image"], packed)

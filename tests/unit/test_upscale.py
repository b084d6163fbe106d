"""Enlarging pictures: tiles, the runtime with random Swin2SR models, the routes, SDK and CLI."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blip.cli import main
from blip.client import AsyncBlip, Blip
from blip.errors import Cancelled, InvalidRequest, ModelLoadFailed, NodeLost, UnsupportedField
from blip.kinds import KINDS
from blip.kinds.image import step_from_wire
from blip_node.canary import QUESTIONS
from blip_node.catalogue import Entry
from blip_node.models import ModelSpec, describe
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.upscale import UpscaleRuntime
from blip_node.runtimes.upscaling.tiles import OVERLAP, TILE, Canvas, ramp, spans
from tests.models.jobs import RecordingJob
from tests.models.random_additions import save_swin2sr
from tests.unit.gateway_mesh import KINDS_BY_MODEL, MemoryMesh, failing, mesh, png, served

# --- tiles ----------------------------------------------------------------------------------


@given(st.integers(1, 2000), st.integers(8, 300), st.integers(1, 7))
def test_spans_cover_a_side(length: int, tile: int, overlap: int) -> None:
    found = spans(length, tile, overlap)
    assert (found[0].start, found[-1].stop) == (0, length)
    assert {span.stop - span.start for span in found} == {min(tile, length)}
    assert all(later.start <= earlier.stop - overlap for earlier, later in pairwise(found))


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(16, 48),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_what_needs_no_surroundings_comes_out_whole(
    height: int, width: int, tile: int, overlap: int, scale: int
) -> None:
    source = numpy.random.default_rng(0).random((height, width, 3), dtype="float32")
    canvas = Canvas(height, width, scale, tile, overlap)
    seen = list(canvas.fill(source, lambda part: part.repeat(scale, 0).repeat(scale, 1)))
    assert seen == list(range(1, len(canvas) + 1))
    whole = source.repeat(scale, 0).repeat(scale, 1)
    assert numpy.allclose(canvas.result(), whole, atol=1e-5)


def test_a_seam_fades() -> None:
    first, second = spans(2 * TILE - OVERLAP)
    canvas = Canvas(TILE, 2 * TILE - OVERLAP, 1)
    values = iter((0.0, 1.0))
    list(canvas.fill(numpy.zeros((TILE, 2 * TILE - OVERLAP, 3)), lambda part: part + next(values)))
    row = canvas.result()[0, :, 0]
    assert (row[: second.start] == 0).all()
    assert (row[first.stop :] == 1).all()
    assert (numpy.diff(row) >= 0).all()
    assert numpy.diff(row).max() < 2 / OVERLAP
    assert ramp(first, first.stop, 1).min() == 1  # nothing fades at the picture's own edges


# --- the runtime ----------------------------------------------------------------------------


def load(folder: Path) -> UpscaleRuntime:
    runtime = UpscaleRuntime()
    runtime.load(LoadSpec("doubler", str(folder), "cpu", 1), lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_swin2sr(tmp_path_factory.mktemp("models") / "doubler")


@pytest.fixture(scope="module")
def doubler(folder: Path) -> Iterator[UpscaleRuntime]:
    runtime = load(folder)
    yield runtime
    runtime.close()


def picture(width: int, height: int, seed: int = 0) -> bytes:
    """A picture of soft blobs."""
    small = numpy.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype="uint8")
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def opened(file: bytes) -> Any:
    return Image.open(io.BytesIO(file))


def pixels(file: bytes) -> Any:
    return numpy.asarray(opened(file).convert("RGB"), dtype=float)


async def run(runtime: UpscaleRuntime, **fields: Any) -> bytes:
    return bytes((await runtime.run(RecordingJob("upscale", **fields))).payload)


async def test_it_is_what_the_model_computes(doubler: UpscaleRuntime) -> None:
    import torch

    source = picture(40, 24)
    made = await run(doubler, image=source)
    model = doubler._engine._model  # type: ignore[union-attr]
    batch = torch.from_numpy(pixels(source) / 255).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        theirs = model(batch).reconstruction[0].permute(1, 2, 0).numpy()
    assert opened(made).size == (80, 48)
    assert (pixels(made) == (theirs * 255).round().clip(0, 255)).all()
    assert opened(made).text["model"] == "doubler"
    assert opened(made).text["scale"] == "2.0"


async def test_sizes_and_formats(doubler: UpscaleRuntime) -> None:
    for size in ((1, 1), (7, 9), (33, 8)):
        assert opened(await run(doubler, image=picture(*size))).size == (2 * size[0], 2 * size[1])
    source = picture(30, 20)
    whole = await run(doubler, image=source)
    same = await run(doubler, image=source, scale=1, format="jpeg", quality=90)
    assert opened(same).format == "JPEG"
    assert opened(same).size == (30, 20)
    half = await run(doubler, image=source, scale=1.5)
    assert opened(half).size == (45, 30)
    shrunk = opened(whole).resize((45, 30), Image.Resampling.LANCZOS)
    assert (pixels(half) == numpy.asarray(shrunk, dtype=float)).all()


async def test_large_pictures_come_in_tiles(doubler: UpscaleRuntime) -> None:
    source = picture(TILE + 40, 20)
    job = RecordingJob("upscale", image=source, progress=True)
    outcome = await doubler.run(job)
    steps = [step_from_wire(part)[:2] for part in job.parts]
    assert steps == [(1, 2), (2, 2)]
    assert outcome.usage == {"width": 2 * (TILE + 40), "height": 40, "steps": 2}
    assert outcome.units == pytest.approx((TILE + 40) * 20 / 1e6)
    # away from seams and edges it is what the model makes of one tile alone
    made = pixels(bytes(outcome.payload))
    left = io.BytesIO()
    opened(source).crop((0, 0, TILE, 20)).save(left, "PNG")
    alone = pixels(await run(doubler, image=left.getvalue()))
    clear = 2 * spans(TILE + 40)[1].start
    assert (made[:, :clear] == alone[:, :clear]).all()


async def test_cancelling_stops_after_a_tile(doubler: UpscaleRuntime) -> None:
    def leave(job: RecordingJob) -> None:
        job.cancelled = True

    source = picture(3 * TILE, 16)
    job = RecordingJob("upscale", leave, image=source, progress=True)
    with pytest.raises(Cancelled):
        await doubler.run(job)
    assert len(job.parts) == 1
    quiet = RecordingJob("upscale", image=picture(9, 9), progress=True)
    quiet.let(False)
    assert (await doubler.run(quiet)).payload
    assert quiet.parts == []


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"image": picture(8, 8), "scale": 3}, "scale", "2 times"),
        ({"image": picture(3000, 2000)}, "image", "16777216"),
        ({"image": b"GIF89a"}, "image", "PNG"),
        ({"image": picture(64, 64)[:60]}, "image", "cannot be decoded"),
    ],
)
async def test_bad_input(
    doubler: UpscaleRuntime, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        await run(doubler, **fields)
    assert caught.value.param == param
    assert await run(doubler, image=picture(8, 8))


async def test_what_is_known_before_it_is_loaded(folder: Path, doubler: UpscaleRuntime) -> None:
    entry = Entry(ModelSpec("doubler", str(folder)), describe(ModelSpec("doubler", str(folder))))
    assert (entry.kinds, entry.slots) == (("upscale",), 1)
    assert entry.memory(gpu=False) > 100e6  # a tile's, not the weights'
    question = QUESTIONS["upscale"]
    fields = question.input.model_dump(exclude_defaults=True)
    assert question.check([], await run(doubler, **fields)) == ""
    assert KINDS["upscale"].units(question.input) == 64 / 1e6


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"upscale": 1, "upsampler": ""}, "denoising"), ({"num_channels": 1}, "1 channels")],
)
def test_heads_that_would_come_out_wrong_are_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    folder = save_swin2sr(tmp_path / "model", **changes)
    with pytest.raises(ModelLoadFailed, match=says):
        load(folder)


def test_weights_that_are_missing(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_swin2sr(tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state.pop("upsample.final_convolution.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadFailed, match="final_convolution"):
        load(folder)


# --- the routes -----------------------------------------------------------------------------


def form(**fields: Any) -> aiohttp.FormData:
    made = aiohttp.FormData(default_to_multipart=True)
    for name, value in {"model": "swin2sr", "image": png(8, 4), **fields}.items():
        if value is not None:
            made.add_field(name, value, filename="f" if isinstance(value, bytes) else None)
    return made


@pytest.fixture
async def http() -> Any:
    async with served(mesh()) as origin, aiohttp.ClientSession(origin) as session:
        yield session


async def test_routes(http: aiohttp.ClientSession) -> None:
    for name, fields, size in (
        ("upscale", {}, (16, 8)),
        ("upscale", {"scale": "1.5"}, (12, 6)),
        ("enhance", {"face_restore": "false"}, (8, 4)),
    ):
        async with http.post(f"/v1/images/{name}", data=form(**fields)) as response:
            answer = await response.json()
            assert response.status == 200, answer
        assert answer["size"] == f"{size[0]}x{size[1]}"
        assert base64.b64decode(answer["data"][0]["b64_json"]) == png(*size, 9)
        assert answer["output_format"] == "png"


async def test_a_picture_to_be_fetched(http: aiohttp.ClientSession) -> None:
    fields = form(response_format="url", output_format="jpeg")
    async with http.post("/v1/images/upscale", data=fields) as response:
        (entry,) = (await response.json())["data"]
    assert list(entry) == ["url"]
    async with aiohttp.request("GET", entry["url"]) as fetched:
        assert fetched.content_type == "image/jpeg"
        assert await fetched.read() == png(16, 8, 9)


async def test_stream(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/images/upscale", data=form(stream="true")) as response:
        assert response.content_type == "text/event-stream"
        blocks = (await response.text()).strip().split("\n\n")
    assert blocks.pop() == "data: [DONE]"
    events = [json.loads(block.partition("data: ")[2]) for block in blocks]
    assert [event["type"].partition(".")[2] for event in events] == ["progress"] * 2 + ["completed"]
    assert [event.get("step") for event in events] == [1, 2, None]
    assert base64.b64decode(events[-1]["b64_json"]) == png(16, 8, 9)


@pytest.mark.parametrize(
    ("name", "fields", "code", "param"),
    [
        ("upscale", {"image": None}, "invalid_request", "image"),
        ("upscale", {"image": b"GIF89a"}, "invalid_request", "image"),
        ("upscale", {"scale": "0.5"}, "invalid_request", "scale"),
        ("upscale", {"scale": "9"}, "invalid_request", "scale"),
        ("upscale", {"output_compression": "50"}, "invalid_request", "output_compression"),
        (
            "upscale",
            {"response_format": "url", "stream": "true"},
            "invalid_request",
            "response_format",
        ),
        ("upscale", {"face_restore": "true"}, "unsupported_field", "face_restore"),
        ("enhance", {"scale": "2"}, "invalid_request", "scale"),
        ("enhance", {"background_enhance": "true"}, "unsupported_field", "background_enhance"),
        ("enhance", {"model": "nobody"}, "model_not_found", "model"),
    ],
)
async def test_bad_forms(
    http: aiohttp.ClientSession, name: str, fields: dict[str, Any], code: str, param: str
) -> None:
    async with http.post(f"/v1/images/{name}", data=form(**fields)) as response:
        error = (await response.json())["error"]
    assert (error["code"], error["param"]) == (code, param), error


# --- SDK and command line -------------------------------------------------------------------


async def test_sdk() -> None:
    async with served(mesh()) as url, AsyncBlip(url) as client:
        answer = await client.upscale("swin2sr", png(8, 4), scale=1.5, output_format="webp")
        assert (answer.file, answer.size, answer.format) == (png(12, 6, 9), "12x6", "webp")
        assert answer.origin.node
        assert (await client.enhance("swin2sr", png(8, 4))).size == "8x4"
        with pytest.raises(UnsupportedField, match="face_restore"):
            await client.upscale("swin2sr", png(8, 4), face_restore=True)
        with pytest.raises(InvalidRequest, match="bytes of their files"):
            await client.enhance("swin2sr", png(8, 4), response_format="url")

        def ask() -> str:
            with Blip(url) as plain:
                return (
                    plain.upscale("swin2sr", png(8, 4)).size
                    + plain.enhance("swin2sr", png(8, 4)).size
                )

        assert await asyncio.to_thread(ask) == "16x88x4"


async def blip(backend: MemoryMesh, *args: str) -> int:
    async with served(backend) as url:
        return await asyncio.to_thread(main, ["upscale", *args, "--url", url])


async def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.png").write_bytes(png(8, 4))
    assert await blip(mesh(), "in.png") == 0
    assert capsys.readouterr().out == "in-upscaled.png  16x8\n"
    assert (tmp_path / "in-upscaled.png").read_bytes() == png(16, 8, 9)
    assert await blip(mesh(), "in.png") == 0  # and none is overwritten
    assert await blip(mesh(), "in.png", "--enhance", "-o", "new/out.jpg", "--json") == 0
    told = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert (told["file"], told["size"], told["model"]) == ("new/out.jpg", "8x4", "swin2sr")
    names = sorted(os.listdir(tmp_path))
    assert names == ["in-upscaled-1.png", "in-upscaled.png", "in.png", "new"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("nowhere.png",), 1, "nowhere.png"),
        (("in.png", "-o", "x.gif"), 2, "ending"),
        (("in.png", "-o", "-", "--json"), 2, "nothing else"),
        (("in.png", "--enhance", "--scale", "2"), 2, "keeps"),
        (("in.png", "--model", "failing"), 1, "gone"),
    ],
)
async def test_wrong_usage(
    args: tuple[str, ...],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.png").write_bytes(png(8, 4))
    backend = mesh()
    backend.nodes_by_model["failing"] = failing(NodeLost("gone"))
    assert await blip(backend, *args) == code
    assert says in capsys.readouterr().err


async def test_the_command_chooses_only_where_there_is_no_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.png").write_bytes(png(8, 4))
    backend = mesh()
    upscaler = backend.nodes_by_model.pop("swin2sr")
    assert await blip(backend, "in.png") == 1
    assert "no model that enlarges" in capsys.readouterr().err
    backend.nodes_by_model |= {"swin2sr": upscaler, "swin4sr": upscaler}
    monkeypatch.setitem(KINDS_BY_MODEL, "swin4sr", ("upscale",))
    assert await blip(backend, "in.png") == 2
    assert "swin2sr, swin4sr" in capsys.readouterr().err

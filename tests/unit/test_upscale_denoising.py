"""Pictures that diffusers' pipelines enlarge: random ones, beside what diffusers makes itself."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy
import pytest
import torch
from PIL import Image

from blip.cli import main
from blip.errors import Cancelled, ContextTooLong, InvalidRequest, UnsupportedField, WorkerCrashed
from blip.gateway.policy import Policy
from blip.gateway.settings import GatewaySettings
from blip.kinds import KINDS
from blip.kinds.image import step_from_wire
from blip.kinds.upscale import TYPICAL_STEPS, UpscaleInput
from blip_node.models import ModelSpec, describe
from blip_node.runtimes import LoadSpec
from blip_node.runtimes.upscale import UpscaleRuntime
from tests.models.jobs import RecordingJob
from tests.models.random_additions import save_swin2sr
from tests.models.random_upscalers import by_latents, by_pixels, make_upscaler
from tests.unit.gateway_mesh import MemoryMesh, mesh, png, served

ASKED: dict[str, Any] = {"prompt": "a red heart", "steps": 3, "seed": 5}


def picture(width: int, height: int) -> bytes:
    """A picture of soft blobs."""
    small = numpy.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype="uint8")
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def loaded(folder: Path) -> UpscaleRuntime:
    runtime = UpscaleRuntime()
    runtime.load(LoadSpec("m", str(folder), "cpu", 1, threads=1), lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def fourfold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpscaleRuntime]:
    runtime = loaded(make_upscaler(tmp_path_factory.mktemp("models") / "m", by_pixels))
    yield runtime
    runtime.close()


async def made(runtime: UpscaleRuntime, **fields: Any) -> Image.Image:
    job = RecordingJob("upscale", **{**ASKED, **fields})
    return Image.open(io.BytesIO(bytes((await runtime.run(job)).payload)))


@pytest.mark.parametrize(("make", "scale"), [(by_pixels, 4), (by_latents, 2)])
async def test_it_is_what_diffusers_makes(tmp_path: Path, make: Any, scale: int) -> None:
    folder = make_upscaler(tmp_path / "m", make)
    found = describe(ModelSpec("m", str(folder)))
    assert found.kinds == ("upscale",)
    assert found.activations == (512 * scale) ** 2 * 8 * 3  # its decoder's width, three times
    runtime = loaded(folder)
    file = picture(64, 128)
    theirs = type(make()).from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    how = {"guidance_scale": 3.0, "negative_prompt": "a circle"}
    pixels = theirs(
        prompt=ASKED["prompt"],
        image=Image.open(io.BytesIO(file)).convert("RGB"),
        num_inference_steps=3,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="np",
        **how,
    ).images[0]
    result = await made(runtime, image=file, **how)
    assert result.size == (64 * scale, 128 * scale)
    off = numpy.abs(numpy.asarray(result, dtype=float) - pixels * 255)
    assert off.max() <= 1  # of 255: sums are rounded as threads share them
    facts: dict[str, str] = result.text  # type: ignore[attr-defined]
    assert (facts["prompt"], facts["seed"], facts["scale"]) == (
        "a red heart",
        "5",
        str(float(scale)),
    )
    runtime.close()


async def test_sizes_seeds_and_prompts(fourfold: UpscaleRuntime) -> None:
    file = picture(30, 17)
    first = await made(fourfold, image=file)
    assert first.size == (120, 68)
    assert (await made(fourfold, image=file, scale=1.0)).size == (30, 17)
    same = numpy.asarray(await made(fourfold, image=file))
    assert (numpy.asarray(first) == same).all()
    for change in ({"seed": 6}, {"prompt": "a blue circle"}, {"steps": 4}):
        other = numpy.asarray(await made(fourfold, image=file, **change))
        assert (other != same).any(), change


async def test_steps_are_told(fourfold: UpscaleRuntime) -> None:
    job = RecordingJob("upscale", image=picture(8, 8), progress=True, **ASKED)
    outcome = await fourfold.run(job)
    steps = [step_from_wire(part) for part in job.parts]
    assert [(step.step, step.steps) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert outcome.usage == {"prompt_tokens": 11, "width": 32, "height": 32, "steps": 3}


async def test_cancelling_stops_after_a_step(fourfold: UpscaleRuntime) -> None:
    def stop(job: RecordingJob) -> None:
        job.cancelled = True

    job = RecordingJob("upscale", stop, image=picture(8, 8), progress=True, **ASKED)
    with pytest.raises(Cancelled):
        await fourfold.run(job)
    assert len(job.parts) == 1
    assert (await made(fourfold, image=picture(8, 8))).size == (32, 32)


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"image": png(1024, 512)}, InvalidRequest, "image"),
        ({"image": b"x"}, InvalidRequest, "image"),
        ({"scale": 5.0}, InvalidRequest, "scale"),
        ({"prompt": "heart " * 40}, ContextTooLong, "prompt"),
        ({"negative_prompt": "heart " * 40}, ContextTooLong, "negative_prompt"),
    ],
)
async def test_bad_input(
    fourfold: UpscaleRuntime, fields: dict[str, Any], error: type[InvalidRequest], param: str
) -> None:
    with pytest.raises(error) as caught:
        await made(fourfold, **{"image": png(8, 8), **fields})
    assert caught.value.param == param


async def test_models_that_do_not_denoise_read_no_prompt(tmp_path: Path) -> None:
    runtime = loaded(save_swin2sr(tmp_path / "m"))
    for field, value in {**ASKED, "guidance_scale": 2.0, "negative_prompt": "x"}.items():
        job = RecordingJob("upscale", image=png(8, 8), **{field: value})
        with pytest.raises(UnsupportedField) as caught:
            await runtime.run(job)
        assert caught.value.param == field
    runtime.close()
    with pytest.raises(WorkerCrashed):
        await runtime.run(RecordingJob("upscale", image=png(8, 8)))


def test_steps_count() -> None:
    units = KINDS["upscale"].units
    whole = units(UpscaleInput(image=png(8, 8)))
    assert units(UpscaleInput(image=png(8, 8), steps=TYPICAL_STEPS)) == whole
    assert units(UpscaleInput(image=png(8, 8), steps=15)) == pytest.approx(whole / 5)


# --- the way there ---------------------------------------------------------------------------


def form(**fields: str) -> aiohttp.FormData:
    made = aiohttp.FormData({"model": "swin2sr", **fields}, default_to_multipart=True)
    made.add_field("image", png(8, 4), filename="small.png")
    return made


async def test_what_is_asked_arrives(tmp_path: Path) -> None:
    backend = mesh()
    file = tmp_path / "small.png"
    file.write_bytes(png(8, 4))
    async with served(backend) as origin:
        words = ["upscale", str(file), "--prompt", "a heart", "--steps", "9", "--seed", "3"]
        words += ["--url", origin, "-o", str(tmp_path / "large.png")]
        assert await asyncio.to_thread(main, words) == 0
        async with aiohttp.ClientSession(origin) as http:
            fields = {"guidance_scale": "2.5", "negative_prompt": "x"}
            async with http.post("/v1/images/enhance", data=form(**fields)) as response:
                assert response.status == 200
    first, second = backend.inputs
    assert (first.prompt, first.steps, first.seed) == ("a heart", 9, 3)
    assert (second.guidance_scale, second.negative_prompt, second.prompt) == (2.5, "x", "")


async def judged(backend: MemoryMesh, data: aiohttp.FormData, **policy: Any) -> tuple[int, Any]:
    settings = GatewaySettings(
        moderation_model="guard",
        moderation_image_model="guard",
        policies=[Policy("strict", **policy)],
    )
    async with (
        served(backend, settings) as origin,
        aiohttp.ClientSession(origin) as http,
        http.post("/v1/images/upscale", data=data) as response,
    ):
        return response.status, await response.json()


async def test_a_policy_reads_the_prompt_and_sees_the_pictures() -> None:
    backend = mesh()
    status, answer = await judged(backend, form(prompt="a grumph"))
    assert (status, answer["error"]["param"]) == (400, "prompt")
    status, answer = await judged(backend, form(prompt="a bomb"), words=("bomb",))
    assert (status, answer["error"]["param"]) == (400, "prompt")
    assert not any(isinstance(value, UpscaleInput) for value in backend.inputs)
    assert (await judged(backend, form(prompt="a heart"), pictures=True))[0] == 200
    status, answer = await judged(backend, form(stream="true"), pictures=True)
    assert (status, answer["error"]["param"]) == (400, "stream")

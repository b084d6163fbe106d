"""The image runtime with ``toy-shapes``, which obeys prompts, and random pipelines of families."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy
import pytest
import torch
from diffusers.pipelines import auto_pipeline
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from blip.errors import (
    Cancelled,
    ContextTooLong,
    InvalidRequest,
    ModelLoadFailed,
    RuntimeFailed,
    UnsupportedField,
    WorkerCrashed,
)
from blip.kinds.image import Step, step_from_wire
from blip_node.models import ModelSpec, describe
from blip_node.models.pipeline import TEXT_TO_IMAGE
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.diffusion.schedulers import ALIASES, NAMES
from blip_node.runtimes.diffusion.steps import decode, preview_steps
from blip_node.runtimes.image import ImageRuntime
from tests.models.jobs import RecordingJob
from tests.models.random_pipelines import make_pipeline

TOY = Path(__file__).parents[1] / "models" / "toy-shapes"
HEART = "a large red heart on a white background"
RED, WHITE, BLUE = (220, 30, 30), (250, 250, 250), (40, 70, 220)
COLOURS = {
    "red": RED,
    "green": (30, 160, 60),
    "blue": BLUE,
    "yellow": (250, 220, 40),
    "orange": (255, 140, 0),
    "purple": (140, 50, 180),
    "white": WHITE,
    "black": (15, 15, 15),
}
#: Enough to see what it is, on a busy machine.
QUICK: dict[str, Any] = {"steps": 12, "guidance_scale": 4.0, "seed": 3}


def load(folder: Path, **changes: Any) -> ImageRuntime:
    runtime = ImageRuntime()
    runtime.load(LoadSpec("a-model", str(folder), "cpu", 1, **changes), lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def toy() -> Iterator[ImageRuntime]:
    runtime = load(TOY)
    yield runtime
    runtime.close()


async def file_of(runtime: ImageRuntime, prompt: str = HEART, **fields: Any) -> bytes:
    outcome = await runtime.run(RecordingJob("image", prompt=prompt, **QUICK | fields))
    return bytes(outcome.payload)


def text_of(file: bytes) -> dict[str, str]:
    """The text chunks of a PNG."""
    picture = Image.open(io.BytesIO(file))
    assert isinstance(picture, PngImageFile)
    return {key: str(value) for key, value in picture.text.items()}


def pixels(file: bytes) -> Any:
    return numpy.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=float)


async def paint(runtime: ImageRuntime, prompt: str = HEART, **fields: Any) -> Any:
    return pixels(await file_of(runtime, prompt, **fields))


def colour(region: Any) -> str:
    mean = region.reshape(-1, 3).mean(0)
    return min(COLOURS, key=lambda name: float(((mean - COLOURS[name]) ** 2).sum()))


def centre(picture: Any) -> str:
    return colour(picture[28:36, 28:36])


def corners(picture: Any) -> str:
    return colour(numpy.stack([picture[:5, :5], picture[:5, -5:], picture[-5:, :5]]))


def distance(one: Any, other: Any) -> float:
    return float(abs(one - other).mean())


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def disc(inside: str, outside: str) -> Image.Image:
    """A disc in the middle, as toy-shapes' decoder has seen them."""
    y, x = numpy.mgrid[0:64, 0:64] - 31.5
    inner = (numpy.hypot(x, y) < 22)[..., None]
    mixed = numpy.where(inner, COLOURS[inside], COLOURS[outside])
    return Image.fromarray(mixed.astype("uint8"))


def left_half(clear: bool = False) -> Image.Image:
    """A mask of the left half: OpenAI's sort (transparent) if ``clear``, else black and white."""
    if clear:
        mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
        mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
        return mask
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    return mask


# --- prompts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "inside", "outside"),
    [
        (HEART, "red", "white"),
        ("a large blue circle on a yellow background", "blue", "yellow"),
        ("a large yellow square on a black background", "yellow", "black"),
    ],
)
async def test_it_paints_what_the_prompt_says(
    toy: ImageRuntime, prompt: str, inside: str, outside: str
) -> None:
    picture = await paint(toy, prompt)
    assert picture.shape == (64, 64, 3)
    assert (centre(picture), corners(picture)) == (inside, outside)


async def test_the_same_seed_gives_the_same_pixels(toy: ImageRuntime) -> None:
    first, again, other = [await paint(toy, seed=seed) for seed in (7, 7, 8)]
    assert (first == again).all()
    assert distance(first, other) > 1
    euler = [await paint(toy, seed=7, scheduler="euler-a") for _ in range(2)]
    assert (euler[0] == euler[1]).all()  # it draws noise at every step


async def test_jobs_at_once_do_not_disturb_each_other(toy: ImageRuntime) -> None:
    alone = [await paint(toy, seed=seed) for seed in (1, 2, 3)]
    together = await asyncio.gather(*(paint(toy, seed=seed) for seed in (1, 2, 3)))
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))


async def test_without_a_seed_pictures_differ_and_the_file_has_the_seed(toy: ImageRuntime) -> None:
    files = [await file_of(toy, seed=None) for _ in range(2)]
    seeds = [int(text_of(file)["seed"]) for file in files]
    assert seeds[0] != seeds[1]
    assert (await paint(toy, seed=seeds[0]) == pixels(files[0])).all()


async def test_a_negative_prompt_counts(toy: ImageRuntime) -> None:
    plain = await paint(toy, "a large circle on a white background", steps=20)
    told = await paint(
        toy, "a large circle on a white background", steps=20, negative_prompt=centre(plain)
    )
    assert distance(plain, told) > 1


async def test_a_prompt_beyond_the_encoders_window_is_refused(toy: ImageRuntime) -> None:
    with pytest.raises(ContextTooLong) as caught:
        await file_of(toy, "a red heart " * 20)
    error = caught.value
    assert error.param == "prompt"
    assert error.details == {"prompt_tokens": 62, "limit": 16}
    assert "62" in error.message
    assert "16" in error.message
    with pytest.raises(ContextTooLong, match="negative_prompt"):
        await file_of(toy, negative_prompt="a red heart " * 20)


@pytest.mark.parametrize("name", NAMES)
async def test_every_scheduler_paints_the_heart(toy: ImageRuntime, name: str) -> None:
    # Karras' spacing begins at more noise than this model's schedule, and so takes more steps
    picture = await paint(toy, scheduler=name, steps=20 if "karras" in name else 10)
    assert (centre(picture), corners(picture)) == ("red", "white")


async def test_spacing_matters(toy: ImageRuntime) -> None:
    plain, karras = [await paint(toy, scheduler=name) for name in ("euler", "euler-karras")]
    assert distance(plain, karras) > 0.5
    for alias, name in (("dpm_multistep", "dpm++2m"), ("Euler Karras", "euler-karras")):
        same = await paint(toy, scheduler=alias) == await paint(toy, scheduler=name)
        assert same.all()
    assert set(ALIASES.values()) <= set(NAMES)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"scheduler": "magic"}, "scheduler", "dpm++2m-karras"),
        ({"scheduler": "ddim-karras"}, "scheduler", "euler-karras"),
        ({"width": 65, "height": 64}, "size", "64x64"),
        ({"mask": b"x"}, "mask", ""),
        ({"image": b"", "strength": 0.5}, "image", "empty"),
        ({"image": b"GIF89a not taken"}, "image", ""),
        ({"image": png(disc("red", "white")), "strength": 0.01}, "strength", "0.083"),
        ({"image": png(disc("red", "white")), "mask": png(left_half().resize((32, 32)))}, "mask",
         "same size"),
        ({"image": png(disc("red", "white")), "mask": png(Image.new("L", (64, 64)))}, "mask",
         "white"),
        ({"guidance_scale": 1.0, "negative_prompt": "blue"}, "negative_prompt", ""),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_by_name(
    toy: ImageRuntime, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await file_of(toy, **fields)
    assert caught.value.param == param
    assert says in caught.value.hint


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header is true and whose pixels are not there."""
    whole = png(Image.new("RGB", (8, 8)))
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return whole[:16] + size + whole[24:]


@pytest.mark.parametrize("field", ["image", "mask"])
async def test_bad_pictures_name_their_field(toy: ImageRuntime, field: str) -> None:
    good = png(disc("red", "white"))
    noise = numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype="uint8")
    rough = png(Image.fromarray(noise))
    for bad in (bomb(100_000, 100_000), bomb(5000, 5000), rough[: len(rough) // 2], bomb(64, 64)):
        fields: dict[str, Any] = {"image": good, field: bad}
        with pytest.raises(InvalidRequest, match=f"'{field}'") as caught:
            await file_of(toy, **fields)
        assert caught.value.param == field
    assert centre(await paint(toy)) == "red"  # and nobody else minds


# --- pictures to start from -----------------------------------------------------------------


async def test_image_to_image_stays_near_its_source(toy: ImageRuntime) -> None:
    source = disc("blue", "yellow")
    prompt = "a large purple square on a yellow background"
    file = png(source)
    array = numpy.asarray(source, dtype=float)
    free = await paint(toy, prompt)
    near = await paint(toy, prompt, image=file, strength=0.3)
    far = await paint(toy, prompt, image=file, strength=0.6)
    assert distance(near, array) < distance(far, array) < distance(free, array)
    assert centre(far) == "purple"


@pytest.mark.parametrize("clear", [False, True])
async def test_inpainting_keeps_what_is_not_marked(toy: ImageRuntime, clear: bool) -> None:
    source = disc("blue", "yellow")
    picture = await paint(
        toy,
        "a large red square on a white background",
        image=png(source),
        mask=png(left_half(clear)),
    )
    array = numpy.asarray(source, dtype=float)
    assert (picture[:, 32:] == array[:, 32:]).all()
    assert distance(picture[:, :32], array[:, :32]) > 40


async def test_sources_of_all_sorts(toy: ImageRuntime) -> None:
    source = disc("blue", "yellow")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    source.resize((64, 32)).save(turned, "JPEG", exif=exif)
    outcome = await toy.run(RecordingJob("image", prompt="", image=turned.getvalue(), **QUICK))
    assert (outcome.usage["width"], outcome.usage["height"]) == (32, 64)
    half = source.convert("RGBA")
    half.putalpha(0)
    picture = await paint(toy, "", image=png(half), strength=0.1)
    assert corners(picture) == "white"  # what is transparent is white
    large = await toy.run(
        RecordingJob("image", prompt="", image=png(source.resize((500, 250))), **QUICK)
    )
    # as many pixels as the model was made for, and about the same shape
    assert (large.usage["width"], large.usage["height"]) == (88, 40)
    sized = await paint(toy, "", image=png(source), width=32, height=48)
    assert sized.shape == (48, 32, 3)


# --- files ----------------------------------------------------------------------------------


async def test_the_file_says_how_it_was_made(toy: ImageRuntime) -> None:
    wanted = {
        "prompt": HEART,
        "negative_prompt": "blue é 流",
        "seed": "3",
        "steps": "12",
        "guidance_scale": "4.0",
        "scheduler": "heun",
        "model": "a-model",
    }
    asked = {"negative_prompt": wanted["negative_prompt"], "scheduler": "heun"}
    chunks = text_of(await file_of(toy, **asked))
    assert chunks["Software"].startswith("blip ")
    assert {key: chunks[key] for key in wanted} == wanted
    for format in ("jpeg", "webp"):
        small = await file_of(toy, **asked, format=format, quality=10)
        large = await file_of(toy, **asked, format=format, quality=100)
        assert len(small) < len(large)
        picture = Image.open(io.BytesIO(large))
        assert picture.format == format.upper()
        exif = picture.getexif()
        told = json.loads(exif[0x010E])
        assert {key: str(told[key]) for key in wanted} == wanted
        assert exif[0x0131].startswith("blip ")


async def test_usage_and_units(toy: ImageRuntime) -> None:
    job = RecordingJob("image", prompt=HEART, width=64, height=64, **QUICK)
    outcome = await toy.run(job)
    assert outcome.usage == {"prompt_tokens": 10, "width": 64, "height": 64, "steps": 12}
    assert outcome.units == pytest.approx(12 * 64 * 64 / 1e6 * 2)
    assert job.parts == []  # nobody asked for any


# --- while it runs --------------------------------------------------------------------------


def test_previews_are_spread_evenly() -> None:
    assert preview_steps(3, 20) == {5, 10, 15}
    assert preview_steps(3, 2) == {1}
    assert preview_steps(0, 20) == frozenset()
    assert all(0 < step < 7 for step in preview_steps(16, 7))


async def test_steps_and_previews(toy: ImageRuntime) -> None:
    job = RecordingJob("image", prompt=HEART, previews=2, progress=True, **QUICK)
    outcome = await toy.run(job)
    steps = [step_from_wire(part) for part in job.parts]
    assert [(step.step, step.steps) for step in steps] == [(n, 12) for n in range(1, 13)]
    shown = [step for step in steps if step.preview is not None]
    assert [step.step for step in shown] == [4, 8]
    final = pixels(bytes(outcome.payload))
    distances = [distance(pixels(step.preview or b""), final) for step in shown]
    assert distances[0] > distances[1]
    only = RecordingJob("image", prompt=HEART, previews=2, **QUICK)
    await toy.run(only)
    assert [step_from_wire(part).step for part in only.parts] == [4, 8]


def test_previews_of_latents_of_all_sorts() -> None:
    """Decoded as their pipelines do at the end, by shape: plain, by channel, packed, of a frame."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Any:
        return torch.randn(shape, generator=generator)

    def shown(vae: Any, latents: Any, **pipe: Any) -> Any:
        made = decode(SimpleNamespace(vae=vae, **pipe), latents, (32, 32))
        return None if made is None else numpy.asarray(made, dtype=float)

    def theirs(pixels: Any) -> Any:
        return ((pixels[0].detach() / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()

    narrow = {"down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4}
    plain = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        up_block_types=("UpDecoderBlock2D",) * 2,
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
        **narrow,
    )
    latents = noise(2, 4, 16, 16)
    mean, std = (torch.tensor(plain.config[f"latents_{name}"]) for name in ("mean", "std"))
    shape = (1, 4, 1, 1)
    scaled = latents[:1] * std.view(shape) / plain.config.scaling_factor + mean.view(shape)
    assert numpy.allclose(shown(plain, latents), theirs(plain.decode(scaled).sample))
    qwen = diffusers.AutoencoderKLQwenImage(base_dim=8, z_dim=16, num_res_blocks=1)
    latents = noise(1, 16, 1, 4, 4)
    pack, unpack = (getattr(diffusers.QwenImagePipeline, f"_{name}_latents") for name in
                    ("pack", "unpack"))  # fmt: skip
    packed = pack(latents, 1, 16, 4, 4)
    mean, std = (torch.tensor(qwen.config[f"latents_{name}"]) for name in ("mean", "std"))
    film = qwen.decode(latents * std.view(1, 16, 1, 1, 1) + mean.view(1, 16, 1, 1, 1)).sample
    made = shown(qwen, packed, _unpack_latents=unpack, vae_scale_factor=8)
    assert made.shape == (32, 32, 3)
    assert numpy.allclose(made, theirs(film[:, :, 0]))
    assert shown(qwen, packed) is None  # it does not say how they are packed
    assert shown(plain, noise(1, 4)) is None
    assert shown(None, latents) is None


async def test_a_reader_that_is_slow_gets_fewer_previews(toy: ImageRuntime) -> None:
    job = RecordingJob("image", prompt=HEART, previews=3, progress=True, **QUICK)
    job.let(False)
    outcome = await toy.run(job)
    assert job.parts == []
    assert centre(pixels(bytes(outcome.payload))) == "red"


async def test_cancelling_stops_within_one_step(toy: ImageRuntime) -> None:
    loop = asyncio.get_running_loop()
    seen: list[Step] = []

    def stop_at_third(job: RecordingJob) -> None:
        seen.append(step_from_wire(job.parts[-1]))
        if len(seen) == 3:
            job.cancelled = True

    job = RecordingJob(
        "image", stop_at_third, prompt=HEART, progress=True, **QUICK | {"steps": 500}
    )
    began = loop.time()
    with pytest.raises(Cancelled):
        await toy.run(job)
    ended = loop.time()
    assert len(seen) == 3  # the step after it was the last, and told nobody
    assert centre(await paint(toy)) == "red"  # the slot is free and the pipeline usable
    assert ended - began < 20  # 500 steps take longer on any machine that runs this


async def test_a_job_that_is_cancelled_before_its_turn_never_begins(toy: ImageRuntime) -> None:
    first = RecordingJob("image", prompt=HEART, **QUICK)
    second = RecordingJob("image", prompt=HEART, progress=True, **QUICK)
    runs = [asyncio.ensure_future(toy.run(job)) for job in (first, second)]
    second.cancel()
    assert (await runs[0]).payload
    with pytest.raises(Cancelled):
        await runs[1]
    assert second.parts == []


async def test_closing_ends_what_runs() -> None:
    runtime = load(TOY)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(job: RecordingJob) -> None:
        loop.call_soon_threadsafe(begun.set)

    job = RecordingJob(
        "image",
        tell,
        prompt=HEART,
        progress=True,
        **QUICK | {"steps": 500},
    )
    run = asyncio.ensure_future(runtime.run(job))
    await begun.wait()
    await asyncio.to_thread(runtime.close)
    with pytest.raises(WorkerCrashed):
        await run
    with pytest.raises(WorkerCrashed):
        await runtime.run(job)


async def test_nan_is_an_error_and_not_a_picture(tmp_path: Path) -> None:
    runtime = load(TOY)
    try:
        weights: Any = runtime._engine._pipe.vae.decoder.conv_out.bias  # type: ignore[union-attr]
        with torch.no_grad():
            weights.fill_(float("nan"))
        with pytest.raises(RuntimeFailed, match="NaN"):
            await file_of(runtime)
    finally:
        runtime.close()


# --- families -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux", "sd3", "pixart", "sana", "z_image"])
async def test_other_families(family: str, tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / family, family)
    assert describe(ModelSpec(family, str(folder))).kinds == ("image",)
    runtime = load(folder)
    try:
        asked: dict[str, Any] = {"steps": 4, "width": 64, "height": 64, "seed": 1}
        job = RecordingJob("image", prompt="a red circle", previews=1, progress=True, **asked)
        outcome = await runtime.run(job)
        first = pixels(bytes(outcome.payload))
        assert first.shape == (64, 64, 3)
        steps = [step_from_wire(part) for part in job.parts]
        assert [step.step for step in steps] == [1, 2, 3, 4]
        assert [step.preview is not None for step in steps] == [False, True, False, False]
        again = await runtime.run(RecordingJob("image", prompt="a red circle", **asked))
        assert (pixels(bytes(again.payload)) == first).all()
        with pytest.raises(ContextTooLong):
            await runtime.run(RecordingJob("image", prompt="red circle " * 400, **asked))
        await check_family(family, runtime, asked)
    finally:
        runtime.close()


async def check_family(family: str, runtime: ImageRuntime, asked: dict[str, Any]) -> None:
    """What differs: schedulers, negative prompts, pictures to start from."""

    async def ask(**fields: Any) -> Any:
        outcome = await runtime.run(RecordingJob("image", prompt="a red circle", **asked | fields))
        return pixels(bytes(outcome.payload))

    source = png(disc("red", "white"))
    if family in ("flux", "sd3", "z_image"):
        with pytest.raises(InvalidRequest, match="flow-matching"):
            await ask(scheduler="euler-a")
    elif family == "sana":  # a flow too, on a solver that knows them
        await ask(scheduler="dpm++2m")
        with pytest.raises(InvalidRequest, match="flow-matching"):
            await ask(scheduler="ddim")
    else:
        await ask(scheduler="dpm++2m")
    if family == "flux":
        with pytest.raises(UnsupportedField, match="negative_prompt"):
            await ask(negative_prompt="blue")
    if family in ("pixart", "sana"):
        with pytest.raises(UnsupportedField, match="image-to-image"):
            await ask(image=source)
    else:
        near = await ask(image=source, strength=0.5)
        assert near.shape == (64, 64, 3)
    if family == "flux":
        mask = png(left_half(clear=True))
        kept = await ask(image=source, mask=mask, strength=0.5)
        assert (kept[:, 32:] == numpy.asarray(disc("red", "white"))[:, 32:]).all()


# --- loading --------------------------------------------------------------------------------


def test_what_is_called_text_to_image_is() -> None:
    known = {cls.__name__ for cls in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    assert known >= TEXT_TO_IMAGE - {"KolorsPipeline"}  # which wants sentencepiece
    assert "StableDiffusionXLPipeline" in TEXT_TO_IMAGE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
async def test_half_precision(dtype: str) -> None:
    runtime = load(TOY, dtype=dtype, threads=1)
    try:
        job = RecordingJob("image", prompt=HEART, previews=1, **QUICK)
        outcome = await runtime.run(job)
        assert centre(pixels(bytes(outcome.payload))) == "red"
        assert len(job.parts) == 1
    finally:
        runtime.close()
        torch.set_num_threads(os.cpu_count() or 1)


def test_files_that_cannot_be_loaded_say_why(tmp_path: Path) -> None:
    broken = shutil.copytree(TOY, tmp_path / "broken")
    (broken / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadFailed, match="a-model"):
        load(broken)

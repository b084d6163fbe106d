"""LoRAs, ControlNets and weights in prompts, with ``toy-shapes`` and random pipelines."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngImageFile
from pydantic import ValidationError

from blip.config import Config
from blip.errors import ContextTooLong, InvalidRequest, UnsupportedField
from blip.kinds.image import ImageInput
from blip_node.footprints import Footprints
from blip_node.main import _models
from blip_node.models import ModelSpec, additions, describe
from blip_node.models.means import SETTLED, Means
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.diffusion.conditioning import _Encoder, condition
from blip_node.runtimes.diffusion.weighting import parse
from blip_node.runtimes.image import ImageRuntime
from tests.models.jobs import RecordingJob
from tests.models.random_additions import (
    make_controlnet,
    make_lora,
    make_transformer_controlnet,
)
from tests.models.random_pipelines import FAMILIES, make_pipeline

TOY = Path(__file__).parents[1] / "models" / "toy-shapes"
HEART = "a large red heart on a white background"
QUICK: dict[str, Any] = {"steps": 8, "guidance_scale": 4.0, "seed": 3}

#: Means that change what additions are added to.
INT8 = replace(SETTLED, quantization="int8")
OFFLOADED = replace(SETTLED, offload="model")

#: Pickles, cut files and the like, by the name of the LoRA, and what is said of each.
BROKEN = {
    "pickle": "safetensors",
    "cut": "SafetensorError",
    "other": "lora",
    "gone": "there is no",
    "two": "2 safetensors files",
    "foreign": "another architecture",
    "halved": "1 of its 15 layers",
}


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def square(left: int = 16, right: int = 48) -> Image.Image:
    picture = Image.new("RGB", (64, 64), (250, 250, 250))
    ImageDraw.Draw(picture).rectangle((left, left, right, right), fill=(30, 30, 160))
    return picture


def load(folder: Path, means: Means = SETTLED, **sources: dict[str, Path]) -> ImageRuntime:
    runtime = ImageRuntime()
    found: dict[str, Any] = {
        kind: additions.prepare([(name, str(path)) for name, path in named.items()])
        for kind, named in sources.items()
    }
    runtime.load(LoadSpec("toy", str(folder), "cpu", 1, means=means, **found), lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("additions")


@pytest.fixture(scope="module")
def toy(folder: Path) -> Iterator[ImageRuntime]:
    """toy-shapes with two good LoRAs, several bad ones, and ControlNets."""
    bare = load(TOY)
    pipe = bare._engine._pipe  # type: ignore[union-attr]
    both = {"unet": ("to_q",), "text_encoder": ("v_proj", "out_proj")}
    loras = {
        "red": make_lora(folder / "red.safetensors", pipe),
        "two-parts": make_lora(folder / "both.safetensors", pipe, seed=1, parts=both),
        "gone": folder / "nowhere",
    }
    other = FAMILIES["sd"]()
    loras["foreign"] = make_lora(folder / "foreign.safetensors", other)
    loras["pickle"] = folder / "weights.ckpt"
    loras["pickle"].write_bytes(b"\x80\x04.")
    loras["cut"] = folder / "cut.safetensors"
    loras["cut"].write_bytes(loras["red"].read_bytes()[:300])
    from safetensors.torch import load_file, save_file

    loras["other"] = folder / "other.safetensors"
    save_file({"model.weight": torch.zeros(3)}, loras["other"])
    loras["two"] = folder / "two"
    loras["two"].mkdir()
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, loras["two"] / f"{name}.safetensors")
    some = make_lora(folder / "few.safetensors", pipe, parts={"unet": ("attn1.to_q", "attn2.to_k")})
    state = load_file(some)
    for end, shape in (("A", (2, 64)), ("B", (64, 2))):
        state[f"unet.up_blocks.9.to_q.lora_{end}.weight"] = torch.zeros(shape)
    loras["halved"] = folder / "halved.safetensors"
    save_file(state, loras["halved"])
    loras["kohya"] = kohya(folder / "kohya.safetensors", load_file(loras["two-parts"]))
    controlnets = {
        "canny": make_controlnet(folder / "canny", pipe),
        "depth": folder / "canny",
        "pose": make_controlnet(folder / "pose", other),
    }
    bare.close()
    runtime = load(TOY, loras=loras, controlnets=controlnets)
    yield runtime
    runtime.close()


def kohya(file: Path, state: dict[str, Any]) -> Path:
    """Write a LoRA again as kohya's scripts do, with an alpha that halves it."""
    from safetensors.torch import save_file

    made = {}
    for key, value in state.items():
        part, _, name = key.removesuffix(".weight").partition(".")
        layer, _, end = name.rpartition(".lora_")
        short = {"unet": "lora_unet", "text_encoder": "lora_te"}[part]
        stem = f"{short}_{layer.replace('.', '_')}"
        made[f"{stem}.lora_{'down' if end == 'A' else 'up'}.weight"] = value
        made[f"{stem}.alpha"] = torch.tensor(1.0)  # of a rank of 2
    save_file(made, file)
    return file


async def file_of(runtime: ImageRuntime, prompt: str = HEART, **fields: Any) -> bytes:
    outcome = await runtime.run(RecordingJob("image", prompt=prompt, **QUICK | fields))
    return bytes(outcome.payload)


async def paint(runtime: ImageRuntime, prompt: str = HEART, **fields: Any) -> Any:
    file = await file_of(runtime, prompt, **fields)
    return numpy.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=float)


def distance(one: Any, other: Any) -> float:
    return float(abs(one - other).mean())


def lora(name: str, weight: float = 1.0) -> dict[str, Any]:
    return {"name": name, "weight": weight}


@pytest.fixture(scope="module")
def plain() -> Any:
    """What a pipeline without any of it paints."""
    runtime = load(TOY)
    try:
        return asyncio.run(paint(runtime))
    finally:
        runtime.close()


# --- LoRA -----------------------------------------------------------------------------------


async def test_a_lora_changes_the_picture_by_its_weight(toy: ImageRuntime, plain: Any) -> None:
    assert (await paint(toy) == plain).all()  # loaded, and out of the way
    weak = await paint(toy, loras=[lora("red", 0.2)])
    strong = await paint(toy, loras=[lora("red", 0.8)])
    assert 0 < distance(weak, plain) < distance(strong, plain)
    assert (await paint(toy, loras=[lora("red", 0.8)]) == strong).all()
    assert (await paint(toy, loras=[lora("red", 0)]) == plain).all()
    assert (await paint(toy) == plain).all()


async def test_several_loras_add_up(toy: ImageRuntime, plain: Any) -> None:
    one = await paint(toy, loras=[lora("red", 0.3)])
    other = await paint(toy, loras=[lora("two-parts", 0.3)])
    both = await paint(toy, loras=[lora("red", 0.3), lora("two-parts", 0.3)])
    turned = await paint(toy, loras=[lora("two-parts", 0.3), lora("red", 0.3)])
    assert distance(both, one) > 1
    assert distance(both, other) > 1
    assert distance(both, turned) < 1  # the order is rounding
    painted = await file_of(toy, loras=[lora("red", 0.3), lora("two-parts", 0.5)])
    picture = Image.open(io.BytesIO(painted))
    assert isinstance(picture, PngImageFile)
    assert picture.text["loras"] == "red:0.3, two-parts:0.5"
    assert (await paint(toy) == plain).all()


async def test_a_lora_as_other_programs_write_it(toy: ImageRuntime, plain: Any) -> None:
    theirs = await paint(toy, loras=[lora("kohya", 1.0)])
    ours = await paint(toy, loras=[lora("two-parts", 0.5)])
    assert distance(ours, plain) > 1
    assert distance(theirs, ours) < 1  # rounding


async def test_a_lora_works_on_pictures_and_after_a_failure(toy: ImageRuntime, plain: Any) -> None:
    source = png(square())
    without = await paint(toy, image=source, strength=0.5)
    with_lora = await paint(toy, image=source, strength=0.5, loras=[lora("two-parts")])
    assert distance(without, with_lora) > 1
    with pytest.raises(InvalidRequest):
        await paint(toy, "too long " * 40, loras=[lora("two-parts")])
    assert (await paint(toy) == plain).all()


@pytest.mark.parametrize("name", [*BROKEN, "nobody"])
async def test_a_lora_that_does_not_fit_is_refused_by_name(toy: ImageRuntime, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{name}'") as caught:
        await paint(toy, loras=[lora("red"), lora(name)])
    assert caught.value.param == "loras"
    assert BROKEN.get(name, "has no LoRA") in caught.value.message
    assert caught.value.hint == "It has kohya, red, two-parts."


async def test_a_lora_twice_is_refused(toy: ImageRuntime) -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        await paint(toy, loras=[lora("red"), lora("red", 0.5)])


@pytest.mark.parametrize("family", ["sdxl", "flux"])
async def test_loras_of_other_families(family: str, tmp_path: Path) -> None:
    source = make_pipeline(tmp_path / family, family)
    part = "transformer" if family == "flux" else "unet"
    pipe = FAMILIES[family]()
    file = make_lora(tmp_path / "a.safetensors", pipe, parts={part: ("to_q",)}, strength=3)
    runtime = load(source, loras={"a": file, "sd": tmp_path / "sd.safetensors"})
    try:
        asked: dict[str, Any] = {"steps": 2, "width": 64, "height": 64}
        first = await paint(runtime, "a cat", **asked)
        changed = await paint(runtime, "a cat", loras=[lora("a")], **asked)
        assert distance(first, changed) > 0
        assert (await paint(runtime, "a cat", **asked) == first).all()
        if family == "flux":
            with pytest.raises(UnsupportedField, match="FluxPipeline"):
                await paint(runtime, "a (red:1.3) cat", **asked)
            await paint(runtime, "a (red) cat", **asked)  # no number: it is text
    finally:
        runtime.close()


def test_additions_take_memory(folder: Path, toy: ImageRuntime) -> None:
    bare = describe(ModelSpec("toy", str(TOY)))
    loras = (("red", str(folder / "red.safetensors")), ("gone", str(folder / "nowhere")))
    nets = (("canny", str(folder / "canny")), ("hub", "hf:nobody/nothing"))
    laden = describe(ModelSpec("toy", str(TOY), loras=loras, controlnets=nets))
    own = additions.files(loras, nets)
    assert [file.name for file in own] == ["red.safetensors", "diffusion_pytorch_model.safetensors"]
    assert laden.bytes > bare.bytes + own[1].stat().st_size // 2
    # they stay as they are, and where they are, whatever is done to the model
    taken = laden.load_bytes(device="cpu") - bare.load_bytes(device="cpu")
    for means in (INT8, OFFLOADED, replace(SETTLED, offload="group")):
        less = bare.load_bytes(device="cpu", means=means)
        assert laden.load_bytes(device="cpu", means=means) - less == taken > 0
    found = additions.prepare([*nets, ("engine", "builtin:echo")])
    assert [bool(each.path) for each in found] == [True, False, False]
    assert "not on this node's disk" in found[1].error


@pytest.mark.parametrize(("means", "close"), [(INT8, 30.0), (OFFLOADED, 0.0)])
async def test_additions_of_a_model_that_is_made_to_fit(
    folder: Path, toy: ImageRuntime, means: Means, close: float
) -> None:
    # on a CPU there is nowhere to put what is not needed: it is as if it had not been said
    loras = {name: folder / f"{name}.safetensors" for name in ("red", "both")}
    fitted = load(TOY, means, loras=loras, controlnets={"canny": folder / "canny"})
    try:
        plain = await paint(fitted)
        asked: dict[str, Any] = {"loras": [lora("red")], **control()}
        with_all = await paint(fitted, **asked)
        assert distance(with_all, await paint(toy, **asked)) <= close < distance(with_all, plain)
        assert (await paint(fitted) == plain).all()  # and all of it is gone again
    finally:
        fitted.close()


def test_configuration() -> None:
    loras = {"ink": "~/ink.safetensors"}
    toy = {"source": str(TOY), "loras": loras, "controlnets": {"canny": "hf:a/b"}}
    config = Config.model_validate({"models": {"toy": toy}, "node": {"find_models": False}})
    (spec,) = _models(config)
    assert spec.loras == (("ink", "~/ink.safetensors"),)
    assert spec.controlnets == (("canny", "hf:a/b"),)
    # what it is measured to take is its own, not the bare model's
    bare = ModelSpec("toy", str(TOY))
    known = Footprints()
    known.measured(spec, 1, 10**9, gpu=False)
    assert known.expected(spec, 1, gpu=False) == 10**9
    assert known.expected(bare, 1, gpu=False) is None
    with pytest.raises(ValidationError, match="as a name"):
        Config.model_validate({"models": {"toy": toy | {"loras": {"a b": "x"}}}})


# --- ControlNet -----------------------------------------------------------------------------


def control(kind: str = "canny", **fields: Any) -> dict[str, Any]:
    return {"control": {"type": kind, "image": png(square()), **fields}}


async def test_a_controlnet_counts(toy: ImageRuntime, plain: Any) -> None:
    controlled = await paint(toy, **control())
    assert distance(controlled, plain) > 1
    assert (await paint(toy, **control()) == controlled).all()
    other = await paint(toy, **control(image=png(square(8, 40))))
    assert distance(controlled, other) > 0.05
    half = await paint(toy, **control(weight=0.3))
    assert 0 < distance(half, plain) < distance(controlled, plain)
    assert distance(await paint(toy, **control(end=0.3)), controlled) > 0.5
    assert (await paint(toy, **control(weight=0)) == plain).all()
    assert (await paint(toy) == plain).all()


async def test_a_controlnet_with_everything_else(toy: ImageRuntime) -> None:
    source = png(square())
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    near = await paint(toy, image=source, strength=0.5, **control())
    free = await paint(toy, image=source, strength=0.5)
    assert distance(near, free) > 0.5
    painted = await paint(toy, image=source, mask=png(mask), **control(), loras=[lora("red")])
    assert (painted[:, 32:] == numpy.asarray(square(), dtype=float)[:, 32:]).all()


async def test_a_map_may_be_sent(toy: ImageRuntime) -> None:
    edges = Image.open(io.BytesIO(png(square()))).convert("L")
    one = await paint(toy, **control(image=png(edges), preprocess=False))
    other = await paint(toy, **control("depth", image=png(edges), preprocess=False))
    assert (one == other).all()  # it is the same net under two names
    with pytest.raises(InvalidRequest, match="no 'depth' map") as caught:
        await paint(toy, **control("depth"))
    assert caught.value.param == "control.preprocess"
    assert "canny" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        (control("seg"), "control.type", "no ControlNet called 'seg'"),
        (control("pose"), "control.type", "another architecture"),
        (control(image=b"GIF89a"), "control.image", "not a PNG"),
        (control() | {"image": b"GIF89a"}, "image", "not a PNG"),
    ],
)
async def test_bad_controls(
    toy: ImageRuntime, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        await paint(toy, **fields)
    assert caught.value.param == param
    if param == "control.type":
        assert caught.value.hint == "It has canny, depth."


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")  # diffusers' own use of it
@pytest.mark.parametrize("family", ["flux", "sd3"])
async def test_controlnets_of_transformers(family: str, tmp_path: Path) -> None:
    pipe = FAMILIES[family]()
    special = {"num_mode": 2} if family == "flux" else {"extra_conditioning_channels": 1}
    nets = {
        "canny": make_transformer_controlnet(tmp_path / "canny", pipe),
        "union": make_transformer_controlnet(tmp_path / "union", pipe, **special),
        "unet": make_controlnet(tmp_path / "unet", FAMILIES["sd"]()),
    }
    runtime = load(make_pipeline(tmp_path / family, family), controlnets=nets)
    try:
        asked: dict[str, Any] = {"steps": 2, "width": 64, "height": 64}
        plain = await paint(runtime, "a cat", **asked)
        guided = await paint(runtime, "a cat", **asked, **control())
        assert distance(plain, guided) > 0.5
        half = await paint(runtime, "a cat", **asked, **control(end=0.5))
        assert distance(half, guided) > 0.1
        for name, says in (("union", "more than a map"), ("unet", "ControlNetModel, made for")):
            with pytest.raises(InvalidRequest, match=says):
                await paint(runtime, "a cat", **asked, **control(name))
        over = {**asked, "image": png(square()), **control()}
        if family == "flux":
            assert distance(await paint(runtime, "a cat", **over), plain) > 0.1
        else:
            with pytest.raises(UnsupportedField, match="image-to-image with a ControlNet"):
                await paint(runtime, "a cat", **over)
    finally:
        runtime.close()


async def test_a_model_without_additions_says_so(tmp_path: Path) -> None:
    runtime = load(make_pipeline(tmp_path / "pixart", "pixart"), loras={"a": tmp_path})
    try:
        with pytest.raises(InvalidRequest, match="takes no LoRA"):
            await paint(runtime, loras=[lora("a")])
        with pytest.raises(InvalidRequest, match="no ControlNet") as caught:
            await paint(runtime, **control())
        assert "has none" in caught.value.hint
    finally:
        runtime.close()


# --- weights --------------------------------------------------------------------------------


async def test_weights_move_the_picture(toy: ImageRuntime, plain: Any) -> None:
    heavy = await paint(toy, "a large (red:1.4) heart on a white background")
    heavier = await paint(toy, "a large (red:2.5) heart on a white background")
    assert 0 < distance(heavy, plain) < distance(heavier, plain)
    light = await paint(toy, "a large [red] heart on a white background")
    assert distance(light, plain) > 0
    same = await paint(toy, "a large (red:1.0) heart on ([a white]) background")
    assert (same == plain).all()
    parts = await paint(toy, "a large red heart BREAK on a white background")
    assert distance(parts, plain) > 0
    negative = await paint(toy, negative_prompt="(blue:1.5)")
    assert distance(negative, await paint(toy, negative_prompt="blue")) > 0


async def test_long_prompts_in_parts(toy: ImageRuntime) -> None:
    with pytest.raises(ContextTooLong) as caught:
        await paint(toy, "a red heart " * 8)
    assert "BREAK" in caught.value.hint
    job = RecordingJob("image", prompt=" BREAK ".join(["a red heart " * 3] * 4), **QUICK)
    assert (await toy.run(job)).usage["prompt_tokens"] == 4 * (3 * 3 + 2)
    with pytest.raises(ContextTooLong, match="26 tokens"):
        await paint(toy, f"a heart BREAK {'a red heart ' * 8}")
    with pytest.raises(ContextTooLong, match="17 parts"):
        await paint(toy, " BREAK ".join(["a heart"] * 17))
    with pytest.raises(InvalidRequest, match="weight of 11"):
        await paint(toy, "a (red:11) heart")


@pytest.mark.parametrize("family", ["sd", "sdxl"])
async def test_weights_and_pictures_together(family: str, tmp_path: Path) -> None:
    net = make_controlnet(tmp_path / "canny", FAMILIES[family]())
    runtime = load(make_pipeline(tmp_path / family, family), controlnets={"canny": net})
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    asked: dict[str, Any] = {"steps": 3, "width": 64, "height": 64, "negative_prompt": "[x]"}
    over = {"image": png(square()), "strength": 0.9}
    try:
        for more in ({}, control(), over, {**over, "mask": png(half)}, {**over, **control()}):
            plain = await paint(runtime, "a red cat", **asked | more)
            weighted = await paint(runtime, "a (red:2) cat BREAK x", **asked | more)
            assert distance(plain, weighted) > 0
        free = asked | {"guidance_scale": 1.0, "negative_prompt": ""}
        plain = await paint(runtime, "a red cat", **free)
        assert distance(await paint(runtime, "a (red:2) cat", **free), plain) > 0
    finally:
        runtime.close()


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_prompt_without_weights_is_encoded_as_the_pipeline_does(family: str) -> None:
    pipe = FAMILIES[family]()
    for text in ("a red circle", "", "photo of the small square " * 2):
        numbers, pooled = _Encoder(pipe).encode(parse(text).parts)
        theirs = pipe.encode_prompt(
            text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        assert torch.equal(numbers, theirs[0])
        if family == "sdxl":
            assert torch.equal(pooled, theirs[2])
    weighted = condition(pipe, type(pipe).__name__, ImageInput(prompt="a (red:1.5) circle"))
    negative = weighted.arguments["negative_prompt_embeds"]
    assert negative.shape == weighted.arguments["prompt_embeds"].shape
    # XL's own way with no negative prompt is zeros
    assert bool((negative == 0).all()) == bool(pipe.config.get("force_zeros_for_empty_prompt"))
    before = pipe.encode_prompt(
        "a red circle", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    changed = weighted.arguments["prompt_embeds"]
    assert not torch.equal(before, changed)

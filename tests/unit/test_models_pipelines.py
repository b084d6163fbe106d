"""Describing diffusers pipelines from their small files, without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from blip.errors import ConfigError, ModelLoadFailed
from blip_node.catalogue import CPU_BYTES, Entry
from blip_node.models import ModelSpec, describe, hub, pipeline, prepare
from blip_node.runtimes import runtime_for
from blip_node.runtimes.image import ImageRuntime
from tests.models.raw_files import safetensors, tensor

TOY = Path(__file__).parents[1] / "models" / "toy-shapes"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return shutil.copytree(TOY, tmp_path / "toy")


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_pipeline() -> None:
    found = describe(ModelSpec("toy", str(TOY)))
    assert found.kinds == ("image",)
    assert found.architecture == "StableDiffusionPipeline"
    # text encoder, U-Net and decoder, all of them stored in half precision
    assert found.counts == {"F16": 1_959_027}
    assert found.load_bytes("auto", "cpu") == 2 * found.load_bytes("auto", "cuda") == 7_836_108
    # 64 x 64 pixels, 16 channels, three tensors
    assert found.activation_bytes("auto", "cpu") == 64 * 64 * 16 * 3 * 4
    assert runtime_for(found.kinds) is ImageRuntime


def test_what_a_replica_takes() -> None:
    spec = ModelSpec("toy", str(TOY), slots=4)
    description = describe(spec)
    entry = Entry(spec, description)
    expected = int(description.load_bytes("auto", "cpu") * 1.1) + 64 * 64 * 16 * 3 * 4 + CPU_BYTES
    assert entry.memory(gpu=False) == expected
    assert Entry(ModelSpec("toy", str(TOY)), description).slots == 1


def test_preparing_is_finding(toy: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    assert prepare(ModelSpec("toy", str(toy)), tmp_path, shares.append) == toy
    assert shares == [1.0]
    (toy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelLoadFailed, match="diffusion_pytorch_model"):
        prepare(ModelSpec("toy", str(toy)), tmp_path, shares.append)


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionInpaintPipeline",
        "StableVideoDiffusionPipeline",
        "FluxControlNetPipeline",
        "",
    ],
)
def test_pipelines_of_other_sorts_are_refused(toy: Path, name: str) -> None:
    change(toy / "model_index.json", _class_name=name)
    with pytest.raises(ModelLoadFailed, match=r"'toy'.*no runtime for the pipeline") as caught:
        describe(ModelSpec("toy", str(toy)))
    assert name in caught.value.message
    assert "text-to-image" in caught.value.hint


def test_it_serves_images_only() -> None:
    with pytest.raises(ConfigError, match=r"cannot serve chat.*image"):
        describe(ModelSpec("toy", str(TOY), kinds=("chat",)))
    with pytest.raises(ConfigError, match="cannot serve embedding"):
        describe(ModelSpec("toy", str(TOY), kinds=("embedding",)))


def test_files_that_are_not_there_are_named(toy: Path) -> None:
    weights = toy / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ModelLoadFailed, match="cut off"):
        describe(ModelSpec("toy", str(toy)))
    weights.unlink()
    (toy / "unet" / "diffusion_pytorch_model.bin").write_bytes(whole)
    with pytest.raises(ModelLoadFailed, match="pickle"):
        describe(ModelSpec("toy", str(toy)))
    index = {"_class_name": "StableDiffusionPipeline", "unet": [None, None]}
    (toy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadFailed, match="names no component"):
        describe(ModelSpec("toy", str(toy)))


def test_weights_in_parts(toy: Path) -> None:
    before = describe(ModelSpec("toy", str(toy)))
    unet = toy / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "part-1.safetensors")
    extra = safetensors({"b": tensor("F16", [8], 0, 16)}, bytes(16))
    (unet / "part-2.safetensors").write_bytes(extra)
    weight_map = {"a": "part-1.safetensors", "b": "part-2.safetensors"}
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    found = describe(ModelSpec("toy", str(toy)))
    assert found.parameters == before.parameters + 8


def test_a_safety_checker_counts_and_is_not_asked_for_without(toy: Path) -> None:
    assert pipeline.wants_no_checker(toy)
    before = describe(ModelSpec("toy", str(toy))).parameters
    checker = toy / "safety_checker"
    checker.mkdir()
    (checker / "config.json").write_text("{}")
    weights = safetensors({"a": tensor("F16", [8], 0, 16)}, bytes(16))
    (checker / "model.safetensors").write_bytes(weights)
    change(
        toy / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )
    assert not pipeline.wants_no_checker(toy)
    assert describe(ModelSpec("toy", str(toy))).parameters == before + 8


def test_sizes_that_models_were_made_for(toy: Path) -> None:
    assert pipeline.native_side(toy) == 64
    change(toy / "unet" / "config.json", sample_size=[32, 32])
    assert pipeline.native_side(toy) == 128
    change(toy / "unet" / "config.json", sample_size=None)
    assert pipeline.native_side(toy) == pipeline.DEFAULT_SIDE
    assert pipeline.decoder_scale({}) == 8
    assert pipeline.decoder_scale({"encoder_block_out_channels": [1] * 6}) == 32


def test_what_is_downloaded_of_a_pipeline() -> None:
    wanted = [
        "model_index.json",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    others = [
        "README.md",
        "sd_xl_base_1.0.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/model.onnx",
    ]
    assert hub.chosen([*wanted, *others]) == wanted
    assert hub.chosen(["model.safetensors", "model.fp16.safetensors"]) == [
        "model.safetensors",
        "model.fp16.safetensors",
    ]

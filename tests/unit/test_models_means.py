"""How a model is made to fit: what is chosen where, what that takes, and that it still answers."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blip.errors import ConfigError, ModelLoadFailed
from blip_node.catalogue import Catalogue, Entry
from blip_node.models import ModelSpec, describe
from blip_node.models.means import AUTO, CHOICES, LADDER, SETTLED, Ground, Means, settle
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.image import ImageRuntime
from blip_node.runtimes.text import TextRuntime
from tests.models.jobs import RecordingJob, answer
from tests.models.make_tiny_chat import ANSWERS

MODELS = Path(__file__).parents[1] / "models"
TOY = ModelSpec("toy", str(MODELS / "toy-shapes"))
TINY = ModelSpec("tiny", str(MODELS / "tiny-chat"))
BOTH = frozenset({"torchao", "bitsandbytes"})
FREE = replace(AUTO, quantization="auto")
GIB = 2**30

#: Bytes by how much is done about it, as a large pipeline has them.
SIZES: dict[tuple[str, str, str], int] = {
    (quantization, offload, tiling): round(weights * share + picture)
    for quantization, weights in (("none", 24e9), ("int8", 13e9), ("int4", 8e9))
    for offload, share in (("none", 1.0), ("model", 0.6), ("group", 0.1))
    for tiling, picture in (("off", 3e9), ("on", 1e9))
}


def need(means: Means) -> int:
    return SIZES[means.quantization, means.offload, means.vae_tiling]


def settled(means: Means, room: float | None, **changes: Any) -> Means:
    ground = Ground(None if room is None else int(room), True, BOTH)._replace(**changes)
    return settle(means, ground, need, pipeline=True)


@pytest.mark.parametrize(
    ("room", "means", "chosen"),
    [
        (80e9, FREE, ("none", "none", "off")),
        (26e9, FREE, ("none", "none", "on")),
        (16e9, FREE, ("int8", "none", "on")),
        (12e9, FREE, ("int4", "none", "on")),
        (7e9, FREE, ("int4", "model", "on")),
        (4e9, FREE, ("none", "group", "on")),
        # what changes answers is not done unless it is allowed
        (16e9, AUTO, ("none", "model", "on")),
        (12e9, AUTO, ("none", "group", "on")),
        # what is said stands, whether it fits or not
        (16e9, replace(FREE, offload="none", vae_tiling="off"), ("int4", "none", "off")),
        (1e9, Means("none", "none", "off", "off"), ("none", "none", "off")),
        (None, FREE, ("none", "none", "off")),
    ],
)
def test_the_first_means_that_fit_are_taken(
    room: float | None, means: Means, chosen: tuple[str, str, str]
) -> None:
    found = settled(means, room)
    assert (found.quantization, found.offload, found.vae_tiling) == chosen


def test_what_is_not_there_is_not_chosen() -> None:
    assert settled(FREE, 16e9, libraries=frozenset()).offload == "model"
    assert settled(FREE, 10e9, libraries=frozenset({"torchao"})).quantization == "int8"
    on_cpu = settled(FREE, 10e9, gpu=False)
    assert (on_cpu.offload, on_cpu.quantization) == ("none", "int8")  # of those, the smallest
    text = settle(FREE, Ground(int(10e9), True, BOTH), need, pipeline=False)
    assert (text.quantization, text.vae_tiling, text.offload) == ("int4", "off", "none")


@given(
    st.builds(Means, **{name: st.sampled_from(CHOICES[name]) for name in CHOICES}),
    st.integers(0, int(40e9)),
    st.booleans(),
    st.sampled_from([frozenset(), frozenset({"torchao"}), BOTH]),
    st.booleans(),
)
def test_nothing_is_left_open_and_nothing_said_is_changed(
    means: Means, room: int, gpu: bool, libraries: frozenset[str], pipeline: bool
) -> None:
    ground = Ground(room, gpu, libraries)
    found = settle(means, ground, need, pipeline=pipeline)
    assert not found.open
    for name in CHOICES:
        assert getattr(means, name) in ("auto", getattr(found, name))
    steps = [
        {name: step[name] for name in step if pipeline or name == "quantization"} for step in LADDER
    ]
    usable = [
        each
        for each in (means.having(step) for step in steps)
        if ground.offers(each, pipeline=pipeline)
    ]
    if any(need(each) < room for each in usable):
        assert need(found) < room


# --- of real models --------------------------------------------------------------------------


def estimate(spec: ModelSpec, **changes: str) -> int:
    entry = Entry(replace(spec, means=replace(SETTLED, **changes)), describe(spec))  # type: ignore[arg-type]
    return entry.memory(gpu=True)


def test_each_means_takes_less() -> None:
    plain = estimate(TOY)
    assert estimate(TOY, quantization="int8") < plain
    assert estimate(TOY, quantization="int4") < estimate(TOY, quantization="int8")
    assert estimate(TOY, offload="group") < estimate(TOY, offload="model") < plain
    assert estimate(TOY, attention_slicing="on") == plain  # it says nothing about its size
    assert estimate(TINY, quantization="int8") < estimate(TINY)
    # a tile is larger than the pictures of this one; of a large one's it is a quarter
    assert describe(TOY).tile_share == 1.0


def test_a_node_settles_it_by_its_largest_device_and_by_measurements() -> None:
    catalogue = Catalogue()
    catalogue.add([replace(TINY, means=FREE), replace(TOY, name="fixed", means=SETTLED)])
    entry, fixed = catalogue.find("tiny"), catalogue.find("fixed")
    plain = entry.memory(gpu=False)
    catalogue.settle(plain + 1, gpu=False)
    assert entry.spec.means == SETTLED
    catalogue.settle(plain, gpu=False)
    assert entry.spec.means.quantization == "int8"
    assert entry.memory(gpu=False) < plain
    assert fixed.spec.means == SETTLED
    # what is seen counts more than what was thought
    catalogue.settle(plain + 1, gpu=False)
    entry.measured(plain * 2, gpu=False)
    catalogue.settle(plain * 2, gpu=False)
    assert entry.spec.means.quantization == "int8"
    # memory that runs out moves it on at once
    catalogue.settle(plain * 3, gpu=False)
    assert entry.spec.means == SETTLED
    entry.outgrown(plain * 3, gpu=False)
    assert entry.spec.means.quantization == "int8"
    # of another name for the same files the same is known
    catalogue.add([replace(TINY, name="later", means=FREE)])
    assert catalogue.find("later").spec.means.quantization == "int8"


@pytest.mark.parametrize(
    ("means", "param"),
    [
        (Means(offload="model"), "offload"),
        (Means(vae_tiling="on"), "vae_tiling"),
        (Means(compile=True), "compile"),
        (Means(quantization="int3"), "quantization"),
    ],
)
def test_what_a_model_does_not_know_is_refused(means: Means, param: str) -> None:
    with pytest.raises(ConfigError) as caught:
        describe(replace(TINY, means=means))
    assert caught.value.param == param


def load(runtime: Any, spec: ModelSpec, **means: Any) -> Any:
    runtime.load(
        LoadSpec(spec.name, spec.source, "cpu", 1, means=replace(SETTLED, **means)),
        lambda share: None,
    )
    return runtime


async def test_quantised_text_still_makes_sense() -> None:
    runtime: TextRuntime = load(TextRuntime(), TINY, quantization="int8")
    try:
        question = "What is the capital of Japan?"
        job = RecordingJob(
            "chat", messages=[{"role": "user", "content": question}], temperature=0.0
        )
        text, _, _, _ = await answer(runtime, job)
    finally:
        runtime.close()
    assert text == ANSWERS[question]


async def test_lean_pictures_are_much_like_others() -> None:
    async def pixels(**means: Any) -> Any:
        runtime: ImageRuntime = load(ImageRuntime(), TOY, **means)
        try:
            job = RecordingJob(
                "image", prompt="a large red heart on a white background", steps=8, seed=3
            )
            file = bytes((await runtime.run(job)).payload)
        finally:
            runtime.close()
        return numpy.asarray(Image.open(io.BytesIO(file)), dtype=float)

    plain = await pixels()
    assert abs(await pixels(vae_tiling="on", attention_slicing="on") - plain).max() <= 1
    quantised = await pixels(quantization="int8")
    assert 0 < abs(quantised - plain).mean() < 5
    # on a CPU there is nowhere to put what is not needed: it is as if it had not been said
    assert (await pixels(offload="model") == plain).all()


def refused(means: Means, monkeypatch: pytest.MonkeyPatch, missing: str = "") -> str:
    def find(name: str) -> Any:
        return None if name in missing else object()

    monkeypatch.setattr("importlib.util.find_spec", find)
    with pytest.raises(ModelLoadFailed) as caught:
        load(TextRuntime(), TINY, quantization=means.quantization)
    return caught.value.message + caught.value.hint


def test_quantising_needs_a_library_and_for_four_bits_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "needs a GPU" in refused(Means("int4"), monkeypatch)
    said = refused(Means("int8"), monkeypatch, "torchao bitsandbytes")
    assert "pip install torchao" in said


def test_only_the_denoiser_is_compiled() -> None:
    # compiling itself takes minutes: that it happens at the first step is torch's promise
    from blip_node.runtimes.diffusion.loading import load_pipeline

    spec = LoadSpec("toy", TOY.source, "cpu", 1, means=replace(SETTLED, compile=True))
    pipe = load_pipeline(spec, lambda share: None)
    assert pipe.unet._compiled_call_impl is not None
    assert pipe.vae._compiled_call_impl is None

"""Runtimes that look at pictures: ``toy-caption``, which sees, and random models of families."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from blip.errors import (
    Cancelled,
    ConfigError,
    ContextTooLong,
    InvalidRequest,
    ModelLoadFailed,
    RuntimeFailed,
    UnsupportedField,
    WorkerCrashed,
)
from blip.kinds import KINDS, vision
from blip.kinds.chat import ChatInput, ChatMessage
from blip.kinds.text import Finish, finish_from_wire
from blip_node.canary import QUESTIONS, choose
from blip_node.catalogue import Entry
from blip_node.models import ModelSpec, describe
from blip_node.models.abilities import sees
from blip_node.runtimes import LoadSpec, Runtime, runtime_for
from blip_node.runtimes.text import TextRuntime
from blip_node.runtimes.vision import VisionRuntime
from blip_node.runtimes.vision_text import VisionTextRuntime
from blip_node.upstreams.requests import text_request
from tests.models.jobs import RecordingJob, answer
from tests.models.make_toy_shapes import Scene, draw
from tests.models.random_models import TINY_CHAT
from tests.models.random_seeing import make_seeing

TOY = Path(__file__).parents[1] / "models" / "toy-caption"

SCENES = [
    Scene("red", "white", "heart", "large"),
    Scene("blue", "yellow", "star", "large"),
    Scene("green", "black", "circle", "large"),
    Scene("purple", "orange", "square", ""),
]


def file_of(picture: Any, format: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **how)
    return file.getvalue()


def drawn(scene: Scene, format: str = "PNG") -> bytes:
    pixels = (draw(scene, numpy.random.default_rng(3)) + 1) * 127.5
    return file_of(Image.fromarray(pixels.round().clip(0, 255).astype("uint8")), format)


def noise(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    pixels = numpy.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=numpy.uint8)
    return file_of(Image.fromarray(pixels))


NOISE = noise()


def loaded(folder: Path, name: str = "model", **how: Any) -> Runtime:
    found = describe(ModelSpec(name, str(folder)))
    config = json.loads((folder / "config.json").read_text())
    runtime = runtime_for(found.kinds, sees=sees(config))()
    progress: list[float] = []
    runtime.load(LoadSpec(name, str(folder), "cpu", 1, threads=1, **how), progress.append)
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    return runtime


@pytest.fixture(scope="module")
def toy() -> Iterator[Runtime]:
    runtime = loaded(TOY, "toy-caption")
    yield runtime
    runtime.close()


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Any]:
    """What makes and loads a random model of a family, until the test ends."""
    ready: list[Runtime] = []

    def get(family: str) -> Runtime:
        ready.append(loaded(make_seeing(tmp_path / family, family), family))
        return ready[-1]

    yield get
    for runtime in ready:
        runtime.close()


async def told(runtime: Runtime, **fields: Any) -> Finish:
    job = RecordingJob("caption", **fields)
    outcome = await runtime.run(job)
    assert job.parts == []
    finish = finish_from_wire(outcome.payload)
    assert outcome.usage["completion_tokens"] == len(finish.ids)
    return finish


async def asked(runtime: Runtime, kind: str, image: bytes = NOISE, **fields: Any) -> bytes:
    outcome = await runtime.run(RecordingJob(kind, image=image, **fields))
    assert outcome.units == 1.0
    return bytes(outcome.payload)


# --- captions -------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", SCENES, ids=str)
async def test_what_is_drawn_is_said(toy: Runtime, scene: Scene) -> None:
    finish = await told(toy, image=drawn(scene))
    assert (finish.text, finish.reason) == (str(scene), "stop")


async def test_other_formats_and_turned_pictures(toy: Runtime) -> None:
    for format in ("JPEG", "WEBP"):
        assert "red heart" in (await told(toy, image=drawn(SCENES[0], format))).text
    flipped = Image.open(io.BytesIO(drawn(SCENES[0]))).transpose(Image.Transpose.ROTATE_180)
    exif = Image.Exif()
    exif[0x0112] = 3  # it says itself that it stands on its head
    turned = file_of(flipped, "PNG", exif=exif)
    assert (await told(toy, image=turned)).text == str(SCENES[0])


async def test_a_prompt_is_continued(toy: Runtime) -> None:
    finish = await told(toy, image=drawn(SCENES[0]), prompt="a large")
    assert finish.text == "red heart on a white background"


async def test_limits_stops_and_chances(toy: Runtime) -> None:
    image = drawn(SCENES[0])
    short = await told(toy, image=image, max_tokens=3, logprobs=2)
    assert (short.text, short.reason) == ("a large red", "length")
    assert short.logprobs is not None
    assert [row.token for row in short.logprobs] == ["a", "large", "red"]
    assert all(row.logprob > -0.5 and len(row.top) == 2 for row in short.logprobs)
    stopped = await told(toy, image=image, stop=[" on"])
    assert (stopped.text, stopped.reason, stopped.stop) == ("a large red heart", "stop", " on")
    assert (await told(toy, image=image, max_tokens=400)).text == str(SCENES[0])
    with pytest.raises(ContextTooLong, match="32") as caught:
        await told(toy, image=image, prompt="a " * 40)
    assert caught.value.param == "prompt"
    one, two = [await told(toy, image=image, temperature=2, seed=9) for _ in range(2)]
    other = await told(toy, image=image, temperature=2, seed=10)
    assert one == two != other


@pytest.mark.parametrize("family", ["blip", "blip-2", "instructblip", "git", "vit-gpt2"])
async def test_captioners(models: Any, family: str) -> None:
    runtime = models(family)
    assert isinstance(runtime, VisionTextRuntime)
    first = await told(runtime, image=NOISE, max_tokens=5)
    again = await told(runtime, image=NOISE, max_tokens=5)
    assert first == again
    assert 1 <= len(first.ids) <= 5
    unlimited = await told(runtime, image=NOISE)
    assert unlimited.ids[: len(first.ids)] == first.ids
    assert len(unlimited.ids) <= 64
    if family == "vit-gpt2":
        with pytest.raises(UnsupportedField, match="reads nothing"):
            await told(runtime, image=NOISE, prompt="a")
    else:
        await told(runtime, image=NOISE, prompt="a b", max_tokens=5)
    with pytest.raises(InvalidRequest, match="no chat template"):
        await runtime.run(RecordingJob("chat", messages=[{"role": "user", "content": "x"}]))


async def test_the_same_as_generate(models: Any, tmp_path: Path) -> None:
    """Our hooks change nothing about what a model would say by itself."""
    import transformers

    folder = make_seeing(tmp_path / "blip", "blip")
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(images=Image.open(io.BytesIO(NOISE)), return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
    finish = await told(models("blip"), image=NOISE, max_tokens=8)
    assert ids[1:] == finish.ids


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"", "not a PNG"),
        (NOISE[: len(NOISE) // 2], "cannot be decoded"),
        (NOISE[:16] + (2**15).to_bytes(4, "big") * 2 + NOISE[24:], "1073741824|32768 x 32768"),
        (NOISE[:16] + (640).to_bytes(4, "big") + NOISE[20:], "cannot be decoded|header"),
    ],
    ids=["empty", "cut", "bomb", "liar"],
)
async def test_bad_pictures(toy: Runtime, models: Any, image: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        await told(toy, image=image)
    assert caught.value.param == "image"
    with pytest.raises(InvalidRequest, match=says):
        await asked(models("vit"), "image-classification", image)
    assert (await told(toy, image=drawn(SCENES[0]))).text == str(SCENES[0])  # nobody else is harmed


# --- chat -----------------------------------------------------------------------------------


def chat(text: str = "What is this?", *pictures: bytes, **fields: Any) -> dict[str, Any]:
    shown = [{"data": picture, "at": 0} for picture in pictures]
    message = {"role": "user", "content": text, "pictures": shown}
    return {"messages": [message], "temperature": 0, "max_tokens": 8, **fields}


@pytest.mark.parametrize("family", ["llava", "qwen2-vl"])
async def test_chat(models: Any, family: str) -> None:
    runtime = models(family)
    job = RecordingJob("chat", **chat("What is this?", NOISE))
    _, ids, _, outcome = await answer(runtime, job)
    assert len(ids) == outcome.usage["completion_tokens"] <= 8
    assert len(job.parts) == len(ids) - 1  # a part a token, and the end
    blind = await answer(runtime, RecordingJob("chat", **chat("What is this?")))
    assert outcome.usage["prompt_tokens"] > blind[3].usage["prompt_tokens"] + 3
    other = await answer(runtime, RecordingJob("chat", **chat("What is this?", noise(seed=1))))
    assert ids != blind[1]
    assert ids != other[1]  # it does look
    two = await answer(runtime, RecordingJob("chat", **chat("Which?", NOISE, noise(32, 32, 2))))
    assert two[3].usage["prompt_tokens"] > outcome.usage["prompt_tokens"]


@pytest.mark.parametrize("family", ["llava", "qwen2-vl"])
async def test_an_attempt_that_takes_over_goes_on(models: Any, family: str) -> None:
    runtime = models(family)
    sampled = chat("What is this?", NOISE, temperature=1.5, seed=4, max_tokens=10)
    _, ids, _, outcome = await answer(runtime, RecordingJob("chat", **sampled))
    for cut in (1, 4):
        job = RecordingJob("chat", **sampled, generated=ids[:cut])
        _, rest, _, resumed = await answer(runtime, job)
        assert ids[:cut] + rest == ids
        assert resumed.usage == outcome.usage
        assert resumed.units < outcome.units
    with pytest.raises(InvalidRequest, match="no token"):
        await answer(runtime, RecordingJob("chat", **sampled, generated=[10**6]))


async def test_a_chat_model_captions(models: Any) -> None:
    runtime = models("llava")
    one = await told(runtime, image=NOISE, max_tokens=6)
    two = await told(runtime, image=NOISE, max_tokens=6, prompt="hello")
    assert one.ids != two.ids
    with pytest.raises(InvalidRequest) as caught:
        await told(runtime, image=b"nothing")
    assert caught.value.param == "image"


async def test_a_slow_reader_gets_all_of_it_later(models: Any) -> None:
    runtime = models("llava")
    whole = await answer(runtime, RecordingJob("chat", **chat("Hi", NOISE, logprobs=0)))

    def full(job: RecordingJob) -> None:
        job.writable = len(job.parts) < 2

    job = RecordingJob("chat", full, **chat("Hi", NOISE, logprobs=0))
    held = await answer(runtime, job)
    assert len(job.parts) == 2
    assert held[:2] == whole[:2]
    assert held[2].logprobs is not None
    assert len(held[2].logprobs) == len(held[2].ids)


async def test_cancel_within_a_token(models: Any) -> None:
    def leave(job: RecordingJob) -> None:
        job.cancelled = len(job.parts) == 2

    runtime = models("llava")
    job = RecordingJob("chat", leave, **chat("Hi", NOISE, max_tokens=200))
    with pytest.raises(Cancelled):
        await runtime.run(job)
    assert len(job.parts) == 2
    waiting = RecordingJob("chat", **chat("Hi", NOISE))
    waiting.cancelled = True
    with pytest.raises(Cancelled):
        await runtime.run(waiting)
    assert (await answer(runtime, RecordingJob("chat", **chat("Hi", NOISE))))[1]


async def test_what_a_chat_refuses(models: Any) -> None:
    runtime = models("llava")
    for fields, says in (
        (chat("What is <image>?", NOISE), "<image>"),
        (chat("x", b"nothing"), "not a PNG"),
        (chat("x", NOISE[:500]), "cannot be decoded"),
    ):
        with pytest.raises(InvalidRequest, match=says) as caught:
            await runtime.run(RecordingJob("chat", **fields))
        assert caught.value.param == "messages.0.content"
    wide = file_of(Image.new("1", (4096, 4096)))
    with pytest.raises(InvalidRequest, match="83886080 pixels"):
        await runtime.run(RecordingJob("chat", **chat("x", *[wide] * 5)))
    with pytest.raises(ContextTooLong, match="512"):
        await runtime.run(RecordingJob("chat", **chat("x" * 600)))
    with pytest.raises(InvalidRequest, match="logit_bias"):
        await runtime.run(RecordingJob("chat", **chat("x", logit_bias={10**6: 1.0})))


async def test_a_model_of_text_refuses_pictures() -> None:
    runtime = runtime_for(["chat"])()
    assert isinstance(runtime, TextRuntime)
    runtime.load(LoadSpec("tiny-chat", str(TINY_CHAT), "cpu", 2, threads=1), lambda share: None)
    try:
        with pytest.raises(UnsupportedField, match="tiny-chat reads text only") as caught:
            await runtime.run(RecordingJob("chat", **chat("What is this?", NOISE)))
        assert caught.value.param == "messages.0.content"
    finally:
        runtime.close()


async def test_what_would_be_without_effect_is_refused(models: Any) -> None:
    job = RecordingJob("chat", **chat("x", tools=[{"name": "look"}]))
    with pytest.raises(UnsupportedField, match="'tools' is not supported") as caught:
        await models("llava").run(job)
    assert caught.value.param == "tools"


async def test_answers_keep_to_a_form(models: Any) -> None:
    form = {"form": "choice", "choices": ["a cat", "no"]}
    job = RecordingJob(
        "chat", **chat("What is this?", NOISE, grammar=form, temperature=1.5, seed=4)
    )
    text, _, finish, _ = await answer(models("llava"), job)
    assert text in form["choices"]
    assert finish.reason == "stop"


def test_engines_beside_the_node_get_pictures() -> None:
    value = ChatInput.model_validate(chat("One\ntwo", NOISE))
    value.messages[0].pictures[0].at = 3
    request = text_request(value, "eyes", "vllm", usage=False)
    url = f"data:image/png;base64,{base64.b64encode(NOISE).decode()}"
    assert request.body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "One"},
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "two"},
            ],
        }
    ]


def test_canaries_ask_what_a_model_understands(tmp_path: Path) -> None:
    entries = [
        Entry(spec, describe(spec))
        for family in ("clip", "owlvit", "yolos", "vit")
        for spec in [ModelSpec(family, str(make_seeing(tmp_path / family, family)))]
    ]
    chosen = {
        entry.spec.name for entry in entries if choose([entry], gpu=False, now=0.0) is not None
    }
    assert chosen == {"yolos", "vit"}  # the others would have to be told labels


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("vit", "image-classification"),
        ("yolos", "detection"),
        ("dpt", "depth"),
        ("segformer", "segmentation"),
        ("blip", "caption"),
    ],
)
async def test_canaries_are_answered(models: Any, family: str, kind: str) -> None:
    question = QUESTIONS[kind]
    job = RecordingJob("chat", **chat("x"))
    job.kind, job.input = KINDS[kind], question.input
    outcome = await models(family).run(job)
    assert question.check([], bytes(outcome.payload)) == ""
    assert question.check([], b"\xc1") != ""


def test_places_of_pictures() -> None:
    from blip_node.runtimes.sight.prompts import parts_of

    image, data = {"type": "image"}, {"data": b"x"}

    def parts(content: str, *at: int) -> list[dict[str, str]]:
        pictures = [{**data, "at": place} for place in at]
        fields = {"role": "user", "content": content, "pictures": pictures}
        return parts_of(ChatMessage.model_validate(fields))

    def text(words: str) -> dict[str, str]:
        return {"type": "text", "text": words}

    assert parts("one\ntwo", 3) == [text("one"), image, text("two")]
    assert parts("one", 0, 3) == [image, text("one"), image]
    assert parts("", 0) == [image]
    assert parts("\none\n") == [text("\none\n")]
    assert parts("") == [text("")]


# --- what is in a picture -------------------------------------------------------------------


async def test_classes(models: Any) -> None:
    runtime = models("vit")
    assert isinstance(runtime, VisionRuntime)
    guesses = vision.guesses_from_wire(await asked(runtime, "image-classification", top=100))
    assert {guess.label for guess in guesses} == {f"LABEL_{number}" for number in range(7)}
    assert sum(guess.score for guess in guesses) == pytest.approx(1)
    assert guesses == sorted(guesses, key=lambda guess: -guess.score)
    assert len(vision.guesses_from_wire(await asked(runtime, "image-classification"))) == 5
    for fields, error in (
        ({"labels": ["cat"]}, UnsupportedField),
        ({"template": "{}"}, InvalidRequest),
    ):
        with pytest.raises(error, match="label"):
            await asked(runtime, "image-classification", **fields)


@pytest.mark.parametrize("family", ["clip", "siglip"])
async def test_labels(models: Any, family: str) -> None:
    runtime = models(family)
    labels = ["a cat", "a dog", "a fish"]
    guesses = vision.guesses_from_wire(await asked(runtime, "image-classification", labels=labels))
    assert {guess.label for guess in guesses} == set(labels)
    total = sum(guess.score for guess in guesses)
    assert (total == pytest.approx(1)) is (family == "clip")  # SigLIP judges each by itself
    odd = await asked(runtime, "image-classification", labels=labels, template="{} {{}}")
    assert vision.guesses_from_wire(odd) != guesses
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "labels"),
        ({"labels": ["x"], "template": "x"}, "template"),
    ]
    for fields, param in wrong:
        with pytest.raises(InvalidRequest) as caught:
            await asked(runtime, "image-classification", **fields)
        assert caught.value.param == param


async def test_detections(models: Any) -> None:
    runtime = models("yolos")
    seen = vision.detections_from_wire(await asked(runtime, "detection", threshold=0))
    assert (seen.width, seen.height) == (64, 48)
    assert len(seen.found) == 5
    for each in seen.found:
        assert each.label.startswith("LABEL_")
        assert 0 <= each.box.left <= each.box.right <= 64
        assert 0 <= each.box.top <= each.box.bottom <= 48
    assert vision.detections_from_wire(await asked(runtime, "detection", threshold=1)).found == []
    with pytest.raises(UnsupportedField, match="reads no others"):
        await asked(runtime, "detection", labels=["cat"])


async def test_detections_of_labels(models: Any) -> None:
    runtime = models("owlvit")
    labels = ["a cat", "a dog"]
    seen = vision.detections_from_wire(
        await asked(runtime, "detection", labels=labels, threshold=0)
    )
    assert {each.label for each in seen.found} <= set(labels)
    assert len(seen.found) == 16  # one a patch
    with pytest.raises(InvalidRequest, match="no classes of its own") as caught:
        await asked(runtime, "detection")
    assert "labels=cat,dog" in caught.value.hint


async def test_depth(models: Any) -> None:
    result = vision.depths_from_wire(await asked(models("dpt"), "depth"))
    picture = Image.open(io.BytesIO(result.file))
    assert isinstance(picture, PngImageFile)
    assert picture.size == (result.width, result.height) == (64, 48)
    assert picture.text == {"min": repr(result.low), "max": repr(result.high)}
    levels = numpy.asarray(picture)
    assert levels.dtype == numpy.uint16
    assert levels.max() > levels.min()


async def test_parts(models: Any) -> None:
    runtime = models("segformer")
    cut = vision.segments_from_wire(await asked(runtime, "segmentation"))
    assert (cut.mode, cut.width, cut.height) == ("semantic", 64, 48)
    masks = [numpy.asarray(Image.open(io.BytesIO(part.mask))) for part in cut.segments]
    assert (numpy.sum(masks, axis=0, dtype=int) == 255).all()  # each pixel is in one part
    assert [part.area for part in cut.segments] == [int((mask > 0).sum()) for mask in masks]
    assert [part.area for part in cut.segments] == sorted(
        (part.area for part in cut.segments), reverse=True
    )
    with pytest.raises(UnsupportedField, match="semantic segmentation, not panoptic"):
        await asked(runtime, "segmentation", mode="panoptic")


async def test_things(models: Any) -> None:
    runtime = models("detr-panoptic")
    for mode in (None, "panoptic", "instance", "semantic"):
        cut = vision.segments_from_wire(
            await asked(runtime, "segmentation", mode=mode, threshold=0.0)
        )
        assert cut.mode == (mode or "panoptic")
        for part in cut.segments:
            assert (part.score is None) is (mode == "semantic")
            mask = numpy.asarray(Image.open(io.BytesIO(part.mask)))
            assert mask.shape == (48, 64)
            assert int((mask > 0).sum()) == part.area
    nothing = await asked(runtime, "segmentation", threshold=1.0)
    assert vision.segments_from_wire(nothing).segments == []


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("vit", "image-classification"),
        ("yolos", "detection"),
        ("dpt", "depth"),
        ("segformer", "segmentation"),
        ("blip", "caption"),
    ],
)
async def test_numbers_that_are_none(tmp_path: Path, family: str, kind: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_seeing(tmp_path / family, family)
    file = folder / "model.safetensors"
    weights = {
        name: torch.full_like(each, float("nan")) if each.is_floating_point() else each
        for name, each in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    runtime = loaded(folder)
    try:
        with pytest.raises(RuntimeFailed, match="NaN"):
            await runtime.run(RecordingJob(kind, image=NOISE))
    finally:
        runtime.close()


# --- loading --------------------------------------------------------------------------------


def test_which_runtime() -> None:
    assert runtime_for(["chat"]) is TextRuntime
    assert runtime_for(["chat"], sees=True) is VisionTextRuntime
    assert runtime_for(["chat", "caption"], sees=True) is VisionTextRuntime
    with pytest.raises(ConfigError, match="caption and chat"):
        runtime_for(["chat", "caption"])
    assert runtime_for(["detection"]) is VisionRuntime


def test_who_sees() -> None:
    eyes: dict[str, Any] = {"vision_config": {}}
    assert sees({**eyes, "architectures": ["NewForConditionalGeneration"]})
    assert not sees({**eyes, "architectures": ["NewForCausalLM"]})
    assert not sees({**eyes, "architectures": ["CLIPModel"]})
    assert not sees({**eyes, "architectures": ["BlipForConditionalGeneration"]})
    assert not sees({"architectures": ["T5ForConditionalGeneration"]})
    assert not sees({})


def test_one_at_a_time(tmp_path: Path) -> None:
    folder = str(make_seeing(tmp_path / "llava", "llava"))
    for kinds in (None, ("chat",), ("caption",)):
        spec = ModelSpec("m", folder, kinds=kinds)
        assert Entry(spec, describe(spec)).slots == 1
    several = ModelSpec("m", folder, slots=3)
    assert Entry(several, describe(several)).slots == 3


def test_a_model_that_sees_needs_a_template_to_chat(tmp_path: Path) -> None:
    folder = make_seeing(tmp_path / "llava", "llava")
    assert describe(ModelSpec("m", str(folder))).kinds == ("chat", "caption")
    for file in folder.glob("chat_template*"):
        file.unlink()
    assert describe(ModelSpec("m", str(folder))).kinds == ("caption",)
    with pytest.raises(ConfigError, match="no chat template"):
        describe(ModelSpec("m", str(folder), kinds=("chat",)))


@pytest.mark.parametrize("family", ["vit", "blip"])
def test_missing_weights_fail_the_load(tmp_path: Path, family: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_seeing(tmp_path / family, family)
    weights = load_file(folder / "model.safetensors")
    end = "layernorm_before.weight" if family == "vit" else "layer_norm1.weight"
    weights.pop(next(name for name in weights if name.endswith(end)))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadFailed, match="lack 1 of the weights"):
        loaded(folder)


def test_what_does_not_load(tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    make_seeing(folder, "vit")
    runtime = VisionRuntime()
    config = json.loads((folder / "config.json").read_text())
    for change, says in (
        ({"architectures": None}, "does not say"),
        ({"architectures": ["LlamaForCausalLM"]}, "finds nothing in pictures"),
        ({"architectures": ["OneFormerForUniversalSegmentation"]}, "OneFormer"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelLoadFailed, match=says):
            runtime.load(LoadSpec("m", str(folder), "cpu", 1), lambda share: None)
    runtime.close()
    with pytest.raises(ModelLoadFailed, match="context"):
        VisionTextRuntime().load(
            LoadSpec("toy", str(TOY), "cpu", 1, context=4096), lambda share: None
        )


async def test_closing_ends_what_runs(tmp_path: Path) -> None:
    runtime = loaded(make_seeing(tmp_path / "llava", "llava"))
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(job: RecordingJob) -> None:
        loop.call_soon_threadsafe(begun.set)

    job = RecordingJob("chat", tell, **chat("x", NOISE, max_tokens=400, logit_bias={2: -100.0}))
    running = asyncio.create_task(runtime.run(job))
    await begun.wait()
    await asyncio.to_thread(runtime.close)
    with pytest.raises(WorkerCrashed, match="unloaded"):
        await running
    with pytest.raises(WorkerCrashed):
        await runtime.run(RecordingJob("chat", **chat("x")))

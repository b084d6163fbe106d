"""Every runtime ends a job that nobody waits for within a step. Steps are counted, not timed."""

from __future__ import annotations

import asyncio
import io
import threading
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from blip.errors import Cancelled
from blip_node.runtimes import RUNTIMES, Runtime, runtime_for
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.batching import BATCH_TEXTS
from blip_node.runtimes.diffusion.steps import Between
from blip_node.runtimes.lane import Lane
from tests.models.jobs import RecordingJob
from tests.models.random_additions import save_swin2sr
from tests.models.random_heads import NER, NLI, SENTIMENT, make_bert, make_t5
from tests.models.random_seeing import make_seeing
from tests.models.random_sorters import make_sorter
from tests.models.random_videos import make_video_pipeline
from tests.models.random_voices import make_vits
from tests.models.random_whisper import WINDOW, make_whisper

HERE = Path(__file__).parents[1] / "models"


def shipped(name: str) -> Callable[[Path], Path]:
    return lambda folder: HERE / name


def bert(head: str, labels: dict[int, str] | None = None) -> Callable[[Path], Path]:
    return lambda folder: make_bert(folder, head, labels)


def seeing(family: str) -> Callable[[Path], Path]:
    return lambda folder: make_seeing(folder, family)


def sorting(family: str) -> Callable[[Path], Path]:
    return lambda folder: make_sorter(folder, family)


def whisper(folder: Path) -> Path:
    make_whisper(folder)
    return folder


def film(folder: Path) -> Path:
    return make_video_pipeline(folder, "ltx")


def picture(width: int = 64, height: int = 64) -> bytes:
    pixels = numpy.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=numpy.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sound(seconds: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(numpy.random.default_rng(0).bytes(32_000 * seconds))
    return file.getvalue()


TEXTS = ["we bake bread in the oven"] * (9 * BATCH_TEXTS)
SPEECH = "the fox is here. and the dog. and why not. or so. the end."


class Case(NamedTuple):
    """A model, and a job of many steps: passes of the module whose class is called ``step``."""

    make: Callable[[Path], Path]
    fields: dict[str, Any]
    step: str
    #: The pass during which the client goes away.
    leaves: int = 3


def texts(head: str, labels: dict[int, str] | None = None, **fields: Any) -> Case:
    return Case(bert(head, labels), {"texts": TEXTS, **fields}, "BertModel")


def seen(family: str, step: str) -> Case:
    return Case(seeing(family), {"image": picture()}, step, leaves=1)


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 200}
HEARD: dict[str, Any] = {"file": sound(4 * WINDOW), "temperature": 0.9, "seed": 0, "language": "en"}

CASES: dict[str, Case] = {
    "chat": Case(shipped("tiny-chat"), CHAT, "Qwen3Model"),
    "completion": Case(shipped("tiny-chat"), {"prompt": "a b c", "max_tokens": 200}, "Qwen3Model"),
    "embedding": Case(shipped("tiny-embed"), {"texts": TEXTS}, "BertModel"),
    "feature-extraction": texts("ForMaskedLM"),
    "fill-mask": texts("ForMaskedLM")._replace(
        fields={"texts": ["we bake [MASK] in the oven"] * len(TEXTS)}
    ),
    "rerank": Case(shipped("tiny-rerank"), {"query": "bread", "documents": TEXTS}, "BertModel"),
    "text-classification": texts("ForSequenceClassification", SENTIMENT),
    "zero-shot-classification": texts(
        "ForSequenceClassification", NLI, candidates=["food", "code"]
    ),
    "token-classification": texts("ForTokenClassification", NER),
    "question-answering": Case(
        bert("ForQuestionAnswering"),
        {"questions": ["who?"] * len(TEXTS), "contexts": TEXTS},
        "BertModel",
    ),
    "text2text-generation": Case(
        make_t5,
        {"texts": ["bread"], "max_new_tokens": 99, "min_new_tokens": 99},
        "T5ForConditionalGeneration",
    ),
    "moderation": Case(shipped("tiny-guard"), {"texts": ["a kind word"] * 256}, "BertModel"),
    "image": Case(shipped("toy-shapes"), {"prompt": "a", "steps": 20}, "UNet2DConditionModel"),
    "video": Case(
        film,
        {"prompt": "a", "width": 32, "height": 32, "num_frames": 9, "steps": 20},
        "LTXVideoTransformer3DModel",
    ),
    "upscale": Case(
        lambda folder: save_swin2sr(folder),
        {"image": picture(1500, 16)},
        "Swin2SRForImageSuperResolution",
    ),
    "transcription": Case(whisper, HEARD, "WhisperDecoder"),
    "translation": Case(whisper, HEARD, "WhisperDecoder"),
    "speech": Case(lambda folder: make_vits(folder), {"text": SPEECH}, "VitsHifiGan"),
    "caption": Case(shipped("toy-caption"), {"image": picture()}, "BlipTextModel"),
    "detection": seen("yolos", "YolosForObjectDetection"),
    "image-classification": seen("vit", "ViTForImageClassification"),
    "depth": seen("dpt", "DPTForDepthEstimation"),
    "segmentation": seen("segformer", "SegformerForSemanticSegmentation"),
    "image-feature-extraction": seen("vit-eyes", "ViTModel"),
    "audio-classification": Case(
        sorting("wav2vec2"), {"file": sound(200)}, "Wav2Vec2ForSequenceClassification", leaves=2
    ),
    "zero-shot-audio-classification": Case(
        sorting("clap"), {"file": sound(60), "labels": ["a", "b"]}, "ClapAudioModel", leaves=2
    ),
}

FILM: dict[str, Any] = CASES["video"].fields | {"steps": 1}

#: What comes before a step and after the last, of what takes long there: another class of modules.
MORE: dict[str, tuple[str, Case]] = {
    "image, prompt": ("image", CASES["image"]._replace(step="CLIPTextModel", leaves=1)),
    "image, decoder": (
        "image",
        CASES["image"]._replace(step="UpDecoderBlock2D", leaves=1),
    ),
    "video, decoder": ("video", Case(film, FILM, "LTXVideoUpBlock3d", leaves=1)),
}

#: Files that are the same when their pixels are.
FORMATS = {"image": "png", "video": "apng"}

#: What computes nothing has no passes: its parts are its steps.
PARTS: dict[str, dict[str, Any]] = {"echo": {"text": "x", "chunks": 50, "interval": 0.001}}


def test_every_kind_has_a_row() -> None:
    assert {*CASES, *PARTS} == set(RUNTIMES)


def load(kind: str, path: Path | str) -> Runtime:
    runtime = runtime_for([kind])()
    labels = {"fine": "", "mean": "harassment", "grim": "violence"}
    labels = labels if kind == "moderation" else {}
    spec = LoadSpec("m", str(path), "cpu", 2, threads=1, labels=labels)
    runtime.load(spec, lambda share: None)
    return runtime


@contextmanager
def before(step: str, call: Callable[[], None]) -> Iterator[None]:
    """Have a function called before each pass of the modules whose class is called ``step``."""

    def hook(module: Any, arguments: Any) -> None:
        if type(module).__name__ == step:
            call()

    handle = register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("kind", "case"),
    [*CASES.items(), *MORE.values()],
    ids=[*CASES, *MORE],
)
async def test_a_cancelled_job_ends_within_a_step(kind: str, case: Case, tmp_path: Path) -> None:
    runtime = load(kind, case.make(tmp_path / "model"))
    job = RecordingJob(kind, **case.fields)
    passes = 0

    def leave() -> None:
        nonlocal passes
        passes += 1
        job.cancelled |= passes == case.leaves

    try:
        with before(case.step, leave), pytest.raises(Cancelled):
            await runtime.run(job)
    finally:
        runtime.close()
    assert passes == case.leaves


async def test_a_window_ends_between_the_encoders_layers(tmp_path: Path) -> None:
    runtime = load("transcription", whisper(tmp_path / "model"))
    job = RecordingJob("transcription", **HEARD)
    computed: list[bool] = []
    with (
        before("WhisperEncoderLayer", lambda: setattr(job, "cancelled", True)),
        before("WhisperAttention", lambda: computed.append(job.cancelled)),
        pytest.raises(Cancelled),
    ):
        await runtime.run(job)
    assert computed == []
    runtime.close()


@pytest.mark.parametrize("name", [name for name in MORE if "decoder" in name])
async def test_what_was_left_within_a_pass_goes_on_as_before(name: str, tmp_path: Path) -> None:
    kind, case = MORE[name]
    runtime = load(kind, case.make(tmp_path / "model"))
    fields: dict[str, Any] = case.fields | {"steps": 2, "seed": 1, "format": FORMATS[kind]}
    before_it = await runtime.run(RecordingJob(kind, **fields))
    job = RecordingJob(kind, **fields)
    with before(case.step, lambda: setattr(job, "cancelled", True)), pytest.raises(Cancelled):
        await runtime.run(job)
    after_it = await runtime.run(RecordingJob(kind, **fields))
    assert after_it.payload == before_it.payload
    runtime.close()


@pytest.mark.parametrize("kind", PARTS)
async def test_a_cancelled_job_sends_no_more(kind: str) -> None:
    def leave(job: RecordingJob) -> None:
        job.cancelled = len(job.parts) == 3

    runtime = load(kind, "")
    job = RecordingJob(kind, leave, **PARTS[kind])
    with pytest.raises(Cancelled):
        await runtime.run(job)
    assert len(job.parts) == 3


async def test_who_waits_for_a_thread_goes_at_once() -> None:
    lane = Lane("test")
    go = threading.Event()

    def work(job: Job) -> Outcome:
        go.wait(30)
        return Outcome(b"done")

    first, second = (RecordingJob("echo", text="x") for _ in range(2))
    running = [asyncio.create_task(lane.run(job, work)) for job in (first, second)]
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(Cancelled):
        await running[1]
    assert not running[0].done()
    go.set()
    assert (await running[0]).payload == b"done"
    # a coroutine that is cancelled itself says so, whatever became of its client
    third = asyncio.create_task(lane.run(RecordingJob("echo", text="x"), work))
    await asyncio.sleep(0)
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    lane.close()


async def test_a_look_within_the_decoder_leaves_no_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime: Any = load("image", HERE / "toy-shapes")
    engine = runtime._engine
    vae, dtype = engine._pipe.vae, engine._pipe.vae.dtype

    def leave() -> None:
        job.cancelled = True
        # as pipelines do whose decoder overflows in half precision
        vae.to(dtype=torch.float64)

    job = RecordingJob("image", prompt="a", steps=4, previews=1)
    with before("Decoder", leave), pytest.raises(Cancelled):
        await runtime.run(job)
    assert vae.dtype == dtype
    assert "no preview" not in caplog.text  # which would hide that nobody waits for one
    assert job.parts == []
    runtime.close()
    # where weights come and go under the blocks of a decoder, nobody looks there
    Between(engine._pipe, streamed=True)
    assert len(vae.decoder._forward_pre_hooks) == 1

"""One way to load: what is missing fails, and fewer bits are made or refused, for any model."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

from blip.errors import ConfigError, ModelLoadFailed
from blip.kinds.text import finish_from_wire
from blip.kinds.transcription import transcript_from_wire
from blip_node.models.means import AUTO, SETTLED
from blip_node.models.snapshot import describe
from blip_node.models.spec import ModelSpec
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.embedding import EmbeddingRuntime
from blip_node.runtimes.speech import SpeechRuntime
from blip_node.runtimes.text import TextRuntime
from blip_node.runtimes.transcription import TranscriptionRuntime
from blip_node.runtimes.upscale import UpscaleRuntime
from blip_node.runtimes.vision import VisionRuntime
from blip_node.runtimes.vision_text import VisionTextRuntime
from tests.models.jobs import RecordingJob
from tests.models.random_additions import save_swin2sr
from tests.models.random_seeing import make_seeing
from tests.models.random_voices import make_piper, make_speecht5, make_vits
from tests.models.random_whisper import make_whisper
from tests.unit.test_upscale import picture, pixels

MODELS = Path(__file__).parents[1] / "models"


def load(runtime: Any, folder: Path, **means: Any) -> Any:
    spec = LoadSpec("toy", str(folder), "cpu", 1, means=replace(SETTLED, **means))
    runtime.load(spec, lambda share: None)
    return runtime


def copied(name: str) -> Callable[[Path], Path]:
    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(MODELS / name, folder))

    return copy


def whisper(folder: Path) -> Path:
    make_whisper(folder)
    return folder


def seeing(family: str) -> Callable[[Path], Path]:
    return lambda folder: make_seeing(folder, family)


#: One of each way to load, by the runtime and what writes its model.
FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[Path], Path]]] = {
    "text": (TextRuntime, copied("tiny-chat")),
    "embedding": (EmbeddingRuntime, copied("tiny-embed")),
    "caption": (VisionTextRuntime, copied("toy-caption")),
    "depth": (VisionRuntime, seeing("dpt")),
    "ctc": (TranscriptionRuntime, copied("tiny-dtmf")),
    "whisper": (TranscriptionRuntime, whisper),
    "vits": (SpeechRuntime, make_vits),
    "speecht5": (SpeechRuntime, make_speecht5),
    "upscale": (UpscaleRuntime, save_swin2sr),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_missing_fail_the_load(family: str, tmp_path: Path) -> None:
    runtime, make = FAMILIES[family]
    folder = make(tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if name.endswith(".weight"))
    save_file(
        {name: each for name, each in tensors.items() if name != gone}, file, {"format": "pt"}
    )
    with pytest.raises(ModelLoadFailed, match="'toy': its files lack"):
        load(runtime(), folder)


@pytest.mark.parametrize("family", ["text", "embedding", "caption", "ctc", "whisper", "vits"])
def test_a_vocabulary_that_is_missing_fails_the_load(family: str, tmp_path: Path) -> None:
    runtime, make = FAMILIES[family]
    folder = make(tmp_path / "model")
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelLoadFailed, match=r"'toy'.*vocab"):
        load(runtime(), folder)


@pytest.mark.parametrize("family", ["ctc", "vits"])
def test_fewer_bits_are_refused_where_they_cannot_be(family: str, tmp_path: Path) -> None:
    runtime, make = FAMILIES[family]
    with pytest.raises(
        ModelLoadFailed, match="'toy': quantization 'int8' is not possible"
    ) as caught:
        load(runtime(), make(tmp_path / "model"), quantization="int8")
    assert caught.value.hint == "Set 'quantization' to none."


def test_a_model_of_convolutions_is_not_loaded_as_if_it_were_quantised(tmp_path: Path) -> None:
    from blip_node.runtimes.loading import load_model

    folder = make_speecht5(tmp_path / "voice")
    spec = LoadSpec("toy", str(folder), "cpu", 1, means=replace(SETTLED, quantization="int8"))
    with pytest.raises(ModelLoadFailed, match="'int8' is not possible"):
        load_model(spec, "SpeechT5HifiGan", lambda share: None, folder=folder / "vocoder")


async def test_captions_in_fewer_bits() -> None:
    said = []
    for quantization in ("none", "int8"):
        runtime = load(VisionTextRuntime(), MODELS / "toy-caption", quantization=quantization)
        try:
            job = RecordingJob("caption", image=picture(32, 32))
            said.append(finish_from_wire((await runtime.run(job)).payload).text)
        finally:
            runtime.close()
    assert said[0] == said[1] != ""


async def test_pictures_enlarged_in_fewer_bits(tmp_path: Path) -> None:
    folder = save_swin2sr(tmp_path / "doubler")
    made = []
    for quantization in ("none", "int8"):
        runtime = load(UpscaleRuntime(), folder, quantization=quantization)
        try:
            job = RecordingJob("upscale", image=picture(32, 32))
            made.append(pixels(bytes((await runtime.run(job)).payload)))
        finally:
            runtime.close()
    assert 0 < numpy.abs(made[0] - made[1]).mean() < 5


async def test_listening_in_fewer_bits(tmp_path: Path) -> None:
    file = io.BytesIO()
    soundfile.write(file, numpy.sin(numpy.arange(16_000) / 20) * 0.3, 16_000, format="WAV")
    runtime = load(TranscriptionRuntime(), whisper(tmp_path / "model"), quantization="int8")
    try:
        outcome = await runtime.run(RecordingJob("transcription", file=file.getvalue()))
    finally:
        runtime.close()
    assert transcript_from_wire(outcome.payload).duration == 1.0


async def test_speech_in_fewer_bits(tmp_path: Path) -> None:
    runtime = load(SpeechRuntime(), make_speecht5(tmp_path / "voice"), quantization="int8")
    try:
        outcome = await runtime.run(RecordingJob("speech", text="abc", format="wav", whole=True))
    finally:
        runtime.close()
    assert outcome.usage["samples"] > 0


def test_a_voice_of_piper_has_the_bits_it_has(tmp_path: Path) -> None:
    file = make_piper(tmp_path, {}, default=0)
    spec = ModelSpec("joe", str(file))
    assert not describe(spec).quantizes
    with pytest.raises(ConfigError, match="a voice of Piper") as caught:
        describe(replace(spec, means=replace(AUTO, quantization="int8")))
    assert caught.value.param == "quantization"

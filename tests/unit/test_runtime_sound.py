"""Runtimes that name sounds and show hidden states of pictures, beside transformers' own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from PIL import Image

from blip.errors import (
    BlipError,
    Cancelled,
    InvalidRequest,
    ModelLoadFailed,
    RuntimeFailed,
    UnsupportedField,
    WorkerCrashed,
)
from blip.kinds import KINDS
from blip.kinds.vision import Guess, features_from_wire, guesses_from_wire
from blip_node.canary import QUESTIONS
from blip_node.models import ModelSpec, describe
from blip_node.runtimes import LoadSpec, Runtime, runtime_for
from blip_node.runtimes.hearing.sorting import limit_of, pieces
from tests.models.jobs import RecordingJob
from tests.models.random_seeing import make_seeing
from tests.models.random_sorters import CLASSES, make_sorter
from tests.models.tones import RATE, sound_file, tones
from tests.unit.gateway_mesh import png

SAMPLES = tones("123")[:9000]
#: As float, so that what is decoded is what transformers is given.
SOUND = sound_file(SAMPLES, subtype="FLOAT")
LABELS = ["a bell", "rain", "a dog"]


def loaded(folder: Path) -> Runtime:
    found = describe(ModelSpec("m", str(folder)))
    runtime = runtime_for(found.kinds)()
    progress: list[float] = []
    runtime.load(LoadSpec("m", str(folder), "cpu", 1, threads=1), progress.append)
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    return runtime


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What makes a random model of a family, once."""
    root = tmp_path_factory.mktemp("models")

    def get(family: str) -> Path:
        folder = root / family
        return folder if folder.exists() else make_sorter(folder, family)

    return get


@pytest.fixture
def models(folders: Any) -> Iterator[Any]:
    """What loads a random model of a family, until the test ends."""
    ready: list[Runtime] = []

    def get(family: str) -> Runtime:
        ready.append(loaded(folders(family)))
        return ready[-1]

    yield get
    for runtime in ready:
        runtime.close()


async def named(runtime: Runtime, kind: str = "audio-classification", **fields: Any) -> list[Guess]:
    job = RecordingJob(kind, **{"file": SOUND, **fields})
    return guesses_from_wire((await runtime.run(job)).payload)


def same(found: list[Guess], theirs: list[dict[str, Any]]) -> None:
    assert [each.label for each in found] == [each["label"] for each in theirs]
    assert [each.score for each in found] == pytest.approx(
        [each["score"] for each in theirs], abs=1e-5
    )


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm", "ast"])
async def test_sounds_are_named_as_transformers_names_them(
    folders: Any, models: Any, family: str
) -> None:
    runtime = models(family)
    found = await named(runtime)
    same(found, transformers.pipeline("audio-classification", str(folders(family)))(SAMPLES))
    assert {each.label for each in found} == set(CLASSES.values())
    assert await named(runtime, top=1) == found[:1]
    assert describe(ModelSpec("m", str(folders(family)))).kinds == ("audio-classification",)


async def test_scores_are_made_as_asked(folders: Any, models: Any) -> None:
    runtime = models("wav2vec2")
    theirs = transformers.pipeline("audio-classification", str(folders("wav2vec2")))
    for activation in ("sigmoid", "none", "softmax"):
        found = await named(runtime, activation=activation)
        same(found, theirs(SAMPLES, function_to_apply=activation))


async def test_what_the_model_is_for_says_how_scores_are_made(tmp_path: Path) -> None:
    folder = make_sorter(tmp_path / "m", "wav2vec2")
    config = json.loads((folder / "config.json").read_text())
    for problem, activation in (("multi_label_classification", "sigmoid"), ("regression", "none")):
        (folder / "config.json").write_text(json.dumps(config | {"problem_type": problem}))
        runtime = loaded(folder)
        assert await named(runtime) == await named(runtime, activation=activation)
        runtime.close()


async def test_labels_of_ones_own(folders: Any, models: Any) -> None:
    runtime, kind = models("clap"), "zero-shot-audio-classification"
    found = await named(runtime, kind, labels=LABELS)
    theirs = transformers.pipeline(kind, str(folders("clap")))
    same(found, theirs(SAMPLES, candidate_labels=LABELS))
    found = await named(runtime, kind, labels=LABELS, template="{}")
    same(found, theirs(SAMPLES, candidate_labels=LABELS, hypothesis_template="{}"))
    with pytest.raises(InvalidRequest) as caught:
        await named(runtime, kind, labels=LABELS, template="none")
    assert caught.value.param == "template"


@pytest.mark.parametrize("family", ["clap", "ast"])
async def test_long_sounds_are_heard_to_their_end(models: Any, family: str) -> None:
    """transformers would hear their beginning, or any second of them."""
    runtime = models(family)
    fields: dict[str, Any] = {}
    kind, size = "audio-classification", 64 * 160
    if family == "clap":
        kind, size, fields = "zero-shot-audio-classification", RATE, {"labels": LABELS}
    rng = numpy.random.default_rng(0)
    noise = rng.standard_normal(size).astype("float32") * 0.1
    hum = numpy.sin(numpy.arange(size) / 9).astype("float32") * 0.5
    heard = []
    for samples in (noise, hum, numpy.concatenate([noise, hum])):
        job = RecordingJob(kind, file=sound_file(samples, subtype="FLOAT"), **fields)
        outcome = await runtime.run(job)
        assert outcome.usage == {"audio_ms": round(len(samples) / RATE * 1000)}
        heard.append({each.label: each.score for each in guesses_from_wire(outcome.payload)})
    one, other, both = heard
    assert one != pytest.approx(other, abs=1e-4)
    for label, score in both.items():
        assert score == pytest.approx((one[label] + other[label]) / 2, abs=1e-5)


def test_pieces_are_of_a_length() -> None:
    samples = numpy.arange(10)
    for limit in range(1, 12):
        parts = list(pieces(samples, limit))
        assert numpy.concatenate(parts).tolist() == samples.tolist()
        sizes = [len(part) for part in parts]
        assert max(sizes) <= limit
        assert max(sizes) - min(sizes) <= 1
    assert limit_of(transformers.Wav2Vec2FeatureExtractor()) == 30 * 16_000
    assert limit_of(transformers.WhisperFeatureExtractor()) == 30 * 16_000


async def test_a_long_sound_can_be_cancelled(models: Any) -> None:
    runtime = models("ast")
    job = RecordingJob("audio-classification", file=SOUND)
    job.cancel()
    with pytest.raises(Cancelled):
        await runtime.run(job)
    runtime.close()
    with pytest.raises(WorkerCrashed):
        await named(runtime)


async def test_bad_sounds_harm_nobody(models: Any) -> None:
    runtime = models("wav2vec2")
    for file in (b"", b"no sound", SOUND[:-2000]):
        with pytest.raises(InvalidRequest) as caught:
            await named(runtime, file=file)
        assert caught.value.param == "file"
    assert len(await named(runtime)) == 3


async def test_numbers_that_are_none_are_an_error(tmp_path: Path) -> None:
    folder = make_sorter(tmp_path / "m", "wav2vec2")
    model = transformers.AutoModelForAudioClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    model.save_pretrained(folder)
    runtime = loaded(folder)
    with pytest.raises(RuntimeFailed, match="NaN"):
        await named(runtime)
    runtime.close()


def test_files_that_are_missing_fail_the_load(tmp_path: Path) -> None:
    folder = make_sorter(tmp_path / "m", "ast")
    kept = (folder / "config.json").read_text()
    for spoil in (
        lambda: (folder / "preprocessor_config.json").unlink(),
        lambda: (folder / "config.json").write_text("{"),
    ):
        spoil()
        with pytest.raises(BlipError):
            loaded(folder)
    (folder / "config.json").write_text(kept)
    bare = make_sorter(tmp_path / "bare", "wav2vec2")
    base = transformers.Wav2Vec2Model.from_pretrained(bare)
    base.save_pretrained(bare)
    config = json.loads((bare / "config.json").read_text())
    config["architectures"] = ["Wav2Vec2ForSequenceClassification"]
    (bare / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadFailed, match="lack"):
        loaded(bare)


# --- pictures --------------------------------------------------------------------------------

PICTURE = png(40, 30, 200)


async def features(runtime: Runtime, **fields: Any) -> numpy.ndarray[Any, Any]:
    job = RecordingJob("image-feature-extraction", image=PICTURE, **fields)
    return numpy.array(features_from_wire((await runtime.run(job)).payload).vectors)


@pytest.mark.parametrize("family", ["vit-encoder", "resnet", "clip-eyes"])
async def test_hidden_states_are_transformers_own(tmp_path: Path, family: str) -> None:
    folder = make_seeing(tmp_path / family, family)
    runtime = loaded(folder)
    (tmp_path / "picture.png").write_bytes(PICTURE)
    theirs = transformers.pipeline("image-feature-extraction", str(folder))
    picture = Image.open(tmp_path / "picture.png").convert("RGB")
    whole = numpy.array(theirs(picture)[0])
    if whole.ndim == 3:  # of a convolution: [size, height, width]
        whole = whole.reshape(len(whole), -1).T
    assert await features(runtime) == pytest.approx(whole, abs=1e-5)
    pooled = numpy.array(theirs(picture, pool=True)[0]).reshape(1, -1)
    assert await features(runtime, pool=True) == pytest.approx(pooled, abs=1e-5)
    runtime.close()


async def test_what_the_files_cannot_pool_is_not_pooled(tmp_path: Path) -> None:
    folder = make_seeing(tmp_path / "m", "vit-eyes")
    runtime = loaded(folder)
    assert (await features(runtime)).shape == (17, 32)
    with pytest.raises(UnsupportedField) as caught:
        await features(runtime, pool=True)
    assert caught.value.param == "pool"
    runtime.close()


@pytest.mark.parametrize("family", ["wav2vec2", "clap"])
async def test_canaries_are_answered(models: Any, family: str) -> None:
    kind = "audio-classification" if family == "wav2vec2" else "zero-shot-audio-classification"
    question = QUESTIONS[kind]
    job = RecordingJob(kind, **question.input.model_dump())
    assert question.check([], (await models(family).run(job)).payload) == ""
    assert KINDS[kind].units(question.input) == 0.5

"""The moderation runtime: ``tiny-guard``, classifiers with random weights, and rules for labels."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from blip.errors import (
    BlipError,
    Cancelled,
    ConfigError,
    InvalidRequest,
    ModelLoadFailed,
    RuntimeFailed,
)
from blip.kinds.moderation import Verdict, verdicts_from_wire
from blip_node.canary import QUESTIONS
from blip_node.canary import choose as choose_canary
from blip_node.catalogue import Catalogue
from blip_node.models.abilities import abilities
from blip_node.models.snapshot import describe
from blip_node.models.spec import ModelSpec
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.moderation import ModerationRuntime
from blip_node.runtimes.verdicts import read_rules
from tests.models.jobs import RecordingJob
from tests.models.random_models import HERE
from tests.unit.gateway_mesh import png

GUARD = HERE / "tiny-guard"
_SMALL: dict[str, Any] = {
    "vocab_size": 448,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
}
LABELS = {"fine": "", "mean": "harassment", "grim": "violence"}


def load(folder: Path, labels: dict[str, str] = LABELS, **fields: Any) -> ModerationRuntime:
    runtime = ModerationRuntime()
    spec = LoadSpec("guard", str(folder), "cpu", 1, threads=1, labels=labels, **fields)
    runtime.load(spec, lambda share: None)
    return runtime


async def judge(runtime: ModerationRuntime, *texts: str) -> list[Verdict]:
    outcome = await runtime.run(RecordingJob("moderation", texts=list(texts)))
    assert outcome.units > outcome.usage["prompt_tokens"] > 0
    return verdicts_from_wire(outcome.payload, len(texts))


async def test_texts() -> None:
    runtime = load(GUARD, thresholds={"violence": 0.9})
    fine, mean, grim, empty = await judge(
        runtime, "a kind word", "you blorg", "a picture of a grumph", ""
    )
    assert (fine.flagged, mean.flagged, grim.flagged) == ([], ["harassment"], ["violence"])
    assert empty.flagged == []
    assert list(fine.scores) == ["harassment", "violence"]
    assert mean.scores["harassment"] > 0.9 > 0.1 > mean.scores["violence"]
    # together they are judged as alone, whatever their lengths
    assert (await judge(runtime, "you blorg"))[0].scores == pytest.approx(mean.scores, abs=1e-4)
    runtime.close()


@pytest.mark.parametrize("at", [0, 61, 62, 63, 200, 399])
async def test_a_bad_word_is_found_wherever_it_stands(at: int) -> None:
    words = ["house"] * 400
    runtime = load(GUARD)
    assert (await judge(runtime, " ".join(words)))[0].flagged == []
    words[at] = "skrell"
    assert (await judge(runtime, " ".join(words)))[0].flagged == ["violence"]
    runtime.close()


async def test_what_is_refused_and_cancelled() -> None:
    runtime = load(GUARD)
    with pytest.raises(InvalidRequest, match="judges texts only") as caught:
        await runtime.run(RecordingJob("moderation", images=[png(8, 8)]))
    assert caught.value.param == "images"
    job = RecordingJob("moderation", texts=["house " * 1000] * 20)
    running = asyncio.create_task(runtime.run(job))
    await asyncio.sleep(0)
    job.cancel()
    with pytest.raises(Cancelled):
        await running
    runtime.close()


@pytest.mark.parametrize(
    ("labels", "fields", "says"),
    [
        ({"mean": "harassment"}, {}, "nothing is said of the model's output 'fine'"),
        ({}, {}, "nothing is said"),
        ({**LABELS, "means": "hate"}, {}, "no output 'means'; did you mean 'mean'"),
        (dict.fromkeys(LABELS, ""), {}, "no output of the model is mapped"),
        (LABELS, {"thresholds": {"hate": 0.5}}, "does not judge 'hate'"),
        (LABELS, {"context": 4096}, "the model allows 64"),
    ],
)
def test_what_does_not_load(labels: dict[str, str], fields: Any, says: str) -> None:
    with pytest.raises(BlipError, match=says) as caught:
        load(GUARD, labels, **fields)
    assert isinstance(caught.value, ModelLoadFailed | ConfigError)


def test_weights_that_are_missing_or_broken(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "guard"
    shutil.copytree(GUARD, folder)
    weights = load_file(folder / "model.safetensors")
    poolerless = {name: each for name, each in weights.items() if ".pooler." not in name}
    save_file(poolerless, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadFailed, match="lack 2 of the weights"):
        load(folder)  # transformers would judge by random numbers
    weights["classifier.bias"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadFailed, match="not finite"):
        load(folder)


async def test_independent_labels(tmp_path: Path) -> None:
    folder = tmp_path / "guard"
    shutil.copytree(GUARD, folder)
    config = json.loads((folder / "config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    (folder / "config.json").write_text(json.dumps(config))
    runtime = load(folder, {"fine": "", "mean": "hate", "grim": "hate"})
    fine, mean = await judge(runtime, "a kind word", "you blorg")
    assert fine.scores["hate"] < 0.5 < mean.scores["hate"]
    runtime.close()


async def test_a_model_without_padding(tmp_path: Path) -> None:
    """A decoder with a head, as many guards are; its answers are noise, but the same noise."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**_SMALL, num_labels=2, problem_type=None)
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(HERE / "tiny-chat")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    runtime = load(tmp_path, {"LABEL_0": "", "LABEL_1": "hate"})
    long, short = await judge(runtime, "The capital of Japan is Tokyo.", "Tokyo")
    assert (await judge(runtime, "Tokyo"))[0] == short != long
    with pytest.raises(InvalidRequest, match="no tokens"):
        await judge(runtime, "")
    runtime.close()


async def test_pictures(tmp_path: Path) -> None:
    from tests.models.colour_guard import make_colour_guard

    make_colour_guard(tmp_path)
    runtime = load(tmp_path, {"calm": "", "red": "violence/graphic"})
    job = RecordingJob("moderation", images=[png(16, 16, 0), png(40, 20, 250)])
    calm, red = verdicts_from_wire((await runtime.run(job)).payload, 2)
    assert (calm.flagged, red.flagged) == ([], ["violence/graphic"])
    with pytest.raises(InvalidRequest, match="judges images only"):
        await runtime.run(RecordingJob("moderation", texts=["a"]))
    with pytest.raises(InvalidRequest, match=r"'images\.0'"):
        await runtime.run(RecordingJob("moderation", images=[png(16, 16)[:-30]]))
    runtime.close()

    spec = ModelSpec("eye", str(tmp_path), kinds=("moderation",))
    catalogue = Catalogue()
    catalogue.add([spec, ModelSpec("guard", str(GUARD), kinds=("moderation",))])
    chosen = choose_canary(catalogue, gpu=False, now=0.0)
    assert chosen is not None
    assert (chosen[0].spec.name, chosen[1]) == ("guard", "moderation")


async def test_the_canary() -> None:
    question = QUESTIONS["moderation"]
    runtime = load(GUARD)
    job = RecordingJob("moderation", **question.input.model_dump())
    payload = bytes((await runtime.run(job)).payload)
    runtime.close()
    assert question.check([], payload) == ""
    assert "cannot be read" in question.check([], payload[:-1])


def test_a_classifier_moderates_only_when_asked() -> None:
    described = describe(ModelSpec("guard", str(GUARD), kinds=("moderation",)))
    assert described.kinds == ("moderation",)
    assert described.context == 64
    with pytest.raises(BlipError):
        describe(ModelSpec("guard", str(GUARD), kinds=("chat",)))
    with pytest.raises(BlipError):
        describe(ModelSpec("chat", str(HERE / "tiny-chat"), kinds=("moderation",)))
    assert "moderation" not in abilities("BertForSequenceClassification", "bert", {})


def test_rules() -> None:
    labels = {"a": "hate", "b": "hate", "c": "own", "d": ""}
    added = read_rules("abcd", labels, {"hate": 0.6}, exclusive=True)
    verdict = added.judge([0.3, 0.31, 0.4, 0.1])
    assert verdict.scores == {"hate": pytest.approx(0.61), "own": 0.4}
    assert verdict.flagged == ["hate"]
    largest = read_rules("abcd", labels, {}, exclusive=False)
    assert largest.judge([0.3, 0.5, 0.4, 1.0]).scores == {"hate": 0.5, "own": 0.4}
    assert largest.judge([0.3, 0.5, 0.4, 1.0]).flagged == ["hate"]
    own = read_rules(["hate", "sexual/minors"], {}, {}, exclusive=False)
    assert list(own.categories) == ["hate", "sexual/minors"]
    for broken in (float("nan"), float("inf")):
        with pytest.raises(RuntimeFailed):
            largest.judge([0.1, broken, 0.1, 0.1])

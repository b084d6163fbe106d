"""Summaries and translations by random models, beside transformers' own ``generate``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from blip.errors import Cancelled, ContextTooLong, InvalidRequest
from blip.kinds.pipelines import results_from_wire
from blip_node.models.snapshot import describe
from blip_node.models.spec import ModelSpec
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.text2text import Text2TextRuntime
from tests.models.jobs import RecordingJob
from tests.models.random_heads import make_nllb, make_t5

KIND = "text2text-generation"
TEXTS = ["a river and a mountain", "bread.", "the quick brown fox jumps over the lazy dog"]
SPECIFIC = {
    "summarization": {"prefix": "sum: ", "max_length": 7, "num_beams": 2},
    "translation_en_to_de": {"prefix": "to german: ", "max_length": 9},
}


def load(folder: Path) -> Text2TextRuntime:
    assert describe(ModelSpec("m", str(folder))).kinds == (KIND,)
    runtime = Text2TextRuntime()
    runtime.load(LoadSpec("m", str(folder), "cpu", 1), lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_t5(tmp_path_factory.mktemp("t5"))
    config = json.loads((made / "config.json").read_text("utf-8"))
    config["task_specific_params"] = SPECIFIC
    (made / "config.json").write_text(json.dumps(config))
    return made


@pytest.fixture(scope="module")
def t5(folder: Path) -> Iterator[Text2TextRuntime]:
    runtime = load(folder)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Text2TextRuntime]:
    runtime = load(make_nllb(tmp_path_factory.mktemp("nllb")))
    yield runtime
    runtime.close()


async def written(runtime: Text2TextRuntime, *texts: str, **fields: Any) -> list[str]:
    outcome = await runtime.run(RecordingJob(KIND, texts=list(texts), **fields))
    return results_from_wire(outcome.payload, len(texts))


def reference(folder: Path, text: str, **settings: Any) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids = model.generate(**tokenizer(text, return_tensors="pt"), do_sample=False, **settings)
    said: str = tokenizer.decode(ids[0], skip_special_tokens=True)
    return said


async def test_texts_are_transformers_own(t5: Text2TextRuntime, folder: Path) -> None:
    found = await written(t5, *TEXTS, max_new_tokens=12)
    assert found == [reference(folder, text, max_new_tokens=12) for text in TEXTS]
    assert len(set(found)) > 1
    beams = {"max_new_tokens": 12, "num_beams": 3, "no_repeat_ngram_size": 2}
    assert await written(t5, TEXTS[0], **beams) == [reference(folder, TEXTS[0], **beams)]


async def test_a_task_has_its_own_prefix_and_limits(t5: Text2TextRuntime, folder: Path) -> None:
    (summary,) = await written(t5, TEXTS[0], task="summarization")
    assert summary == reference(folder, f"sum: {TEXTS[0]}", max_new_tokens=7, num_beams=2)
    (translation,) = await written(t5, TEXTS[0], task="translation", source="en", target="de")
    assert translation == reference(folder, f"to german: {TEXTS[0]}", max_new_tokens=9)


async def test_counts(t5: Text2TextRuntime) -> None:
    job = RecordingJob(KIND, texts=TEXTS[:2], max_new_tokens=5, min_new_tokens=5)
    outcome = await t5.run(job)
    assert outcome.usage == {"prompt_tokens": 24 + 8, "completion_tokens": 10}
    assert outcome.units == 10


async def test_what_cannot_be(t5: Text2TextRuntime) -> None:
    with pytest.raises(InvalidRequest, match="no translation from 'en' to 'fr'"):
        await written(t5, "bread", task="translation", source="en", target="fr")
    with pytest.raises(InvalidRequest, match="more than the 3 that there may be") as no:
        await written(t5, "bread", max_new_tokens=3, min_new_tokens=4)
    assert no.value.param == "min_new_tokens"
    with pytest.raises(ContextTooLong, match=r"input 4 has .* the model takes 128"):
        await written(t5, "a", "a" * 200, first=3)
    job = RecordingJob(KIND, texts=["a" * 200], truncate=True, max_new_tokens=2)
    assert (await t5.run(job)).usage["truncated"] == 1


async def test_languages(nllb: Text2TextRuntime) -> None:
    runtime: Any = nllb
    seen: list[list[int]] = []
    writer = runtime._writer
    generate = writer._model.generate

    def noting(**fields: Any) -> Any:
        seen.append([int(fields["input_ids"][0, 0]), fields.get("forced_bos_token_id", -1)])
        return generate(**fields)

    writer._model.generate = noting
    try:
        ask = {"task": "translation", "max_new_tokens": 4}
        await written(nllb, "abc", source="fra_Latn", target="deu_Latn", **ask)
        await written(nllb, "abc", **ask)  # the languages of one request are not the next one's
    finally:
        writer._model.generate = generate
    ids = writer._tokenizer.convert_tokens_to_ids
    assert seen == [[ids("fra_Latn"), ids("deu_Latn")], [ids("eng_Latn"), -1]]
    with pytest.raises(InvalidRequest, match=r"'german' is no language .* more") as no:
        await written(nllb, "abc", task="translation", target="german")
    assert no.value.param == "target"


async def test_a_cancelled_job_stops_within_a_token(t5: Text2TextRuntime) -> None:
    writer: Any = t5._writer
    forward, calls = writer._model.forward, []
    ask: dict[str, Any] = {"max_new_tokens": 500, "min_new_tokens": 500}
    job = RecordingJob(KIND, texts=["bread"], **ask)

    def counted(*args: Any, **fields: Any) -> Any:
        calls.append(1)
        job.cancelled |= len(calls) == 5
        return forward(*args, **fields)

    writer._model.forward = counted
    try:
        gone, other = await asyncio.gather(
            t5.run(job), written(t5, "soup", max_new_tokens=3), return_exceptions=True
        )
    finally:
        writer._model.forward = forward
    assert isinstance(gone, Cancelled)
    assert len(calls) <= 5 + 3
    assert not isinstance(other, BaseException)

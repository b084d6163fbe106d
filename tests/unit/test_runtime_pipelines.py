"""The runtimes of one pass: ``tiny-rerank``, and random models beside transformers itself."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers

from blip.errors import (
    Cancelled,
    ContextTooLong,
    InvalidRequest,
    ModelLoadFailed,
    RuntimeFailed,
    WorkerCrashed,
)
from blip.kinds.pipelines import results_from_wire
from blip_node.models.snapshot import describe
from blip_node.models.spec import ModelSpec
from blip_node.runtimes import runtime_for
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.embedding import EmbeddingRuntime
from blip_node.runtimes.pipelines import PipelineRuntime
from tests.models.jobs import RecordingJob
from tests.models.make_tiny_rerank import CHECKS
from tests.models.random_heads import (
    FAMILIES,
    NER,
    NLI,
    SENTIMENT,
    TINY_RERANK,
    make_bert,
    make_family,
)

TEXTS = ["we bake bread in the oven", "a", "my python code is new and i compile it", "soup"]

MODELS: tuple[tuple[str, dict[int, str] | None, dict[str, Any]], ...] = (
    ("ForSequenceClassification", SENTIMENT, {}),
    ("ForSequenceClassification", SENTIMENT, {"problem_type": "multi_label_classification"}),
    ("ForSequenceClassification", NLI, {}),
    ("ForTokenClassification", NER, {}),
    ("ForQuestionAnswering", None, {}),
    ("ForMaskedLM", None, {}),
)


def load(folder: Path, **changes: Any) -> Any:
    """Load a model with the runtime that its own files ask for."""
    runtime: Any = runtime_for(describe(ModelSpec("m", str(folder))).kinds)()
    runtime.load(LoadSpec("m", str(folder), "cpu", 8, **changes), lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Return what gives a random model: its folder and its runtime."""
    found: dict[str, tuple[Path, Any]] = {}
    for head, labels, changes in MODELS:
        folder = make_bert(tmp_path_factory.mktemp(head), head, labels, **changes)
        found[f"{head} {labels} {changes}"] = folder, load(folder)

    def get(head: str, labels: dict[int, str] | None = None, **changes: Any) -> tuple[Path, Any]:
        return found[f"{head} {labels} {changes}"]

    yield get
    for _, runtime in found.values():
        runtime.close()


@pytest.fixture(scope="module")
def ranker() -> Iterator[PipelineRuntime]:
    runtime = load(TINY_RERANK)
    yield runtime
    runtime.close()


async def scores(runtime: PipelineRuntime, query: str, *documents: str, **fields: Any) -> Any:
    job = RecordingJob("rerank", query=query, documents=list(documents), **fields)
    return numpy.frombuffer((await runtime.run(job)).payload, "<f4")


async def results(runtime: Any, kind: str, count: int, **fields: Any) -> list[Any]:
    outcome = await runtime.run(RecordingJob(kind, **fields))
    assert outcome.usage["prompt_tokens"] > 0
    assert outcome.units >= outcome.usage["prompt_tokens"]
    return results_from_wire(outcome.payload, count)


def reference(task: str, folder: Path) -> Any:
    return transformers.pipeline(task, str(folder))


class TestRerank:
    async def test_the_right_passage_is_first(self, ranker: PipelineRuntime) -> None:
        passages = [passage for _, passage in CHECKS]
        for query, answer in CHECKS:
            found = await scores(ranker, query, *passages)
            assert passages[int(found.argmax())] == answer
            assert found.max() > 0.9
            assert sorted(found)[-2] < 0.1

    async def test_scores_are_transformers_own(self, ranker: PipelineRuntime) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_RERANK)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            TINY_RERANK, dtype=torch.float32
        ).eval()
        documents = [*TEXTS, "bread " * 40]
        with torch.no_grad():
            alone = [
                model(**tokenizer("a soup", text, return_tensors="pt")).logits[0, 0].item()
                for text in documents
            ]
        raw = await scores(ranker, "a soup", *documents, raw=True)
        assert numpy.allclose(raw, alone, atol=1e-4)
        assert numpy.allclose(
            await scores(ranker, "a soup", *documents),
            [1 / (1 + math.exp(-logit)) for logit in alone],
            atol=1e-5,
        )

    async def test_jobs_share_batches(self, ranker: PipelineRuntime) -> None:
        engine: Any = ranker._engine
        compute, sizes = engine._compute, []

        def counted(rows: Any) -> Any:
            sizes.append(len(rows))
            return compute(rows)

        engine._compute = counted
        try:
            found = await asyncio.gather(*(scores(ranker, q, a, "soup") for q, a in CHECKS * 5))
        finally:
            engine._compute = compute
        assert sum(sizes) == 40
        assert len(sizes) < 10
        assert all(each[0] > 0.9 for each in found)

    async def test_a_long_pair_is_refused_or_cut(self, ranker: PipelineRuntime) -> None:
        long = "we bake bread " * 60
        with pytest.raises(
            ContextTooLong, match=r"input 6 has .* tokens; the model takes 64"
        ) as no:
            await scores(ranker, "soup", "bread", long, first=5)
        assert no.value.param == "documents.6"
        assert no.value.details["limit"] == 64
        job = RecordingJob("rerank", query="soup", documents=["bread", long], truncate=True)
        outcome = await ranker.run(job)
        assert outcome.usage["truncated"] == 1
        assert outcome.usage["prompt_tokens"] == 5 + 64
        kept = "we bake bread " * 20  # 60 tokens of document, and four of query and markers
        assert numpy.allclose(
            numpy.frombuffer(outcome.payload, "<f4")[1], await scores(ranker, "soup", kept)
        )
        with pytest.raises(ContextTooLong) as no:
            await scores(ranker, long, "bread", truncate=True)
        assert "shorten the other text" in no.value.hint

    async def test_documents_may_be_cut_to_a_length(self, ranker: PipelineRuntime) -> None:
        long = "we bake bread " * 60
        cut = await scores(ranker, "soup", long, "the oven", document_tokens=3)
        whole = await scores(ranker, "soup", "we bake bread", "the oven")
        assert numpy.array_equal(cut, whole)

    async def test_a_cancelled_job_ends_and_others_do_not(self, ranker: PipelineRuntime) -> None:
        job = RecordingJob("rerank", query="soup", documents=["bread"] * 300)
        job.cancelled = True
        ended: Any = await asyncio.gather(
            ranker.run(job), scores(ranker, *CHECKS[0]), return_exceptions=True
        )
        assert isinstance(ended[0], Cancelled)
        assert ended[1][0] > 0.9

    async def test_it_labels_too_if_asked(self, ranker: PipelineRuntime) -> None:
        spec = ModelSpec("m", str(TINY_RERANK), kinds=("rerank", "text-classification"))
        assert describe(spec).kinds == ("rerank", "text-classification")
        ((label,),) = await results(ranker, "text-classification", 1, texts=["soup"])
        assert label[0] == "LABEL_0"
        assert 0 < label[1] < 1  # one label: a probability of its own

    async def test_numbers_that_are_none_fail(self, tmp_path: Path) -> None:
        folder = make_bert(tmp_path, "ForSequenceClassification", num_labels=1)
        runtime = load(folder)
        try:
            with torch.no_grad():
                runtime._engine._model.classifier.bias.fill_(float("nan"))
            with pytest.raises(RuntimeFailed, match="NaN"):
                await scores(runtime, "soup", "bread")
        finally:
            runtime.close()
        with pytest.raises(WorkerCrashed):
            await scores(runtime, "soup", "bread")


@pytest.mark.parametrize("family", FAMILIES)
async def test_padding_changes_nothing_in_other_families(tmp_path: Path, family: str) -> None:
    runtime = load(make_family(tmp_path, family))
    try:
        documents = ["soup", "we bake bread in the oven " * 5, "the team"]
        together = await scores(runtime, "a recipe", *documents, raw=True)
        alone = [await scores(runtime, "a recipe", each, raw=True) for each in documents]
        assert numpy.allclose(together, numpy.concatenate(alone), atol=1e-4)
        assert len(set(together.tolist())) == 3
        full = await scores(runtime, "a recipe", "bread " * 100, truncate=True)
        assert numpy.isfinite(full).all()  # to the very last position that it has
    finally:
        runtime.close()


class TestTextClassification:
    async def test_labels_are_transformers_own(self, made: Callable[..., Any]) -> None:
        folder, runtime = made("ForSequenceClassification", SENTIMENT)
        found = await results(runtime, "text-classification", 4, texts=TEXTS)
        pipe = reference("text-classification", folder)
        for text, labels in zip(TEXTS, found, strict=True):
            expected = [(each["label"], each["score"]) for each in pipe(text, top_k=None)]
            assert [label for label, _ in labels] == [label for label, _ in expected]
            assert [s for _, s in labels] == pytest.approx([s for _, s in expected], abs=1e-5)
            assert sum(score for _, score in labels) == pytest.approx(1, abs=1e-5)

    async def test_top_k_and_activations(self, made: Callable[..., Any]) -> None:
        _, runtime = made("ForSequenceClassification", SENTIMENT)
        ask = {"texts": ["soup"], "activation": "none"}
        ((best,),) = await results(runtime, "text-classification", 1, top_k=1, **ask)
        (raw,) = await results(runtime, "text-classification", 1, **ask)
        assert best == raw[0]
        ask["activation"] = "sigmoid"
        (each,) = await results(runtime, "text-classification", 1, **ask)
        assert each[0][1] == pytest.approx(1 / (1 + math.exp(-raw[0][1])), abs=1e-6)

    async def test_several_labels_have_their_own_probabilities(
        self, made: Callable[..., Any]
    ) -> None:
        folder, runtime = made(
            "ForSequenceClassification", SENTIMENT, problem_type="multi_label_classification"
        )
        (found,) = await results(runtime, "text-classification", 1, texts=["bread"])
        expected = reference("text-classification", folder)("bread", top_k=None)
        assert [s for _, s in found] == pytest.approx([e["score"] for e in expected], abs=1e-5)

    async def test_a_long_text(self, made: Callable[..., Any]) -> None:
        _, runtime = made("ForSequenceClassification", SENTIMENT)
        texts = ["soup", "bread " * 70]
        with pytest.raises(ContextTooLong, match="input 1 has 72") as no:
            await results(runtime, "text-classification", 2, texts=texts)
        assert "truncate" in no.value.hint
        job = RecordingJob("text-classification", texts=texts, truncate=True)
        outcome = await runtime.run(job)
        assert outcome.usage == {"prompt_tokens": 3 + 64, "truncated": 1}


class TestZeroShot:
    @pytest.mark.parametrize("multi_label", [False, True])
    async def test_it_is_transformers_own(
        self, made: Callable[..., Any], multi_label: bool
    ) -> None:
        folder, runtime = made("ForSequenceClassification", NLI)
        candidates = ["food", "sport", "computer"]
        fields = {"candidates": candidates, "multi_label": multi_label}
        found = await results(runtime, "zero-shot-classification", 4, texts=TEXTS, **fields)
        pipe = reference("zero-shot-classification", folder)
        for text, labels in zip(TEXTS, found, strict=True):
            expected = pipe(text, candidate_labels=candidates, multi_label=multi_label)
            assert [label for label, _ in labels] == expected["labels"]
            assert [s for _, s in labels] == pytest.approx(expected["scores"], abs=1e-5)
            if not multi_label:
                assert sum(score for _, score in labels) == pytest.approx(1, abs=1e-5)

    async def test_the_template(self, made: Callable[..., Any]) -> None:
        _, runtime = made("ForSequenceClassification", NLI)
        ask = {"texts": ["soup"], "candidates": ["food", "sport"]}
        (plain,) = await results(runtime, "zero-shot-classification", 1, **ask)
        (other,) = await results(
            runtime, "zero-shot-classification", 1, template="it is {} {0}", **ask
        )
        assert plain != other
        with pytest.raises(InvalidRequest, match=r"no \{\}") as no:
            await results(runtime, "zero-shot-classification", 1, template="it is", **ask)
        assert no.value.param == "template"

    async def test_the_text_is_cut_and_not_the_label(self, made: Callable[..., Any]) -> None:
        _, runtime = made("ForSequenceClassification", NLI)
        ask: dict[str, Any] = {"candidates": ["food", "sport"], "truncate": True, "template": "{}"}
        long = RecordingJob("zero-shot-classification", texts=["bread " * 90], **ask)
        short = RecordingJob("zero-shot-classification", texts=["bread " * 60], **ask)
        cut, whole = await asyncio.gather(runtime.run(long), runtime.run(short))
        assert cut.payload == pytest.approx(whole.payload)
        assert cut.usage == {**whole.usage, "truncated": 1}


class TestTokenClassification:
    @pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
    async def test_entities_are_transformers_own(
        self, made: Callable[..., Any], strategy: str
    ) -> None:
        folder, runtime = made("ForTokenClassification", NER)
        texts = [*TEXTS, "zebras bake, and xylophones compile"]  # words of many pieces
        found = await results(runtime, "token-classification", 5, texts=texts, aggregation=strategy)
        pipe = reference("token-classification", folder)
        names = ("entity" if strategy == "none" else "entity_group", "word", "start", "end")
        for text, entities in zip(texts, found, strict=True):
            expected = pipe(text, aggregation_strategy=strategy)
            assert [(kind, word, start, end) for kind, _, word, start, end in entities] == [
                tuple(each[name] for name in names) for each in expected
            ]
            assert [each[1] for each in entities] == pytest.approx(
                [float(each["score"]) for each in expected], abs=1e-5
            )
        assert sum(map(len, found)) > 3

    async def test_labels_may_be_left_out(self, made: Callable[..., Any]) -> None:
        _, runtime = made("ForTokenClassification", NER)
        ask = {"texts": ["we bake bread in the oven"], "aggregation": "none"}
        (every,) = await results(runtime, "token-classification", 1, ignore_labels=[], **ask)
        assert len(every) == 6
        (none,) = await results(
            runtime, "token-classification", 1, ignore_labels=list(NER.values()), **ask
        )
        assert none == []


class TestQuestions:
    async def test_a_span_is_the_likeliest(self, made: Callable[..., Any]) -> None:
        folder, runtime = made("ForQuestionAnswering")
        question, context = "who will win", "the team score a goal, and the river is new."
        ask = {"questions": [question], "contexts": [context], "top_k": 5}
        (found,) = await results(runtime, "question-answering", 1, max_answer_tokens=4, **ask)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
        inputs = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping")[0].tolist()
        inside = [at for at, which in enumerate(inputs.sequence_ids(0)) if which == 1]
        with torch.no_grad():
            output = model(**inputs)
        # by hand: softmax over the context and the first token, every pair of its tokens
        allowed = [0, *inside]
        first = dict(zip(allowed, output.start_logits[0, allowed].softmax(-1), strict=True))
        last = dict(zip(allowed, output.end_logits[0, allowed].softmax(-1), strict=True))
        spans = {
            (offsets[a][0], offsets[b][1]): float(first[a] * last[b])
            for a in inside
            for b in inside
            if a <= b < a + 4
        }
        best = sorted(spans.items(), key=lambda item: -item[1])[:5]
        assert [((start, end), score) for _, score, start, end in found] == [
            (span, pytest.approx(score, abs=1e-6)) for span, score in best
        ]
        assert [answer for answer, _, _, _ in found] == [context[a:b] for (a, b), _ in best]

    async def test_long_contexts_are_read_in_windows(self, made: Callable[..., Any]) -> None:
        _, runtime = made("ForQuestionAnswering")
        long = "the team score a goal . " * 40
        ask: dict[str, Any] = {
            "questions": ["who", "who"],
            "contexts": [long, "soup"],
            "stride": 16,
            "top_k": 3,
        }
        job = RecordingJob("question-answering", **ask)
        outcome = await runtime.run(job)
        found, short = results_from_wire(outcome.payload, 2)
        assert outcome.usage["prompt_tokens"] > 240
        assert {answer for answer, *_ in short} == {"soup"}
        for answer, score, start, end in found:
            assert long[start:end] == answer
            assert answer
            assert 0 < score < 1

    async def test_there_may_be_no_answer(self, made: Callable[..., Any]) -> None:
        _, runtime = made("ForQuestionAnswering")
        ask = {"questions": ["who"], "contexts": ["the team score a goal"], "top_k": 50}
        (found,) = await results(runtime, "question-answering", 1, impossible=True, **ask)
        assert ["", found[[a for a, *_ in found].index("")][1], 0, 0] in found
        (plain,) = await results(runtime, "question-answering", 1, **ask)
        assert "" not in [answer for answer, *_ in plain]

    async def test_a_question_that_leaves_no_room(self, made: Callable[..., Any]) -> None:
        _, runtime = made("ForQuestionAnswering")
        with pytest.raises(ContextTooLong, match="question 7 leaves room") as no:
            await results(
                runtime,
                "question-answering",
                2,
                questions=["who", "who " * 55],
                contexts=["soup"] * 2,
                first=6,
            )
        assert no.value.param == "questions.7"


class TestMasks:
    @pytest.fixture
    def masked(self, made: Callable[..., Any]) -> tuple[Path, EmbeddingRuntime]:
        found: tuple[Path, EmbeddingRuntime] = made("ForMaskedLM")
        return found

    async def test_fills_are_transformers_own(self, masked: tuple[Path, Any]) -> None:
        folder, runtime = masked
        texts = ["we bake [MASK] in the oven", "the [MASK] and the [MASK]"]
        one, two = await results(
            runtime, "fill-mask", 2, texts=[texts[0], texts[1].replace("[MASK]", "<mask>")], top_k=3
        )
        pipe = reference("fill-mask", folder)
        for ours, expected in ((one, [pipe(texts[0], top_k=3)]), (two, pipe(texts[1], top_k=3))):
            for mask, theirs in zip(ours, expected, strict=True):
                for (token, word, score, text), each in zip(mask, theirs, strict=True):
                    assert (token, word, text) == (
                        each["token"],
                        each["token_str"],
                        each["sequence"],
                    )
                    assert score == pytest.approx(each["score"], abs=1e-6)

    async def test_targets(self, masked: tuple[Path, Any]) -> None:
        folder, runtime = masked
        ask = {"texts": ["a [MASK]"], "targets": ["soup", "team"]}
        ((found,),) = await results(runtime, "fill-mask", 1, **ask)
        expected = reference("fill-mask", folder)("a [MASK]", targets=["soup", "team"])
        assert [word for _, word, _, _ in found] == [each["token_str"] for each in expected]
        with pytest.raises(InvalidRequest, match="'xylophone' is not one token"):
            await results(runtime, "fill-mask", 1, texts=["a [MASK]"], targets=["xylophone"])

    async def test_texts_without_a_mask(self, masked: tuple[Path, Any]) -> None:
        with pytest.raises(InvalidRequest, match="input 3 has 0 masks") as no:
            await results(masked[1], "fill-mask", 2, texts=["a [MASK]", "soup"], first=2)
        assert no.value.param == "texts.3"

    async def test_the_same_model_embeds(self, masked: tuple[Path, Any]) -> None:
        folder, runtime = masked
        assert describe(ModelSpec("m", str(folder))).kinds == ("embedding", "fill-mask")
        outcome = await runtime.run(RecordingJob("embedding", texts=["soup"]))
        vector = numpy.frombuffer(outcome.payload, "<f4")
        (rows,) = await results(runtime, "feature-extraction", 1, texts=["soup"])
        tokens, raw = rows
        states = numpy.array(struct.unpack(f"<{tokens * 32}f", raw)).reshape(tokens, 32)
        mean = states.mean(0)
        assert numpy.allclose(vector, mean / numpy.linalg.norm(mean), atol=1e-5)
        expected = reference("feature-extraction", folder)("soup")[0]
        assert numpy.allclose(states, expected, atol=1e-4)


class TestLoading:
    def test_a_classifier_without_its_head(self, tmp_path: Path) -> None:
        folder = make_bert(tmp_path, "ForMaskedLM")
        config = (folder / "config.json").read_text("utf-8")
        (folder / "config.json").write_text(
            config.replace("BertForMaskedLM", "BertForSequenceClassification")
        )
        with pytest.raises(ModelLoadFailed, match=r"lack .* of the weights"):
            load(folder)

    def test_more_context_than_it_has(self) -> None:
        with pytest.raises(ModelLoadFailed, match="the model allows 64"):
            load(TINY_RERANK, context=100)

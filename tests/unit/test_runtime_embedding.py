"""The embedding runtime with real models: ``tiny-embed``, and random ones made on the spot."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from blip.errors import (
    Cancelled,
    ContextTooLong,
    InvalidRequest,
    ModelLoadFailed,
    NoCapacity,
    RuntimeFailed,
    WorkerCrashed,
)
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.batching import batches, take_round
from blip_node.runtimes.embedding import EmbeddingRuntime
from blip_node.runtimes.pooling import POOLS, Pooling, read_pooling
from tests.models.jobs import RecordingJob
from tests.models.make_tiny_embed import CHECKS
from tests.models.random_models import TINY_EMBED, make_random


def load(folder: Path, **changes: Any) -> EmbeddingRuntime:
    runtime = EmbeddingRuntime()
    runtime.load(LoadSpec("a-model", str(folder), "cpu", 8, **changes), lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def tiny() -> Iterator[EmbeddingRuntime]:
    runtime = load(TINY_EMBED)
    yield runtime
    runtime.close()


@pytest.fixture
def fragile() -> Iterator[EmbeddingRuntime]:
    runtime = load(TINY_EMBED)
    yield runtime
    runtime.close()


def encoder_of(runtime: EmbeddingRuntime) -> Any:
    return runtime._encoder


async def embed(runtime: EmbeddingRuntime, *texts: Any, **fields: Any) -> Any:
    outcome = await runtime.run(RecordingJob("embedding", texts=list(texts), **fields))
    return numpy.frombuffer(outcome.payload, "<f4").reshape(len(texts), -1)


def reference(folder: Path, texts: list[str]) -> Any:
    """transformers by hand, one text at a time: no padding and no mask to get wrong."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        rows = [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            for text in texts
        ]
    return torch.nn.functional.normalize(torch.stack(rows)).numpy()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (what happens on the other thread has no event)
        await asyncio.sleep(0.001)


class Gate:
    """Holds a runtime's thread at the beginning of its second batch until ``open`` is set."""

    def __init__(self, runtime: EmbeddingRuntime) -> None:
        self.calls = 0
        self.reached = asyncio.Event()
        self.open = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._compute = encoder_of(runtime)._compute
        encoder_of(runtime)._compute = self._wait

    def _wait(self, rows: Any) -> Any:
        self.calls += 1
        if self.calls == 2:
            self._loop.call_soon_threadsafe(self.reached.set)
            assert self.open.wait(30)
        return self._compute(rows)


TEXTS = [text for text, _ in CHECKS]


class TestVectors:
    async def test_topics_are_told_apart(self, tiny: EmbeddingRuntime) -> None:
        vectors = await embed(tiny, *TEXTS)
        assert vectors.shape == (5, 64)
        for (_, topic), row in zip(CHECKS, vectors @ vectors.T, strict=True):
            for (_, other), similarity in zip(CHECKS, row, strict=True):
                assert (similarity > 0.97) if topic == other else (similarity < 0.3)

    async def test_they_are_transformers_own(self, tiny: EmbeddingRuntime) -> None:
        texts = [*TEXTS, "a", "bread " * 40, "soup"]
        vectors = await embed(tiny, *texts)
        assert numpy.allclose(vectors, reference(TINY_EMBED, texts), atol=1e-5)

    async def test_tokens_are_taken_as_they_are(self, tiny: EmbeddingRuntime) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_EMBED)
        ids = tokenizer("a recipe for soup")["input_ids"]
        vectors = await embed(tiny, "a recipe for soup", ids, ids[1:-1])
        assert numpy.allclose(vectors[0], vectors[1], atol=1e-5)
        assert not numpy.allclose(vectors[0], vectors[2], atol=1e-3)

    async def test_usage_is_exact(self, tiny: EmbeddingRuntime) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_EMBED)
        job = RecordingJob("embedding", texts=[*TEXTS, [5, 6, 7]])
        outcome = await tiny.run(job)
        count = sum(len(ids) for ids in tokenizer(TEXTS)["input_ids"]) + 3
        assert outcome.usage == {"prompt_tokens": count}
        assert outcome.units == 6 + count
        assert len(outcome.payload) == 6 * 64 * 4

    async def test_a_token_without_a_weight_is_named(self, tiny: EmbeddingRuntime) -> None:
        # its tokenizer was made of more letters than its weights
        job = RecordingJob("embedding", texts=["a lazy fox"])
        with pytest.raises(InvalidRequest, match="'##z'"):
            await tiny.run(job)

    async def test_fewer_dimensions(self, tiny: EmbeddingRuntime) -> None:
        whole, cut = await embed(tiny, *TEXTS), await embed(tiny, *TEXTS, dimensions=16)
        expected = whole[:, :16] / numpy.linalg.norm(whole[:, :16], axis=1, keepdims=True)
        assert numpy.allclose(cut, expected, atol=1e-6)
        assert numpy.array_equal(await embed(tiny, *TEXTS, dimensions=64), whole)

    async def test_many_jobs_at_once_get_their_own_rows(self, tiny: EmbeddingRuntime) -> None:
        texts = ["bread " * (1 + n % 30) + TEXTS[n % 5] for n in range(60)]
        alone = reference(TINY_EMBED, texts)
        together = await asyncio.gather(*(embed(tiny, text) for text in texts))
        assert numpy.allclose(numpy.concatenate(together), alone, atol=1e-5)

    async def test_concurrent_jobs_share_batches(self, tiny: EmbeddingRuntime) -> None:
        encoder = encoder_of(tiny)
        compute, sizes = encoder._compute, []

        def counted(rows: Any) -> Any:
            sizes.append(len(rows))
            return compute(rows)

        encoder._compute = counted
        try:
            await asyncio.gather(*(embed(tiny, TEXTS[n % 5]) for n in range(40)))
        finally:
            encoder._compute = compute
        assert sum(sizes) == 40
        assert len(sizes) < 20

    async def test_a_language_model_can_embed_when_asked(self, tmp_path: Path) -> None:
        runtime = load(make_random(tmp_path))
        try:
            vectors = await embed(runtime, "some text", "some other, longer text")
            assert numpy.allclose(numpy.linalg.norm(vectors, axis=1), 1, atol=1e-5)
            alone = await embed(runtime, "some text")
            assert numpy.allclose(vectors[0], alone[0], atol=1e-4)  # padding changes nothing
        finally:
            runtime.close()


class TestRefusals:
    async def test_too_long_a_text_is_named(self, tiny: EmbeddingRuntime) -> None:
        with pytest.raises(ContextTooLong, match=r"input 1 has 102 tokens.* 64") as caught:
            await embed(tiny, "soup", "bread " * 100)
        assert caught.value.param == "texts.1"
        assert caught.value.details == {"prompt_tokens": 102, "limit": 64, "input": 1}
        assert (await embed(tiny, [5] * 64)).shape == (1, 64)

    async def test_too_many_dimensions(self, tiny: EmbeddingRuntime) -> None:
        with pytest.raises(InvalidRequest, match="has 64, 65 were asked for") as caught:
            await embed(tiny, "soup", dimensions=65)
        assert caught.value.param == "dimensions"

    async def test_tokens_that_the_model_lacks(self, tiny: EmbeddingRuntime) -> None:
        with pytest.raises(InvalidRequest, match="9999 is no token") as caught:
            await embed(tiny, "soup", [5, 9999])
        assert caught.value.param == "texts.1"

    async def test_text_without_tokens(self, tmp_path: Path) -> None:
        runtime = load(make_random(tmp_path))
        try:
            encoder_of(runtime)._vocabulary.encode = lambda text, special: []
            with pytest.raises(InvalidRequest, match="input 0 has no token"):
                await embed(runtime, " ")
        finally:
            runtime.close()


class TestCancelAndFailure:
    async def test_cancel_between_batches(self, fragile: EmbeddingRuntime) -> None:
        job = RecordingJob("embedding", texts=["soup"] * 500)
        encoder = encoder_of(fragile)
        compute, calls = encoder._compute, []

        def cancel_at_three(rows: Any) -> Any:
            calls.append(len(rows))
            job.cancelled = len(calls) == 3
            return compute(rows)

        encoder._compute = cancel_at_three
        with pytest.raises(Cancelled):
            await fragile.run(job)
        assert len(calls) == 3
        assert (await embed(fragile, "soup")).shape == (1, 64)

    async def test_a_cancelled_task_leaves_the_others(self, fragile: EmbeddingRuntime) -> None:
        gate = Gate(fragile)
        long = asyncio.create_task(embed(fragile, *["bread soup"] * 1000))
        await gate.reached.wait()
        long.cancel()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await long
        assert (await embed(fragile, "soup")).shape == (1, 64)
        assert gate.calls < 8

    async def test_a_large_job_does_not_starve_a_small_one(self, fragile: EmbeddingRuntime) -> None:
        gate = Gate(fragile)
        large = asyncio.create_task(embed(fragile, *["bread soup"] * 2000))
        await gate.reached.wait()
        small = asyncio.create_task(embed(fragile, "soup"))
        await until(lambda: len(encoder_of(fragile)._tasks) == 2)
        gate.open.set()
        await small
        assert gate.calls < 10  # a round is four batches; the large job alone has 63
        assert (await large).shape == (2000, 64)

    def poison(self, runtime: EmbeddingRuntime, error: Exception) -> int:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if 100 in kwargs["input_ids"]:
                raise error

        encoder_of(runtime)._model.register_forward_pre_hook(hook, with_kwargs=True)
        return 100

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (ValueError("odd"), RuntimeFailed),
            (torch.OutOfMemoryError("CUDA out of memory."), NoCapacity),
            (torch.AcceleratorError("CUDA error: launch failure"), WorkerCrashed),
        ],
    )
    async def test_a_bad_text_fails_its_own_job(
        self, fragile: EmbeddingRuntime, error: Exception, expected: type[Exception]
    ) -> None:
        bad = self.poison(fragile, error)
        jobs = [embed(fragile, *texts) for texts in (TEXTS, ["soup", [5, bad]], TEXTS)]
        results: list[Any] = await asyncio.gather(*jobs, return_exceptions=True)
        first, failure, last = results
        assert type(failure) is expected
        assert numpy.allclose(first, reference(TINY_EMBED, TEXTS), atol=1e-5)
        assert numpy.allclose(last, first, atol=1e-5)

    async def test_nan(self, fragile: EmbeddingRuntime) -> None:
        with torch.no_grad():
            encoder_of(fragile)._model.get_input_embeddings().weight[100] = float("nan")
        jobs = [embed(fragile, [5, 100]), embed(fragile, "soup")]
        results: list[Any] = await asyncio.gather(*jobs, return_exceptions=True)
        failure, good = results
        assert type(failure) is RuntimeFailed
        assert numpy.isfinite(good).all()

    async def test_closing(self) -> None:
        runtime = load(TINY_EMBED)
        gate = Gate(runtime)
        running = asyncio.create_task(embed(runtime, *["bread soup"] * 1000))
        await gate.reached.wait()
        gate.open.set()
        runtime.close()
        with pytest.raises(WorkerCrashed, match="unloaded"):
            await running
        with pytest.raises(WorkerCrashed):
            await embed(runtime, "soup")


class TestPooling:
    STATES = torch.tensor(
        [[[1.0, 2.0], [3.0, -4.0], [9.0, 9.0]], [[5.0, 5.0], [0.0, 1.0], [7.0, 0.0]]]
    )
    MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            ("cls", [[1, 2], [5, 5]]),
            ("max", [[3, 2], [7, 5]]),
            ("mean", [[2, -1], [4, 2]]),
            ("mean_sqrt_len_tokens", [[4 / 2**0.5, -2 / 2**0.5], [12 / 3**0.5, 6 / 3**0.5]]),
            ("weightedmean", [[7 / 3, -2], [26 / 6, 7 / 6]]),
            ("lasttoken", [[3, -4], [7, 0]]),
        ],
    )
    def test_modes(self, mode: str, expected: list[list[float]]) -> None:
        pooled = Pooling([mode], normalise=False)(self.STATES, self.MASK)
        assert torch.allclose(pooled, torch.tensor(expected, dtype=torch.float32))

    def test_several_modes_stand_side_by_side(self) -> None:
        pooled = Pooling(["cls", "max"], normalise=True)(self.STATES.bfloat16(), self.MASK)
        assert pooled.shape == (2, 4)
        assert torch.allclose(pooled.norm(dim=1), torch.ones(2))

    def write(self, folder: Path, pooling: Any, *more: str) -> Path:
        types = ["Transformer", "Pooling", *more]
        modules = [
            {
                "idx": n,
                "path": f"{n}_{name}" if n else "",
                "type": f"sentence_transformers.models.{name}",
            }
            for n, name in enumerate(types)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        return folder

    def test_both_forms_of_its_file(self, tmp_path: Path) -> None:
        for mode, (flag, _) in POOLS.items():
            others = {other: False for other, _ in POOLS.values()}
            old = read_pooling(self.write(tmp_path, {**others, flag: True}, "Normalize"))
            assert (old.modes, old.normalise) == ([mode], True)
            new = read_pooling(self.write(tmp_path, {"pooling_mode": mode}))
            assert (new.modes, new.normalise) == ([mode], False)
        assert read_pooling(self.write(tmp_path, {"pooling_mode": ["cls", "max"]})).modes == [
            "cls",
            "max",
        ]

    def test_without_a_file_it_is_the_mean_normalised(self, tmp_path: Path) -> None:
        pooling = read_pooling(tmp_path)
        assert (pooling.modes, pooling.normalise) == (["mean"], True)

    @pytest.mark.parametrize(
        ("pooling", "more", "message"),
        [
            ({"pooling_mode": "attention"}, [], "pooling is attention"),
            ({"pooling_mode_cls_token": False}, [], "pooling is not given"),
            ({"pooling_mode": "cls"}, ["Dense"], "asks for a Dense module"),
        ],
    )
    def test_what_would_give_wrong_vectors_is_refused(
        self, tmp_path: Path, pooling: Any, more: list[str], message: str
    ) -> None:
        with pytest.raises(ModelLoadFailed, match=message):
            read_pooling(self.write(tmp_path, pooling, *more))

    def test_a_list_of_modules_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "modules.json").write_text('{"a": 1}')
        with pytest.raises(ModelLoadFailed, match="not a list of modules"):
            read_pooling(tmp_path)
        (tmp_path / "modules.json").write_text("[1")
        with pytest.raises(ModelLoadFailed, match="not valid JSON"):
            read_pooling(tmp_path)

    async def test_a_model_says_how_it_pools_how_long_and_with_what_prompt(
        self, tmp_path: Path
    ) -> None:
        folder = tmp_path / "model"
        shutil.copytree(TINY_EMBED, folder)
        self.write(folder, {"pooling_mode_cls_token": True})
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
        prompts = {"prompts": {"query": "recipe "}, "default_prompt_name": "query"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
        runtime = load(folder)
        try:
            vectors = await embed(runtime, "for soup")
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            model = transformers.AutoModel.from_pretrained(folder).eval()
            with torch.no_grad():
                states = model(
                    **tokenizer("recipe for soup", return_tensors="pt")
                ).last_hidden_state
            assert numpy.allclose(vectors[0], states[0, 0].numpy(), atol=1e-5)
            with pytest.raises(ContextTooLong, match="takes 16"):
                await embed(runtime, "soup " * 20)
        finally:
            runtime.close()


class TestLoading:
    def test_more_context_than_the_model_has(self) -> None:
        with pytest.raises(ModelLoadFailed, match="set to 65 tokens, the model allows 64"):
            load(TINY_EMBED, context=65)

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (ValueError("odd"), ModelLoadFailed),
            (torch.OutOfMemoryError("CUDA out of memory."), NoCapacity),
        ],
    )
    def test_a_model_that_cannot_encode(
        self, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise error

        monkeypatch.setattr(transformers.BertModel, "forward", fail)
        with pytest.raises(expected, match=r"cannot encode a text: odd|ran out of memory"):
            load(TINY_EMBED)

    def test_closing_before_loading_is_fine(self) -> None:
        EmbeddingRuntime().close()


class TestBatching:
    @given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 10), st.integers(1, 500))
    def test_every_text_once_and_no_batch_too_large(
        self, lengths: list[int], most: int, tokens: int
    ) -> None:
        groups = list(batches(lengths, most, tokens))
        assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
        for group in groups:
            assert len(group) <= most
            longest = max(lengths[index] for index in group)
            assert len(group) == 1 or len(group) * longest <= tokens
        flat = [lengths[index] for group in groups for index in group]
        assert flat == sorted(flat, reverse=True)

    @given(st.lists(st.lists(st.integers(), max_size=12), max_size=6), st.integers(1, 20))
    def test_rounds_take_from_everyone_in_turn(self, queues: list[list[int]], most: int) -> None:
        expected: list[int] = []
        left = [deque(queue) for queue in queues]
        while any(left):
            expected += [queue.popleft() for queue in left if queue]
        assert take_round(queues, most) == expected[:most]

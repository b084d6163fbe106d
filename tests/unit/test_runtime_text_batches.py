"""Decoding in batches: rows that join and leave at any step get what they would get alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.errors import Cancelled, ModelLoadFailed, NoCapacity
from blip.kinds.text import Finish, TextInput
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.decoding.batched import Batched, Unfit
from blip_node.runtimes.decoding.capacity import Capacity
from blip_node.runtimes.decoding.detokenizer import Detokenizer
from blip_node.runtimes.decoding.sampler import Sampler, choose
from blip_node.runtimes.decoding.sequence import Sequence
from blip_node.runtimes.decoding.stepper import SERIAL_SLOTS, Serial, Stepper
from blip_node.runtimes.decoding.stops import StopMatcher
from blip_node.runtimes.decoding.vocabulary import Vocabulary
from blip_node.runtimes.text import TextRuntime
from tests.models.jobs import RecordingJob, answer
from tests.models.random_models import END, TINY_CHAT, VOCABULARY, generate, make_random

import torch  # isort: skip  (after random_models has set the environment)
import transformers  # isort: skip
from tokenizers import Tokenizer  # isort: skip

#: tiny-chat is a Qwen 3 that was trained; the others are random.
MODELS = ("tiny-chat", "llama", "gpt2", "gemma2-mixed", "gpt-oss", "qwen3-next-hybrid")

#: The ways in which a row may ask for its tokens.
WISHES: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.3, "logit_bias": {7: -5.0}},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 1.0, "seed": 2, "top_p": 0.9},
    {"temperature": 1.2, "seed": 3, "top_k": 5, "frequency_penalty": 0.5, "logprobs": 2},
)


@dataclass
class Row:
    """A request of a schedule: it comes in turn ``joins``, and may not write in some."""

    prompt: tuple[int, ...]
    limit: int
    wishes: int
    joins: int = 0
    stalls: frozenset[int] = field(default_factory=frozenset)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def folder(name: str) -> Path:
        if name == "tiny-chat":
            return TINY_CHAT
        return make_random(tmp_path_factory.mktemp(name), name)

    return folder


@cache
def model_in(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


#: More than the rows of a schedule need.
PLENTY = Capacity(6000, 800)


def batched(folder: Path, capacity: Capacity = PLENTY) -> Batched:
    """A stepper over a model of its own: it changes how the model attends."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stepper = Batched(model, "cpu", 32, capacity)
    stepper.check()
    return stepper


def play(stepper: Stepper, rows: list[Row], turns: int = 2000) -> list[list[int]]:
    """Do what the loop does, with a clock of turns; return the tokens of each row."""
    vocabulary = Vocabulary(Tokenizer.from_file(str(TINY_CHAT / "tokenizer.json")), VOCABULARY)
    sequences = [
        Sequence(
            list(row.prompt), row.limit, frozenset([END]), Detokenizer(vocabulary), StopMatcher([])
        )
        for row in rows
    ]
    samplers = {
        sequence: Sampler(TextInput(**WISHES[row.wishes]), row.prompt)
        for sequence, row in zip(sequences, rows, strict=True)
    }
    going = list(zip(sequences, rows, strict=True))
    with torch.inference_mode():
        for turn in range(turns):
            here = [(sequence, row) for sequence, row in going if row.joins <= turn]
            able = [sequence for sequence, row in here if turn not in row.stalls]
            idle = [sequence for sequence, row in here if turn in row.stalls]
            out = stepper.provide(able, idle)
            stepped = stepper.step([sequence for sequence in able if sequence not in out])
            assert not stepped.failed
            ready = stepped.ready
            if stepped.logits is not None:
                generated = [sequence.generated for sequence in ready]
                chosen = choose([samplers[each] for each in ready], stepped.logits, generated)
                for sequence, choice in zip(ready, chosen, strict=True):
                    assert not isinstance(choice, Exception)
                    if isinstance(sequence.accept(choice.token), Finish):
                        stepper.release(sequence)
                        going = [each for each in going if each[0] is not sequence]
            if not going:
                return [sequence.generated for sequence in sequences]
    raise AssertionError("they were not done in time")


@cache
def alone(folder: Path, prompt: tuple[int, ...], limit: int, wishes: int) -> list[int]:
    """What a row gets where nobody else is: the oracle is the stepper without batches."""
    serial = Serial(model_in(folder), "cpu", 1)
    return play(serial, [Row(prompt, limit, wishes)])[0]


#: Few prompts, so that the oracle need not be asked often; two of them begin alike.
PROMPTS = (
    (5, 6, 7),
    tuple(3 + n * 37 % 440 for n in range(70)),
    (*(3 + n * 37 % 440 for n in range(60)), 9, 9),
    tuple(3 + n * 11 % 440 for n in range(150)),
)

ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from(PROMPTS),
        st.sampled_from([1, 2, 9, 25]),
        st.integers(0, len(WISHES) - 1),
        st.integers(0, 30),
        st.frozensets(st.integers(0, 40), max_size=6),
    ),
    min_size=2,
    max_size=7,
)


def as_alone(folder: Path, rows: list[Row]) -> list[list[int]]:
    return [alone(folder, row.prompt, row.limit, row.wishes) for row in rows]


class TestSchedules:
    @pytest.mark.parametrize("name", [name for name in MODELS if "hybrid" not in name])
    def test_rows_that_join_and_leave_get_what_they_would_alone(
        self, name: str, folders: Callable[[str], Path]
    ) -> None:
        folder = folders(name)
        stepper = batched(folder)

        @settings(max_examples=20, deadline=None)
        @given(ROWS)
        def check(rows: list[Row]) -> None:
            assert play(stepper, rows) == as_alone(folder, rows)
            assert stepper._pools.reserved == 0

        check()

    def test_rows_that_give_way_lose_nothing(self, folders: Callable[[str], Path]) -> None:
        folder = folders("llama")
        # room for two or three rows: the others wait, and late ones give theirs to growing ones
        stepper = batched(folder, Capacity(400, 0))
        evicted: list[Sequence] = []
        evict = stepper._evict

        def watched(sequence: Sequence) -> None:
            if sequence.cache is not None:
                evicted.append(sequence)
            evict(sequence)

        stepper._evict = watched  # type: ignore[method-assign]

        @settings(max_examples=20, deadline=None)
        @given(ROWS)
        def check(rows: list[Row]) -> None:
            assert play(stepper, rows) == as_alone(folder, rows)

        check()
        growing = [Row(PROMPTS[0], 200, 0), Row(PROMPTS[0], 180, 2), Row(PROMPTS[3], 25, 0)]
        assert play(stepper, growing) == as_alone(folder, growing)
        assert evicted

    def test_idle_rows_give_way_first(self, folders: Callable[[str], Path]) -> None:
        stepper = batched(folders("llama"), Capacity(384, 0))
        vocabulary = Vocabulary(Tokenizer.from_file(str(TINY_CHAT / "tokenizer.json")), VOCABULARY)

        def sequence(length: int) -> Sequence:
            prompt = list(range(3, 3 + length))
            return Sequence(prompt, 50, frozenset(), Detokenizer(vocabulary), StopMatcher([]))

        idle, old, late = sequence(20), sequence(20), sequence(20)
        with torch.inference_mode():
            assert stepper.provide([idle, old, late], []) == []
            stepper.step([idle, old, late])
            old.prompt += [5] * 200
            assert stepper.provide([old, late], [idle]) == [idle]
            assert idle.cache is None
            assert idle.computed == 0
            stepper.step([old, late])
            # one that is alone may have more than there is to share, if none came before it
            old.prompt += [5] * 900
            assert stepper.provide([late, old], []) == [old]
            assert stepper.provide([old, late], []) == [late]
            stepper.step([old])
            assert old.cache.pool.size == 1536
            assert stepper.provide([old, late], []) == [late]


class TestPrefixes:
    def test_what_two_prompts_have_in_common_is_computed_once(
        self, folders: Callable[[str], Path]
    ) -> None:
        stepper = batched(folders("llama"))
        computed: list[int] = []
        stepper._model.register_forward_pre_hook(
            lambda module, args, kwargs: computed.append(kwargs["input_ids"].shape[1]),
            with_kwargs=True,
        )
        system = tuple(3 + n * 37 % 440 for n in range(400))
        for tail, expected in (((5,), 401), ((6, 7), 2), ((6, 7), 1), ((), 1)):
            computed.clear()
            tokens = play(stepper, [Row(system + tail, 1, 0)])[0]
            assert sum(computed) == expected
            assert tokens == alone(folders("llama"), system + tail, 1, 0)

    def test_no_memory_to_keep_them_is_no_failure(
        self, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr("blip_node.runtimes.decoding.batched.save", full)
        stepper = batched(folders("llama"))
        row = Row(PROMPTS[1], 3, 0)
        assert play(stepper, [row]) == as_alone(folders("llama"), [row])
        assert stepper._prefixes.tokens == 0


class TestWhatCanBeBatched:
    @pytest.mark.parametrize(
        ("architecture", "why"),
        [
            ("qwen3-next-hybrid", "keeps its state in a LinearAttentionLayer"),
            ("lfm2-hybrid", "keeps its state in a LinearAttentionLayer"),
            ("phi3-longrope", "longrope.* depend on the longest row"),
            ("bloom-alibi", None),
        ],
    )
    def test_others_are_decoded_one_after_the_other(
        self, architecture: str, why: str | None, folders: Callable[[str], Path]
    ) -> None:
        folder = folders(architecture)
        with pytest.raises(Unfit, match=why):
            batched(folder)
        runtime = load(folder)
        try:
            assert not runtime.batched
            assert stepper_of(runtime).slots == SERIAL_SLOTS
            assert "ragged" not in stepper_of(runtime)._model.config._attn_implementation
        finally:
            runtime.close()

    def test_a_window_that_attention_is_not_told_of_is_noticed(
        self, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # shorter rows than the window compute the same with and without it
        folder = folders("llama")
        from transformers.cache_utils import DynamicSlidingWindowLayer

        def windowed(config: Any) -> Any:
            cache = transformers.DynamicCache(config=config)
            cache.layers = [DynamicSlidingWindowLayer(sliding_window=1000)] * 2
            return cache

        monkeypatch.setattr("blip_node.runtimes.decoding.batched.DynamicCache", windowed)
        with pytest.raises(Unfit, match="its cache would keep"):
            batched(folder)

    @pytest.mark.parametrize("factor", [0.5, 1.1])
    def test_attention_that_computes_something_else_is_noticed(
        self, factor: float, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from blip_node.runtimes.decoding import ragged

        attend = ragged.Pass.attend

        def other(self: Any, *args: Any, **kwargs: Any) -> Any:
            return attend(self, *args, **{**kwargs, "scale": kwargs["scale"] * factor})

        monkeypatch.setattr(ragged.Pass, "attend", other)
        with pytest.raises(Unfit, match="in company than alone"):
            batched(folders("llama"))

    def test_too_little_memory_for_the_check_is_no_reason_to_go_without(
        self, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr("blip_node.runtimes.decoding.ragged.Pass.attend", full)
        with pytest.raises(NoCapacity, match="ran out of memory"):
            load(folders("llama"))


def load(folder: Path, slots: int = 32, **changes: Any) -> TextRuntime:
    runtime = TextRuntime()
    runtime.load(LoadSpec("a-model", str(folder), "cpu", slots, **changes), lambda share: None)
    return runtime


def endless(prompt: list[int], tokens: int) -> RecordingJob:
    return RecordingJob(
        "completion", prompt=prompt, max_tokens=tokens, temperature=0, logit_bias={END: -100}
    )


@pytest.fixture
def llama(folders: Callable[[str], Path]) -> Iterator[TextRuntime]:
    runtime = load(folders("llama"))
    yield runtime
    runtime.close()


def stepper_of(runtime: TextRuntime) -> Any:
    return runtime._engine._loop._stepper  # type: ignore[union-attr]


def passes_of(runtime: TextRuntime) -> list[int]:
    """Return a list that grows by the tokens of each forward pass."""
    passes: list[int] = []
    stepper_of(runtime)._model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return passes


class TestTurns:
    async def test_one_pass_serves_all(self, llama: TextRuntime) -> None:
        passes = passes_of(llama)
        jobs = [endless([3 + n], 50) for n in range(20)]
        await asyncio.gather(*(llama.run(job) for job in jobs))
        assert sum(passes) == 20 * 50
        assert len(passes) < 2 * 50 + 20
        assert max(passes) == 20

    async def test_a_prompt_is_computed_in_pieces_between_the_tokens_of_others(
        self, llama: TextRuntime
    ) -> None:
        passes = passes_of(llama)
        order: list[str] = []
        short = endless([3], 3000)
        short._on_emit = lambda job: order.append("short")
        running = asyncio.create_task(llama.run(short))
        while not order:  # noqa: ASYNC110  (what happens on the other thread has no event)
            await asyncio.sleep(0.001)
        long = endless([4] * 1024, 2)
        long._on_emit = lambda job: order.append("long")
        passes.clear()
        await llama.run(long)
        pieces = [tokens for tokens in passes if tokens > 2]
        assert pieces == [65] * 16  # 64 tokens of the prompt and one of the other
        assert order[: order.index("long")].count("short") >= 16
        short.cancel()
        with pytest.raises(Cancelled):
            await running

    async def test_a_cancelled_row_leaves_at_once(self, llama: TextRuntime) -> None:
        passes = passes_of(llama)
        stay, go = endless([3], 60), endless([4], 60)
        at: list[int] = []

        def cancel_at_twenty(job: RecordingJob) -> None:
            if len(job.parts) == 20:
                job.cancelled = True
                at.append(len(passes))

        go._on_emit = cancel_at_twenty
        kept, left = await asyncio.gather(
            answer(llama, stay), llama.run(go), return_exceptions=True
        )
        assert isinstance(left, Cancelled)
        assert not isinstance(kept, BaseException)
        assert len(kept[1]) == 60
        assert max(passes[at[0] :]) == 1
        pools = stepper_of(llama)._pools
        assert pools.reserved == 0

    async def test_a_row_that_may_not_write_takes_no_part(self, llama: TextRuntime) -> None:
        passes = passes_of(llama)
        slow, quick = endless([3], 30), endless([4], 300)
        slow._on_emit = lambda job: setattr(job, "writable", len(job.parts) < 5)
        running = asyncio.create_task(answer(llama, slow))
        assert len((await answer(llama, quick))[1]) == 300
        assert len(slow.parts) == 5
        assert passes.count(2) <= 5
        slow._on_emit = None
        slow.let(writable=True)
        assert len((await running)[1]) == 30

    async def test_more_than_the_cache_holds_takes_turns(
        self, folders: Callable[[str], Path]
    ) -> None:
        folder = folders("llama")
        runtime = load(folder, slots=8, context=256)
        prompts = [[3 + (n * k) % 440 for n in range(30 * k)] for k in range(1, 8)] * 3
        try:
            pools = stepper_of(runtime)._pools
            seen: list[int] = []
            jobs = [
                RecordingJob("completion", prompt=prompt, max_tokens=40, temperature=0,
                             on_emit=lambda job: seen.append(pools.reserved))
                for prompt in prompts
            ]  # fmt: skip
            answers = await asyncio.gather(*(answer(runtime, job) for job in jobs))
        finally:
            runtime.close()
        assert [ids for _, ids, *_ in answers[:7]] == [
            generate(folder, prompt, 40) for prompt in prompts[:7]
        ]
        assert [ids for _, ids, *_ in answers[7:]] == [ids for _, ids, *_ in answers[:7]] * 2
        assert max(seen) <= stepper_of(runtime)._capacity.rows

    async def test_whoever_waits_for_room_is_served_in_order(self, llama: TextRuntime) -> None:
        stepper_of(llama)._capacity = Capacity(300, 0)  # two rows
        first: list[int] = []
        jobs = [endless([3 + n] * 50, 30) for n in range(40)]
        for number, job in enumerate(jobs):
            job._on_emit = lambda job, number=number: (
                first.append(number) if len(job.parts) == 1 else None
            )
        await asyncio.gather(*(llama.run(job) for job in jobs))
        assert first == list(range(40))

    async def test_an_old_row_that_gave_way_goes_first_again(self, llama: TextRuntime) -> None:
        stepper_of(llama)._capacity = Capacity(600, 0)
        old, late = endless([3] * 20, 300), endless([4] * 20, 1000)
        old._on_emit = lambda job: setattr(job, "writable", len(job.parts) < 5)
        running = asyncio.create_task(answer(llama, old))
        while len(old.parts) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        other = asyncio.create_task(answer(llama, late))
        passes = passes_of(llama)
        while len(late.parts) < 400:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        old._on_emit = None
        passes.clear()
        old.let(writable=True)
        ids = (await running)[1]
        assert len(ids) == 300
        assert max(passes) >= 20 + 5  # it had been thrown out, and is computed again
        assert not other.done()
        assert (await other)[1][:300] != ids
        assert len((await other)[1]) == 1000

    async def test_what_is_cancelled_during_a_pass_sends_nothing_more(
        self, llama: TextRuntime
    ) -> None:
        job = endless([3], 100)
        counted: list[int] = []

        def cancel(module: Any, args: Any, kwargs: Any) -> None:
            counted.append(len(job.parts))
            job.cancelled = len(counted) == 8

        stepper_of(llama)._model.register_forward_pre_hook(cancel, with_kwargs=True)
        with pytest.raises(Cancelled):
            await llama.run(job)
        assert counted[-1] == len(job.parts) == 7

    async def test_one_failing_choice_is_one_rows(
        self, llama: TextRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from blip_node.runtimes.decoding.sampler import Sampler as Real

        adjusted = Real.adjusted

        def fail(self: Any, logits: Any, generated: Any) -> Any:
            if self.top_k == 3 and len(generated) == 4:
                raise MemoryError
            return adjusted(self, logits, generated)

        monkeypatch.setattr(Real, "adjusted", fail)
        bad = RecordingJob("completion", prompt=[3], max_tokens=9, top_k=3, logit_bias={END: -100})
        good = [endless([4 + n], 20) for n in range(3)]
        results = await asyncio.gather(
            llama.run(bad), *(answer(llama, job) for job in good), return_exceptions=True
        )
        assert isinstance(results[0], NoCapacity)
        assert [len(each[1]) for each in results[1:]] == [20, 20, 20]  # type: ignore[index]
        assert len(bad.parts) == 4


def test_a_model_that_cannot_be_stepped_at_all_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed):
        load(make_random(tmp_path, "mamba"))

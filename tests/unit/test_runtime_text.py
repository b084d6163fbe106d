"""The text runtime with real models: ``tiny-chat``, and random ones made on the spot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blip.errors import (
    BlipError,
    Cancelled,
    ContextTooLong,
    InvalidRequest,
    ModelLoadFailed,
    NoCapacity,
    RuntimeFailed,
    WorkerCrashed,
)
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.text import TextRuntime
from tests.models.jobs import RecordingJob, answer
from tests.models.make_tiny_chat import ANSWERS
from tests.models.random_models import (
    ARCHITECTURES,
    END,
    TINY_CHAT,
    generate,
    make_random,
)

import torch  # isort: skip  (after random_models has set the environment)
import transformers  # isort: skip

ZEN = ANSWERS["Recite the Zen of Python."]


def load(folder: Path, slots: int = 4, **changes: Any) -> TextRuntime:
    runtime = TextRuntime()
    spec = LoadSpec("a-model", str(folder), "cpu", slots, **changes)
    runtime.load(spec, lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def tiny() -> Iterator[TextRuntime]:
    runtime = load(TINY_CHAT)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Iterator[TextRuntime]:
    runtime = load(llama_folder)
    yield runtime
    runtime.close()


@pytest.fixture
def fragile(llama_folder: Path) -> Iterator[TextRuntime]:
    """A runtime of its own for tests that break it."""
    runtime = load(llama_folder)
    yield runtime
    runtime.close()


def model_of(runtime: TextRuntime) -> Any:
    return runtime._engine._loop._stepper._model  # type: ignore[union-attr]


def chat(question: str, **wishes: Any) -> RecordingJob:
    messages = [{"role": "user", "content": question}]
    return RecordingJob("chat", messages=messages, **{"temperature": 0, **wishes})


def endless(prompt: list[int], tokens: int, **wishes: Any) -> RecordingJob:
    """A completion that reaches its limit: the end marker is forbidden."""
    wishes = {"temperature": 0, "logit_bias": {END: -100}, **wishes}
    return RecordingJob("completion", prompt=prompt, max_tokens=tokens, **wishes)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (what happens on the other thread has no event)
        await asyncio.sleep(0.001)


class TestAnswers:
    async def test_the_capital_of_japan(self, tiny: TextRuntime) -> None:
        job = chat("What is the capital of Japan?")
        text, ids, finish, outcome = await answer(tiny, job)
        assert text == "The capital of Japan is Tokyo."
        assert finish.reason == "stop"
        assert ids[-1] == END
        assert [len(delta.ids) for delta in job.deltas] == [1] * (len(ids) - 1)
        tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_CHAT)
        messages = [{"role": "user", "content": "What is the capital of Japan?"}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert outcome.usage == {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        assert outcome.units == len(prompt) / 16 + len(ids)

    async def test_many_at_once_and_each_gets_its_own(self, tiny: TextRuntime) -> None:
        answers = await asyncio.gather(*(answer(tiny, chat(question)) for question in ANSWERS))
        assert [text for text, *_ in answers] == list(ANSWERS.values())

    async def test_the_zen_of_python_arrives_in_pieces_that_add_up(self, tiny: TextRuntime) -> None:
        job = chat("Recite the Zen of Python.")
        text, ids, _, _ = await answer(tiny, job)
        assert text == ZEN
        assert len(job.deltas) > 200
        tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_CHAT)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)

    async def test_a_completion_by_text_and_by_tokens(self, tiny: TextRuntime) -> None:
        prompt = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nI am"
        by_text = RecordingJob("completion", prompt=prompt, temperature=0)
        text, *_ = await answer(tiny, by_text)
        assert text == " a tiny test model. I run on any machine."
        tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_CHAT)
        by_ids = RecordingJob("completion", prompt=tokenizer(prompt)["input_ids"], temperature=0)
        assert (await answer(tiny, by_ids))[0] == text

    async def test_echo(self, tiny: TextRuntime) -> None:
        job = RecordingJob(
            "completion", prompt="Name three", echo=True, temperature=0, max_tokens=3
        )
        text, ids, *_ = await answer(tiny, job)
        assert text.startswith("Name three")
        assert job.deltas[0].text.startswith("Name three")
        assert len(ids) == 3
        resumed = RecordingJob(**job_fields(job), generated=ids[:1])
        rest, *_ = await answer(tiny, resumed)
        assert job.deltas[0].text + rest == text
        tokens = RecordingJob("completion", prompt=[311, 5], echo=True, max_tokens=1)
        assert (await answer(tiny, tokens))[0].startswith(
            tiny._engine._vocabulary.decode([311, 5])  # type: ignore[union-attr]
        )

    async def test_an_empty_text_begins_with_the_begin_marker(self, tiny: TextRuntime) -> None:
        job = RecordingJob("completion", prompt="", max_tokens=2)
        assert (await answer(tiny, job))[3].usage["prompt_tokens"] == 1

    async def test_stop_sequences(self, tiny: TextRuntime) -> None:
        zen = await answer(tiny, chat("Recite the Zen of Python.", stop=["never", "ugly."]))
        assert zen[0] == ZEN[: ZEN.index("ugly.")]
        assert zen[2].reason == "stop"
        counted = await answer(tiny, chat("Count to ten.", stop=["5, 6"], max_tokens=200))
        assert counted[0] == "1, 2, 3, 4, "
        missed = await answer(tiny, chat("Count to ten.", stop=["5, 7", "11"]))
        assert missed[0] == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10."

    async def test_max_tokens(self, tiny: TextRuntime) -> None:
        text, ids, finish, outcome = await answer(
            tiny, chat("Recite the Zen of Python.", max_tokens=10)
        )
        assert ZEN.startswith(text)
        assert len(ids) == outcome.usage["completion_tokens"] == 10
        assert finish.reason == "length"

    async def test_logprobs(self, tiny: TextRuntime) -> None:
        job = chat("Name three colours.", logprobs=3)
        text, ids, finish, _ = await answer(tiny, job)
        rows = [row for delta in job.deltas for row in delta.logprobs or []]
        assert b"".join(row.raw for row in rows).decode() == text == "Red, green and blue."
        assert all(row.token == row.top[0][0] and row.logprob == row.top[0][1] for row in rows)
        assert all(len(row.top) == 3 and row.top[2][1] <= row.top[1][1] <= 0 for row in rows)
        assert len(rows) == len(ids) - 1
        assert finish.logprobs is None

    async def test_prompts_of_many_characters(self, llama: TextRuntime) -> None:
        job = RecordingJob("completion", prompt="Zen " * 1500, max_tokens=1)
        assert (await answer(llama, job))[3].usage["prompt_tokens"] > 1000


def job_fields(job: RecordingJob) -> dict[str, Any]:
    return {"kind": job.kind.name, **job.input.model_dump(exclude_defaults=True)}


class TestAgainstTransformers:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    async def test_greedy_equals_generate(self, architecture: str, tmp_path: Path) -> None:
        folder = make_random(tmp_path, architecture)
        prompt = [3 + n * 37 % 440 for n in range(300)]  # more than one chunk, and than a window
        expected = generate(folder, prompt, 40)
        runtime = load(folder)
        try:
            job = RecordingJob("completion", prompt=prompt, max_tokens=40, temperature=0)
            assert (await answer(runtime, job))[1] == expected
        finally:
            runtime.close()

    async def test_repetition_penalty_equals_generate(
        self, llama: TextRuntime, llama_folder: Path
    ) -> None:
        prompt = [5, 6, 7, 8, 9]
        expected = generate(llama_folder, prompt, 60, repetition_penalty=1.3)
        job = RecordingJob(
            "completion", prompt=prompt, max_tokens=60, temperature=0, repetition_penalty=1.3
        )
        assert (await answer(llama, job))[1] == expected

    async def test_company_changes_nothing(self, llama: TextRuntime, llama_folder: Path) -> None:
        prompts = [[3 + (n * k) % 440 for n in range(20 * k)] for k in range(1, 8)]
        expected = [generate(llama_folder, prompt, 25) for prompt in prompts]
        jobs = [
            RecordingJob("completion", prompt=prompt, max_tokens=25, temperature=0)
            for prompt in prompts
        ]
        answers = await asyncio.gather(*(answer(llama, job) for job in jobs))
        assert [ids for _, ids, *_ in answers] == expected


WISHES: dict[str, Any] = {
    "temperature": 1.4,
    "top_p": 0.95,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.3,
    "presence_penalty": 0.2,
    "seed": 42,
    "stop": ["zzzz"],
}


class TestSeedsAndResume:
    async def test_a_seed_fixes_the_answer(self, llama: TextRuntime) -> None:
        jobs = [endless([9, 8, 7], 40, **WISHES | {"seed": seed}) for seed in (1, 1, 2, None)]
        first, again, other, none = [
            ids for _, ids, *_ in await asyncio.gather(*(answer(llama, job) for job in jobs))
        ]
        assert first == again
        assert len({tuple(ids) for ids in (first, other, none)}) == 3

    @pytest.mark.parametrize("cut", [1, 2, 17, 39])
    async def test_a_resumed_answer_continues_exactly(self, llama: TextRuntime, cut: int) -> None:
        whole = endless([9, 8, 7], 40, **WISHES)
        _, ids, finish, outcome = await answer(llama, whole)
        rest = endless([9, 8, 7], 40, **WISHES, generated=ids[:cut])
        _, more, its_finish, its_outcome = await answer(llama, rest)
        assert ids[:cut] + more == ids
        assert rest.parts == whole.parts[cut:]
        assert its_finish == finish
        assert its_outcome.usage == outcome.usage
        assert its_outcome.units < outcome.units

    async def test_a_resumed_chat_stops_where_the_first_would_have(self, tiny: TextRuntime) -> None:
        wishes: dict[str, Any] = {"stop": ["Explicit is better"], "max_tokens": 200}
        whole = await answer(tiny, chat("Recite the Zen of Python.", **wishes))
        for cut in range(1, len(whole[1]), 7):
            job = chat("Recite the Zen of Python.", **wishes, generated=whole[1][:cut])
            text, ids, finish, outcome = await answer(tiny, job)
            assert whole[0].endswith(text)
            assert whole[1] == whole[1][:cut] + ids
            assert finish.reason == "stop"
            assert outcome.usage == whole[3].usage

    async def test_what_had_already_ended_ends_without_work(self, tiny: TextRuntime) -> None:
        job = chat("Count to ten.", max_tokens=3, generated=[20, 12, 339])
        _, ids, finish, outcome = await answer(tiny, job)
        assert (ids, finish.reason, job.parts) == ([], "length", [])
        assert outcome.usage["completion_tokens"] == 3
        assert outcome.units < 3


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param", "message"),
        [
            ({"prompt": [3, 448]}, "prompt", "448 is no token"),
            ({"prompt": [3], "generated": [-1]}, "generated", "-1 is no token"),
            ({"prompt": [3], "logit_bias": {9999: 1.0}}, "logit_bias", "9999 is no token"),
        ],
    )
    async def test_ids_out_of_the_vocabulary(
        self, llama: TextRuntime, fields: dict[str, Any], param: str, message: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=message) as caught:
            await llama.run(RecordingJob("completion", **fields))
        assert caught.value.param == param

    async def test_what_does_not_fit_the_context(self, llama_folder: Path) -> None:
        runtime = load(llama_folder, context=64)
        try:
            with pytest.raises(ContextTooLong) as caught:
                await runtime.run(endless([3] * 64, 1))
            assert caught.value.details == {"prompt_tokens": 64, "limit": 64}
            assert caught.value.param == "prompt"
            with pytest.raises(ContextTooLong, match=r"60 .*5 make 65.* 64") as caught:
                await runtime.run(endless([3] * 60, 5))
            assert caught.value.details == {"prompt_tokens": 60, "limit": 64, "max_tokens": 5}
            with pytest.raises(ContextTooLong) as caught:
                await runtime.run(chat("word " * 100))
            assert caught.value.param == "messages"
            rest = RecordingJob("completion", prompt=[3] * 60, logit_bias={END: -100})
            _, ids, finish, _ = await answer(runtime, rest)
            assert (len(ids), finish.reason) == (4, "length")
        finally:
            runtime.close()

    async def test_a_model_without_a_template(self, tmp_path: Path) -> None:
        folder = make_random(tmp_path)
        (folder / "chat_template.jinja").unlink()
        runtime = load(folder)
        try:
            with pytest.raises(InvalidRequest, match="no chat template") as caught:
                await runtime.run(chat("Hello"))
            assert "/v1/completions" in caught.value.hint
            assert (await answer(runtime, endless([3], 2)))[2].reason == "length"
        finally:
            runtime.close()

    async def test_a_template_that_objects(self, tmp_path: Path) -> None:
        folder = make_random(tmp_path)
        (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no systems') }}"
            "{% endif %}{{ m.role }}{{ m.content }}{{ m.name }}{% endfor %}"
        )
        runtime = load(folder)
        try:
            messages = [{"role": "system", "content": "42"}]
            with pytest.raises(InvalidRequest, match="no systems") as caught:
                await runtime.run(RecordingJob("chat", messages=messages))
            assert caught.value.param == "messages"
            runtime._engine._tokenizer.chat_template = "{{ '' }}"  # type: ignore[union-attr]
            with pytest.raises(InvalidRequest, match="makes nothing"):
                await runtime.run(chat("Hello"))
        finally:
            runtime.close()

    async def test_a_developer_is_the_system_to_templates_that_know_none(
        self, tiny: TextRuntime
    ) -> None:
        answers = []
        for role in ("system", "developer"):
            messages = [{"role": role, "content": "Be"}, {"role": "user", "content": "Hello"}]
            job = RecordingJob("chat", messages=messages, temperature=0, max_tokens=5)
            answers.append((await answer(tiny, job))[1])
        assert answers[0] == answers[1]

    async def test_an_empty_prompt_that_no_marker_stands_for(self, tmp_path: Path) -> None:
        folder = make_random(tmp_path)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        for marker in ("bos_token", "eos_token"):
            del config[marker]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        runtime = load(folder)
        try:
            with pytest.raises(InvalidRequest, match="the text is empty"):
                await runtime.run(RecordingJob("completion", prompt=""))
        finally:
            runtime.close()


class TestSharing:
    async def test_a_long_prompt_does_not_starve_the_others(self, llama: TextRuntime) -> None:
        order: list[str] = []
        short = endless([3], 400)
        short._on_emit = lambda job: order.append("short")
        running = asyncio.create_task(llama.run(short))
        await until(lambda: len(order) > 3)
        long = endless([4] * 1500, 1 + 1)
        long._on_emit = lambda job: order.append("long")
        before = len(order)
        await llama.run(long)
        meanwhile = order[before : order.index("long")]
        assert len(meanwhile) >= 5  # the prompt took six chunks, with a token of the other between
        short.cancel()
        with pytest.raises(Cancelled):
            await running

    async def test_no_more_than_the_slots_run_and_the_rest_follow(self, llama_folder: Path) -> None:
        runtime = load(llama_folder, slots=2)
        order: list[int] = []
        try:
            jobs = [endless([3 + n], 30) for n in range(4)]
            for number, job in enumerate(jobs):
                job._on_emit = lambda job, number=number: order.append(number)
            await asyncio.gather(*(runtime.run(job) for job in jobs))
        finally:
            runtime.close()
        last = {number: len(order) - order[::-1].index(number) for number in range(4)}
        assert order.index(2) >= min(last[0], last[1])
        assert order.index(3) >= max(min(last[0], last[1]), order.index(2))
        assert order.index(1) < last[0]  # the first two took turns

    async def test_a_stream_that_may_not_write_waits_alone(self, llama: TextRuntime) -> None:
        slow, quick = endless([3], 20), endless([4], 20)
        slow._on_emit = lambda job: setattr(job, "writable", len(job.parts) < 5)
        running = asyncio.create_task(answer(llama, slow))
        assert len((await answer(llama, quick))[1]) == 20
        await until(lambda: len(slow.parts) == 5)
        assert not running.done()
        slow._on_emit = None
        slow.let(writable=True)
        assert len((await running)[1]) == 20

    async def test_a_new_one_wakes_a_thread_that_waits(self, llama: TextRuntime) -> None:
        blocked = endless([3], 5)
        blocked.writable = False
        running = asyncio.create_task(answer(llama, blocked))
        await asyncio.sleep(0.01)
        assert len((await answer(llama, endless([4], 3)))[1]) == 3
        blocked.let(writable=True)
        assert len((await running)[1]) == 5


class TestCancel:
    async def test_within_one_token(self, llama: TextRuntime) -> None:
        def cancel_at_seven(job: RecordingJob) -> None:
            job.cancelled = len(job.parts) == 7

        job = endless([3], 1000)
        job._on_emit = cancel_at_seven
        with pytest.raises(Cancelled):
            await llama.run(job)
        assert len(job.parts) == 7

    async def test_while_it_waits_for_credit(self, llama: TextRuntime) -> None:
        job = endless([3], 1000)
        job.writable = False
        running = asyncio.create_task(llama.run(job))
        await asyncio.sleep(0.01)
        job.cancel()
        with pytest.raises(Cancelled):
            await running
        assert job.parts == []

    async def test_while_it_waits_for_a_slot(self, llama_folder: Path) -> None:
        runtime = load(llama_folder, slots=1)
        try:
            first, second = endless([3], 1000), endless([4], 1000)
            first.writable = False
            tasks = [asyncio.create_task(runtime.run(job)) for job in (first, second)]
            await asyncio.sleep(0.01)
            second.cancel()
            with pytest.raises(Cancelled):
                await tasks[1]
            first.cancel()
            with pytest.raises(Cancelled):
                await tasks[0]
        finally:
            runtime.close()

    async def test_during_a_long_prompt(self, fragile: TextRuntime) -> None:
        job = endless([3] * 4000, 10)
        chunks: list[int] = []

        def cancel_at_two(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            chunks.append(kwargs["input_ids"].shape[1])
            job.cancelled = len(chunks) == 2

        model_of(fragile).register_forward_pre_hook(cancel_at_two, with_kwargs=True)
        with pytest.raises(Cancelled):
            await fragile.run(job)
        assert chunks == [256, 256]

    async def test_a_task_that_is_cancelled_frees_its_slot(self, llama_folder: Path) -> None:
        runtime = load(llama_folder, slots=1)
        try:
            job = endless([3], 3000)
            running = asyncio.create_task(runtime.run(job))
            await until(lambda: bool(job.parts))
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert len((await answer(runtime, endless([4], 3)))[1]) == 3
        finally:
            runtime.close()


class TestFailures:
    """One stream's misfortune is its own."""

    POISON = 17

    async def failing(self, runtime: TextRuntime) -> tuple[BlipError, list[int]]:
        bad = endless([3, self.POISON, 4], 20, logit_bias={END: -100, self.POISON: -100})
        good = endless([5, 6], 20, logit_bias={END: -100, self.POISON: -100})
        failure, success = await asyncio.gather(
            runtime.run(bad), answer(runtime, good), return_exceptions=True
        )
        assert isinstance(failure, BlipError)
        assert not isinstance(success, BaseException), success
        return failure, success[1]

    def raise_on_poison(self, runtime: TextRuntime, error: Exception) -> None:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if self.POISON in kwargs["input_ids"]:
                raise error

        model_of(runtime).register_forward_pre_hook(hook, with_kwargs=True)

    async def test_nan(self, fragile: TextRuntime, llama: TextRuntime) -> None:
        expected = await self.failing_alone(llama)
        with torch.no_grad():
            model_of(fragile).get_input_embeddings().weight[self.POISON] = float("nan")
        failure, ids = await self.failing(fragile)
        assert type(failure) is RuntimeFailed
        assert "NaN" in failure.message
        assert ids == expected

    async def failing_alone(self, runtime: TextRuntime) -> list[int]:
        job = endless([5, 6], 20, logit_bias={END: -100, self.POISON: -100})
        return (await answer(runtime, job))[1]

    async def test_an_exception(self, fragile: TextRuntime) -> None:
        self.raise_on_poison(fragile, ValueError("a shape is wrong\nand more"))
        failure, ids = await self.failing(fragile)
        assert type(failure) is RuntimeFailed
        assert failure.message == "the model failed: ValueError: a shape is wrong"
        assert len(ids) == 20

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."),
            MemoryError(),
        ],
    )
    async def test_out_of_memory(self, fragile: TextRuntime, error: Exception) -> None:
        self.raise_on_poison(fragile, error)
        failure, ids = await self.failing(fragile)
        assert type(failure) is NoCapacity
        assert "out of memory" in failure.message
        assert len(ids) == 20

    async def test_a_lost_device_ends_everything(self, fragile: TextRuntime) -> None:
        self.raise_on_poison(fragile, torch.AcceleratorError("CUDA error: unspecified launch"))
        results = await asyncio.gather(
            *(fragile.run(endless(prompt, 1000)) for prompt in ([5], [self.POISON])),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [WorkerCrashed, WorkerCrashed]
        with pytest.raises(WorkerCrashed, match="unspecified launch"):
            await fragile.run(endless([5], 1))

    async def test_a_client_that_cannot_be_written_to(self, llama: TextRuntime) -> None:
        def refuse(job: RecordingJob) -> None:
            raise BrokenPipeError("gone")

        job = endless([3], 10)
        job._on_emit = refuse
        with pytest.raises(RuntimeFailed, match="BrokenPipeError: gone"):
            await llama.run(job)

    async def test_closing_ends_what_runs_and_what_comes_after(self, llama_folder: Path) -> None:
        runtime = load(llama_folder, slots=1)
        jobs = [endless([3], 4000), endless([4], 4000)]
        tasks = [asyncio.create_task(runtime.run(job)) for job in jobs]
        await until(lambda: bool(jobs[0].parts))
        runtime.close()
        for task in tasks:
            with pytest.raises(WorkerCrashed, match="unloaded"):
                await task
        with pytest.raises(WorkerCrashed):
            await runtime.run(endless([3], 1))

    async def test_a_thread_that_dies_tells_everyone(
        self, fragile: TextRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Strange(BaseException):
            pass

        def die(self: Any, most: int) -> list[int]:
            raise Strange

        monkeypatch.setattr("blip_node.runtimes.decoding.sequence.Sequence.due", die)
        with pytest.raises(WorkerCrashed, match="thread died: Strange"):
            await fragile.run(endless([3], 1))


class TestLoading:
    def test_progress_goes_from_nothing_to_one(self, llama_folder: Path) -> None:
        progress: list[float] = []
        runtime = TextRuntime()
        spec = LoadSpec("m", str(llama_folder), "cpu", 1, dtype="bfloat16", threads=1)
        threads = torch.get_num_threads()
        try:
            runtime.load(spec, progress.append)
            assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(threads)
            runtime.close()
        assert progress == sorted(progress)
        assert progress[-1] == 1.0
        assert model_of(runtime).dtype is torch.bfloat16

    def test_auto_is_float32_on_a_cpu(self, tmp_path: Path) -> None:
        make_random(tmp_path)
        half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
        half.save_pretrained(tmp_path)
        runtime = load(tmp_path)
        runtime.close()
        assert model_of(runtime).dtype is torch.float32

    def test_more_context_than_the_model_has(self, llama_folder: Path) -> None:
        with pytest.raises(ModelLoadFailed, match="set to 5000 tokens, the model allows 4096"):
            load(llama_folder, context=5000)

    def test_missing_weights_are_not_made_up(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        make_random(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelLoadFailed, match=r"lack 1 of the weights.*layers.1.mlp.up_proj"):
            load(tmp_path)

    def test_pickles_are_refused(self, tmp_path: Path) -> None:
        make_random(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelLoadFailed, match=r"a-model.*pytorch_model.bin, a pickle"):
            load(tmp_path)

    def test_broken_files_say_which_model(self, tmp_path: Path) -> None:
        make_random(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ModelLoadFailed, match="a-model"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("architecture", "why"),
        [("mamba", "computes other logits in steps"), ("recurrent-gemma", "cannot be decoded")],
    )
    def test_models_that_forget_are_refused(
        self, architecture: str, why: str, tmp_path: Path
    ) -> None:
        folder = make_random(tmp_path, architecture)
        with pytest.raises(ModelLoadFailed, match=f"ForCausalLM {why}"):
            load(folder)

    def test_too_little_memory_is_no_capacity(
        self, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
        with pytest.raises(NoCapacity, match="'a-model' does not fit on cpu"):
            load(llama_folder)

    def test_too_little_memory_for_a_first_step_is_no_capacity(
        self, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", full)
        with pytest.raises(NoCapacity, match="ran out of memory"):
            load(llama_folder)

    def test_tokenizers_that_cannot_stream_are_refused(
        self, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = type("Plain", (), {"backend_tokenizer": None})()
        monkeypatch.setattr(
            transformers.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: plain
        )
        with pytest.raises(ModelLoadFailed, match=r"no tokenizer\.json form"):
            load(llama_folder)

    @pytest.mark.parametrize(
        ("models_own", "tokenizers", "stop_ids"),
        [([1, 2], 0, {1, 2}), (3, 0, {3}), (None, 2, {2}), (None, None, set())],
    )
    async def test_who_says_what_ends_an_answer(
        self, tmp_path: Path, models_own: Any, tokenizers: int | None, stop_ids: set[int]
    ) -> None:
        folder = make_random(tmp_path, eos_token_id=None)
        generation = {} if models_own is None else {"eos_token_id": models_own}
        (folder / "generation_config.json").write_text(json.dumps(generation))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        del config["eos_token"]
        if tokenizers is not None:
            config["eos_token"] = ["<|endoftext|>", "", "<|im_end|>"][tokenizers]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        runtime = load(folder)
        runtime.close()
        assert runtime._engine._stop_ids == stop_ids  # type: ignore[union-attr]

    def test_closing_before_loading_is_fine(self) -> None:
        TextRuntime().close()

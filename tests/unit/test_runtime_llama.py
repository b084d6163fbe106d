"""llama.cpp behind the text runtime: the same tokens as transformers, in company as alone."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blip.errors import Cancelled, ConfigError, ModelLoadFailed
from blip_node.catalogue import Entry
from blip_node.models import ModelSpec, describe, prepare
from blip_node.models.means import Means
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.text import TextRuntime
from tests.models.jobs import RecordingJob, answer
from tests.models.random_gguf import write_gguf
from tests.models.random_models import generate, make_random

# a child imports torch, which takes its time on a busy machine
pytestmark = pytest.mark.timeout(300)

needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed: pip install 'blip-mesh[llama]'",
)

PROMPT = [5, 9, 13, 40, 41, 77]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random(tmp_path_factory.mktemp("original"), "qwen2", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def file(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(original, tmp_path_factory.mktemp("gguf") / "random.gguf")


@pytest.fixture(scope="module")
def tokenizer(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec("m", str(file), runtime="llama.cpp")
    return prepare(spec, tmp_path_factory.mktemp("data"), lambda share: None)


def load(file: Path, tokenizer: Path, slots: int = 4, **changes: Any) -> TextRuntime:
    runtime = TextRuntime()
    spec = LoadSpec("m", str(tokenizer), "cpu", slots, gguf=str(file), **changes)
    runtime.load(spec, lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def runtime(file: Path, tokenizer: Path) -> Iterator[TextRuntime]:
    runtime = load(file, tokenizer)
    yield runtime
    runtime.close()


def completion(prompt: list[int], tokens: int = 12, **wishes: Any) -> RecordingJob:
    wishes = {"temperature": 0.0, **wishes}
    return RecordingJob("completion", prompt=prompt, max_tokens=tokens, **wishes)


async def ids_of(runtime: TextRuntime, job: RecordingJob) -> list[int]:
    return (await answer(runtime, job))[1]


def test_the_file_is_described_as_it_is(file: Path) -> None:
    packed = describe(ModelSpec("m", str(file), runtime="llama.cpp"))
    plain = describe(ModelSpec("m", str(file)))
    assert packed.kinds == plain.kinds == ("chat", "completion")
    assert packed.parameters == plain.parameters
    assert packed.load_bytes("auto", "cuda") == file.stat().st_size
    entry = Entry(ModelSpec("m", str(file), runtime="llama.cpp"), packed)
    assert entry.memory(gpu=False) > file.stat().st_size


def test_only_its_tokenizer_is_prepared(file: Path, tokenizer: Path) -> None:
    assert {each.name for each in tokenizer.iterdir()} >= {"tokenizer.json", "config.json"}
    assert not list(tokenizer.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"source": "FOLDER"}, "runtime"),
        ({"means": Means(quantization="int8")}, "quantization"),
        ({"runtime": "exllama"}, "runtime"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(
    original: Path, file: Path, changes: dict[str, Any], param: str
) -> None:
    fields = {"source": str(file), "runtime": "llama.cpp", **changes}
    if fields["source"] == "FOLDER":
        fields["source"] = str(original)
    with pytest.raises(ConfigError) as caught:
        describe(ModelSpec("m", **fields))
    assert caught.value.param == param


def test_without_the_bindings_the_load_says_how_to_get_them(
    file: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    with pytest.raises(ModelLoadFailed, match="llama-cpp-python") as caught:
        load(file, tokenizer)
    assert "blip-mesh[llama]" in caught.value.hint


@needs_llama
async def test_greedy_tokens_are_those_of_transformers(
    runtime: TextRuntime, original: Path
) -> None:
    assert await ids_of(runtime, completion(PROMPT)) == generate(original, PROMPT, 12)


@needs_llama
async def test_company_changes_nothing(runtime: TextRuntime) -> None:
    prompts = [[3 + row] + PROMPT * (1 + 9 * row) for row in range(6)]  # two must wait
    jobs = [completion(prompt, 20) for prompt in prompts]
    alone = [await ids_of(runtime, completion(p, 20)) for p in prompts]
    together = await asyncio.gather(*(ids_of(runtime, job) for job in jobs))
    assert together == alone


@needs_llama
async def test_a_cache_that_is_full_makes_them_wait(file: Path, tokenizer: Path) -> None:
    small = load(file, tokenizer, slots=3, context=32)
    try:
        stepper: Any = small._engine._loop._stepper  # type: ignore[union-attr]
        stepper._tokens = 32  # as if it had no more for all of them than for one
        # what is put back is computed anew, in other batches: few tokens, lest rounding tells
        jobs = [completion([3 + row] * 8, 12) for row in range(3)]
        alone = [await ids_of(small, completion([3 + row] * 8, 12)) for row in range(3)]
        assert await asyncio.gather(*(ids_of(small, job) for job in jobs)) == alone
    finally:
        small.close()


@needs_llama
async def test_an_answer_is_continued_from_the_very_token(runtime: TextRuntime) -> None:
    wishes: dict[str, Any] = {"temperature": 0.2, "seed": 11, "logit_bias": {20: 3.0}}
    whole = await ids_of(runtime, completion(PROMPT, 16, **wishes))
    rest = await ids_of(runtime, completion(PROMPT, 16, generated=whole[:7], **wishes))
    assert whole[:7] + rest == whole


@needs_llama
async def test_cancel_stops_within_a_step(runtime: TextRuntime) -> None:
    def gone(job: RecordingJob) -> None:
        job.cancelled = len(job.parts) >= 3

    job = RecordingJob("completion", gone, prompt=PROMPT, max_tokens=500, temperature=0.0)
    with pytest.raises(Cancelled):
        await runtime.run(job)
    assert len(job.parts) <= 4
    assert await ids_of(runtime, completion(PROMPT))


@needs_llama
def test_a_file_that_is_none_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelLoadFailed, match=r"llama\.cpp does not load"):
        load(tmp_path / "bad.gguf", tokenizer)

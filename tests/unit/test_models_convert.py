"""GGUF to safetensors, with a real file of a random model."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from blip.errors import ModelLoadFailed
from blip_node.models import ModelSpec, describe, prepare
from blip_node.models.convert import convert, main
from blip_node.models.prepare import fingerprint
from tests.models.random_gguf import write_gguf
from tests.models.random_models import make_random
from tests.models.raw_files import GGUF

import torch  # isort: skip  (after random_models has set the environment)
import transformers  # isort: skip


# children import torch, which takes its time on a busy machine
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random(tmp_path_factory.mktemp("original"), "qwen2", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def gguf_path(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(original, tmp_path_factory.mktemp("gguf") / "random model.gguf")


def logits(folder: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 40)[None]).logits.float()


def test_the_weights_are_the_same(original: Path, gguf_path: Path, tmp_path: Path) -> None:
    progress: list[float] = []
    convert(gguf_path, tmp_path, progress.append)
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert torch.equal(logits(tmp_path), logits(original))
    found = describe(ModelSpec("m", str(tmp_path)))
    assert found.kinds == ("chat", "completion")
    assert found.parameters == describe(ModelSpec("m", str(gguf_path))).parameters  # still tied
    assert set(found.counts) == {"BF16"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    its_own = transformers.AutoTokenizer.from_pretrained(original)
    text = "Beautiful is better than ugly, naïve café 日本\n<|im_end|>"
    assert tokenizer(text)["input_ids"] == its_own(text)["input_ids"]
    assert tokenizer.chat_template == its_own.chat_template
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert generation.eos_token_id == 2


def test_the_command_tells_its_progress(
    gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["convert", str(gguf_path), str(tmp_path)])
    main()
    assert [float(line) for line in capsys.readouterr().out.split()] == [0.3, 0.9, 1.0]
    assert (tmp_path / "model.safetensors").is_file()


def test_two_agents_convert_once(gguf_path: Path, tmp_path: Path) -> None:
    spec = ModelSpec("m", str(gguf_path))
    results: list[tuple[Path, list[float]]] = []

    def agent() -> None:
        progress: list[float] = []
        results.append((prepare(spec, tmp_path, progress.append), progress))

    threads = [threading.Thread(target=agent) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (folder, first), (same, second) = results
    assert folder == same
    assert sorted([first[-1:], second[-1:]]) == [[1.0], [1.0]]
    assert sorted(map(len, (first, second))) == [1, 4]  # one converted, the other was told
    assert [path.name for path in folder.parent.iterdir() if "tmp" in path.name] == []
    assert describe(ModelSpec("m", str(folder))).kinds == ("chat", "completion")
    assert prepare(spec, tmp_path, lambda share: None) == folder


def test_a_failure_leaves_nothing_behind_and_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(GGUF)
    leftover = tmp_path / "converted" / f".bad-{fingerprint(tmp_path / 'bad.gguf')}.tmp-old"
    leftover.mkdir(parents=True)
    with pytest.raises(ModelLoadFailed, match=r"converting .*bad\.gguf failed: \w+"):
        prepare(ModelSpec("m", str(tmp_path / "bad.gguf")), tmp_path, lambda share: None)
    assert [path.suffix for path in (tmp_path / "converted").iterdir()] == [".lock"]


def test_a_full_disk_is_noticed_before(
    gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelLoadFailed, match=r"where 0\.0 GB are free"):
        prepare(ModelSpec("m", str(gguf_path)), tmp_path, lambda share: None)


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytearray(range(256)) * 20_000
    path.write_bytes(content)
    first = fingerprint(path)
    path.touch()
    assert fingerprint(path) == first
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(path) != first
    path.write_bytes(content[:-1])
    assert fingerprint(path) != first
    path.write_bytes(b"")
    assert len(fingerprint(path)) == 16

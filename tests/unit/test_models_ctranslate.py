"""Whisper models in CTranslate2's layout: read, described, and converted to the same weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.errors import ModelLoadFailed
from blip_node.models import ModelSpec, ctranslate, describe, package, prepare
from blip_node.models.convert_whisper import _LINEARS, _NORMS, main
from blip_node.models.spec import Package
from tests.models.random_whisper import IDS, STAMPS, TOKENS, make_whisper

import torch  # isort: skip  (after random_whisper has set the environment)
import transformers  # isort: skip

#: CTranslate2's numbers of torch's dtypes.
NUMBERS = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.float16: 4, torch.bfloat16: 5}


def as_ctranslate(model: Any) -> dict[str, Any]:
    """A Whisper's weights under CTranslate2's names, the way its converter writes them."""
    weights = model.state_dict()
    heads = torch.tensor(2, dtype=torch.int16)
    found: dict[str, Any] = {"decoder/num_heads": heads, "encoder/num_heads": heads}

    def module(to: str, of: str, norm: bool = False) -> None:
        words = {"weight": "gamma", "bias": "beta"} if norm else {}
        for what in ("weight", "bias"):
            found[f"{to}/{words.get(what, what)}"] = weights[f"{of}.{what}"]

    for side in ("encoder", "decoder"):
        mine = f"model.{side}"
        found[f"{side}/position_encodings/encodings"] = weights[f"{mine}.embed_positions.weight"]
        module(f"{side}/layer_norm", f"{mine}.layer_norm", norm=True)
        for number in range(getattr(model.config, f"{side}_layers")):
            to, of = f"{side}/layer_{number}/", f"{mine}.layers.{number}."
            for ours, theirs in _NORMS.items():
                if of + theirs + ".weight" in weights:
                    module(to + ours, of + theirs, norm=True)
            for ours, theirs in _LINEARS.items():
                if of + theirs + ".weight" in weights:
                    module(to + ours, of + theirs)
            for fused, attention, letters in (
                ("self_attention/linear_0", "self_attn", "qkv"),
                ("attention/linear_1", "encoder_attn", "kv"),
            ):
                parts = [f"{of}{attention}.{letter}_proj" for letter in letters]
                if parts[0] + ".weight" not in weights:
                    continue
                width = len(weights[parts[0] + ".weight"])
                none = torch.zeros(width)
                found[f"{to}{fused}/weight"] = torch.cat([weights[f"{p}.weight"] for p in parts])
                found[f"{to}{fused}/bias"] = torch.cat(
                    [weights.get(f"{p}.bias", none) for p in parts]
                )
    for conv in ("conv1", "conv2"):
        module(f"encoder/{conv}", f"model.encoder.{conv}")
    found["decoder/embeddings/weight"] = weights["model.decoder.embed_tokens.weight"]
    return dict(sorted(found.items()))


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def binary(
    variables: Mapping[str, Any],
    version: int = 6,
    spec: str = "WhisperSpec",
    aliases: Mapping[str, str] | None = None,
) -> bytes:
    data = struct.pack("<I", version) + string(spec) + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        raw = value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else b""
        raw = raw or struct.pack("<h", int(value))
        data += string(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += struct.pack("<BI", NUMBERS[value.dtype], len(raw)) + raw
    data += struct.pack("<I", len(aliases or {}))
    for alias, name in (aliases or {}).items():
        data += string(alias) + string(name)
    return data


def write(folder: Path, data: bytes, tokenizer: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(data)
    config = {
        "alignment_heads": [[0, 1], [1, 0]],
        "lang_ids": [IDS["<|en|>"], IDS["<|de|>"], IDS["<|fr|>"]],
        "suppress_ids": [0],
        "suppress_ids_begin": [IDS["<|endoftext|>"]],
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("original")
    return folder, make_whisper(folder)


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy's vocabulary is too small to be taken for one of several languages."""
    monkeypatch.setattr(ctranslate, "MULTILINGUAL", 500)


ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}


def outputs(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn((1, 16, 2 * (STAMPS - 1)), generator=generator)
    ids = torch.tensor([[IDS["<|startoftranscript|>"], 5, 6, 7]])
    with torch.inference_mode():
        return model(input_features=sound, decoder_input_ids=ids).logits


@pytest.mark.usefixtures("several")
def test_the_weights_are_the_same(
    original: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    tokenizer, model = original
    source = write(tmp_path / "ct2", binary(as_ctranslate(model), aliases=ALIASES), tokenizer)
    target = tmp_path / "converted"
    target.mkdir()
    monkeypatch.setattr("sys.argv", ["convert", str(source), str(target)])
    main()
    assert [float(line) for line in capsys.readouterr().out.split()] == [0.1, 0.4, 0.6, 1.0]
    converted = transformers.WhisperForConditionalGeneration.from_pretrained(target).eval()
    assert torch.allclose(outputs(converted), outputs(model), atol=1e-6)
    ours, theirs = converted.generation_config, model.generation_config
    for name in (
        "lang_to_id",
        "task_to_id",
        "alignment_heads",
        "suppress_tokens",
        "begin_suppress_tokens",
        "no_timestamps_token_id",
        "prev_sot_token_id",
        "decoder_start_token_id",
        "eos_token_id",
        "pad_token_id",
        "is_multilingual",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert converted.config.max_target_positions == TOKENS
    its, own = (transformers.AutoTokenizer.from_pretrained(each) for each in (target, tokenizer))
    assert its("Hello <|de|><|0.50|>").input_ids == own("Hello <|de|><|0.50|>").input_ids
    extractor = transformers.AutoFeatureExtractor.from_pretrained(target)
    assert extractor.feature_size == 16


@pytest.mark.usefixtures("several")
def test_headers_say_what_it_is_before_it_is_converted(
    original: tuple[Path, Any], tmp_path: Path
) -> None:
    tokenizer, model = original
    variables = as_ctranslate(model)
    half = {name: each.half() if each.ndim else each for name, each in variables.items()}
    source = write(tmp_path / "ct2", binary(half, aliases=ALIASES), tokenizer)
    found = describe(ModelSpec("w", str(source)))
    assert found.kinds == ("transcription", "translation")
    assert found.convert
    assert found.counts == {"F16": sum(each.numel() for each in variables.values() if each.ndim)}
    english = write(tmp_path / "english", binary(half), tokenizer, lang_ids=[])
    assert describe(ModelSpec("e", str(english))).kinds == ("transcription",)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("several")
def test_it_is_converted_once_from_parts_in_two_packages(
    original: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = original
    data = binary(as_ctranslate(model), aliases=ALIASES)
    parts = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(parts, 1):
        folder.mkdir()
        middle = len(data) // 3
        part = data[:middle] if number == 1 else data[middle:]
        (folder / f"model.bin.part{number}").write_bytes(part)
    write(parts[1], b"", tokenizer)
    (parts[1] / "model.bin").unlink()
    monkeypatch.setattr(package, "part_folders", lambda source: parts)
    spec = ModelSpec("w", "package:one+two")
    assert describe(spec).path == str(parts[1])
    progress: list[float] = []
    folder = prepare(spec, tmp_path, progress.append)
    assert progress == [0.1, 0.4, 0.6, 1.0, 1.0]
    again: list[float] = []
    assert prepare(spec, tmp_path, again.append) == folder
    assert again == [1.0]
    assert describe(ModelSpec("m", str(folder))).architecture == "WhisperForConditionalGeneration"
    # a part that is missing is noticed by what is left
    monkeypatch.setattr(package, "part_folders", lambda source: parts[1:])
    with pytest.raises(ModelLoadFailed, match="not a sound Whisper model"):
        describe(spec)


def test_packages_that_hold_no_part() -> None:
    with pytest.raises(ModelLoadFailed, match="not installed") as caught:
        package.part_folders(Package("no-such-part-1", others=("no-such-part-2",)))
    assert "no-such-part-1 no-such-part-2" in caught.value.hint
    with pytest.raises(ModelLoadFailed, match="holds no part"):
        package.part_folders(Package("pytest", others=("hypothesis",)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-10], "cut off"),
        (lambda data: data + b"\0", "instead of"),
        (lambda data: b"\x05" + data[1:], "version is 5"),
        (lambda data: data.replace(b"WhisperSpec", b"TurtlesSpec"), "TurtlesSpec"),
        (lambda data: data[:20], "cut off"),
        (lambda data: data[:22] + b"\xff\xff\xff\x7f" + data[26:], "claims"),
    ],
)
def test_corrupt_files_are_refused(
    original: tuple[Path, Any], tmp_path: Path, change: Any, says: str
) -> None:
    tokenizer, model = original
    source = write(tmp_path / "ct2", change(binary(as_ctranslate(model))), tokenizer)
    with pytest.raises(ModelLoadFailed, match=says):
        describe(ModelSpec("w", str(source)))


def test_what_is_not_converted(original: tuple[Path, Any], tmp_path: Path) -> None:
    tokenizer, model = original
    variables = as_ctranslate(model)
    scales = {"decoder/embeddings/weight_scale": torch.ones(3)}
    source = write(tmp_path / "int8", binary(variables | scales), tokenizer)
    with pytest.raises(ModelLoadFailed, match="quantised"):
        describe(ModelSpec("w", str(source)))
    del variables["encoder/conv1/weight"]
    source = write(tmp_path / "lacking", binary(variables), tokenizer)
    with pytest.raises(ModelLoadFailed, match="encoder/conv1/weight"):
        describe(ModelSpec("w", str(source)))
    source = write(tmp_path / "alias", binary(variables, aliases={"a": "b"}), tokenizer)
    with pytest.raises(ModelLoadFailed, match="alias"):
        describe(ModelSpec("w", str(source)))


def test_a_folder_of_transformers_is_none_of_these(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    (tmp_path / "model.bin").write_bytes(b"a pickle by that name")
    assert ctranslate.find([tmp_path]) is None
    assert ctranslate.find([]) is None


START = binary({"a/b": torch.ones((2, 3)), "c": torch.ones(4, dtype=torch.float16)})


@given(st.integers(0, len(START) - 1), st.integers(0, 255), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_no_bytes_make_it_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: int
) -> None:
    data = bytearray(START)
    data[at] = byte
    file = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    file.write_bytes(data[: len(data) - cut])
    try:
        found = ctranslate.read_header(ctranslate.Files(file.parent, (file,)))
    except ModelLoadFailed:
        return
    assert all(math.prod(each.shape) >= 0 for each in found.values())

"""Reading safetensors and GGUF headers: sound ones, broken ones, hostile ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip.errors import ModelLoadFailed
from blip_node.models import gguf, weights
from blip_node.models.files import MAX_JSON_BYTES, positive, read_object
from tests.models.raw_files import GGUF, gguf_file, pair, safetensors, tensor

TINY_CHAT = Path(__file__).parents[1] / "models" / "tiny-chat"


SOUND = {
    "__metadata__": {"format": "pt"},
    "a": tensor("BF16", [4, 8], 0, 64),
    "b": tensor("F32", [3], 64, 76),
    "c": tensor("I64", [], 76, 84),
    "d": tensor("F4", [16], 84, 92),
    "e": tensor("BF16", [0, 7], 92, 92),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


class TestSafetensors:
    def test_a_real_one(self) -> None:
        counts = weights.element_counts(TINY_CHAT / "model.safetensors")
        assert counts == {"F32": 246_336}
        assert weights.stored_bytes(counts) == 985_344

    def test_every_dtype_counts_by_itself(self, file: Path) -> None:
        file.write_bytes(safetensors(SOUND, bytes(92)))
        counts = weights.element_counts(file)
        assert counts == {"BF16": 32, "F32": 3, "I64": 1, "F4": 16}
        assert weights.stored_bytes(counts) == 92
        assert weights.loaded_bytes(counts, "float32") == (32 + 3) * 4 + 8 + 8
        assert weights.loaded_bytes(counts, "bfloat16") == (32 + 3) * 2 + 8 + 8
        assert weights.main_dtype(counts) == "bfloat16"
        assert weights.main_dtype({"U8": 7}) == "float32"

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "cut off: 0 bytes"),
            (b"1234567", "cut off: 7 bytes"),
            (safetensors(SOUND, bytes(92))[:-1], "cut off"),
            (safetensors({}, length=2**63), "claims a header of 9223372036854775808 bytes"),
            (safetensors({}, length=2**40), "corrupt"),
            (safetensors({}, length=3), "corrupt"),
            (safetensors(b"not json"), "not valid JSON"),
            (safetensors(b"\xff\xfe{}"), "not valid JSON"),
            (safetensors(b"[" * 100_000), "not valid JSON"),
            (safetensors([1, 2]), "JSON list, not an object"),
            (safetensors({"a": 1}), "'a' is not sound"),
            (safetensors({"a": {"dtype": "BF16"}}), "not sound"),
            (safetensors({"a": tensor("F128", [1], 0, 16)}, bytes(16)), "not sound"),
            (safetensors({"a": tensor("F32", [2], 0, 4)}, bytes(8)), "not sound"),
            (safetensors({"a": tensor("F32", [-1], 4, 0)}, bytes(8)), "not sound"),
            (safetensors({"a": tensor("F32", [-1, -1], 0, 4)}, bytes(8)), "not sound"),
            (safetensors({"a": tensor("F32", [2**60, 2**60], 0, 4)}, bytes(8)), "not sound"),
            (safetensors({"a": tensor("F32", [1] * 1000, 0, 4)}, bytes(8)), "not sound"),
            (safetensors({"a": tensor("F32", ["1"], 0, 4)}, bytes(8)), "not sound"),  # type: ignore[list-item]
            (safetensors({"a": {"dtype": ["F32"], "shape": [], "data_offsets": [0, 4]}}), "sound"),
            (
                safetensors({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 0, 4)}),
                "overlap",
            ),
            (safetensors({"a" * 10_000: 1}), "a{100}' is not sound"),
        ],
    )
    def test_what_is_not_sound(self, file: Path, content: bytes, reason: str) -> None:
        file.write_bytes(content)
        with pytest.raises(ModelLoadFailed, match=reason) as caught:
            weights.element_counts(file)
        assert len(caught.value.message) < 1000

    def test_a_header_that_would_fill_the_memory(self, file: Path) -> None:
        with file.open("wb") as sparse:
            sparse.write(struct.pack("<Q", weights.MAX_HEADER_BYTES + 1))
            sparse.truncate(weights.MAX_HEADER_BYTES * 2)
        with pytest.raises(ModelLoadFailed, match="claims a header"):
            weights.element_counts(file)

    def test_a_file_that_is_a_folder(self, file: Path) -> None:
        file.mkdir()
        with pytest.raises(ModelLoadFailed, match="cannot be read"):
            weights.element_counts(file)

    @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_damage_is_an_error_or_harmless(self, file: Path, data: st.DataObject) -> None:
        content = bytearray(safetensors(SOUND, bytes(92)))
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            counts = weights.element_counts(file)
        except ModelLoadFailed:
            return
        assert weights.stored_bytes(counts) <= 92


class TestShards:
    def test_one_file(self) -> None:
        assert weights.shards(TINY_CHAT) == [TINY_CHAT / "model.safetensors"]

    def index(self, folder: Path, *names: Any) -> Path:
        weight_map = {f"tensor{n}": name for n, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder

    def test_several_files_are_summed(self, tmp_path: Path) -> None:
        for name in ("a.safetensors", "b.safetensors"):
            (tmp_path / name).write_bytes(safetensors(SOUND, bytes(92)))
        files = weights.shards(
            self.index(tmp_path, "b.safetensors", "a.safetensors", "b.safetensors")
        )
        assert [file.name for file in files] == ["a.safetensors", "b.safetensors"]
        assert weights.total_counts(files)["BF16"] == 64

    def test_missing_ones_are_counted(self, tmp_path: Path) -> None:
        (tmp_path / "a.safetensors").touch()
        with pytest.raises(ModelLoadFailed, match="2 of 3 weight files are missing") as caught:
            weights.shards(self.index(tmp_path, "a.safetensors", "b.safetensors", "c.safetensors"))
        assert "again" in caught.value.hint

    @pytest.mark.parametrize(
        "name", ["../secret.safetensors", "/a.safetensors", "model.bin", "..", "", 7, []]
    )
    def test_an_index_may_not_point_elsewhere(self, tmp_path: Path, name: Any) -> None:
        with pytest.raises(ModelLoadFailed, match="no safetensors file beside it"):
            weights.shards(self.index(tmp_path, name))

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
    def test_an_index_without_a_map(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ModelLoadFailed, match="no weight_map"):
            weights.shards(tmp_path)

    @pytest.mark.parametrize(
        "name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt"]
    )
    def test_pickles_are_refused_by_name_with_a_way_out(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()
        with pytest.raises(ModelLoadFailed, match=f"{name}, a pickle") as caught:
            weights.shards(tmp_path)
        assert "save_pretrained" in caught.value.hint

    def test_adapters_are_refused_with_a_way_out(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_model.safetensors").touch()
        with pytest.raises(ModelLoadFailed, match="an adapter") as caught:
            weights.shards(tmp_path)
        assert "Merge" in caught.value.hint

    def test_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadFailed, match=r"has no model\.safetensors"):
            weights.shards(tmp_path)


class TestJson:
    def test_missing_files(self, tmp_path: Path) -> None:
        assert read_object(tmp_path / "no.json", missing_ok=True) == {}
        with pytest.raises(ModelLoadFailed, match="cannot be read"):
            read_object(tmp_path / "no.json")

    def test_what_is_too_large_is_not_read(self, tmp_path: Path) -> None:
        with (tmp_path / "big.json").open("wb") as sparse:
            sparse.truncate(MAX_JSON_BYTES + 1)
        with pytest.raises(ModelLoadFailed, match="larger than"):
            read_object(tmp_path / "big.json")

    def test_text_in_another_encoding(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_bytes(b'{"a": "\xe4"}')
        with pytest.raises(ModelLoadFailed, match="cannot be read"):
            read_object(tmp_path / "a.json")

    @pytest.mark.parametrize("value", [None, 0, -1, True, 1.5, "7", 2**48, [3]])
    def test_counts_that_are_none(self, value: Any) -> None:
        assert positive(value) is None
        assert positive(2048) == 2048


class TestGguf:
    def read(self, tmp_path: Path, content: bytes) -> gguf.Header:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return gguf.read_header(path)

    def test_metadata_and_shapes(self, tmp_path: Path) -> None:
        header = self.read(tmp_path, GGUF)
        assert header.architecture == "llama"
        assert header.parameters == 704
        assert header.of_model("context_length") == 8192
        assert header.of_model("flag") is True
        assert header.of_model("scores") is None  # arrays are skipped
        assert header.metadata["tokenizer.chat_template"] == "{{ messages }}"

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "empty file"),
            (b"GGU", ""),
            (b"ZIP!" + GGUF[4:], "does not begin with GGUF"),
            (gguf_file([], [], version=1), "version is 1"),
            (struct.pack("<4sIQQ", b"GGUF", 3, 2**60, 0), "claims 1152921504606846976 tensors"),
            (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**60), "and 1152921504606846976 keys"),
            (gguf_file([struct.pack("<Q", 2**62)], []), "string of 4611686018427387904 bytes"),
            (gguf_file([pair("a", 99, b"")], []), "unknown type 99"),
            (gguf_file([pair("a", 9, struct.pack("<IQ", 8, 2**61))], []), "array of"),
            (gguf_file([pair("a", 9, struct.pack("<IQ", 4, 2**61))], []), "array of"),
            (
                gguf_file([pair("a", 9, struct.pack("<IQ", 9, 1))], []),
                "array of 1 values of type 9",
            ),
            (gguf_file([], [("a", [1] * 9)]), "9 dimensions"),
            (gguf_file([], [("a", [2**40, 2**40])]), "tensor of"),
        ],
    )
    def test_what_is_not_sound(self, tmp_path: Path, content: bytes, reason: str) -> None:
        with pytest.raises(ModelLoadFailed, match=f"model.gguf is not a sound GGUF file.*{reason}"):
            self.read(tmp_path, content)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadFailed):
            gguf.read_header(tmp_path / "no.gguf")

    @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_damage_is_an_error_or_harmless(self, tmp_path: Path, data: st.DataObject) -> None:
        content = bytearray(GGUF)
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
        try:
            header = self.read(tmp_path, bytes(content[: data.draw(st.integers(0, len(content)))]))
        except ModelLoadFailed:
            return
        assert header.parameters <= 2 * len(content) * 8

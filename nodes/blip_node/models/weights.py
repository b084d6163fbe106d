"""What the headers of safetensors files say, without reading a single weight.

The format: https://github.com/huggingface/safetensors (8 bytes of little-endian header length, a
JSON object of tensors, then the data).
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blip.errors import ModelLoadFailed
from blip_node.models.files import parse_object, read_object

#: The reference implementation allows 100 MB; a shard of the largest models has some thousand
#: tensors of about 150 bytes each, so a tenth of this is generous and this much is hostile.
MAX_HEADER_BYTES = 32 * 1024 * 1024

#: Bits of one element by the format's dtype names.
BITS: dict[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}

#: Torch's names of the dtypes that weights may be cast from and to.
FLOATS: dict[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
_FLOAT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def shards(folder: Path, stem: str = "model") -> list[Path]:
    """Return the safetensors files that ``from_pretrained`` would load from a folder.

    ``stem`` is what the library calls its files: ``model`` in transformers. Raises
    :class:`~blip.errors.ModelLoadFailed` saying what is there instead.
    """
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if (folder / index).is_file():
        names = sorted(_shard_names(folder / index))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelLoadFailed(
                f"{folder} is incomplete: {len(missing)} of {len(names)} weight files are missing "
                f"({missing[0]}, ...)",
                hint="Download the model again; what is already there is kept.",
            )
        return [folder / name for name in names]
    if (folder / single).is_file():
        return [folder / single]
    if (folder / "adapter_model.safetensors").is_file():
        raise ModelLoadFailed(
            f"{folder} holds an adapter, not a model",
            hint="Merge it into its base model (peft: merge_and_unload, save_pretrained) and "
            "name the merged folder.",
        )
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelLoadFailed(
            f"{folder} has its weights only as {pickles[0]}, a pickle: loading it could run any "
            "code, so blip does not",
            hint="Choose a revision with safetensors, or convert once where you trust the file: "
            "AutoModel.from_pretrained(folder).save_pretrained(new_folder).",
        )
    raise ModelLoadFailed(f"{folder} has no {single} and no {index}")


def _shard_names(index: Path) -> set[str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadFailed(f"{index} has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or not name.endswith(".safetensors") or "/" in name:
            raise ModelLoadFailed(f"{index} names {name!r}, no safetensors file beside it")
    return set(weight_map.values())


def element_counts(path: Path) -> dict[str, int]:
    """Return how many numbers of each dtype one safetensors file holds.

    Raises :class:`~blip.errors.ModelLoadFailed` for anything that is not a sound header.
    """
    counts: Counter[str] = Counter()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            if len(head) < 8:
                raise ModelLoadFailed(f"{path} is cut off: {size} bytes are no safetensors file")
            (length,) = struct.unpack("<Q", head)
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ModelLoadFailed(f"{path} claims a header of {length} bytes; it is corrupt")
            header = parse_object(file.read(length), f"the header of {path}")
    except OSError as error:
        raise ModelLoadFailed(f"{path} cannot be read: {error}") from None
    end = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            dtype, elements, stop = _tensor(path, name, tensor)
            counts[dtype] += elements
            end = max(end, stop)
    if stored_bytes(counts) > end:
        raise ModelLoadFailed(f"{path} claims tensors that overlap; it is corrupt")
    if size < 8 + length + end:
        raise ModelLoadFailed(
            f"{path} is cut off: {size} bytes of {8 + length + end}",
            hint="Download or copy it again.",
        )
    return dict(counts)


def _tensor(path: Path, name: str, tensor: Any) -> tuple[str, int, int]:
    """Return (dtype, elements, end offset) of one header entry, checked against itself."""
    try:
        dtype, shape, (start, stop) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
        sound = all(isinstance(n, int) and 0 <= n < 1 << 48 for n in (*shape, start, stop))
        elements = math.prod(shape) if sound and len(shape) <= 16 else 0
        sound = sound and elements * BITS[dtype] == (stop - start) * 8
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ModelLoadFailed(f"{path}: the header's entry for {name[:100]!r} is not sound")
    return dtype, elements, stop


def total_counts(files: list[Path]) -> dict[str, int]:
    """Return :func:`element_counts` over all shards of a model."""
    return summed(map(element_counts, files))


def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the elements of several files or components together."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def stored_bytes(counts: Mapping[str, int]) -> int:
    """Return the bytes that these elements take as stored."""
    return sum(elements * BITS[dtype] // 8 for dtype, elements in counts.items())


def main_dtype(counts: Mapping[str, int]) -> str:
    """Return torch's name of the float dtype that most of the weights are stored in."""
    floats = {FLOATS[dtype]: count for dtype, count in counts.items() if dtype in FLOATS}
    return max(floats, key=lambda name: floats[name], default="float32")


def load_dtype(dtype: str, stored: str, device: str) -> str:
    """Return the dtype that weights are loaded in; ``auto`` depends on the device.

    On a GPU ``auto`` is the stored one. On a CPU it is float32: without AMX or AVX512-BF16 half
    precision is emulated there, and even with it one stream decodes slower.
    """
    if dtype != "auto":
        return dtype
    return "float32" if device.startswith("cpu") else stored


def loaded_bytes(counts: Mapping[str, int], dtype: str) -> int:
    """Return the bytes in memory once float weights are cast to ``dtype`` (not ``auto``).

    Integers and packed formats (quantised weights) stay as they are.
    """
    return sum(
        elements * (_FLOAT_BYTES[dtype] if stored in FLOATS else BITS[stored] / 8)
        for stored, elements in counts.items()
    ).__ceil__()

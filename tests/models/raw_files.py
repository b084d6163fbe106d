"""The bytes of safetensors and GGUF files, written by hand so that they can be wrong."""

from __future__ import annotations

import json
import struct
from typing import Any


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file; ``header`` may be any JSON or bytes, its length a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """Return one entry of a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def string(text: str) -> bytes:
    """Return a GGUF string."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    """Return a GGUF metadata pair."""
    return string(key) + struct.pack("<I", kind) + value


def gguf_file(pairs: list[bytes], tensors: list[tuple[str, list[int]]], version: int = 3) -> bytes:
    """Return the header of a GGUF file."""
    infos = b"".join(
        string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
        for name, shape in tensors
    )
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(pairs))
    return head + b"".join(pairs) + infos


_WORDS = struct.pack("<IQ", 8, 3) + string("a") + string("bc") + string("")
#: A sound file of two tensors.
GGUF = gguf_file(
    [
        pair("general.architecture", 8, string("llama")),
        pair("tokenizer.ggml.tokens", 9, _WORDS),
        pair("llama.context_length", 4, struct.pack("<I", 8192)),
        pair("llama.scores", 9, struct.pack("<IQ3f", 6, 3, 1, 2, 3)),
        pair("llama.rope.freq_base", 6, struct.pack("<f", 1e4)),
        pair("llama.flag", 7, b"\x01"),
        pair("tokenizer.chat_template", 8, string("{{ messages }}")),
    ],
    [("token_embd.weight", [64, 10]), ("norm", [64])],
) + bytes(704 * 4)

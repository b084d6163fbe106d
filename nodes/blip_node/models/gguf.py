"""The header of a GGUF file: metadata and tensor shapes, in one pass and without its weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.errors import ModelLoadFailed

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
#: struct codes of the scalar value types.
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
#: ggml knows four dimensions; more is corruption.
_MAX_DIMENSIONS = 8
#: Real files have some dozen keys, some hundred tensors, and vocabularies of some 100,000 words.
_MAX_ENTRIES = 2_000_000
#: Chat templates are the longest strings worth keeping, some tens of kilobytes.
_MAX_STRING = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Header:
    """Scalar and string metadata by key (arrays are left out), and the number of weights."""

    metadata: dict[str, Any]
    parameters: int

    @property
    def architecture(self) -> str:
        """The ggml name of the architecture, ``llama`` for instance."""
        return str(self.metadata.get("general.architecture", ""))

    def of_model(self, key: str) -> Any:
        """Return a value that is filed under the architecture's own name, or None."""
        return self.metadata.get(f"{self.architecture}.{key}")


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises :class:`~blip.errors.ModelLoadFailed` for a file that is corrupt or not GGUF.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Reader(view).header()
    except (OSError, ValueError, OverflowError, struct.error) as error:
        raise ModelLoadFailed(f"{path} is not a sound GGUF file: {error}") from None


class _Reader:
    """A cursor over the file; running past its end raises ``struct.error`` or ``ValueError``."""

    def __init__(self, view: mmap.mmap) -> None:
        self.view = view
        self.at = 0

    def header(self) -> Header:
        magic, version = self.view[:4], struct.unpack_from("<I", self.view, 4)[0]
        if magic != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, readable are 2 and 3")
        self.at = 8
        tensors, keys = self.scalar("Q"), self.scalar("Q")
        if tensors > _MAX_ENTRIES or keys > _MAX_ENTRIES:
            raise ValueError(f"it claims {tensors} tensors and {keys} keys")
        metadata = {}
        for _ in range(keys):
            key = self.string()
            value = self.value(self.scalar("I"))
            if value is not None:
                metadata[key] = value
        return Header(metadata, sum(self.tensor() for _ in range(tensors)))

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.view, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        if length > min(_MAX_STRING, len(self.view) - self.at):
            raise ValueError(f"it claims a string of {length} bytes")
        self.at += length
        return self.view[self.at - length : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """Return one metadata value; None for an array, which is skipped."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.skip_array()
        if kind not in _SCALARS:
            raise ValueError(f"it has a value of unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def skip_array(self) -> None:
        kind, length = self.scalar("I"), self.scalar("Q")
        room = len(self.view) - self.at
        if kind == _STRING and length <= min(_MAX_ENTRIES, room // 8):
            unpack = struct.Struct("<Q").unpack_from
            for _ in range(length):
                self.at += 8 + unpack(self.view, self.at)[0]
        elif kind in _SCALARS and length <= room:
            self.at += length * struct.calcsize("<" + _SCALARS[kind])
        else:
            raise ValueError(f"it has an array of {length} values of type {kind}")

    def tensor(self) -> int:
        """Skip one tensor entry and return its number of elements."""
        self.string()
        dimensions = self.scalar("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"it has a tensor of {dimensions} dimensions")
        shape = [self.scalar("Q") for _ in range(dimensions)]
        self.scalar("I")  # ggml type
        self.scalar("Q")  # offset
        elements: int = math.prod(shape)
        # the tightest ggml types take more than one bit a weight
        if elements > len(self.view) * 8:
            raise ValueError(f"it has a tensor of {elements} weights in {len(self.view)} bytes")
        return elements

"""Whisper models in CTranslate2's layout, as faster-whisper uses them: ``model.bin`` and JSON.

Only what the header of ``model.bin`` says is read here, and where its weights lie; numpy and torch
are for :mod:`blip_node.models.convert_whisper`. The format (version 6) is CTranslate2's
``ModelSpec._serialize``: https://github.com/OpenNMT/CTranslate2, python/ctranslate2/specs.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from blip.errors import ModelLoadFailed
from blip_node.models.files import read_object

WEIGHTS = "model.bin"

#: ``model.bin``, or parts of it: packages cannot be of any size.
_PART = re.compile(r"model\.bin(?:\.part(\d+))?")

#: The only specification of CTranslate2 that is converted here.
_SPEC = "WhisperSpec"

#: Names of safetensors' dtypes and sizes in bytes, by CTranslate2's number.
DTYPES: dict[int, tuple[str, int]] = {
    0: ("F32", 4),
    1: ("I8", 1),
    2: ("I16", 2),
    3: ("I32", 4),
    4: ("F16", 2),
    5: ("BF16", 2),
}

#: Real files have some hundred variables of up to three dimensions; more is corruption.
_MAX_VARIABLES, _MAX_DIMENSIONS = 100_000, 8

#: Whisper's vocabularies of several languages have at least so many tokens, as OpenAI counts.
MULTILINGUAL = 51_865


class Variable(NamedTuple):
    """A tensor: its dtype's number, and where it begins in the joined file."""

    shape: tuple[int, ...]
    dtype: int
    at: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Files:
    """Where a model's files lie. ``parts`` joined are ``model.bin``; ``folder`` has the rest."""

    folder: Path
    parts: tuple[Path, ...]


def find(folders: Sequence[Path]) -> Files | None:
    """Return the files of a model whose files are in these folders; None if there is none.

    Several folders are one model's, the parts of its weights in some of them and the rest in one.
    """
    parts: dict[int, Path] = {}
    for folder in folders:
        for path in folder.glob(WEIGHTS + "*"):
            match = _PART.fullmatch(path.name)
            if match is not None:
                parts[int(match.group(1) or 0)] = path
    with_config = [folder for folder in folders if (folder / "config.json").is_file()]
    if not parts or len(with_config) != 1 or (with_config[0] / "model.safetensors").is_file():
        return None
    if "architectures" in read_object(with_config[0] / "config.json"):
        return None  # a folder of transformers, with a pickle by that name
    return Files(with_config[0], tuple(parts[number] for number in sorted(parts)))


def read_header(files: Files) -> dict[str, Variable]:
    """Return the variables of a Whisper model by name, aliases included.

    Raises :class:`~blip.errors.ModelLoadFailed` for files that are corrupt, of another model, or
    quantised.
    """
    try:
        with Joined(files.parts) as file:
            found = _Reader(file).variables()
    except (OSError, ValueError, struct.error) as error:
        raise ModelLoadFailed(
            f"{files.parts[0]} is not a sound Whisper model of CTranslate2: {error}"
        ) from None
    if any(name.endswith("_scale") for name in found):
        raise ModelLoadFailed(
            f"{files.parts[0]} is quantised to whole numbers, which is not converted here",
            hint="Use the model in float16, or its original.",
        )
    return found


class Shape(NamedTuple):
    """The sizes of a Whisper model."""

    vocabulary: int
    width: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    inner: int
    mel: int
    frames: int
    tokens: int


def shape_of(variables: Mapping[str, Variable]) -> Shape:
    """Return the sizes that a model's variables have; its heads are of 64 numbers, as always.

    Raises :class:`~blip.errors.ModelLoadFailed`.
    """

    def layers(side: str) -> int:
        found = {name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_")}
        return len(found - {"layer_norm"})

    try:
        vocabulary, width = variables["decoder/embeddings/weight"].shape
        return Shape(
            vocabulary,
            width,
            max(1, width // 64),
            layers("encoder"),
            layers("decoder"),
            variables["encoder/layer_0/ffn/linear_0/weight"].shape[0],
            variables["encoder/conv1/weight"].shape[1],
            variables["encoder/position_encodings/encodings"].shape[0],
            variables["decoder/position_encodings/encodings"].shape[0],
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ModelLoadFailed(f"a variable of Whisper is missing or malformed: {error}") from None


def counts(variables: Mapping[str, Variable]) -> dict[str, int]:
    """Return how many weights of each of safetensors' dtypes the model holds; no scalars."""
    found: Counter[str] = Counter()
    for variable in {each.at: each for each in variables.values()}.values():
        if variable.shape:
            found[DTYPES[variable.dtype][0]] += variable.elements
    return dict(found)


def is_multilingual(files: Files, variables: Mapping[str, Variable]) -> bool:
    """Return whether it knows more than English."""
    languages = read_object(files.folder / "config.json").get("lang_ids")
    vocabulary: int = variables["decoder/embeddings/weight"].shape[0]
    return bool(languages) and vocabulary >= MULTILINGUAL


class Joined:
    """Several files, read as if they were one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        self._sizes = [path.stat().st_size for path in paths]

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self._files:
            file.close()

    def __len__(self) -> int:
        return sum(self._sizes)

    def read(self, at: int, size: int) -> bytes:
        """Return bytes from a place. Raises ``ValueError`` if they are not there."""
        if at < 0 or size < 0 or at + size > len(self):
            raise ValueError("it is cut off")
        found = b""
        for file, length in zip(self._files, self._sizes, strict=True):
            if at < length and len(found) < size:
                file.seek(at)
                found += file.read(size - len(found))
            at = max(0, at - length)
        return found


class _Reader:
    """A cursor over the file that skips the weights."""

    def __init__(self, file: Joined) -> None:
        self.file = file
        self.at = 0

    def variables(self) -> dict[str, Variable]:
        version = self.scalar("I")
        if version != 6:
            raise ValueError(f"its version is {version}, readable is 6")
        spec = self.string()
        if spec != _SPEC:
            raise ValueError(f"it is a {spec[:40]!r}")
        self.scalar("I")  # revision of the specification
        found: dict[str, Variable] = {}
        for _ in range(self.count(_MAX_VARIABLES)):
            name = self.string()
            shape = tuple(self.scalar("I") for _ in range(self.rank()))
            dtype, size = self.scalar("B"), self.scalar("I")
            if dtype not in DTYPES or math.prod(shape) * DTYPES[dtype][1] != size:
                raise ValueError(f"its entry for {name[:100]!r} is not sound")
            found[name] = Variable(shape, dtype, self.at)
            self.at += size
        for _ in range(self.count(_MAX_VARIABLES)):
            alias, name = self.string(), self.string()
            if name not in found:
                raise ValueError(f"it has an alias of {name[:100]!r}, which is not there")
            found.setdefault(alias, found[name])
        if self.at != len(self.file):
            raise ValueError(f"it has {len(self.file)} bytes instead of {self.at}")
        return found

    def scalar(self, code: str) -> Any:
        data = self.file.read(self.at, struct.calcsize(f"<{code}"))
        self.at += len(data)
        return struct.unpack(f"<{code}", data)[0]

    def count(self, limit: int) -> int:
        number: int = self.scalar("I")
        if number > limit:
            raise ValueError(f"it claims {number} entries")
        return number

    def rank(self) -> int:
        number: int = self.scalar("B")
        if number > _MAX_DIMENSIONS:
            raise ValueError(f"it has a tensor of {number} dimensions")
        return number

    def string(self) -> str:
        length = self.scalar("H")
        data = self.file.read(self.at, length)
        self.at += length
        return data.rstrip(b"\0").decode("utf-8", "replace")

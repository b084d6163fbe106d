"""From a spec to a folder that a runtime can load: download, or convert once and keep."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from blip.errors import ModelLoadFailed
from blip_node.models import ctranslate, gguf, hub, pipeline, piper, weights
from blip_node.models.files import read_object
from blip_node.models.snapshot import CONVERTED_DTYPE, folders, locate
from blip_node.models.spec import Fileless, Hub, ModelSpec, parse_source

#: Bytes at each of these evenly spread places of a file make its fingerprint, besides its size:
#: the header is in it, and fine-tunes of one model differ everywhere in their weights.
_SAMPLE_BYTES = 64 * 1024
_SAMPLES = 16

#: Room that is left on the disk beside a converted model, for tokenizer files and other people.
_SPARE_BYTES = 64 * 1024 * 1024


def prepare(
    spec: ModelSpec,
    data_dir: Path,
    report: Callable[[float], None],
    *,
    download: bool = False,
    cache: Path | None = None,
) -> Path:
    """Return a local folder that ``from_pretrained`` loads, or the ``.onnx`` file of a voice.

    Blocking, so call it in a thread.

    A GGUF file is converted once to bfloat16 safetensors under ``data_dir/converted``, a Whisper
    model of CTranslate2 to safetensors of its own precision, by a child process; agents that want
    the same one wait for the first. For llama.cpp, which runs the file itself, only the tokenizer
    is. A hub model is downloaded into
    ``cache`` if it is missing or unfinished and ``download`` allows it. ``report`` takes progress
    from 0 to 1.

    Raises :class:`~blip.errors.ModelLoadFailed` with the reason and the way out.
    """
    source = parse_source(spec.source, spec.name)
    if isinstance(source, Fileless):
        raise ModelLoadFailed(f"model '{spec.name}': {spec.source} has no files to prepare")
    cache = cache or hub.default_cache()
    path = locate(spec, cache)
    if isinstance(source, Hub) and download and not _complete(path):
        path = hub.download(source, cache, report)
    if path is None:
        raise ModelLoadFailed(
            f"model '{spec.name}': {spec.source} is not in the cache {cache}",
            hint="Allow downloads for this node, or fetch it yourself: hf download "
            f"{spec.source.removeprefix('hf:').partition('@')[0]}",
        )
    whisper = ctranslate.find(folders(spec, path))
    if path.suffix == ".gguf":
        if spec.runtime == "llama.cpp":
            work = _Work("convert_tokenizer", path.stem + "-tokenizer", (path,), (path,), 0)
        else:
            needed = weights.stored_bytes({CONVERTED_DTYPE: gguf.read_header(path).parameters})
            work = _Work("convert", path.stem, (path,), (path,), needed)
        path = _converted(work, data_dir / "converted", report)
    elif whisper is not None:
        needed = weights.stored_bytes(ctranslate.counts(ctranslate.read_header(whisper)))
        work = _Work(
            "convert_whisper",
            "whisper",
            tuple(folders(spec, path)),
            (*whisper.parts, whisper.folder / "config.json"),
            needed,
        )
        path = _converted(work, data_dir / "converted", report)
    elif path.suffix == ".onnx":
        piper.read_voice(path)
    elif pipeline.is_pipeline(path):
        pipeline.shards(path)
    else:
        weights.shards(path)  # says what is wrong before a worker finds out
        read_object(path / "config.json")
    report(1.0)
    return path


def _complete(folder: Path | None) -> bool:
    try:
        if folder is not None and pipeline.is_pipeline(folder):
            return bool(pipeline.shards(folder))
        if folder is not None and ctranslate.find([folder]) is not None:
            return True
        return folder is not None and bool(weights.shards(folder))
    except ModelLoadFailed:
        return False


def fingerprint(*paths: Path) -> str:
    """Return a name for the content of files, from their sizes and samples of them."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


class _Work(NamedTuple):
    """A conversion: the module that does it, what the result is called, what the module is told,
    the files that the result depends on, and the bytes that it takes.
    """

    module: str
    name: str
    sources: tuple[Path, ...]
    files: tuple[Path, ...]
    needed: int

    @property
    def title(self) -> str:
        """What people would call it."""
        return "+".join(str(source) for source in self.sources)


def _converted(work: _Work, folder: Path, report: Callable[[float], None]) -> Path:
    """Return the converted form of a model, making it if this is the first time."""
    readable = re.sub(r"[^\w.-]+", "-", work.name)[:80]
    target = folder / f"{readable}-{fingerprint(*work.files)}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f".{target.name}.lock") as lock:
        if target.is_dir():
            return target  # it is renamed to this once it is whole
        for leftover in folder.glob(f".{target.name}.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        needed = work.needed
        free = shutil.disk_usage(folder).free
        if free < needed + _SPARE_BYTES:
            raise ModelLoadFailed(
                f"converting {work.title} takes {needed / 1e9:.1f} GB in {folder}, where "
                f"{free / 1e9:.1f} GB are free"
            )
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=folder))
        try:
            _convert(work, temporary, lock, report)
            temporary.chmod(0o755)
            for file in filter(Path.is_file, temporary.rglob("*")):
                with file.open("rb") as written:
                    os.fsync(written.fileno())  # the rename must not outrun the data
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """Hold an exclusive lock between processes; the kernel drops it when its holders die."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _convert(work: _Work, target: Path, lock: IO[bytes], report: Callable[[float], None]) -> None:
    """Run the conversion in a child: torch stays out of the agent, and so do its crashes.

    The child inherits the lock, so that it stays locked out even if the agent dies meanwhile.
    """
    command = [sys.executable, "-m", f"blip_node.models.{work.module}"]
    command += [str(path) for path in (*work.sources, target)]
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            pass_fds=[lock.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            text=True,
        ) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            with contextlib.suppress(ValueError):
                report(float(line))
        if child.wait() != 0:
            complaints.seek(0)
            lines = complaints.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1] if lines else f"it ended with status {child.returncode}"
            raise ModelLoadFailed(f"converting {work.title} failed: {reason}")

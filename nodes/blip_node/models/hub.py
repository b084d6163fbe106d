"""Models of the Hugging Face hub: its cache on disk, and downloading into it.

The cache's layout is the documented one
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache), read here directly: importing
the library takes half a second and an agent asks often.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from blip.errors import ModelLoadFailed
from blip_node.models.spec import Hub

#: All that a model needs; never pickles, images or other frameworks' weights.
PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]

#: Copies of a pipeline's weights in other precisions, and training's; blip casts by itself.
_VARIANTS = ("*.fp16.*", "*.bf16.*", "*.non_ema.*", "*.ema.*")

_COMMIT = re.compile(r"[0-9a-f]{40}")


def default_cache() -> Path:
    """Return the cache folder that ``huggingface_hub`` would use, by the same variables."""
    env = os.environ.get
    if cache := env("HF_HUB_CACHE") or env("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = env("HF_HOME") or os.path.join(env("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def cached(source: Hub, cache: Path) -> Path | None:
    """Return the snapshot folder of a revision if the cache has it, complete or not."""
    folder = cache / ("models--" + source.repo.replace("/", "--"))
    commit = source.revision
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (folder / "refs" / commit).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        if not _COMMIT.fullmatch(commit):
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def cached_repos(cache: Path) -> Iterator[str]:
    """Yield the ids of the model repositories in the cache, sorted."""
    try:
        names = sorted(entry.name for entry in cache.iterdir() if entry.is_dir())
    except OSError:
        return
    for name in names:
        kind, *parts = name.split("--")
        if kind == "models" and parts:
            yield "/".join(parts)


def chosen(names: Iterable[str]) -> list[str]:
    """Return which of a repository's files to fetch.

    Repositories of pipelines have all weights once more at the top, in one file for other
    programs, and often again in other precisions: those stay where they are.
    """
    names = list(names)
    fits = [name for name in names if any(fnmatch(name, pattern) for pattern in PATTERNS)]
    if "model_index.json" not in names:
        return fits
    return [
        name
        for name in fits
        if not (name.endswith(".safetensors") and "/" not in name)
        and not any(fnmatch(name, pattern) for pattern in _VARIANTS)
    ]


def download(source: Hub, cache: Path, report: Callable[[float], None]) -> Path:
    """Fetch a snapshot into the cache and return its folder; what is there is kept.

    ``report`` takes the share of bytes done, from 0 to 1. Raises
    :class:`~blip.errors.ModelLoadFailed` with the reason and the way out.
    """
    import huggingface_hub
    from huggingface_hub import errors

    what = f"{source.repo}@{source.revision}"
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        with _online():
            info = huggingface_hub.HfApi(endpoint).model_info(
                source.repo, revision=source.revision, files_metadata=True
            )
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
            names = chosen(sizes)
            total = sum(sizes[name] for name in names)
            folder = huggingface_hub.snapshot_download(
                source.repo,
                revision=source.revision,
                cache_dir=cache,
                allow_patterns=[glob.escape(name) for name in names],
                endpoint=endpoint,
                tqdm_class=_bar(lambda done: report(min(1.0, done / max(1, total)))),
            )
    except errors.GatedRepoError:
        raise ModelLoadFailed(
            f"{what} is gated",
            hint="Accept its licence on the hub and set HF_TOKEN for the node.",
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise ModelLoadFailed(
            f"the hub has no {what}, or it is private",
            hint="Check the spelling; for a private one set HF_TOKEN for the node.",
        ) from None
    except Exception as error:
        raise ModelLoadFailed(
            f"downloading {what} failed: {error}",
            hint="If this machine cannot reach the hub, copy the folder here and name its path.",
        ) from error
    report(1.0)
    return Path(folder)


@contextmanager
def _online() -> Iterator[None]:
    """Let the library reach the hub although workers are started with ``HF_HUB_OFFLINE``.

    That variable keeps *loading* off the network; whether to download was decided by the node's
    own setting before we came here.
    """
    from huggingface_hub import constants

    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _bar(report: Callable[[int], None]) -> type:
    """Return a silent progress bar class that reports the bytes done instead of drawing them.

    The library draws several bars at once (over the network, onto the disk, files); the one that
    is furthest on counts.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    furthest = 0

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, unit: str = "it", name: str = "", **kwargs: Any) -> None:
            self.done = kwargs.get("initial", 0)
            self.counts_bytes = unit == "B"
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self.done += n or 0
            if self.counts_bytes and self.done > furthest:
                furthest = self.done
                report(furthest)

    return Bar

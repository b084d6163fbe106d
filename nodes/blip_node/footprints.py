"""What models were measured to take, kept over restarts of the node.

A model's files tell its weights, not what its runtime adds to them. So the worker measures, and
what it found is believed the next time: by this node, and through its adverts by the broker.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blip_node.models.means import PLAIN
from blip_node.models.spec import ModelSpec

log = logging.getLogger(__name__)

#: Of the file; one of another version is started anew.
VERSION = 1

#: A replica that ends below what is remembered takes a quarter of the difference off. One huge
#: batch must not keep a model off small devices for good, one quiet afternoon must not make the
#: node forget what a batch needs.
FALL = 0.25

#: After an out-of-memory the model is believed to need at least this many times what was thought,
#: and at most the other: what was free then may be a stale reading of a device that others use.
LEAST_STEP, MOST_STEP = 1.25, 2.0

#: Seconds that such a guess lasts: it is no measurement, and others may have been to blame.
GUESS_LASTS = 600.0

#: A change below this share is not worth a write.
WORTH_WRITING = 0.05


class Footprints:
    """Bytes by (model as configured, sort of device). ``path`` None keeps them in memory only.

    ``measured``, ``ended`` and ``outgrown`` only note; :meth:`save` writes, and may be called in a
    thread.
    """

    def __init__(
        self, path: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._clock = clock
        self._known: dict[str, int] = {} if path is None else _read(path)
        #: As the file has it, or soon will.
        self._written = dict(self._known)
        self._guesses: dict[str, tuple[int, float]] = {}
        #: What :meth:`save` has to write, and who may touch that.
        self._unsaved: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def unsaved(self) -> bool:
        """Whether there is something worth writing."""
        return self._path is not None and bool(self._unsaved)

    def expected(self, spec: ModelSpec, slots: int, *, gpu: bool) -> int | None:
        """Return the bytes a replica is known, or believed, to take; None before the first."""
        key = _key(spec, slots, gpu)
        size, until = self._guesses.get(key, (0, 0.0))
        if self._clock() < until:
            return max(size, self._known.get(key, 0))
        return self._known.get(key)

    def measured(self, spec: ModelSpec, slots: int, size: int, *, gpu: bool) -> None:
        """A loaded replica took ``size`` bytes at its peak so far: rises at once."""
        key = _key(spec, slots, gpu)
        self._guesses.pop(key, None)
        self._note(key, max(size, self._known.get(key, 0)))

    def ended(self, spec: ModelSpec, slots: int, size: int, *, gpu: bool) -> None:
        """A replica that had work has ended; ``size`` was its peak: what is known may fall."""
        key = _key(spec, slots, gpu)
        known = self._known.get(key, size)
        if size < known:
            self._note(key, round(known - (known - size) * FALL))

    def outgrown(self, spec: ModelSpec, slots: int, thought: int, had: int, *, gpu: bool) -> int:
        """It ran out of memory where ``thought`` bytes were expected and ``had`` were free.

        Returns what it is believed to need from now on: more than was thought.
        """
        guess = round(min(max(thought * LEAST_STEP, had), thought * MOST_STEP))
        self._guesses[_key(spec, slots, gpu)] = (guess, self._clock() + GUESS_LASTS)
        return guess

    def save(self) -> None:
        """Write what was measured, keeping what other nodes with this folder wrote.

        A file that cannot be written costs only the memory of it; that is logged.
        """
        if self._path is None:
            return
        with self._lock:
            new, self._unsaved = self._unsaved, {}
        if not new:
            return
        temporary = self._path.with_suffix(f".tmp-{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.with_suffix(".lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                known = {**_read(self._path), **new}
                body = {"version": VERSION, "bytes": dict(sorted(known.items()))}
                temporary.write_text(json.dumps(body, indent=1))
                temporary.replace(self._path)
        except OSError as error:
            log.warning("the memory that models take cannot be kept: %s", error)
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _note(self, key: str, size: int) -> None:
        self._known[key] = size
        written = self._written.get(key, 0)
        if abs(size - written) > WORTH_WRITING * written:
            self._written[key] = size
            with self._lock:
                self._unsaved[key] = size


def _key(spec: ModelSpec, slots: int, gpu: bool) -> str:
    """Everything that moves the memory of a model, and the sort of device: a GPU has a context."""
    device = "gpu" if gpu else "cpu"
    means = spec.means.plain()
    # means that are not used stay out, so that what older versions measured is still known
    how = [getattr(means, name) for name in PLAIN]
    if how == list(PLAIN.values()):
        how = []
    if spec.runtime != "transformers":
        how.append(spec.runtime)
    how += sorted(source for _, source in (*spec.loras, *spec.controlnets))
    return json.dumps([spec.source, spec.dtype, slots, spec.context, device, *how])


def _read(path: Path) -> dict[str, int]:
    try:
        found: Any = json.loads(path.read_text())
        if found["version"] != VERSION:
            raise ValueError(f"its version is {found['version']!r}, not {VERSION}")
        sizes = {str(key): size for key, size in found["bytes"].items()}
        wrong = next(
            (key for key, size in sizes.items() if type(size) is not int or size < 0), None
        )
        if wrong is not None:
            raise ValueError(f"{wrong} is {sizes[wrong]!r}, not bytes")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is started anew: it cannot be read (%s)", path, error)
        return {}
    return sizes

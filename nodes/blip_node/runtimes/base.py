"""What a runtime is: the code that runs one kind of model inside a worker process.

A worker owns one runtime, loads it once, and feeds it jobs. Runtimes know nothing of sockets,
credit or attempts; they read a :class:`Job` and answer with an :class:`Outcome`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from blip.kinds import Kind
from blip_node.models.additions import Addition
from blip_node.models.means import SETTLED, Means
from blip_node.upstreams.engine import Engine


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended well.

    ``payload`` is the final (or only) part of the result, ``usage`` what the client is told it
    used (``prompt_tokens``, ...), ``units`` the work that was really done, in the kind's units.
    """

    payload: bytes | memoryview = b""
    usage: dict[str, int] = field(default_factory=dict)
    units: float = 0.0


class Job(Protocol):
    """One attempt, as its runtime sees it. Attributes may be read from any thread."""

    kind: Kind
    #: The validated input: an instance of ``kind.input``.
    input: Any
    #: True once the client is gone; the runtime stops within one step and raises ``Cancelled``.
    cancelled: bool
    #: False while the receiver has granted no credit: the runtime should work on others.
    writable: bool

    def emit(self, payload: bytes | memoryview) -> None:
        """Send a part of the result. Thread-safe; never blocks."""
        ...

    async def drained(self) -> None:
        """Wait on the event loop until ``writable`` (or ``cancelled``)."""
        ...

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` on the event loop whenever ``cancelled`` or ``writable`` changed."""
        ...


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What a worker loads.

    ``path`` is a local folder that ``from_pretrained`` accepts, empty for runtimes without a
    model. ``device`` is torch's word for it ("cpu", "cuda:0"; the worker sees only its own GPU).
    """

    model: str
    path: str
    device: str
    slots: int
    dtype: str = "auto"
    context: int | None = None
    threads: int | None = None
    #: Relative speed of the device for ``echo``'s paced work.
    speed: float = 1.0
    #: For a model of an upstream: the engine that answers, and the model's id there.
    engine: Engine | None = None
    remote: str = ""
    #: For a GGUF file that llama.cpp runs: the file; ``path`` has its tokenizer then.
    gguf: str = ""
    #: How it is made to fit; nothing in it is ``auto``.
    means: Means = SETTLED
    #: What an image model may be used with, as far as it was found.
    loras: tuple[Addition, ...] = ()
    controlnets: tuple[Addition, ...] = ()
    #: Of a moderation model: which category each of its labels is, "" for none, and from which
    #: score on a category is flagged.
    labels: Mapping[str, str] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    #: Of a plugin: where its class is, and what its configuration says to it.
    plugin: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


class Runtime(Protocol):
    """The life of a runtime: constructed, loaded once, run many times, closed."""

    #: Kinds this runtime serves.
    kinds: ClassVar[tuple[str, ...]]
    #: Modules worth importing in the forkserver before any worker is needed.
    preload: ClassVar[tuple[str, ...]]

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Load the model; blocking, in a thread; ``report`` takes progress from 0 to 1.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        ...

    async def run(self, job: Job) -> Outcome:
        """Run one job on the event loop's thread, or hand it to the runtime's own.

        Raises a :class:`~blip.errors.BlipError`; anything else becomes ``runtime_failed``.
        """
        ...

    def close(self) -> None:
        """Stop threads; the process ends right after."""
        ...

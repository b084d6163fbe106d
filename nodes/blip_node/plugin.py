"""Kinds of your own: what a plugin is made of. See docs/your-kind.md.

A plugin is a class with an ``Input`` and a ``run``; it is loaded in a worker process, never in the
node's agent, and what it does there can harm nobody but its own tasks. Everything else here has a
default.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

from pydantic import BaseModel

from blip.kinds.plugin import BINARY
from blip_node.runtimes.base import LoadSpec

#: The group of entry points that plugins are announced in.
GROUP = "blip.kinds"


class Context(Protocol):
    """What a run is told about its task, and can tell of it. May be used from any thread."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        ...

    def check(self) -> None:
        """Raise :class:`~blip.errors.Cancelled` if so; call it between steps, and let it out."""
        ...

    def progress(self, share: float, text: str = "") -> None:
        """Tell a client that streams how far it is, from 0 to 1, and on what. Never waits."""
        ...


class Result(NamedTuple):
    """Bytes to answer with, and what they are: ``Result(file, "image/png")``."""

    body: bytes
    media: str = BINARY


class Plugin:
    """A kind of task. The first line of the class's docstring is what people are told it does.

    ``run`` may be a function, which runs in a thread; a coroutine, which runs on the worker's event
    loop; or a generator of either sort, whose parts are sent as they come. What it returns or
    yields is answered as JSON (a pydantic model, a dataclass, what JSON knows), or as it is where
    it is bytes or a :class:`Result`.
    """

    #: The kind's name: what requests ask for.
    kind: ClassVar[str] = ""
    #: What a request's ``input`` is.
    Input: ClassVar[type[BaseModel]]
    #: What an answer, or each part of one, is: a type that pydantic knows. None: whatever
    #: ``run`` makes is sent unchecked.
    Output: ClassVar[Any] = None
    #: The input's field that says how much work it is, for the broker: a number as it is, a text or
    #: a list by its length. "": all inputs are alike.
    units: ClassVar[str] = ""
    #: Tasks that one replica runs at once, unless the configuration says otherwise.
    slots: ClassVar[int] = 1
    #: Bytes of the device's memory that it needs; 0: none, and then none is measured either.
    memory: ClassVar[int] = 0

    def load(self, spec: LoadSpec) -> None:
        """Make ready, once, before the first run: ``spec`` has the device and the options.

        What it raises is why the model cannot be loaded.
        """

    def run(self, input: Any, context: Context) -> Any:
        """Do the task; ``input`` is an ``Input``.

        A :class:`~blip.errors.BlipError` reaches the client as it is, everything else as
        ``runtime_failed``.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go; the process ends right after."""


__all__ = ["GROUP", "Context", "LoadSpec", "Plugin", "Result"]

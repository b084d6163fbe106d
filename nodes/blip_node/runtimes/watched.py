"""A look at the client from within a network's pass, for what has no callback of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class Watched:
    """Has somebody look whenever one of some modules is about to compute.

    Raising from there is how a network is stopped that has no callback of its own.
    """

    def __init__(self, modules: Iterable[Any]) -> None:
        self.look: Callable[[], None] | None = None
        for module in modules:
            module.register_forward_pre_hook(self._before)

    @contextmanager
    def by(self, look: Callable[[], None]) -> Iterator[None]:
        """Have ``look`` called until the end of the context."""
        self.look = look
        try:
            yield
        finally:
            self.look = None

    def _before(self, module: Any, arguments: Any) -> None:
        if self.look is not None:
            self.look()

"""What tests of real sockets share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop
import zmq

Context = zmq.Context[zmq.Socket[bytes]]

#: The two loops that roles run on.
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@contextmanager
def terminating() -> Iterator[Context]:
    """A context whose end fails, instead of hanging for ever, if a socket was left open."""
    context: Context = zmq.Context()
    yield context
    thread = threading.Thread(target=context.term, daemon=True)
    thread.start()
    thread.join(5)
    if thread.is_alive():
        for socket in list(context._sockets):
            socket.close(0)
        thread.join(5)
        raise AssertionError("a socket was left open: context.term() hangs")


def run_on(loop: str, main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` on a loop of that name, and find out what it left there."""

    async def checked() -> None:
        await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks were left: {left}"

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(checked())


def stall(seconds: float) -> None:
    """Keep the loop busy: what arrives meanwhile is there when it looks next."""
    time.sleep(seconds)


async def until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    """Wait for a condition; the time-out only ends what hangs."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110  (sockets set no events)
            await asyncio.sleep(0.005)

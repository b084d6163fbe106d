"""A pytest plugin: no test may leave anything behind.

Looked at are ZeroMQ sockets and contexts, threads, child processes, file descriptors and, where a
test is async, tasks. What a fixture of a wider scope than a function opens is its own business;
so is what a failed test left, since its traceback holds on to it.

:func:`held` lists what this process holds, :func:`left` what of it is new and stays.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from blip import lifecycle

#: ``(kind, identity)`` of something held, and how to describe it to a person.
Held = Mapping[tuple[str, object], str]

#: Seconds in which what a test has closed may really end: ZeroMQ closes its descriptors on a
#: thread of its own, a thread that was told to stop takes a moment. Only leaks wait this long.
GRACE = 2.0

#: Machinery of Python and of libraries that lives as long as the process, once it was needed.
THREADS = ("asyncio-waitpid", "tqdm_monitor", "pytest_timeout", "ThreadedChildWatcher")
SERVERS = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")


_before = pytest.StashKey[Held]()
_failed = pytest.StashKey[bool]()

#: What fixtures of a wider scope than a function hold.
_lasting: set[tuple[str, object]] = set()

#: Every socket and context made: a number, its kind, itself.
_made: list[tuple[int, str, weakref.ref[Any]]] = []
_numbers = itertools.count()
_warm: list[bool] = []


def watch_zmq() -> None:
    """Have every ZeroMQ socket and context that is made from now on noted."""

    def noting(kind: str, init: Callable[..., None]) -> Callable[..., None]:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            if not self._shadow:  # another object closes it
                _made.append((next(_numbers), kind, weakref.ref(self)))
            if not _warm:
                _warm.append(True)
                before = held()
                _send_without_copying()
                _lasting.update(key for key in held() if key not in before)

        return __init__

    for kind, cls in (("zmq socket", zmq.Socket), ("zmq context", zmq.Context)):
        cls.__init__ = noting(kind, cls.__init__)  # type: ignore[method-assign]


def _send_without_copying() -> None:
    """With the first such message pyzmq starts a thread and two sockets, which it keeps."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    there, here = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    there.bind("inproc://warm")
    here.connect("inproc://warm")
    here.send(bytes(1 << 20), copy=False)
    there.recv()
    context.destroy(0)


def held() -> Held:
    """List everything that this process holds now."""
    return {
        (kind, identity): text
        for source in (_zmq, _threads, _children, _descriptors)
        for kind, identity, text in source()
    }


def left(before: Held, grace: float = GRACE) -> list[str]:
    """Return what is held now, was not before, and is still held after ``grace`` seconds."""
    new = _new(before)
    if new:
        gc.collect()  # what only a reference cycle holds is a matter for ResourceWarning
        deadline = time.monotonic() + grace
        while (new := _new(before)) and time.monotonic() < deadline:
            time.sleep(0.01)
    return new


async def left_tasks(before: set[asyncio.Task[Any]], grace: float = GRACE) -> list[str]:
    """Return the tasks of this loop that are not among ``before`` and do not end by themselves."""
    new = asyncio.all_tasks() - before - {asyncio.current_task()}
    if new:
        _, new = await asyncio.wait(new, timeout=grace)
    texts = sorted(f"asyncio task {task.get_name()}: {task.get_coro()}" for task in new)
    for task in new:
        task.cancel()
    return texts


def _new(before: Held) -> list[str]:
    return sorted(
        f"{key[0]} {text}"
        for key, text in held().items()
        if key not in before and key not in _lasting
    )


def _zmq() -> Iterator[tuple[str, object, str]]:
    _made[:] = [entry for entry in _made if (it := entry[2]()) is not None and not it.closed]
    for number, kind, reference in _made:
        it = reference()
        if it is not None and not it.closed:
            # asking a socket anything could swallow its wake-up
            yield kind, number, repr(it)


def _threads() -> Iterator[tuple[str, object, str]]:
    for thread in threading.enumerate():
        if not thread.name.startswith(THREADS):
            yield "thread", id(thread), thread.name


def _children() -> Iterator[tuple[str, object, str]]:
    for pid in _child_pids():
        try:
            command = " ".join(psutil.Process(pid).cmdline())
        except psutil.ZombieProcess:
            command = "ended, and nobody waited for it"
        except psutil.NoSuchProcess:
            continue
        if not any(server in command for server in SERVERS):
            yield "child process", pid, f"{pid}: {command}"


def _child_pids() -> list[int]:
    try:
        lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    except OSError:
        lists = []
    if lists:
        return [int(pid) for each in lists for pid in each.split()]
    return [child.pid for child in psutil.Process().children()]


def _descriptors() -> Iterator[tuple[str, object, str]]:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    servers = {
        getattr(resource_tracker._resource_tracker, "_fd", None),
        getattr(forkserver._forkserver, "_forkserver_alive_fd", None),
    }
    for name in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{name}")
        except OSError:
            continue  # the one that listed the folder
        # devices (the GPU's, urandom) are opened once by libraries and kept
        if int(name) not in servers and not target.startswith("/dev/"):
            yield "file descriptor", (name, target), f"{name} -> {target}"


# --- hooks ------------------------------------------------------------------------------------


def pytest_configure() -> None:
    """Note sockets from the start."""
    watch_zmq()
    # libuv opens a pipe for signals with the first loop of a process and keeps it
    lifecycle.new_event_loop().close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every async test the fixture below, as the first to be set up and the last to go."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            names = item.fixturenames
            names[:] = ["no_tasks_left", *(name for name in names if name != "no_tasks_left")]


@pytest.fixture
async def no_tasks_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fail an async test whose tasks outlive it and its fixtures."""
    before = asyncio.all_tasks()
    yield
    _judge(request.node, await left_tasks(before))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """Note what a fixture of a wider scope opens."""
    before = held()
    try:
        return (yield)
    finally:
        if fixturedef.scope != "function":
            _lasting.update(key for key in held() if key not in before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note what there is before any fixture of the test."""
    item.stash[_before] = held()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note whether the test failed."""
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Compare, once every fixture of the test is torn down."""
    result = yield
    if _before in item.stash and not item.stash.get(_failed, False):
        _judge(item, left(item.stash[_before]))
    return result


def _judge(item: pytest.Item, found: list[str]) -> None:
    if found and not item.stash.get(_failed, False):
        pytest.fail("the test left behind:\n  " + "\n  ".join(found), pytrace=False)

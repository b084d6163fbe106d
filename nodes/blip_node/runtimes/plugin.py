"""Kinds of a plugin: its ``run`` in a thread or on the loop, its answers as bytes that say what
they are.
"""

from __future__ import annotations

import asyncio
import collections
import inspect
import json
import math
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing, suppress
from typing import Any, ClassVar

import pydantic
import pydantic_core

from blip.errors import BlipError, Cancelled, ModelLoadFailed, NoCapacity, RuntimeFailed
from blip.kinds.base import invalid_request
from blip.kinds.plugin import (
    BINARY,
    JSON,
    MAX_BYTES,
    Piece,
    PluginInput,
    Progress,
    measure,
    piece_to_wire,
)
from blip_node.plugin import Plugin, Result
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.loading import failure

#: Seconds between two looks, while a part waits for credit, at whether the worker is to end.
_LOOK = 0.25

#: A media type with its parameters, in characters that a header can carry.
_MEDIA = re.compile(r"[\w.+-]+/[\w.+-]+(; ?[\w.+-]+=[\w.+-]+)*", re.ASCII)

#: Letters of a plugin's own text that travel with progress or an error.
_SHOWN = 500


class PluginRuntime:
    """One plugin, loaded. A plain ``run`` gets a thread a slot, the first of which loads it."""

    kinds: ClassVar[tuple[str, ...]] = ()
    preload: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self._plugin: Plugin
        self._input: type[pydantic.BaseModel]
        self._output: pydantic.TypeAdapter[Any] | None = None
        self._lanes: list[Lane] = []
        self._free: collections.deque[Lane] = collections.deque()

    def load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        """Import the plugin and have it make ready.

        Raises :class:`~blip.errors.ModelLoadFailed` or ``NoCapacity`` with the reason.
        """
        from blip_node.plugins.place import find_class

        found = find_class(spec.plugin)
        report(0.5)
        self._input = found.Input
        if found.Output is not None:
            self._output = pydantic.TypeAdapter(found.Output)
        lanes = [Lane(f"plugin-{number}") for number in range(spec.slots)]

        def make() -> Plugin:
            plugin = found()
            plugin.load(spec)
            return plugin

        try:
            self._plugin = lanes[0].first(make)
        except BlipError:
            raise
        except Exception as error:
            if isinstance(told := _failure(error), NoCapacity):
                raise told from error
            raise ModelLoadFailed(f"model '{spec.model}': {_words(error)}") from error
        self._lanes = lanes
        self._free.extend(lanes)

    async def run(self, job: Job) -> Outcome:
        """Run a job: the payload is a :class:`~blip.kinds.plugin.Piece`, or nothing after parts.

        Raises ``InvalidRequest``, ``Cancelled``, ``NoCapacity``, ``RuntimeFailed`` or
        ``WorkerCrashed``, and whatever error of blip's the plugin raises.
        """
        run = self._plugin.run
        if inspect.iscoroutinefunction(run) or inspect.isasyncgenfunction(run):
            return await self._on_loop(job)
        lane = self._free.popleft()
        loop = asyncio.get_running_loop()
        try:
            return await lane.run(job, lambda job: self._in_thread(job, lane, loop))
        finally:
            self._free.append(lane)

    def close(self) -> None:
        """Stop the threads, and let the plugin go."""
        for lane in self._lanes:
            lane.close()
        if self._lanes:
            self._plugin.close()

    # --- in a thread -----------------------------------------------------------------------

    def _in_thread(self, job: Job, lane: Lane, loop: asyncio.AbstractEventLoop) -> Outcome:
        try:
            value = self._parse(job)
            made = self._plugin.run(value, _Context(job))
            if not isinstance(made, Iterator):
                return self._outcome(job, made)
            closer: Any = made if hasattr(made, "close") else None
            if closer is None:
                self._send_all(job, made, lane, loop)
            else:
                with closing(closer):
                    self._send_all(job, made, lane, loop)
            return self._outcome(job)
        except Exception as error:
            raise _failure(error) from error

    def _send_all(
        self, job: Job, parts: Iterator[Any], lane: Lane, loop: asyncio.AbstractEventLoop
    ) -> None:
        for part in parts:
            lane.look(job)
            if not job.writable:
                waiting = asyncio.run_coroutine_threadsafe(job.drained(), loop)
                try:
                    while not waiting.done():
                        with suppress(TimeoutError):
                            waiting.result(_LOOK)
                        lane.look(job)
                finally:
                    waiting.cancel()
                lane.look(job)
            job.emit(piece_to_wire(self._piece(part)))
        lane.look(job)

    # --- on the loop -----------------------------------------------------------------------

    async def _on_loop(self, job: Job) -> Outcome:
        task = asyncio.create_task(self._answer(job))

        def wake() -> None:
            if job.cancelled:
                task.cancel()

        job.on_change(wake)
        wake()
        try:
            return await task
        except asyncio.CancelledError:
            if job.cancelled:
                raise Cancelled("the client went away") from None
            task.cancel()  # it is this coroutine that was cancelled: the worker ends
            raise
        except Exception as error:
            raise _failure(error) from error

    async def _answer(self, job: Job) -> Outcome:
        made = self._plugin.run(self._parse(job), _Context(job))
        if not isinstance(made, AsyncIterator):
            return self._outcome(job, await made)
        parts: Any = made
        async with aclosing(parts):
            async for part in parts:
                if not job.writable:
                    await job.drained()
                if job.cancelled:
                    raise Cancelled("the client went away")
                job.emit(piece_to_wire(self._piece(part)))
        return self._outcome(job)

    # --- what goes in and out --------------------------------------------------------------

    def _parse(self, job: Job) -> pydantic.BaseModel:
        asked: PluginInput = job.input
        try:
            return self._input.model_validate_json(asked.document)
        except pydantic.ValidationError as error:
            told = invalid_request(error)
            told.param = f"input.{told.param}" if told.param else "input"
            raise told from None

    def _outcome(self, job: Job, made: Any = ...) -> Outcome:
        field = self._plugin.units
        units = measure(json.loads(job.input.document), field) if field else 1.0
        if made is ...:
            return Outcome(units=units)
        return Outcome(piece_to_wire(self._piece(made)), units=units)

    def _piece(self, made: Any) -> Piece:
        if isinstance(made, Result):
            piece = self._result(made)
        elif isinstance(made, bytes | bytearray | memoryview):
            piece = Piece(BINARY, bytes(made))
        else:
            piece = Piece(JSON, self._json(made))
        if len(piece.body) > MAX_BYTES:
            raise RuntimeFailed(
                f"the plugin answered {len(piece.body)} bytes at once; {MAX_BYTES} are the most",
                hint="It can yield them in parts.",
            )
        return piece

    def _result(self, made: Result) -> Piece:
        if not _MEDIA.fullmatch(made.media):
            raise RuntimeFailed(
                f"the plugin answered with a media type that is none: {made.media!r}"
            )
        if made.media != JSON:
            return Piece(made.media, made.body)
        try:
            return Piece(JSON, self._json(pydantic_core.from_json(made.body)))
        except ValueError as error:
            raise RuntimeFailed(f"the plugin answered JSON that is none: {error}") from error

    def _json(self, made: Any) -> bytes:
        try:
            if self._output is not None:
                made = self._output.validate_python(made)
                return self._output.dump_json(made)
            return pydantic_core.to_json(made, inf_nan_mode="null", bytes_mode="base64")
        except pydantic.ValidationError as error:
            told = invalid_request(error).message
            raise RuntimeFailed(f"the plugin's answer is not its Output: {told}") from error
        except pydantic_core.PydanticSerializationError as error:
            raise RuntimeFailed(
                f"the plugin's answer cannot be written as JSON: {error}"
            ) from error


class _Context:
    """Implements :class:`blip_node.plugin.Context`."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @property
    def cancelled(self) -> bool:
        return self._job.cancelled

    def check(self) -> None:
        if self._job.cancelled:
            raise Cancelled("the client went away")

    def progress(self, share: float, text: str = "") -> None:
        share = float(share)
        if self._job.writable and not self._job.cancelled and math.isfinite(share):
            share = min(1.0, max(0.0, share))
            self._job.emit(piece_to_wire(Progress(share, str(text)[:_SHOWN])))


def _failure(error: Exception) -> BlipError:
    """Return what an exception of a plugin's is to the one who asked for it."""
    if isinstance(error, BlipError):
        return error
    if "torch" in sys.modules:
        return failure(error)  # it knows a card's own ways to fail
    if isinstance(error, MemoryError):
        return NoCapacity("the machine ran out of memory")
    return RuntimeFailed(f"the plugin failed: {_words(error)}")


def _words(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0][:_SHOWN]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

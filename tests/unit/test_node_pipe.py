"""The pipe and the arena between an agent and its workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from blip_node.arena import BLOCK_BYTES, BLOCKS, WORTHWHILE_BYTES, Arena
from blip_node.pipe import MAX_MESSAGE_BYTES, Pipe, Row


class Wire:
    """Two pipes over a real unix socket."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.rows: list[list[Any]] = []
        self.closed = 0
        self.near: Pipe
        self.far: Pipe

    async def __aenter__(self) -> Wire:
        loop = asyncio.get_running_loop()
        accepted: asyncio.Future[Pipe] = loop.create_future()

        def accept() -> Pipe:
            pipe = Pipe(self._take, self._close)
            accepted.set_result(pipe)
            return pipe

        self.server = await loop.create_unix_server(accept, self.path)
        _, self.near = await loop.create_unix_connection(
            lambda: Pipe(lambda pipe, row: None, self._close), self.path
        )
        self.far = await accepted
        await self.until(lambda: self.far._transport is not None)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.near.close()
        self.far.close()
        self.server.close()
        await self.until(lambda: self.closed == 2)

    def _take(self, pipe: Pipe, row: list[Any]) -> None:
        if row[0] == Row.STOP:
            raise RuntimeError("a bug in a handler")
        self.rows.append(row)

    def _close(self, pipe: Pipe) -> None:
        self.closed += 1

    async def until(self, true: Callable[[], bool]) -> None:
        for _ in range(2000):
            if true():
                return
            await asyncio.sleep(0.002)
        raise AssertionError(f"never: {self.rows!r:.200}")


async def test_rows_arrive_in_order_whatever_their_size(tmp_path: Path) -> None:
    async with Wire(tmp_path / "s") as wire:
        sent = [[Row.DATA, n, bytes(n * 37_000 % 400_000)] for n in range(40)]
        for row in sent:
            wire.near.send(*row)
        await wire.until(lambda: len(wire.rows) == 40)
        assert wire.rows == sent


async def test_a_handler_that_raises_does_not_end_the_pipe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Wire(tmp_path / "s") as wire:
        wire.near.send(Row.STOP)
        wire.near.send(Row.CANCEL, 7)
        await wire.until(lambda: bool(wire.rows))
        assert wire.rows == [[Row.CANCEL, 7]]
        assert "a bug in a handler" in caplog.text


async def test_an_absurd_length_closes_the_pipe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Wire(tmp_path / "s") as wire:
        wire.far.data_received((MAX_MESSAGE_BYTES + 1).to_bytes(4, "little"))
        await wire.until(lambda: wire.closed == 2)
        assert "closing the pipe" in caplog.text


async def test_rows_cut_anywhere(tmp_path: Path) -> None:
    async with Wire(tmp_path / "s") as wire:
        body = msgpack.packb([[Row.CREDIT, 1, 2], [Row.CANCEL, 3]])
        stream = (len(body).to_bytes(4, "little") + body) * 2
        for at in range(len(stream)):
            wire.far.data_received(stream[at : at + 1])
        assert wire.rows == [[Row.CREDIT, 1, 2], [Row.CANCEL, 3]] * 2


def test_a_payload_crosses_the_arena_and_its_block_comes_back() -> None:
    worker = Arena()
    agent = Arena(worker.path)
    agent.unlink()
    assert not Path(worker.path).exists()
    try:
        payload = bytes(range(256)) * 1024
        taken = []
        for _ in range(BLOCKS):
            block = worker.put(payload)
            assert block is not None
            taken.append(block)
        assert worker.put(payload) is None
        assert agent.take(taken[0], len(payload)) == payload
        worker.release(taken[0])
        assert worker.put(memoryview(payload)) == taken[0]
    finally:
        worker.close()
        agent.close()


def test_the_arena_takes_only_what_is_worthwhile_and_fits() -> None:
    arena = Arena()
    arena.unlink()
    try:
        assert arena.put(bytes(WORTHWHILE_BYTES - 1)) is None
        assert arena.put(bytes(BLOCK_BYTES + 1)) is None
        assert arena.put(bytes(BLOCK_BYTES)) is not None
        with pytest.raises(ValueError, match="no block"):
            arena.take(BLOCKS, 1)
        with pytest.raises(ValueError, match="no block"):
            arena.take(0, BLOCK_BYTES + 1)
        with pytest.raises(ValueError, match="was not taken"):
            arena.release(0)
        with pytest.raises(ValueError, match="was not taken"):
            arena.release(-1)
    finally:
        arena.close()

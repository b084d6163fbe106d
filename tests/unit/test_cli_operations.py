"""``blip load``, ``unload``, ``cordon``, ``uncordon``, ``drain``, and the SDK behind them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import subprocess
import sys
from typing import Any

import pytest

from blip.cli import INTERRUPTED, main
from blip.cli.operations import Progress
from blip.client import AsyncBlip, Blip
from blip.errors import ModelNotFound, NodeLost
from blip.protocol.messages import Order, Ordered
from tests.unit.gateway_mesh import MemoryMesh, mesh, served


async def blip(backend: MemoryMesh, *args: str) -> int:
    async with served(backend) as url:
        return await asyncio.to_thread(main, [*args, "--url", url])


def saying(*words: Ordered) -> MemoryMesh:
    backend = mesh()
    backend.words["n1"] = list(words)
    return backend


def said(state: str, text: str = "", **details: Any) -> Ordered:
    return Ordered(0, state, "", text, details)


async def test_load(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        said("running", progress=0.5),
        said("done", device="cpu", seconds=2.5, memory=3 * 2**30),
    )
    backend = saying(*words)
    args = ("load", "parrot", "büro-1/cpu", "--pin", "--keep-alive", "60")
    assert await blip(backend, *args) == 0
    captured = capsys.readouterr()
    assert captured.out == "parrot is loaded on büro-1 cpu (3.0 GiB, 2.5 s)\n"
    assert captured.err == ""  # nobody looks: it is no terminal
    options = {"pin": True, "keep_alive": 60.0}
    assert backend.orders == [("n1", Order(0, "load", "cpu", "parrot", options))]
    backend = saying(said("done", device="cpu"))
    assert await blip(backend, "load", "parrot", "--no-pin", "--keep-alive", "-1") == 0
    assert capsys.readouterr().out == "parrot is loaded on büro-1 cpu\n"
    assert backend.orders[0][1].options == {"pin": False, "keep_alive": None}
    assert await blip(saying(*words), "load", "parrot", "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert (answer["node"], answer["details"]["seconds"]) == ("n1", 2.5)


async def test_unload(capsys: pytest.CaptureFixture[str]) -> None:
    backend = saying(said("running", jobs=2), said("done", replicas=1, memory=5))
    assert await blip(backend, "unload", "parrot", "büro-1", "--force") == 0
    assert capsys.readouterr().out == "parrot is unloaded from büro-1\n"
    assert backend.orders == [("n1", Order(0, "unload", "", "parrot", {"force": True}))]
    backend = saying(said("done", replicas=0))
    assert await blip(backend, "unload", "parrot", "/cpu") == 0
    assert capsys.readouterr().out == "parrot was not loaded on /cpu\n"
    assert backend.orders == [("n1", Order(0, "unload", "cpu", "parrot"))]
    assert await blip(saying(said("done", replicas=0)), "unload", "parrot", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


async def test_cordon_uncordon_drain(capsys: pytest.CaptureFixture[str]) -> None:
    backend = saying(said("done", "cpu cordoned", left=2))
    assert await blip(backend, "cordon", "büro-1/cpu", "--reason", "new fan") == 0
    assert capsys.readouterr().out == "büro-1: cpu cordoned\n"
    assert backend.orders == [("n1", Order(0, "cordon", "cpu", "", {"reason": "new fan"}))]
    assert await blip(mesh(), "uncordon", "büro-1") == 0
    assert capsys.readouterr().out == "büro-1: done\n"
    backend = saying(said("running", "2 left on cpu"), said("done", "cpu drained"))
    assert await blip(backend, "drain", "büro-1", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["text"] == "cpu drained"
    assert backend.orders == [("n1", Order(0, "drain"))]


async def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert await blip(mesh(), "drain", "/cpu") == 1
    assert "error: '/cpu' names no node" in capsys.readouterr().err
    assert await blip(mesh(), "drain", "buro-1") == 1
    assert "did you mean 'büro-1'" in capsys.readouterr().err
    lost = saying(said("running"), Ordered(0, "failed", "node_lost", "the link broke"))
    assert await blip(lost, "drain", "büro-1") == 1
    assert "error: the link broke (node büro-1)" in capsys.readouterr().err
    assert await blip(mesh(), "load", "parot") == 1
    assert "did you mean 'parrot'" in capsys.readouterr().err


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)

    def event(node: str, text: str, **details: Any) -> dict[str, Any]:
        return {
            "node": node, "name": node, "device": "", "state": "running", "text": text,
            "details": details,
        }  # fmt: skip

    with Progress() as progress:
        progress.take(event("a", "3 left"))
        progress.take(event("b", "", progress=0.25))
        progress.take(event("a", "", jobs=2))
        progress.take(event("a", ""))
    assert screen.getvalue().split("\r\033[K") == [
        "",
        "a: 3 left",
        "a: 3 left; b: loading 25%",
        "a: finishing 2; b: loading 25%",
        "a: running; b: loading 25%",
        "",
    ]


async def test_interrupting_a_drain_leaves_it_draining() -> None:
    backend = saying(said("running", "2 left on cpu"), Ordered(0, "silent"))

    def drain(url: str) -> tuple[int, str]:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "blip", "drain", "büro-1", "--url", url],
            stdout=slave,
            stderr=slave,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        os.close(slave)
        seen = b""
        try:
            while b"2 left on cpu" not in seen:
                seen += os.read(master, 4096)
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
            try:
                while part := os.read(master, 4096):
                    seen += part
            except OSError:
                pass  # all is read, and the other side is closed
        finally:
            process.kill()
            process.wait()
            os.close(master)
        return code, seen.decode()

    async with served(backend) as url:
        code, seen = await asyncio.to_thread(drain, url)
    assert code == INTERRUPTED
    assert "büro-1 goes on draining; `blip uncordon büro-1` calls it off" in seen
    assert [order.verb for _, order in backend.orders] == ["drain"]
    assert backend.left == ["n1"]


async def test_the_sdk() -> None:
    backend = saying(said("running", progress=0.5), said("done", device="cpu"))
    seen: list[dict[str, Any]] = []
    async with served(backend) as url, AsyncBlip(url) as client:
        (loaded,) = await client.load("parrot", pin=True, progress=seen.append)
        assert (loaded["name"], loaded["device"]) == ("büro-1", "cpu")
        assert [each["state"] for each in seen] == ["running", "done"]
        (drained,) = await client.drain("büro-1", "cpu", reason="x", progress=seen.append)
        assert drained["state"] == "done"
        with pytest.raises(ModelNotFound):
            await client.unload("parot")
        backend.words["n1"] = [said("running"), Ordered(0, "failed", "node_lost", "gone")]
        with pytest.raises(NodeLost, match="gone"):
            await client.drain("büro-1")
        backend.words.clear()

        def use() -> None:
            with Blip(url) as blocking:
                assert blocking.load("parrot", "büro-1", keep_alive=5)
                assert blocking.unload("parrot", force=True)
                assert blocking.cordon("n1", reason="x")
                assert blocking.uncordon("n1", "cpu")
                assert blocking.drain("n1", progress=seen.append)

        await asyncio.to_thread(use)
    assert [order.verb for _, order in backend.orders] == [
        *("load", "drain", "drain"),
        *("load", "unload", "cordon", "uncordon", "drain"),
    ]

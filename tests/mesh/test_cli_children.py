"""The supervisor's hands: real processes, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from blip.cli.children import NOT_STARTED, Children
from blip.cli.supervision import Role, Supervisor

#: Says that it runs, and ends when it is asked to.
OBEDIENT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("bye"), sys.exit(0)))
print("here", flush=True)
time.sleep(300)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
time.sleep(300)
"""
#: Leaves a process behind that holds its output open.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print("here", child.pid, flush=True)
time.sleep(300)
"""
FAILS = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(7)"


def role(name: str, code: str, *, rank: int = 0, grace: float = 20) -> Role:
    return Role(name, (sys.executable, "-c", code), rank, grace)


class Watched:
    """Children, and everything they said."""

    def __init__(self, tmp_path: Path, *roles: Role, stream: bool = True) -> None:
        self.said: list[str] = []
        self._news = asyncio.Event()
        self.supervisor = Supervisor(roles)
        self.children = Children(self.supervisor, tmp_path / "logs", self._say, stream=stream)
        self.logs = tmp_path / "logs"

    def _say(self, line: str) -> None:
        self.said.append(line)
        self._news.set()

    async def heard(self, text: str, times: int = 1) -> str:
        """Wait until lines with this text have been said; return the last of them."""
        async with asyncio.timeout(30):
            while len(found := [line for line in self.said if text in line]) < times:
                self._news.clear()
                await self._news.wait()
        return found[-1]

    async def end(self) -> int:
        self.children.force()
        async with asyncio.timeout(30):
            return await self.children.ended()


def gone(pid: int) -> bool:
    """Whether a process has ended; waits a while for it to."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


async def test_a_life(tmp_path: Path) -> None:
    watched = Watched(tmp_path, role("first", OBEDIENT, rank=0), role("last", OBEDIENT, rank=1))
    watched.children.start()
    await watched.heard("first | here")
    await watched.heard("last | here")
    pids = [watched.children.pid(name) for name in ("first", "last")]
    assert all(pid is not None and os.getpgid(pid) == pid for pid in pids)
    watched.children.stop()
    async with asyncio.timeout(30):
        assert await watched.children.ended() == 0
    farewells = [line for line in watched.said if line.endswith("| bye")]
    assert farewells == ["first | bye", "last | bye"]
    assert watched.children.pid("first") is None
    assert (watched.logs / "first.log").read_text() == "here\nbye\n"


async def test_logs_of_the_run_before_are_kept(tmp_path: Path) -> None:
    for _ in range(2):
        watched = Watched(tmp_path, role("one", OBEDIENT))
        watched.children.start()
        await watched.heard("here")
        await watched.end()
    assert sorted(path.name for path in watched.logs.iterdir()) == ["one.log", "one.log.1"]


async def test_a_death_is_told_and_mended(tmp_path: Path) -> None:
    watched = Watched(tmp_path, role("bad", FAILS), stream=False)
    watched.supervisor.ready()
    watched.children.start()
    await watched.heard("bad ended with code 7; starting it again in 0.5 s")
    await watched.heard("bad ended with code 7; starting it again in 1 s")
    assert watched.said[:3] == [watched.said[0], "  bad | one", "  bad | two"]
    assert await watched.end() == 0
    assert (watched.logs / "bad.log").read_text() == "one\ntwo\n" * 2


async def test_a_start_that_fails_ends_everything(tmp_path: Path) -> None:
    watched = Watched(tmp_path, role("fine", OBEDIENT), role("bad", "raise SystemExit(2)"))
    watched.children.start()
    async with asyncio.timeout(30):
        assert await watched.children.ended() == 1
    assert "bad ended with code 2 before the mesh was up" in watched.said


async def test_the_stubborn_are_killed(tmp_path: Path) -> None:
    watched = Watched(tmp_path, role("one", STUBBORN, grace=0.2))
    watched.children.start()
    await watched.heard("here")
    watched.children.stop()
    async with asyncio.timeout(30):
        assert await watched.children.ended() == 0
    assert "one did not stop in 0.2 s" in watched.said


async def test_force(tmp_path: Path) -> None:
    watched = Watched(tmp_path, role("one", STUBBORN), role("two", STUBBORN, rank=1))
    watched.children.start()
    await watched.heard("one | here")
    await watched.heard("two | here")
    watched.children.stop()
    assert await watched.end() == 0


async def test_a_signal_that_comes_before_the_process(tmp_path: Path) -> None:
    for stop in (Children.stop, Children.force):
        watched = Watched(tmp_path, role("one", "import time; time.sleep(300)"))
        watched.children.start()
        stop(watched.children)
        async with asyncio.timeout(30):
            assert await watched.children.ended() == 0


async def test_nothing_of_a_role_outlives_it(tmp_path: Path) -> None:
    watched = Watched(tmp_path, role("parent", PARENT))
    watched.children.start()
    grandchild = int((await watched.heard("parent | here")).split()[-1])
    pid = watched.children.pid("parent")
    assert pid is not None
    watched.supervisor.ready()
    os.kill(pid, signal.SIGKILL)
    await watched.heard("parent was ended by SIGKILL")
    assert await asyncio.to_thread(gone, grandchild)
    await watched.end()


async def test_a_program_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "nothing"))
    watched = Watched(tmp_path, Role("one", ("x",), 0, 1), stream=False)
    watched.children.start()
    async with asyncio.timeout(30):
        assert await watched.children.ended() == 1
    assert f"one ended with code {NOT_STARTED}; starting it again in 0.5 s" in watched.said
    assert any("No such file" in line for line in watched.said)


SUPERVISOR = f"""
import asyncio, sys
from pathlib import Path
from blip.cli.children import Children
from blip.cli.supervision import Role, Supervisor

async def main():
    roles = [Role("one", (sys.executable, "-c", {STUBBORN!r}), 0, 20)]
    children = Children(Supervisor(roles), Path(sys.argv[1]), lambda line: None)
    children.start()
    while children.pid("one") is None or not (Path(sys.argv[1]) / "one.log").read_text():
        await asyncio.sleep(0.01)
    print(children.pid("one"), flush=True)
    await children.ended()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_roles_die_with_their_supervisor(tmp_path: Path) -> None:
    """Even under kill -9, and even those that ignore SIGTERM."""
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        child = int(supervisor.stdout.readline())
        assert psutil.pid_exists(child)
        supervisor.kill()
    assert gone(child)

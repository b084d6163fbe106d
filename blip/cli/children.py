"""Carries out what the supervisor decides: processes, signals, logs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from blip.cli.supervision import Finish, Instruction, Role, Say, Signal, Spawn, Supervisor

#: Lines of a role's log that are shown when it dies: a traceback's last frames and its message.
TAIL = 12

#: Bytes read from a role's output at a time: all that a pipe holds.
READ = 65536

#: Exit code for a program that could not be started, as shells have it.
NOT_STARTED = 127

# Asks the kernel to be killed when the parent dies, then becomes the program. Not a preexec_fn:
# that runs Python between fork and exec, which may deadlock in programs with threads.
# 1 is PR_SET_PDEATHSIG. Where there is no prctl (macOS) nothing is asked.
_LAUNCHER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(slots=True)
class _Life:
    """One life of a role: its process and what it writes."""

    role: Role
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    log: IO[bytes]
    rest: bytes = b""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))


class Children:
    """The processes of this machine's roles. Every role leads a process group of its own, so that
    a terminal's Ctrl-C reaches the supervisor only, and so that nothing of a role outlives it.

    ``say`` takes lines for the user; with ``stream``, the roles' output as well. Make and use it
    on the event loop of the main thread: the kernel ends the roles when that thread ends.
    """

    # Not asyncio's subprocesses: their wait() also waits for the output to close, which a stray
    # grandchild of a dead role may hold open for ever.

    def __init__(
        self,
        supervisor: Supervisor,
        logs: Path,
        say: Callable[[str], None],
        *,
        stream: bool = False,
    ) -> None:
        self.supervisor = supervisor
        self._logs = logs
        self._say = say
        self._stream = stream
        self._lives: dict[str, _Life] = {}
        self._tails: dict[str, Iterable[str]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()

    def start(self) -> None:
        """Start every role."""
        self._logs.mkdir(parents=True, exist_ok=True)
        for role in self.supervisor.roles:
            log = self._log(role)
            if log.exists():
                # one run back is what one wants to read after "it was gone, so I started it again"
                log.replace(log.with_suffix(".log.1"))
        self._do(self.supervisor.start(time.monotonic()))

    def stop(self) -> None:
        """Drain."""
        self._do(self.supervisor.stop(time.monotonic()))

    def force(self) -> None:
        """End everything at once."""
        self._do(self.supervisor.force(time.monotonic()))

    async def ended(self) -> int:
        """Wait until all roles have ended; return the exit code."""
        return await asyncio.shield(self._ended)

    def pid(self, name: str) -> int | None:
        """Return the process id of a role that runs."""
        life = self._lives.get(name)
        return life.process.pid if life is not None else None

    def _log(self, role: Role) -> Path:
        return self._logs / f"{role.name}.log"

    def _do(self, steps: Iterable[Instruction]) -> None:
        for step in steps:
            match step:
                case Spawn(role):
                    self._spawn(role)
                case Signal(role, number):
                    self._signal(role, number)
                case Say(text, tail):
                    self._say(text)
                    # with ``stream`` they have been seen already
                    for line in self._tails.pop(tail, ()) if not self._stream else ():
                        self._say(f"  {tail} | {line}")
                case Finish(code):
                    self._ended.set_result(code)
        self._arm()

    def _arm(self) -> None:
        """Have the supervisor look at the clock when it next needs to."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.supervisor.deadline()
        if due is not None:
            self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._do(self.supervisor.tick(time.monotonic()))

    def _signal(self, role: Role, number: signal.Signals) -> None:
        life = self._lives.get(role.name)
        if life is None:
            return  # it could not be started; the loop is about to hear of that
        if number is signal.SIGKILL:
            _kill_group(life.process.pid)
        else:
            life.process.send_signal(number)

    def _spawn(self, role: Role) -> None:
        log = self._log(role).open("ab", buffering=0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCHER, str(os.getpid()), *role.argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            log.close()
            self._tails[role.name] = [str(error)]
            self._loop.call_soon(self._exited, role.name, NOT_STARTED)
            return
        assert process.stdout is not None
        life = _Life(role, process, process.stdout, log)
        self._lives[role.name] = life
        os.set_blocking(life.output.fileno(), False)
        self._loop.add_reader(life.output.fileno(), self._read, life)
        threading.Thread(
            target=self._watch, args=(life,), name=f"wait for {role.name}", daemon=True
        ).start()

    def _watch(self, life: _Life) -> None:
        """Wait, in a thread, until the process has ended; it stays a zombie where that is possible,
        so that its process group cannot become anybody else's.
        """
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, life.process.pid, os.WEXITED | os.WNOWAIT)
        else:
            life.process.wait()
        self._loop.call_soon_threadsafe(self._bury, life)

    def _bury(self, life: _Life) -> None:
        """Take down what a role leaves behind: workers of a node that was killed, for one."""
        _kill_group(life.process.pid)
        code = life.process.wait()
        # what it wrote last: one read holds all that a pipe does. Its end is not waited for.
        self._read(life)
        self._close(life)
        del self._lives[life.role.name]
        self._tails[life.role.name] = life.tail
        self._exited(life.role.name, code)

    def _exited(self, name: str, code: int) -> None:
        self._do(self.supervisor.exited(name, code, time.monotonic()))

    def _read(self, life: _Life) -> None:
        """Take what the role has written."""
        if life.output.closed:
            return
        try:
            chunk = os.read(life.output.fileno(), READ)
        except BlockingIOError:
            return
        if not chunk:
            self._close(life)
            return
        life.log.write(chunk)
        *lines, life.rest = (life.rest + chunk).split(b"\n")
        self._take(life, lines)

    def _close(self, life: _Life) -> None:
        if not life.output.closed:
            self._loop.remove_reader(life.output.fileno())
            life.output.close()
            life.log.close()
            if life.rest:
                self._take(life, [life.rest])

    def _take(self, life: _Life, lines: Iterable[bytes]) -> None:
        for line in lines:
            text = line.decode("utf-8", "replace")
            life.tail.append(text)
            if self._stream:
                self._say(f"{life.role.name} | {text}")


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # gone; macOS says EPERM for a group of which only zombies are left
        pass

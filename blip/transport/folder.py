"""Short private folders for unix sockets.

A socket's path may have about 107 bytes, which a state folder deep in someone's home exceeds, so
sockets live in the temporary folder. ``kill -9`` leaves such a folder behind; whoever makes the
next one sweeps those whose maker is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LOCK = "lock"


@contextlib.contextmanager
def socket_folder(prefix: str) -> Iterator[Path]:
    """Make a folder of mode 0700 that lives as long as the context; sweep its dead siblings."""
    with contextlib.ExitStack() as stack:
        # one at a time, or a sweeper could meet a folder whose maker has not locked it yet
        with _locked(Path(tempfile.gettempdir()) / f"{prefix}{os.getuid()}.lock"):
            _sweep(prefix)
            folder = Path(tempfile.mkdtemp(prefix=prefix))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(_locked(folder / _LOCK))
        yield folder


@contextlib.contextmanager
def _locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "w") as file:
        fcntl.flock(file, how)
        yield


def _sweep(prefix: str) -> None:
    """Remove our own folders whose lock nobody holds any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*/"):
        with contextlib.suppress(OSError):  # not ours, in use, or just gone
            if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                with _locked(folder / _LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(folder, ignore_errors=True)

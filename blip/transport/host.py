"""Which machine this is, and which of a peer's endpoints to dial from it."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterable
from pathlib import Path


@functools.cache
def host_id() -> str:
    """Identify this machine until it reboots; equal ids mean a shared kernel.

    Containers share a kernel without sharing files, so an ``ipc://`` path is looked for as well
    before it is dialled.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def reachable(endpoints: Iterable[str], host: str) -> str | None:
    """Choose where to dial a peer on ``host``: its ipc socket if that is here, else TCP.

    A message over ipc costs a third less latency and a quarter less CPU than over TCP loopback.
    """
    fallback = None
    for endpoint in endpoints:
        if endpoint.startswith("ipc://"):
            if host == host_id() and os.path.exists(endpoint[len("ipc://") :]):
                return endpoint
        elif fallback is None:
            fallback = endpoint
    return fallback

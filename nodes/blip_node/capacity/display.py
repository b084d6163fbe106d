"""Whether somebody may sit at this machine: a monitor or a desktop session."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: Drivers of displays that nobody looks at, and that always say "connected": the remote consoles of
#: server boards, and the screens of virtual machines.
VIRTUAL = frozenset(
    {
        "ast",
        "mgag200",
        "hibmc-drm",
        "bochs-drm",
        "cirrus",
        "qxl",
        "virtio_gpu",
        "virtio-pci",
        "vkms",
        "hyperv_drm",
        "vmwgfx",
        "vboxvideo",
    }
)


def has_display(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Tell whether a desktop runs here, or a monitor is connected. Reads a few files of ``/sys``.

    ``DISPLAY`` with a host in it is a screen elsewhere, as ``ssh -X`` sets it.
    """
    if environment.get("WAYLAND_DISPLAY") or environment.get("DISPLAY", "").startswith(":"):
        return True
    try:
        connectors = sorted((root / "sys/class/drm").glob("card*-*/status"))
    except OSError:
        return False
    return any(
        _read(status) == "connected" and _driver(status) not in VIRTUAL for status in connectors
    )


def _driver(status: Path) -> str:
    """Name the driver of a connector's card; "" where that cannot be told."""
    card = status.parent.parent / status.parent.name.partition("-")[0]
    try:
        return (card / "device/driver").resolve(strict=True).name
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

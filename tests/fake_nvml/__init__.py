"""A fake NVML: machines with any GPUs, for tests of everything above the driver.

``fake_nvml.c`` is compiled once a session into a ``libnvidia-ml.so.1`` that the unmodified
``pynvml`` loads. Its hardware is a text file that :class:`FakeGpus` writes, and may change while
programs look at it:

    gpus = FakeGpus(tmp_path / "gpus", [H100, RTX_4090])
    subprocess.Popen([...], env=os.environ | gpus.env())     # another process sees two cards
    with gpus.loaded(): ...                                  # this process sees them
    gpus.set(0, memory_used=60 << 30); gpus.xid(0, 79); gpus.set(1, lost=1)

The keys are listed at the head of ``fake_nvml.c``. None removes one: "Not Supported".
"""

from __future__ import annotations

import _ctypes
import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SONAME = "libnvidia-ml.so.1"
_SOURCE = Path(__file__).with_name("fake_nvml.c")

#: nvmlReturn_t codes that tests inject.
NO_PERMISSION, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, UNKNOWN = 4, 9, 13, 999

#: A data-centre card: everything is measured.
H100: Mapping[str, Any] = {
    "name": "NVIDIA H100 80GB HBM3",
    "compute_capability": "9.0",
    "memory_total": 85_520_809_984,
    "memory_reserved": 655_360_000,
    "memory_used": 1_048_576,
    "utilization": 0,
    "temperature": 31,
    "power_mw": 70_000,
    "power_limit_mw": 700_000,
    "energy_mj": 5_000_000,
    "memory_temperature": 38,
    "clock_mhz": 1980,
    "clock_max_mhz": 1980,
    "memory_clock_mhz": 2619,
    "memory_clock_max_mhz": 2619,
    "throttle": 1,
    "ecc_corrected": 0,
    "ecc_uncorrected": 0,
    "remapped": "0:0:0:0",
    "process_utilization": "",
    "display": 0,
    "display_mode": 1,
    "pcie_gen": 5,
    "pcie_width": 16,
    "pcie_gen_now": 5,
    "pcie_width_now": 16,
    "mig_mode": 0,
}

#: A gaming card with a screen: no ECC, no MIG, no sensor in its memory, and a fan.
RTX_4090: Mapping[str, Any] = {
    "name": "NVIDIA GeForce RTX 4090",
    "compute_capability": "8.9",
    "memory_total": 25_757_220_864,
    "memory_reserved": 400_000_000,
    "memory_used": 0,
    "utilization": 0,
    "temperature": 40,
    "power_mw": 20_000,
    "power_limit_mw": 450_000,
    "energy_mj": 1_000_000,
    "fan": 30,
    "clock_mhz": 2520,
    "clock_max_mhz": 3105,
    "memory_clock_mhz": 10_501,
    "memory_clock_max_mhz": 10_501,
    "throttle": 1,
    "process_utilization": "",
    "display": 1,
    "display_mode": 1,
    "pcie_gen": 4,
    "pcie_width": 16,
    "pcie_gen_now": 1,
    "pcie_width_now": 16,
}


def mig_instance(name: str, memory_total: int, gi: int, ci: int = 0, **more: Any) -> dict[str, Any]:
    """One instance for a card's ``mig0``, ``mig1``, ... keys."""
    uuid = f"MIG-00000000-0000-0000-0000-{gi:06d}{ci:06d}"
    return {
        "name": name,
        "uuid": uuid,
        "memory_total": memory_total,
        "memory_used": 0,
        "gi": gi,
        "ci": ci,
        **more,
    }


@functools.cache
def build() -> Path:
    """Compile the library and return the folder to put first in ``LD_LIBRARY_PATH``.

    Skips the calling test where that cannot work: no C compiler, or not Linux.
    """
    if sys.platform != "linux":
        pytest.skip("the fake NVML is an ELF library; it needs Linux")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the fake NVML needs a C compiler (gcc or cc), and there is none")
    folder = Path(tempfile.mkdtemp(prefix="blip-fake-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    flags += ["-fvisibility=hidden", f"-Wl,-soname,{SONAME}"]
    built = subprocess.run(
        [compiler, *flags, "-o", str(folder / SONAME), str(_SOURCE)],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        raise RuntimeError(f"the fake NVML does not compile:\n{built.stderr}")
    return folder


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key} {value}\n"


class FakeGpus:
    """The state file of a fake NVML: its cards, and how they change.

    ``gpus`` are mappings of the keys in ``fake_nvml.c``; a UUID and a PCI address are made up
    where they are absent. ``top`` holds keys of the whole machine, such as ``driver``.
    """

    def __init__(self, path: Path, gpus: Sequence[Mapping[str, Any]] = (), **top: Any) -> None:
        self.path = Path(path)
        self.top: dict[str, Any] = {"driver": "570.00.00-fake", **top}
        self.gpus: list[dict[str, Any]] = [
            {
                "uuid": f"GPU-00000000-0000-0000-0000-{index:012d}",
                "bus_id": f"00000000:{0x10 + index:02X}:00.0",
                **gpu,
            }
            for index, gpu in enumerate(gpus)
        ]
        self._write()

    def _write(self) -> None:
        whole = {**self.top, "count": len(self.gpus)}
        whole |= {str(index): gpu for index, gpu in enumerate(self.gpus)}
        # Readers may look at any moment: they see the old file or the new one, never half of it.
        draft = self.path.with_name(self.path.name + ".new")
        draft.write_text("".join(_flat(whole)))
        draft.replace(self.path)

    def set(self, index: int, **values: Any) -> None:
        """Change values of one card; None removes one."""
        self.gpus[index].update(values)
        self._write()

    def set_machine(self, **values: Any) -> None:
        """Change values of the machine: ``driver``, ``error={function: code}``, ``hang=...``."""
        self.top.update(values)
        self._write()

    def xid(self, index: int, code: int, gi: int | None = None, ci: int | None = None) -> None:
        """Let the driver report an Xid, on one MIG instance where ``gi`` and ``ci`` are given."""
        serial = int(str(self.gpus[index].get("xid") or "0").partition(":")[0]) + 1
        where = "" if gi is None else f":{gi}:{ci}"
        self.set(index, xid=f"{serial}:{code}{where}")

    def env(self) -> dict[str, str]:
        """Environment variables under which a new process sees these cards."""
        path = [str(build()), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": ":".join(path), "BLIP_FAKE_NVML": str(self.path)}

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Let this process see these cards, and leave no trace of them behind.

        The loader finds a library by its soname if it is loaded already, so it is enough to load
        ours by its path first. The binding keeps what it found in globals: it is imported anew.
        """
        library = ctypes.CDLL(str(build() / SONAME))
        before = os.environ.get("BLIP_FAKE_NVML")
        os.environ["BLIP_FAKE_NVML"] = str(self.path)
        ours = sys.modules.pop("pynvml", None)
        try:
            yield
        finally:
            binding = sys.modules.pop("pynvml", None)
            if ours is not None:
                sys.modules["pynvml"] = ours
            if before is None:
                del os.environ["BLIP_FAKE_NVML"]
            else:
                os.environ["BLIP_FAKE_NVML"] = before
            for loaded in (getattr(binding, "nvmlLib", None), library):
                if loaded is not None:
                    _ctypes.dlclose(loaded._handle)

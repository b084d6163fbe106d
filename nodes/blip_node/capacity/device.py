"""Words for devices: what one is, what it does right now, and who tells us.

Every metric is optional. None means "not known here", which is normal: gaming cards have no ECC,
MIG instances have no utilisation, a container may not see processes. It never means zero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

#: What the vendors' runtimes read to know which devices a process may see.
VISIBILITY = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What does not change about a device while the node runs.

    ``id`` is unique in the mesh for GPUs (the UUID the driver gives, also for MIG instances), and
    "cpu" or the configured id otherwise; ``index`` is the place in its provider's own list.
    """

    id: str
    index: int
    #: "nvidia", "amd", "cpu" or "static".
    vendor: str
    name: str
    #: Bytes.
    memory_total: int | None = None
    #: CUDA compute capability, (major, minor).
    compute_capability: tuple[int, int] | None = None
    #: What AMD calls the instruction set, such as "gfx1100".
    arch: str | None = None
    driver: str | None = None
    pci_bus_id: str | None = None
    #: The best link that card and slot can do together; the current one drops when idle.
    pcie_gen: int | None = None
    pcie_width: int | None = None
    #: The most the clocks can reach, in MHz: of the part that computes, and of the memory.
    clock_max: int | None = None
    memory_clock_max: int | None = None
    #: Whether it drives a display, as it was when the node started.
    display: bool | None = None
    #: Processor cores this node may use; the CPU only.
    cores: int | None = None
    #: UUID of the card a MIG instance is part of.
    parent: str | None = None
    #: How fast the owner says it is, relative to others; from the configuration only.
    speed: float | None = None
    #: What ROCm's ``ROCR_VISIBLE_DEVICES`` calls it; AMD only, and not its id there.
    rocr: str | None = None

    @property
    def gpu(self) -> bool:
        """Whether models run on it as what torch calls "cuda"; ROCm's torch says so too."""
        return self.vendor in ("nvidia", "amd")

    @property
    def visibility(self) -> dict[str, str]:
        """Environment under which a process sees this device and no other GPU.

        Every variable is set each time: one that the agent inherited must not add a device, and
        torch built for the other vendor must find nothing rather than another card.
        """
        hidden = dict.fromkeys(VISIBILITY, "")
        if self.vendor == "nvidia":
            return hidden | {"CUDA_VISIBLE_DEVICES": self.id}
        if self.vendor == "amd":
            # ROCR filters first, and HIP counts what is left: the one device is its number 0.
            # HIP reads CUDA_VISIBLE_DEVICES only where its own variable is empty.
            chosen = self.rocr or str(self.index)
            return hidden | {"ROCR_VISIBLE_DEVICES": chosen, "HIP_VISIBLE_DEVICES": "0"}
        return hidden


@dataclass(frozen=True, slots=True)
class Process:
    """A process on a device; ``own`` if it is one of this node's workers."""

    pid: int
    #: Bytes, None if the driver will not say.
    memory: int | None
    own: bool


@dataclass(frozen=True, slots=True)
class RemappedRows:
    """Rows of memory that the card replaced by spare ones, over its whole life.

    ``pending``: a row is replaced at the next reset. ``failed``: there was no spare left for one,
    and NVIDIA then wants the card exchanged.
    """

    correctable: int
    uncorrectable: int
    pending: bool
    failed: bool


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """What a device did at the moment ``at`` (the provider's monotonic clock, seconds).

    All metrics of a sample are of the same moment; none is carried over from an earlier one.
    """

    id: str
    at: float
    #: Bytes. ``memory_free`` is what a new allocation can have, whoever uses the rest.
    memory_free: int | None = None
    memory_used: int | None = None
    #: Bytes in use by this node's workers.
    own_memory: int | None = None
    #: Bytes in use by others than this node's workers: the owner's game, another tenant.
    foreign_memory: int | None = None
    #: 0 to 1.
    utilization: float | None = None
    #: The part of it that others than this node's workers cause, 0 to 1; drivers measure it apart
    #: from ``utilization``, over the last second or two.
    foreign_utilization: float | None = None
    #: Degrees Celsius, of the chip and of its memory.
    temperature: float | None = None
    memory_temperature: float | None = None
    #: Watts.
    power: float | None = None
    power_limit: float | None = None
    #: Joules since the driver was loaded.
    energy: float | None = None
    #: Speed of the fan as a part of its full speed; boards may go beyond 1.
    fan: float | None = None
    #: MHz, of the part that computes and of the memory.
    clock: float | None = None
    memory_clock: float | None = None
    #: Why the clock is held down, in words; empty if it is not.
    throttle: frozenset[str] | None = None
    #: The link to the machine as it is now; boards slow it down when idle.
    pcie_gen_now: int | None = None
    pcie_width_now: int | None = None
    #: Memory errors since the driver was loaded, those that were corrected and those that were not.
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    remapped_rows: RemappedRows | None = None
    processes: tuple[Process, ...] | None = None
    #: True once the driver can no longer reach the device. Only a reset or a reboot brings it back.
    lost: bool = False
    #: What went wrong while measuring, as a sentence; what is merely unsupported is no error.
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something the driver reported about a device at the moment ``at``; for NVIDIA an Xid.

    ``fatal`` means that nothing may be placed on the device until it has proved that it works.
    """

    device: str
    at: float
    code: int
    text: str
    fatal: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """A device as last seen: who it is, its latest sample, how old that is, what happened to it.

    ``age`` is in seconds, None before the first sample. ``events`` holds the latest of each code,
    oldest first.
    """

    info: DeviceInfo
    sample: DeviceSample | None = None
    age: float | None = None
    events: tuple[DeviceEvent, ...] = ()

    @property
    def fault(self) -> str | None:
        """Why nothing may be placed here, as a sentence; None if nothing speaks against it."""
        for event in self.events:
            if event.fatal:
                return event.text
        if self.sample is not None and self.sample.lost:
            return self.sample.error or "The device is lost."
        return None


class Provider(Protocol):
    """One source of devices. All calls but ``close`` come from one thread of the monitor's.

    Calls may block for as long as the driver does. An exception from any of them is shown as the
    provider's reason and harms no other provider.
    """

    #: Stable word for logs and for ``Capacity.missing``.
    name: str
    #: True if its devices only count where no other provider has any.
    fallback: bool
    #: After ``probe``: why devices are missing, as a sentence; None if none are.
    reason: str | None

    def probe(self) -> list[DeviceInfo]:
        """Find the devices; called once, first. An empty list comes with a ``reason``."""
        ...

    def sample(self, own_pids: Collection[int]) -> list[DeviceSample]:
        """Measure every device now; ``own_pids`` are this node's workers."""
        ...

    def watch(self, report: Callable[[DeviceEvent], None]) -> None:
        """Call ``report``, from any thread, for each event until ``close``."""
        ...

    def close(self) -> None:
        """Let go of the driver and end all threads; called once, after the last ``sample``."""
        ...


def own_memory(processes: Iterable[Process] | None, own_pids: Collection[int]) -> int | None:
    """Bytes that ``own_pids`` use on a device; None if that cannot be told."""
    if processes is None:
        return None if own_pids else 0
    total = 0
    for process in processes:
        if process.own:
            if process.memory is None:
                return None
            total += process.memory
    return total


def foreign_memory(
    used: int | None, processes: Iterable[Process] | None, own_pids: Collection[int]
) -> int | None:
    """Bytes of ``used`` that belong to others than ``own_pids``; None if that cannot be told.

    The remainder counts more than a sum over foreign processes would: also what the process list
    does not show, such as other containers.
    """
    own = own_memory(processes, own_pids)
    return None if used is None or own is None else max(0, used - own)

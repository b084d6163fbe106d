"""The NVML provider on real cards, against what ``nvidia-smi`` says of the same moment.

Both look at a machine that others may be using: what moves is compared within bounds, what does
not move exactly.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from blip_node.capacity import DeviceInfo, DeviceSample, Monitor, NvmlProvider
from blip_node.capacity.metrics import metrics

pytestmark = pytest.mark.gpu

MIB = 1 << 20
FIELDS = (
    "index",
    "uuid",
    "name",
    "driver_version",
    "pci.bus_id",
    "compute_cap",
    "memory.total",
    "memory.used",
    "memory.free",
    "utilization.gpu",
    "temperature.gpu",
    "power.draw",
    "enforced.power.limit",
    "clocks.sm",
    "ecc.errors.uncorrected.volatile.total",
    "pcie.link.gen.max",
    "pcie.link.width.max",
    "mig.mode.current",
    "clocks.max.sm",
    "clocks.max.memory",
    "clocks.mem",
    "temperature.memory",
    "fan.speed",
    "pcie.link.gen.current",
    "pcie.link.width.current",
    "display_active",
    "ecc.errors.corrected.volatile.total",
    "remapped_rows.correctable",
    "remapped_rows.uncorrectable",
    "remapped_rows.pending",
    "remapped_rows.failure",
)


def query() -> dict[str, dict[str, str | None]]:
    """Ask nvidia-smi; by UUID, None for what it answers with "[N/A]" and the like.

    A field that this nvidia-smi does not have is missing from the rows.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        pytest.skip("nvidia-smi is not installed here, so there is nothing to compare with")
    wanted = list(FIELDS)
    while True:
        answer = subprocess.run(
            [program, f"--query-gpu={','.join(wanted)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode == 0:
            break
        said = f"{answer.stdout.strip()} {answer.stderr.strip()}"
        unknown = re.search(r'[Ff]ield "([^"]+)" is not a valid field', said)
        if unknown is None or unknown[1] not in wanted:
            pytest.skip(f"nvidia-smi does not answer: {said}")
        wanted.remove(unknown[1])
    rows: dict[str, dict[str, str | None]] = {}
    for values in csv.reader(answer.stdout.splitlines(), skipinitialspace=True):
        assert len(values) == len(wanted), values
        row = {
            field: None if value.startswith("[") or value == "N/A" else value
            for field, value in zip(wanted, values, strict=True)
        }
        rows[str(row["uuid"])] = row
    return rows


@pytest.fixture
def provider() -> Iterator[NvmlProvider]:
    provider = NvmlProvider()
    yield provider
    provider.close()


@pytest.fixture
def cards(provider: NvmlProvider) -> list[DeviceInfo]:
    found = provider.probe()
    if not found:
        pytest.skip(f"no GPU to test with: {provider.reason}")
    return found


def number(value: str | None) -> float | None:
    return None if value is None else float(value)


def near(ours: float | None, theirs: float | None, within: float) -> None:
    """Both know it and agree, or neither does."""
    assert (ours is None) == (theirs is None), (ours, theirs)
    if ours is not None and theirs is not None:
        assert abs(ours - theirs) <= within, (ours, theirs)


def agree(row: dict[str, str | None], within: float, **pairs: Any) -> None:
    """Compare fields of nvidia-smi, named with __ for a dot, as far as it has them."""
    for name, ours in pairs.items():
        field = name.replace("__", ".")
        if field in row:
            near(ours, number(row[field]), within)


def test_the_same_cards_with_the_same_properties(cards: list[DeviceInfo]) -> None:
    theirs = query()
    whole = [info for info in cards if info.parent is None]
    sliced = {info.parent for info in cards if info.parent is not None}
    assert {info.id for info in whole} | sliced == theirs.keys()
    for info in whole:
        row = theirs[info.id]
        assert (str(info.index), info.name) == (row["index"], row["name"])
        assert (info.driver, info.pci_bus_id) == (row["driver_version"], row["pci.bus_id"])
        assert info.compute_capability is not None
        assert "{}.{}".format(*info.compute_capability) == row["compute_cap"]
        near(info.pcie_gen, number(row["pcie.link.gen.max"]), 0)
        near(info.pcie_width, number(row["pcie.link.width.max"]), 0)
        agree(row, 0, clocks__max__sm=info.clock_max, clocks__max__memory=info.memory_clock_max)
        if row.get("display_active") in ("Enabled", "Disabled"):
            assert info.display is (row["display_active"] == "Enabled")
        total = number(row["memory.total"])
        near(info.memory_total, None if total is None else total * MIB, MIB)
        assert row["mig.mode.current"] != "Enabled"


def test_the_same_numbers(provider: NvmlProvider, cards: list[DeviceInfo]) -> None:
    whole = {info.id: info for info in cards if info.parent is None}
    samples = {sample.id: sample for sample in provider.sample(())}
    theirs = query()
    for id, info in whole.items():
        row, sample = theirs[id], samples[id]
        assert sample.error is None
        assert not sample.lost
        # Another process may allocate between the two looks; a twentieth of the card is a lot.
        room = (info.memory_total or 0) / 20 + MIB
        for ours, field in [
            (sample.memory_used, "memory.used"),
            (sample.memory_free, "memory.free"),
        ]:
            value = number(row[field])
            near(ours, None if value is None else value * MIB, room)
        near(sample.temperature, number(row["temperature.gpu"]), 15)
        near(sample.power_limit, number(row["enforced.power.limit"]), 1)
        near(sample.ecc_uncorrected, number(row["ecc.errors.uncorrected.volatile.total"]), 0)
        agree(
            row,
            0,
            ecc__errors__corrected__volatile__total=sample.ecc_corrected,
            pcie__link__width__current=sample.pcie_width_now,
        )
        agree(row, 15, temperature__memory=sample.memory_temperature)
        fan = None if sample.fan is None else sample.fan * 100
        agree(row, 25, fan__speed=fan)
        rows = sample.remapped_rows
        agree(
            row,
            0,
            remapped_rows__correctable=None if rows is None else rows.correctable,
            remapped_rows__uncorrectable=None if rows is None else rows.uncorrectable,
        )
        if rows is not None:
            words = {False: "No", True: "Yes"}
            assert row.get("remapped_rows.pending") in (None, words[rows.pending])
            assert row.get("remapped_rows.failure") in (None, words[rows.failed])
        # links and clocks change with every moment; they are known to both, or to neither
        for known, field in [
            (sample.memory_clock, "clocks.mem"),
            (sample.pcie_gen_now, "pcie.link.gen.current"),
        ]:
            assert field not in row or (known is None) == (row[field] is None), field
        assert sample.pcie_gen_now is None or 1 <= sample.pcie_gen_now <= (info.pcie_gen or 9)
        assert sample.foreign_utilization is None or 0 <= sample.foreign_utilization <= 1
        assert sample.own_memory == 0
        for known, field in [
            (sample.power, "power.draw"),
            (sample.clock, "clocks.sm"),
            (sample.utilization, "utilization.gpu"),
        ]:
            assert (known is None) == (row[field] is None), field
        assert sample.utilization is None or 0 <= sample.utilization <= 1
        assert sample.foreign_memory == sample.memory_used  # nobody here is ours


def test_mig_instances_are_those_of_nvidia_smi(cards: list[DeviceInfo]) -> None:
    query()  # skips without nvidia-smi
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    ours = {info.id for info in cards if info.parent is not None}
    assert ours == {
        line.split("UUID: ")[1].rstrip(")") for line in listed.splitlines() if "MIG-" in line
    }


def test_an_allocation_is_seen(provider: NvmlProvider, cards: list[DeviceInfo]) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch makes the allocation")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    torch.zeros(1, device="cuda:0")  # the context itself takes memory
    uuid = str(torch.cuda.get_device_properties(0).uuid)

    def sample() -> DeviceSample:
        return next(s for s in provider.sample(()) if s.id.removeprefix("GPU-") == uuid)

    if uuid not in {info.id.removeprefix("GPU-") for info in cards}:
        pytest.skip(f"torch's first device {uuid} is not a whole card")
    before = sample()
    block = torch.empty(512 * MIB, dtype=torch.uint8, device="cuda:0")
    after = sample()
    assert before.memory_used is not None
    assert before.memory_free is not None
    assert after.memory_used is not None
    assert after.memory_free is not None
    # Others may free some at the same time: not all of it has to show.
    assert after.memory_used - before.memory_used >= 384 * MIB
    assert before.memory_free - after.memory_free >= 384 * MIB
    del block


def test_energy_is_power_over_time(provider: NvmlProvider, cards: list[DeviceInfo]) -> None:
    before = {sample.id: sample for sample in provider.sample(())}
    time.sleep(2)
    after = {sample.id: sample for sample in provider.sample(())}
    told = 0
    for id, sample in after.items():
        energy, limit = sample.energy, sample.power_limit
        was = before[id]
        if energy is not None and was.energy is not None and limit is not None:
            watts = (energy - was.energy) / (sample.at - was.at)
            # the counter moves in steps of 0.1 s; short peaks go beyond the cap
            assert 0 <= watts <= 1.5 * limit
            told += 1
    if not told:
        pytest.skip("no card here counts its energy")


def test_what_we_compute_is_not_foreign(provider: NvmlProvider, cards: list[DeviceInfo]) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch makes the load")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    place = next((i for i, c in enumerate(cards) if c.id.removeprefix("GPU-") == uuid), None)
    if place is None:
        pytest.skip(f"torch's first device {uuid} is not a whole card")
    matrix = torch.rand(4096, 4096, device="cuda:0")
    until = time.monotonic() + 5  # several of the driver's own sampling periods
    while time.monotonic() < until:
        for _ in range(20):
            matrix = (matrix @ matrix).clamp(0, 1)
        torch.cuda.synchronize()
    ours = provider.sample({os.getpid()})[place]
    others = provider.sample(())[place]
    if not ours.processes or os.getpid() not in {each.pid for each in ours.processes}:
        pytest.skip("the driver tells the pids of another namespace than ours")
    assert ours.own_memory is not None
    assert others.own_memory == 0
    assert ours.own_memory >= 64 * MIB  # the matrix
    if ours.foreign_utilization is None or others.foreign_utilization is None:
        pytest.skip("the driver does not tell who uses the card")
    assert others.foreign_utilization - ours.foreign_utilization >= 0.3


def test_the_monitor_tells_all_of_it_in_little_room(cards: list[DeviceInfo]) -> None:
    monitor = Monitor([NvmlProvider()], interval=0.05)
    monitor.start()
    while not [reading for reading in monitor.capacity().readings if reading.sample]:
        time.sleep(0.01)  # the test's own timeout is the limit
    readings = monitor.capacity().readings
    monitor.close()
    for reading in readings:
        told = metrics(reading)
        print(f"{reading.info.name}: {json.dumps(told)}")
        assert len(json.dumps(told)) <= 1200
        assert told["driver"] == reading.info.driver


def test_watching_for_xids_starts_and_stops(
    provider: NvmlProvider, cards: list[DeviceInfo]
) -> None:
    provider.watch(lambda event: None)
    assert provider.sample(())
    provider.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "blip-xid"]


def test_the_monitor_sees_the_cards(cards: list[DeviceInfo]) -> None:
    monitor = Monitor([NvmlProvider()], interval=0.05)
    monitor.start()
    while not [reading for reading in monitor.capacity().readings if reading.sample]:
        time.sleep(0.01)  # the test's own timeout is the limit
    capacity = monitor.capacity()
    monitor.close()
    assert [reading.info for reading in capacity.readings] == cards
    assert capacity.missing == {}

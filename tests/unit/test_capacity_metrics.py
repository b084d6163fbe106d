"""What adverts tell people of a device: names, sizes, nothing that JSON cannot say."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.protocol import codec, messages
from blip_node.adverts import advert
from blip_node.capacity import Capacity, DeviceEvent, DeviceInfo, DeviceSample, Process, Reading
from blip_node.capacity.device import RemappedRows
from blip_node.capacity.metrics import metrics
from blip_node.capacity.neighbour import Limits, Neighbour, Policy
from blip_node.capacity.nvml_metrics import THROTTLE
from blip_node.capacity.xid import FATAL, describe
from blip_node.catalogue import Catalogue
from blip_node.executions import Executions
from blip_node.standing import Standing

INFO = DeviceInfo(
    id="MIG-4a2d5ec1-9b9d-5b7a-8f2e-000000000000",
    index=0,
    vendor="nvidia",
    name="card",
    memory_total=1000,
    compute_capability=(8, 9),
    arch="gfx942:sramecc+:xnack-",
    driver="570.133.20",
    pci_bus_id="00000000:C1:00.0",
    pcie_gen=4,
    pcie_width=16,
    clock_max=3105,
    memory_clock_max=10501,
    display=False,
    cores=8,
    parent="GPU-4a2d5ec1-9b9d-5b7a-8f2e-000000000000",
)
SAMPLE = DeviceSample(
    id=INFO.id,
    at=50.0,
    memory_free=400,
    memory_used=600,
    own_memory=200,
    foreign_memory=400,
    utilization=0.5,
    foreign_utilization=0.25,
    temperature=60,
    memory_temperature=80,
    power=300.0,
    power_limit=450.0,
    energy=123456789.123456,
    fan=0.3,
    clock=2520,
    memory_clock=10501,
    throttle=frozenset({"sw_power_cap", "hw_thermal"}),
    pcie_gen_now=1,
    pcie_width_now=1,
    ecc_corrected=3,
    ecc_uncorrected=0,
    remapped_rows=RemappedRows(1, 2, pending=True, failed=False),
    processes=(Process(1, 5, own=True), Process(2, None, own=False)),
    error="nvmlDeviceGetPowerUsage: Unknown Error.",
)
XID_13 = DeviceEvent(INFO.id, 49.0, 13, "Xid 13: graphics engine exception.", fatal=False)


def test_everything_known_has_a_name() -> None:
    assert metrics(Reading(INFO, SAMPLE, 2.5, (XID_13,))) == {
        "clock": 2520,
        "clock_max": 3105,
        "memory_clock": 10501,
        "memory_clock_max": 10501,
        "memory_temperature": 80,
        "foreign_utilization": 0.25,
        "throttle": ["hw_thermal", "sw_power_cap"],
        "power_limit": 450.0,
        "energy": 123456789.123,
        "fan": 0.3,
        "ecc_corrected": 3,
        "ecc_uncorrected": 0,
        "remapped_rows": {"correctable": 1, "uncorrectable": 2, "pending": True, "failed": False},
        "pcie": {"gen": 1, "width": 1, "gen_max": 4, "width_max": 16},
        "driver": "570.133.20",
        "compute_capability": "8.9",
        "arch": "gfx942:sramecc+:xnack-",
        "pci": "00000000:C1:00.0",
        "parent": "GPU-4a2d5ec1-9b9d-5b7a-8f2e-000000000000",
        "display": False,
        "cores": 8,
        "processes": 2,
        "xids": [
            {"code": 13, "text": "Xid 13: graphics engine exception.", "fatal": False, "age": 3.5}
        ],
        "error": "nvmlDeviceGetPowerUsage: Unknown Error.",
    }


def test_what_is_not_known_is_absent() -> None:
    bare = DeviceInfo("x", 0, "static", "x")
    assert metrics(Reading(bare)) == metrics(Reading(bare, DeviceSample("x", 1.0), 0.0)) == {}
    assert metrics(Reading(bare, DeviceSample("x", 1.0, throttle=frozenset()), 0.0)) == {
        "throttle": []
    }
    lost = DeviceSample("x", 1.0, lost=True, error="GPU is lost.")
    assert metrics(Reading(bare, lost, 0.0)) == {"lost": True, "error": "GPU is lost."}


def test_an_xid_before_the_first_sample_has_no_age() -> None:
    assert metrics(Reading(INFO, None, None, (XID_13,)))["xids"] == [
        {"code": 13, "text": "Xid 13: graphics engine exception.", "fatal": False}
    ]


def test_the_worst_device_stays_small() -> None:
    """A lost, throttled, broken MIG instance with every field told takes about 1 KiB."""
    events = tuple(DeviceEvent(INFO.id, 1.0, code, describe(code), True) for code in FATAL)
    sample = replace(SAMPLE, throttle=frozenset(THROTTLE.values()), error="nvml" * 100, lost=True)
    told = metrics(Reading(replace(INFO, driver="x" * 500), sample, 1e6, events))
    assert len(json.dumps(told, separators=(",", ":")).encode()) <= 1200
    assert told["error"].endswith("…")
    assert [each["code"] for each in told["xids"]] == list(FATAL)[-3:]


numbers = st.none() | st.floats() | st.integers(0, 2**62)
counts = st.none() | st.integers(0, 2**62)
words = st.none() | st.text(max_size=400)


@given(
    st.builds(
        DeviceInfo,
        id=st.text(max_size=99),
        index=st.just(0),
        vendor=st.just("nvidia"),
        name=st.text(max_size=9),
        driver=words,
        arch=words,
        pci_bus_id=words,
        parent=words,
        clock_max=counts,
        pcie_gen=counts,
        display=st.none() | st.booleans(),
    ),
    st.builds(
        DeviceSample,
        id=st.just("x"),
        at=st.floats(0, 1e9),
        foreign_utilization=numbers,
        memory_temperature=numbers,
        power_limit=numbers,
        energy=numbers,
        fan=numbers,
        clock=numbers,
        memory_clock=numbers,
        throttle=st.none() | st.frozensets(st.sampled_from(sorted(THROTTLE.values()))),
        pcie_width_now=counts,
        ecc_corrected=counts,
        error=words,
    ),
    st.lists(
        st.builds(
            DeviceEvent,
            st.just("x"),
            st.floats(0, 1e9),
            counts.map(lambda n: n or 0),
            st.text(max_size=400),
            st.booleans(),
        ),
        max_size=9,
    ),
)
def test_every_reading_can_be_sent(
    info: DeviceInfo, sample: DeviceSample, events: list[DeviceEvent]
) -> None:
    told = metrics(Reading(info, sample, 0.5, tuple(events)))
    json.dumps(told, allow_nan=False)
    device = messages.Device("x", "nvidia", "x", 1, 1, metrics=told)
    message = messages.Advert(1, False, [device], [], [], [])
    [frames] = codec.encode([(1, message)], limit=1 << 20)
    [arrived] = codec.decode(frames)
    assert isinstance(arrived, codec.Sequenced)
    assert arrived.message == message
    assert None not in told.values()


def test_adverts_carry_them_with_ours_and_foreign() -> None:
    reading = Reading(INFO, SAMPLE, 2.5)
    untold = Reading(replace(INFO, id="other"))
    [first, second] = advert(
        1,
        now=0.0,
        draining=False,
        capacity=Capacity(52.5, (reading, untold)),
        catalogue=Catalogue(),
        replicas=[],
        executions=Executions(),
        speed=1.0,
        bandwidth={},
        benchmarks={},
        held=lambda device: 0,
        reserved=lambda device: 7,
        standings={
            id: Standing(id, Neighbour(Policy.OFF, Limits(1, 1.0))) for id in (INFO.id, "other")
        },
    ).devices
    assert (first.ours, first.foreign, first.metrics) == (200, 400, metrics(reading))
    assert (second.ours, second.foreign, second.metrics["driver"]) == (0, None, "570.133.20")


def test_the_names_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "capacity.md").read_text()
    told: dict[str, Any] = metrics(Reading(INFO, replace(SAMPLE, lost=True), 2.5, (XID_13,)))
    assert set(told) <= set(re.findall(r"`([a-z_]+)`", page))


def test_no_measurement_is_forgotten() -> None:
    """Every field of a sample is typed in Device, or is among the metrics, or says why not."""
    elsewhere = {"id", "at", "memory_free", "memory_used", "own_memory", "foreign_memory"}
    elsewhere |= {"utilization", "temperature", "power"}
    renamed = {"pcie_gen_now": "pcie", "pcie_width_now": "pcie"}
    told = metrics(Reading(INFO, replace(SAMPLE, lost=True), 2.5, (XID_13,)))
    missing = {renamed.get(each.name, each.name) for each in fields(DeviceSample)} - set(told)
    assert missing == elsewhere


@pytest.mark.parametrize("cut", [0, 3])
def test_the_link_is_told_as_far_as_it_is_known(cut: int) -> None:
    info = replace(INFO, pcie_gen=None, pcie_width=None)
    sample = replace(SAMPLE, pcie_gen_now=cut or None, pcie_width_now=None)
    assert metrics(Reading(info, sample, 0.0)).get("pcie") == ({"gen": 3} if cut else None)

"""The pure parts of capacity: what counts as foreign, as a fault, as news; declared devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.errors import ConfigError
from blip_node.capacity import (
    AmdProvider,
    Capacity,
    CpuProvider,
    DeviceEvent,
    DeviceInfo,
    DeviceSample,
    NvmlProvider,
    Process,
    Reading,
    StaticDevice,
    StaticProvider,
    providers,
)
from blip_node.capacity.device import VISIBILITY, foreign_memory, own_memory
from blip_node.capacity.monitor import differs
from blip_node.capacity.nvml_metrics import THROTTLE, throttle_reasons
from blip_node.capacity.xid import FATAL, HARMLESS, describe

INFO = DeviceInfo(id="GPU-a", index=0, vendor="nvidia", name="card", memory_total=1000)
SAMPLE = DeviceSample(id="GPU-a", at=5.0, memory_free=800, memory_used=200)
XID_13 = DeviceEvent("GPU-a", 1.0, 13, describe(13), fatal=False)
XID_79 = DeviceEvent("GPU-a", 2.0, 79, describe(79), fatal=True)


def test_foreign_memory_is_what_our_workers_do_not_account_for() -> None:
    processes = [Process(1, 300, own=True), Process(2, 500, own=False), Process(3, None, own=False)]
    assert foreign_memory(1000, processes, {1}) == 700


@pytest.mark.parametrize(
    ("used", "processes", "own", "foreign"),
    [
        (None, [], set(), None),  # memory unknown
        (100, None, {1}, None),  # we have workers, and cannot see what they use
        (100, None, set(), 100),  # without workers all of it is foreign
        (100, [Process(1, None, own=True)], {1}, None),  # our own share is unknown
        (100, [Process(1, 150, own=True)], {1}, 0),  # two moments, never below zero
        (100, [], {1}, 100),
    ],
)
def test_foreign_memory_unknown(
    used: int | None, processes: list[Process] | None, own: set[int], foreign: int | None
) -> None:
    assert foreign_memory(used, processes, own) == foreign


def test_own_memory_is_what_our_workers_hold() -> None:
    ours, theirs = Process(1, 300, own=True), Process(3, None, own=False)
    assert own_memory([ours, theirs], {1}) == 300
    assert own_memory([theirs], {1}) == own_memory(None, ()) == 0
    assert own_memory(None, {1}) is None  # we have workers, and cannot see what they use
    assert own_memory([Process(1, None, own=True)], {1}) is None


@pytest.mark.parametrize(
    ("info", "gpu", "seen"),
    [
        (INFO, True, {"CUDA_VISIBLE_DEVICES": "GPU-a"}),
        (
            replace(INFO, vendor="amd", rocr="GPU-0123456789abcdef"),
            True,
            {"ROCR_VISIBLE_DEVICES": "GPU-0123456789abcdef", "HIP_VISIBLE_DEVICES": "0"},
        ),
        (
            replace(INFO, vendor="amd", index=3),
            True,
            {"ROCR_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "0"},
        ),
        (replace(INFO, id="cpu", vendor="cpu"), False, {}),
        (replace(INFO, vendor="static"), False, {}),
    ],
)
def test_a_worker_sees_its_device_and_no_other_gpu(
    info: DeviceInfo, gpu: bool, seen: dict[str, str]
) -> None:
    assert info.gpu is gpu
    assert info.visibility == dict.fromkeys(VISIBILITY, "") | seen


@given(st.integers(min_value=0, max_value=2**63))
def test_every_throttle_bit_but_idle_has_exactly_one_name(bits: int) -> None:
    names = throttle_reasons(bits)
    assert len(names) == (bits & ~1).bit_count()
    assert {name for bit, name in THROTTLE.items() if bits & bit} <= names


def test_throttle_names() -> None:
    assert throttle_reasons(0) == throttle_reasons(1) == frozenset()
    assert throttle_reasons(0x4 | 0x40 | 0x10000) == {"sw_power_cap", "hw_thermal", "bit_0x10000"}


def test_xids_are_fatal_or_harmless_not_both() -> None:
    assert not FATAL.keys() & HARMLESS.keys()
    assert describe(79) == "Xid 79: GPU has fallen off the bus."
    assert describe(31).startswith("Xid 31: GPU memory page fault")
    assert describe(4711) == "Xid 4711."


@pytest.mark.parametrize(
    ("reading", "fault"),
    [
        (Reading(INFO), None),
        (Reading(INFO, SAMPLE, 0.0, (XID_13,)), None),
        (Reading(INFO, SAMPLE, 0.0, (XID_13, XID_79)), "Xid 79: GPU has fallen off the bus."),
        (Reading(INFO, replace(SAMPLE, lost=True, error="GPU is lost.")), "GPU is lost."),
        (Reading(INFO, replace(SAMPLE, lost=True)), "The device is lost."),
        (Reading(INFO, replace(SAMPLE, error="a metric failed.")), None),
    ],
)
def test_fault(reading: Reading, fault: str | None) -> None:
    assert reading.fault == fault


def seen(sample: DeviceSample | None = SAMPLE, **more: Any) -> Capacity:
    return Capacity(9.0, (Reading(INFO, sample, **more),))


@pytest.mark.parametrize(
    ("after", "news"),
    [
        (seen(age=4.0), False),
        (replace(seen(), at=10.0), False),
        (seen(replace(SAMPLE, temperature=90.0, at=6.0)), False),
        (seen(replace(SAMPLE, memory_free=791)), False),
        (seen(replace(SAMPLE, memory_free=790)), True),
        (seen(replace(SAMPLE, memory_free=None)), True),
        (seen(None), True),
        (seen(events=(XID_13,)), False),
        (seen(events=(XID_79,)), True),
        (seen(replace(SAMPLE, lost=True)), True),
        (Capacity(9.0), True),
        (Capacity(9.0, (Reading(replace(INFO, id="GPU-b"), SAMPLE),)), True),
        (replace(seen(), missing={"amd": "no driver"}), True),
    ],
)
def test_news(after: Capacity, news: bool) -> None:
    assert differs(seen(), after) is news


def test_unknown_memory_that_stays_unknown_is_no_news() -> None:
    assert not differs(seen(None), seen(replace(SAMPLE, memory_free=None)))


def test_capacity_finds_a_device_by_id() -> None:
    reading = seen().get("GPU-a")
    assert reading is not None
    assert reading.info is INFO
    assert seen().get("GPU-z") is None


def test_static_devices_are_declared_and_never_measured() -> None:
    provider = StaticProvider(
        [
            StaticDevice("npu0", "Some NPU", memory=32 << 30, speed=0.5),
            StaticDevice("x", "Unknown"),
        ],
        clock=lambda: 7.0,
    )
    first, second = provider.probe()
    assert first == DeviceInfo("npu0", 0, "static", "Some NPU", memory_total=32 << 30, speed=0.5)
    assert (second.index, second.memory_total, second.speed) == (1, None, None)
    assert provider.sample({1}) == [DeviceSample("npu0", 7.0), DeviceSample("x", 7.0)]
    provider.watch(lambda event: pytest.fail(f"no driver reported {event}"))
    provider.close()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"id": "", "name": "a"}, "id"),
        ({"id": "a", "name": ""}, "name"),
        ({"id": "a", "name": "b", "memory": 0}, "memory"),
        ({"id": "a", "name": "b", "speed": 0.0}, "speed"),
        ({"id": "a", "name": "b", "speed": float("nan")}, "speed"),
        ({"id": "a", "name": "b", "speed": float("inf")}, "speed"),
    ],
)
def test_impossible_static_devices(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        StaticDevice(**values)


def test_static_ids_must_differ() -> None:
    with pytest.raises(ConfigError, match="'a' is declared twice"):
        StaticProvider([StaticDevice("a", "x"), StaticDevice("a", "y")])


def test_providers_by_settings() -> None:
    nvml, amd, cpu = providers()
    assert isinstance(nvml, NvmlProvider)
    assert isinstance(amd, AmdProvider)
    assert isinstance(cpu, CpuProvider)
    assert cpu.fallback
    assert [p.name for p in providers(nvml=False, amd=False, cpu=False)] == []
    assert [p.name for p in providers(nvml=False)] == ["amd", "cpu"]
    static, always = providers(nvml=False, amd=False, cpu=True, static=[StaticDevice("a", "b")])
    assert (static.name, always.name, always.fallback) == ("static", "cpu", False)

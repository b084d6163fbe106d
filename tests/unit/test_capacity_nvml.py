"""The NVML provider and the unmodified pynvml binding, against a fake NVML library."""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from blip_node.capacity import DeviceEvent, DeviceInfo, DeviceSample, NvmlProvider, xid
from blip_node.capacity.device import Process, RemappedRows
from tests.fake_nvml import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    H100,
    NO_PERMISSION,
    RTX_4090,
    UNKNOWN,
    FakeGpus,
    mig_instance,
)

NOT_SUPPORTED, LIBRARY_NOT_FOUND, GPU_IS_LOST, VERSION_MISMATCH = 3, 12, 15, 18
GIB = 1 << 30


class Bench:
    """Fake cards in this process, and a provider that looks at them."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._stack = stack

    def cards(self, *gpus: Any, **top: Any) -> FakeGpus:
        gpus_ = FakeGpus(self._path, gpus, **top)
        self._stack.enter_context(gpus_.loaded())
        return gpus_

    def provider(self) -> NvmlProvider:
        provider = NvmlProvider(clock=lambda: 42.0)
        self._stack.callback(provider.close)
        return provider


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path / "gpus", stack)


def one(samples: list[DeviceSample]) -> DeviceSample:
    [sample] = samples
    return sample


def test_two_different_cards(bench: Bench) -> None:
    bench.cards(
        {**H100, "processes": "41:1048576", "throttle": 0x4 | 0x20, "utilization": 37},
        RTX_4090,
    )
    provider = bench.provider()
    big, small = provider.probe()
    assert provider.reason is None
    assert big == DeviceInfo(
        id="GPU-00000000-0000-0000-0000-000000000000",
        index=0,
        vendor="nvidia",
        name="NVIDIA H100 80GB HBM3",
        memory_total=85_520_809_984,
        compute_capability=(9, 0),
        driver="570.00.00-fake",
        pci_bus_id="00000000:10:00.0",
        pcie_gen=5,
        pcie_width=16,
        clock_max=1980,
        memory_clock_max=2619,
        display=False,
    )
    assert (small.index, small.name, small.compute_capability) == (1, RTX_4090["name"], (8, 9))
    first, second = provider.sample(())
    assert first == DeviceSample(
        id=big.id,
        at=42.0,
        memory_free=85_520_809_984 - 655_360_000 - 1_048_576,
        memory_used=1_048_576,
        own_memory=0,
        foreign_memory=1_048_576,
        utilization=0.37,
        foreign_utilization=0.0,
        temperature=31,
        memory_temperature=38,
        power=70.0,
        power_limit=700.0,
        energy=5000.0,
        clock=1980,
        memory_clock=2619,
        throttle=frozenset({"sw_power_cap", "sw_thermal"}),
        pcie_gen_now=5,
        pcie_width_now=16,
        ecc_corrected=0,
        ecc_uncorrected=0,
        remapped_rows=RemappedRows(0, 0, pending=False, failed=False),
        processes=(Process(41, 1_048_576, own=False),),
    )
    # a gaming card has none of these, and that is no error
    assert (second.ecc_uncorrected, second.ecc_corrected, second.remapped_rows) == (None,) * 3
    assert (second.memory_temperature, second.error) == (None, None)
    assert (second.fan, second.pcie_gen_now, small.pcie_gen) == (0.3, 1, 4)
    assert (small.display, small.clock_max) == (True, 3105)
    assert (second.id, second.memory_used, second.processes) == (small.id, 0, ())


def test_sixteen_identical_cards_are_told_apart(bench: Bench) -> None:
    gpus = bench.cards(*[RTX_4090] * 16)
    provider = bench.provider()
    infos = provider.probe()
    ids = [info.id for info in infos]
    assert len(set(ids)) == 16
    assert [info.visibility["CUDA_VISIBLE_DEVICES"] for info in infos] == ids
    before = {sample.id: sample for sample in provider.sample(())}
    gpus.set(5, memory_used=7 * GIB)
    gpus.set(12, lost=1)
    gpus.set(15, error={"nvmlDeviceGetFanSpeed": UNKNOWN})
    after = {sample.id: sample for sample in provider.sample(())}
    assert list(after) == ids
    assert [id for id in ids if after[id].memory_used == 7 * GIB] == [ids[5]]
    assert [id for id in ids if after[id].lost] == [ids[12]]
    assert [id for id in ids if after[id].error and not after[id].lost] == [ids[15]]
    assert {id for id in ids if before[id] == after[id]} == set(ids) - {ids[5], ids[12], ids[15]}


def test_a_card_that_tells_nothing(bench: Bench) -> None:
    bench.cards({"uuid": None, "bus_id": None})
    provider = bench.provider()
    [info] = provider.probe()
    assert info == DeviceInfo("nvml-0", 0, "nvidia", "NVIDIA GPU", driver="570.00.00-fake")
    assert provider.sample({1}) == [DeviceSample("nvml-0", 42.0, own_memory=0, processes=())]


def test_without_a_uuid_the_pci_address_names_the_card(bench: Bench) -> None:
    bench.cards({**H100, "uuid": None})
    assert bench.provider().probe()[0].id == "00000000:10:00.0"


def test_live_changes(bench: Bench) -> None:
    gpus = bench.cards(H100)
    provider = bench.provider()
    provider.probe()
    assert one(provider.sample(())).temperature == 31
    gpus.set(0, temperature=88, utilization=100, memory_used=80 * 10**9, ecc_uncorrected=2)
    gpus.set(0, ecc_corrected=9, remapped="1:2:1:1", pcie_gen_now=1, pcie_width_now=1)
    gpus.set(0, memory_clock_mhz=1593, energy_mj=5_000_700, memory_temperature=95)
    sample = one(provider.sample(()))
    assert sample.remapped_rows == RemappedRows(1, 2, pending=True, failed=True)
    assert (sample.pcie_gen_now, sample.pcie_width_now, sample.ecc_corrected) == (1, 1, 9)
    assert (sample.memory_clock, sample.memory_temperature) == (1593, 95)
    assert sample.energy == pytest.approx(5000.7)
    assert (sample.temperature, sample.utilization, sample.ecc_uncorrected) == (88, 1.0, 2)
    assert sample.memory_free == 85_520_809_984 - 655_360_000 - 80 * 10**9


METRICS = {
    "nvmlDeviceGetUtilizationRates": {"utilization"},
    "nvmlDeviceGetProcessUtilization": {"foreign_utilization"},
    "nvmlDeviceGetPowerUsage": {"power"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit"},
    "nvmlDeviceGetTotalEnergyConsumption": {"energy"},
    "nvmlDeviceGetFieldValues": {"memory_temperature"},
    "nvmlDeviceGetFanSpeed": {"fan"},
    "nvmlDeviceGetClockInfo": {"clock", "memory_clock"},
    "nvmlDeviceGetCurrPcieLinkGeneration": {"pcie_gen_now"},
    "nvmlDeviceGetCurrPcieLinkWidth": {"pcie_width_now"},
    "nvmlDeviceGetTotalEccErrors": {"ecc_corrected", "ecc_uncorrected"},
    "nvmlDeviceGetRemappedRows": {"remapped_rows"},
    "nvmlDeviceGetComputeRunningProcesses_v3": {"processes"},
}


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, UNKNOWN])
@pytest.mark.parametrize("function", METRICS)
def test_one_metric_fails_and_the_others_stay(bench: Bench, function: str, code: int) -> None:
    gpus = bench.cards({**H100, "fan": 40})
    provider = bench.provider()
    provider.probe()
    before = one(provider.sample(()))
    gpus.set(0, error={function: code})
    after = one(provider.sample(()))
    metrics = METRICS[function]
    assert None not in {getattr(before, metric) for metric in metrics}
    changed = {m for m in DeviceSample.__slots__ if getattr(before, m) != getattr(after, m)}
    assert {getattr(after, metric) for metric in metrics} == {None}
    if code == UNKNOWN:
        assert changed == metrics | {"error"}
        assert after.error == f"{function}: Unknown Error."
    else:
        assert changed == metrics
    assert not after.lost
    gpus.set(0, error=None)
    assert one(provider.sample(())) == before  # it works again, and so does the metric


@pytest.mark.parametrize(
    ("function", "metric", "value"),
    [
        ("nvmlDeviceGetTemperatureV", "temperature", 31),
        ("nvmlDeviceGetCurrentClocksEventReasons", "throttle", frozenset()),
    ],
)
def test_older_drivers_know_older_names(
    bench: Bench, function: str, metric: str, value: object
) -> None:
    bench.cards({**H100, "error": {function: FUNCTION_NOT_FOUND}})
    provider = bench.provider()
    provider.probe()
    assert getattr(one(provider.sample(())), metric) == value


def test_memory_as_drivers_before_510_tell_it(bench: Bench) -> None:
    bench.cards({**H100, "error": {"nvmlDeviceGetMemoryInfo_v2": FUNCTION_NOT_FOUND}})
    provider = bench.provider()
    assert provider.probe()[0].memory_total == 85_520_809_984
    sample = one(provider.sample(()))
    assert sample.memory_used == 1_048_576 + 655_360_000  # version 1 counts the reserve as used
    assert sample.memory_free == 85_520_809_984 - 655_360_000 - 1_048_576


def test_a_binding_older_than_a_function(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.cards(H100)
    provider = bench.provider()
    provider.probe()
    monkeypatch.delattr("pynvml.nvmlDeviceGetTemperatureV")
    monkeypatch.delattr("pynvml.nvmlDeviceGetClockInfo")
    monkeypatch.delattr("pynvml.nvmlDeviceGetProcessUtilization")
    sample = one(provider.sample(()))
    assert (sample.temperature, sample.clock, sample.error) == (31, None, None)
    assert sample.foreign_utilization is None


def test_our_processes_and_others(bench: Bench) -> None:
    bench.cards(
        {
            **H100,
            "memory_used": 10 * GIB,
            "processes": f"100:{4 * GIB},200:{1 * GIB},300",
            "graphics": f"300:{2 * GIB},400:{1 * GIB},200",
        }
    )
    provider = bench.provider()
    provider.probe()
    sample = one(provider.sample({100, 999}))
    assert sample.processes == (
        Process(100, 4 * GIB, own=True),
        Process(200, 1 * GIB, own=False),
        Process(300, 2 * GIB, own=False),  # computes and draws: the known size is kept
        Process(400, 1 * GIB, own=False),
    )
    assert (sample.own_memory, sample.foreign_memory) == (4 * GIB, 6 * GIB)


def test_our_process_of_unknown_size(bench: Bench) -> None:
    bench.cards({**H100, "memory_used": 10 * GIB, "processes": "100,200:5"})
    provider = bench.provider()
    provider.probe()
    unknown, known = one(provider.sample({100})), one(provider.sample({200}))
    assert unknown.own_memory is unknown.foreign_memory is None
    assert (known.own_memory, known.foreign_memory) == (5, 10 * GIB - 5)


@pytest.mark.parametrize(
    ("busy", "own", "foreign"),
    [
        ("", {41}, 0.0),
        ("41:30", {41}, 0.0),
        ("41:30,42:5,43:60", {41}, 0.65),
        ("42:80,43:70", (), 1.0),  # two moments can add up to more than there is
        ("42:4000000000", (), 1.0),
        ("0:99", (), 0.0),  # the driver's empty entry
        ("42:50:1000", (), 0.0),  # stopped long ago
        ("42:50:1000,42:20", (), 0.2),
        ("42:20,42:50:1000", (), 0.2),
        (None, (), None),  # the driver will not say
    ],
)
def test_what_others_use(bench: Bench, busy: str | None, own: Any, foreign: float | None) -> None:
    bench.cards({**H100, "process_utilization": busy})
    provider = bench.provider()
    provider.probe()
    sample = one(provider.sample(own))
    assert sample.foreign_utilization == foreign
    assert sample.error is None


def test_only_the_latest_entry_of_a_process_counts(bench: Bench) -> None:
    now = 1_700_000_000.0
    bench.cards({**H100, "process_utilization": f"42:90:{now - 1:.0f}000000,42:10:{now:.0f}000000"})
    provider = NvmlProvider(wall=lambda: now)
    provider.probe()
    try:
        assert one(provider.sample(())).foreign_utilization == 0.1
    finally:
        provider.close()


def test_a_process_that_comes_between_two_calls_is_no_error(bench: Bench) -> None:
    bench.cards({**H100, "error": {"nvmlDeviceGetProcessUtilization": 7}})  # INSUFFICIENT_SIZE
    provider = bench.provider()
    provider.probe()
    sample = one(provider.sample(()))
    assert (sample.foreign_utilization, sample.error) == (None, None)


@pytest.mark.parametrize(
    ("active", "mode", "display"),
    [(1, 1, True), (0, 1, False), (None, 1, None), (None, 0, False), (None, None, None)],
)
def test_a_display_is_one_that_is_used(
    bench: Bench, active: int | None, mode: int | None, display: bool | None
) -> None:
    bench.cards({**H100, "display": active, "display_mode": mode})
    assert bench.provider().probe()[0].display is display


@pytest.mark.parametrize(
    ("code", "error"),
    [(NOT_SUPPORTED, None), (UNKNOWN, "memory temperature: Unknown Error.")],
)
def test_a_field_has_a_verdict_of_its_own(bench: Bench, code: int, error: str | None) -> None:
    bench.cards({**H100, "memory_temperature": None, "memory_temperature_error": code})
    provider = bench.provider()
    provider.probe()
    sample = one(provider.sample(()))
    assert (sample.memory_temperature, sample.error, sample.lost) == (None, error, False)
    assert sample.temperature == 31


def test_a_field_can_tell_that_the_card_is_lost(bench: Bench) -> None:
    bench.cards({**H100, "memory_temperature": None, "memory_temperature_error": GPU_IS_LOST})
    provider = bench.provider()
    provider.probe()
    assert one(provider.sample(())).lost


@pytest.mark.parametrize(
    "change", [{"lost": 1}, {"error": {"nvmlDeviceGetPowerUsage": 16}}], ids=["lost", "reset"]
)
def test_a_lost_card_harms_no_other_and_nvml_is_not_started_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    gpus = bench.cards(H100, H100)
    provider = bench.provider()
    provider.probe()
    healthy = provider.sample(())
    monkeypatch.setattr("pynvml.nvmlInit", lambda: pytest.fail("NVML was initialised again"))
    gpus.set(0, **change)
    for _ in range(3):
        lost, other = provider.sample(())
        assert lost.lost
        assert lost.error in {"GPU is lost.", "GPU requires restart."}
        assert lost.memory_free is lost.utilization is lost.temperature is None
        assert other == healthy[1]


def test_a_card_lost_before_we_look_is_listed_as_lost(bench: Bench) -> None:
    bench.cards({**H100, "lost": 1}, RTX_4090)
    provider = bench.provider()
    lost, other = provider.probe()
    assert (lost.id, lost.memory_total, other.name) == ("nvml-0", None, RTX_4090["name"])
    samples = provider.sample(())
    assert [sample.lost for sample in samples] == [True, False]
    provider.watch(lambda event: None)


def test_a_card_lost_while_we_describe_it(bench: Bench) -> None:
    bench.cards({**H100, "error": {"nvmlDeviceGetMigMode": GPU_IS_LOST}})
    assert bench.provider().probe()[0].name == "lost GPU"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (LIBRARY_NOT_FOUND, "No NVIDIA driver is installed"),
        (DRIVER_NOT_LOADED, "not loaded"),
        (NO_PERMISSION, "/dev/nvidia"),
        (VERSION_MISMATCH, "reboot"),
        (UNKNOWN, "Unknown Error"),
        (1234, "Fake NVML error 1234"),
    ],
)
@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2"])
def test_no_nvml_is_a_sentence_not_an_exception(
    bench: Bench, function: str, code: int, said: str
) -> None:
    bench.cards(H100, error={function: code})
    provider = bench.provider()
    assert provider.probe() == []
    assert provider.reason is not None
    assert said in provider.reason
    provider.watch(lambda event: None)
    assert provider.sample(()) == []
    provider.close()
    provider.close()


def test_no_library_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "CDLL", absent)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    provider = NvmlProvider()
    assert provider.probe() == []
    assert provider.reason == "No NVIDIA driver is installed (libnvidia-ml.so.1 was not found)."
    provider.close()


def test_a_driver_without_cards(bench: Bench) -> None:
    bench.cards()
    provider = bench.provider()
    assert provider.probe() == []
    assert provider.reason == "The NVIDIA driver is running but lists no GPU."


@pytest.mark.parametrize(("code", "said"), [(NO_PERMISSION, "permission"), (UNKNOWN, "Unknown")])
def test_a_card_that_cannot_be_opened(bench: Bench, code: int, said: str) -> None:
    bench.cards({**H100, "error": {"nvmlDeviceGetHandleByIndex_v2": code}}, RTX_4090)
    provider = bench.provider()
    assert [info.name for info in provider.probe()] == [RTX_4090["name"]]
    assert provider.reason is not None
    assert "GPU 0" in provider.reason
    assert said in provider.reason


def test_shutdown_that_fails_is_swallowed(bench: Bench) -> None:
    gpus = bench.cards(H100)
    provider = bench.provider()
    provider.probe()
    import pynvml

    pynvml.nvmlShutdown()
    gpus.set(0, lost=1)
    provider.close()


# ---- MIG ----

SLICED = {
    **H100,
    "mig_mode": 1,
    "mig0": mig_instance("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40 * GIB, gi=1),
    "mig2": mig_instance("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10 * GIB, gi=9, processes="7:5"),
}


def test_mig_instances_are_the_devices(bench: Bench) -> None:
    bench.cards(SLICED, RTX_4090)
    provider = bench.provider()
    large, small, other = provider.probe()
    assert other.parent is None
    assert large.id == "MIG-00000000-0000-0000-0000-000001000000"
    assert large.parent == small.parent == "GPU-00000000-0000-0000-0000-000000000000"
    assert (large.memory_total, small.memory_total) == (40 * GIB, 10 * GIB)
    assert (small.index, small.compute_capability, small.pcie_gen) == (0, (9, 0), 5)
    assert small.name.endswith("MIG 1g.10gb")
    sample = provider.sample({7})[1]
    assert sample.id == small.id
    assert (sample.memory_free, sample.processes) == (10 * GIB, (Process(7, 5, own=True),))
    assert sample.utilization is sample.foreign_utilization is None
    assert sample.power is sample.power_limit is sample.energy is None
    assert (sample.temperature, sample.clock, sample.ecc_uncorrected) == (31, 1980, 0)
    assert (sample.memory_temperature, sample.memory_clock) == (38, 2619)
    assert (sample.pcie_gen_now, sample.pcie_width_now) == (5, 16)
    assert sample.remapped_rows == RemappedRows(0, 0, pending=False, failed=False)
    assert (small.clock_max, small.memory_clock_max, small.display) == (1980, 2619, False)
    assert small.visibility["CUDA_VISIBLE_DEVICES"] == small.id
    assert sample.error is None


def test_mig_instances_without_a_uuid_or_ids_keep_apart(bench: Bench) -> None:
    bare = {"memory_total": GIB, "uuid": "", "name": "part"}
    bench.cards({**SLICED, "mig0": bare, "mig2": bare})
    ids = [info.id for info in bench.provider().probe()]
    assert ids == [f"GPU-00000000-0000-0000-0000-000000000000/mig{place}" for place in (0, 2)]


def test_a_lost_card_loses_all_its_instances(bench: Bench) -> None:
    gpus = bench.cards(SLICED, RTX_4090)
    provider = bench.provider()
    provider.probe()
    gpus.set(0, lost=1)
    assert [sample.lost for sample in provider.sample(())] == [True, True, False]


def test_a_card_lost_among_its_instances(bench: Bench) -> None:
    error = {"nvmlDeviceGetMigDeviceHandleByIndex": GPU_IS_LOST}
    bench.cards({**SLICED, "error": error})
    assert [info.name for info in bench.provider().probe()] == ["lost GPU"]


def test_mig_mode_without_instances_says_what_to_do(bench: Bench) -> None:
    bench.cards({**H100, "mig_mode": 1})
    provider = bench.provider()
    assert provider.probe() == []
    assert provider.reason is not None
    assert "nvidia-smi mig" in provider.reason


# ---- Xids ----


def watch(provider: NvmlProvider) -> queue.Queue[DeviceEvent]:
    provider.probe()
    events: queue.Queue[DeviceEvent] = queue.Queue()
    provider.watch(events.put)
    return events


def xid_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "blip-xid"]


def test_xids_arrive_for_their_card(bench: Bench) -> None:
    gpus = bench.cards({**H100, "xid": "1:48"}, RTX_4090)  # the first one happened before us
    provider = bench.provider()
    events = watch(provider)
    gpus.xid(1, 31)
    harmless = events.get()
    assert (harmless.device[-1], harmless.code, harmless.fatal) == ("1", 31, False)
    gpus.xid(0, 79)
    fatal = events.get()
    assert fatal == DeviceEvent(
        "GPU-00000000-0000-0000-0000-000000000000",
        42.0,
        79,
        "Xid 79: GPU has fallen off the bus.",
        fatal=True,
    )
    gpus.xid(0, 79)
    assert events.get().code == 79
    [thread] = xid_threads()
    assert not thread.daemon
    provider.close()
    assert not thread.is_alive()
    assert events.empty()


def test_an_xid_of_a_mig_instance_is_that_instances_alone(bench: Bench) -> None:
    gpus = bench.cards(SLICED)
    events = watch(bench.provider())
    gpus.xid(0, 31, gi=9, ci=0)
    assert events.get().device == "MIG-00000000-0000-0000-0000-000009000000"
    gpus.xid(0, 79)  # the driver names no instance: the card, so all of them
    assert {events.get().device[-12:], events.get().device[-12:]} == {
        "000001000000",
        "000009000000",
    }
    assert events.empty()


@pytest.mark.parametrize(
    "top",
    [
        {"error": {"nvmlEventSetCreate": NOT_SUPPORTED}},
        {"error": {"nvmlDeviceGetSupportedEventTypes": NOT_SUPPORTED}},
        {"error": {"nvmlDeviceRegisterEvents": NO_PERMISSION, "nvmlEventSetFree": UNKNOWN}},
    ],
)
def test_where_events_are_not_supported_there_is_no_thread(
    bench: Bench, top: dict[str, Any]
) -> None:
    bench.cards(H100, **top)
    provider = bench.provider()
    events = watch(provider)
    assert xid_threads() == []
    assert one(provider.sample(())).error is None
    assert events.empty()


def test_waiting_that_fails_is_tried_again_and_logged_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(xid, "RETRY_S", 0.01)
    caplog.set_level(logging.WARNING)
    gpus = bench.cards(H100, error={"nvmlEventSetWait_v2": UNKNOWN})
    import pynvml

    failures = threading.Semaphore(0)
    wait = pynvml.nvmlEventSetWait_v2

    def counted(*arguments: Any) -> Any:
        try:
            return wait(*arguments)
        except pynvml.NVMLError as error:
            if error.value == UNKNOWN:
                failures.release()
            raise

    monkeypatch.setattr(pynvml, "nvmlEventSetWait_v2", counted)
    events = watch(bench.provider())
    for _ in range(4):
        assert failures.acquire(timeout=30)
    gpus.set_machine(error=None)
    gpus.xid(0, 62)
    assert events.get().code == 62
    assert [r.getMessage() for r in caplog.records] == [
        "waiting for Xid events failed: Unknown Error"
    ]


def test_an_event_of_an_unknown_card_is_dropped(bench: Bench) -> None:
    bench.cards(H100)
    provider = bench.provider()
    provider.probe()
    import pynvml

    seen: list[DeviceEvent] = []
    watcher = xid.XidWatcher(pynvml, [], seen.append, lambda: 0.0)
    event = pynvml.c_nvmlEventData_t()
    event.eventData = 79
    watcher._deliver(event)
    watcher.close()
    assert seen == []


# ---- another process, the library found by the loader's own search ----

PROGRAM = """
    import dataclasses, json, sys, threading
    from blip_node.capacity import NvmlProvider

    provider = NvmlProvider()
    infos = provider.probe()
    arrived = threading.Event()
    codes = []
    provider.watch(lambda event: (codes.append(event.code), arrived.set()))
    samples = provider.sample({100})
    print(json.dumps({
        "reason": provider.reason,
        "infos": [dataclasses.asdict(info) for info in infos],
        "samples": [
            {**dataclasses.asdict(sample), "throttle": sorted(sample.throttle or ())}
            for sample in samples
        ],
    }), flush=True)
    if infos:
        arrived.wait()
        print(json.dumps(codes))
    provider.close()
    assert threading.active_count() == 1
"""


def start(env: dict[str, str]) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM)],
        env=os.environ | {"PYTHONPATH": path} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_another_process_finds_the_fake_by_library_path(tmp_path: Path) -> None:
    gpus = FakeGpus(tmp_path / "gpus", [{**H100, "processes": "100:1048576"}, RTX_4090])
    with start(gpus.env()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = json.loads(process.stdout.readline())
        gpus.xid(1, 13)
        codes = json.loads(process.stdout.readline())
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert said["reason"] is None
    assert [info["driver"][-5:] for info in said["infos"]] == ["-fake", "-fake"]
    assert said["samples"][0]["foreign_memory"] == 0
    assert said["samples"][0]["processes"] == [{"pid": 100, "memory": 1048576, "own": True}]
    assert codes == [13]

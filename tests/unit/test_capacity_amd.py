"""The AMD provider, against a module with the shapes of ROCm's amdsmi."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from blip_node.capacity import AmdProvider, DeviceInfo, DeviceSample, Monitor, Process
from blip_node.capacity.amd_metrics import THROTTLE, throttle_reasons
from tests.unit.fake_amdsmi import (
    DRIVER_NOT_LOADED,
    FUNCTIONS,
    GIB,
    IO,
    NOT_FOUND,
    NOT_SUPPORTED,
    AmdSmiLibraryException,
    FakeAmdSmi,
    by,
    instinct,
    lose,
    radeon,
)

Install = Callable[..., tuple[FakeAmdSmi, AmdProvider]]


@pytest.fixture
def install() -> Iterator[Install]:
    with ExitStack() as stack:

        def install(*cards: dict[str, Any]) -> tuple[FakeAmdSmi, AmdProvider]:
            smi = FakeAmdSmi(cards)
            stack.enter_context(smi.installed())
            provider = AmdProvider(clock=lambda: 42.0)
            stack.callback(provider.close)
            return smi, provider

        yield install


def test_two_different_cards(install: Install) -> None:
    _, provider = install(radeon(0), instinct(1))
    gaming, large = provider.probe()
    assert provider.reason is None
    assert gaming == DeviceInfo(
        id="12ff744c-0000-1000-80e5-000000000000",
        index=0,
        vendor="amd",
        name="AMD Radeon RX 7900 XTX",
        memory_total=24 * GIB,
        arch="gfx1100",
        driver="6.12.12",
        pci_bus_id="0000:03:00.0",
        pcie_gen=4,
        pcie_width=16,
        clock_max=2526,
        memory_clock_max=1249,
        rocr="GPU-e500000000000000",
    )
    assert gaming.gpu
    assert gaming.visibility["ROCR_VISIBLE_DEVICES"] == "GPU-e500000000000000"
    assert (large.index, large.name, large.arch) == (1, "AMD Instinct MI300X OAM", "gfx942")
    assert (large.pcie_gen, large.memory_total) == (5, 192 * GIB)
    first, second = provider.sample(())
    assert first == DeviceSample(
        id=gaming.id,
        at=42.0,
        memory_free=21 * GIB,
        memory_used=3 * GIB,
        own_memory=0,
        foreign_memory=3 * GIB,
        utilization=0.37,
        foreign_utilization=0.37,
        temperature=52,
        memory_temperature=70,
        power=41,
        power_limit=339.0,
        fan=0.2,
        clock=2304,
        memory_clock=1249,
        throttle=frozenset(),
        pcie_gen_now=1,
        pcie_width_now=1,
        processes=(),
    )
    assert (second.temperature, second.memory_temperature) == (67, 49)
    assert second.throttle == frozenset({"sw_power_cap", "sw_thermal"})
    assert second.energy == pytest.approx(639_502.27, rel=1e-6)
    assert (second.power, second.fan, second.pcie_gen_now) == (287, None, 5)
    assert (second.ecc_corrected, second.ecc_uncorrected) == (7, 2)
    assert second.error is None


#: The metrics that a function tells, and no other does.
METRICS = {
    "gpu_activity": {"utilization", "foreign_utilization"},
    "gpu_process_list": {"processes"},
    "temp_metric": {"temperature", "memory_temperature"},
    "power_info": {"power"},
    "power_cap_info": {"power_limit"},
    "energy_count": {"energy"},
    "clock_info": {"clock", "memory_clock"},
    "violation_status": {"throttle"},
    "pcie_info": {"pcie_gen_now", "pcie_width_now"},
    "gpu_total_ecc_count": {"ecc_corrected", "ecc_uncorrected"},
}


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (AmdSmiLibraryException(NOT_SUPPORTED), None),
        (AmdSmiLibraryException(IO), "AMDSMI_STATUS_12 - Something"),
        (ValueError("invalid literal\nfor int()"), "ValueError: invalid literal for int()"),
    ],
    ids=["unsupported", "failing", "confused"],
)
@pytest.mark.parametrize("function", METRICS)
def test_one_metric_fails_and_the_others_stay(
    install: Install, function: str, failure: Exception, told: str | None
) -> None:
    smi, provider = install(instinct(0), radeon(1))
    provider.probe()
    before, other = provider.sample(())
    works, smi.cards[0][function] = smi.cards[0][function], failure
    after, same = provider.sample(())
    assert same == other
    metrics = METRICS[function]
    assert None not in {getattr(before, metric) for metric in metrics}
    assert {getattr(after, metric) for metric in metrics} == {None}
    changed = {m for m in DeviceSample.__slots__ if getattr(before, m) != getattr(after, m)}
    assert changed == (metrics | {"error"} if told else metrics)
    assert after.error == (f"amdsmi_get_{function}: {told}." if told else None)
    assert not after.lost
    smi.cards[0][function] = works
    assert provider.sample(()) == [before, other]


def test_a_lost_card_harms_no_other(install: Install) -> None:
    smi, provider = install(radeon(0), instinct(1))
    provider.probe()
    _, healthy = provider.sample(())
    lose(smi.cards[0])
    for _ in range(2):
        lost, other = provider.sample(())
        assert lost.lost
        assert lost.error is not None
        assert lost.error.startswith("amdsmi_get_gpu_memory_usage: AMDSMI_STATUS_12")
        assert lost.memory_free is lost.utilization is None
        assert other == healthy


def test_a_card_lost_before_we_look_is_listed_as_lost(install: Install) -> None:
    cards = [radeon(0), radeon(1)]
    lose(cards[0], NOT_FOUND)
    _, provider = install(*cards)
    lost, _ = provider.probe()
    assert (lost.id, lost.name, lost.memory_total) == ("amd-0", "AMD GPU", None)
    assert [sample.lost for sample in provider.sample(())] == [True, False]


def test_a_guest_that_may_know_nothing_is_not_lost(install: Install) -> None:
    """Virtual machines are refused most metrics; one that fails otherwise is no catastrophe."""
    _, provider = install({"power_info": AmdSmiLibraryException(IO), "gpu_process_list": []})
    assert provider.probe() == [DeviceInfo("amd-0", 0, "amd", "AMD GPU", rocr="0")]
    [sample] = provider.sample({1})
    assert not sample.lost
    assert sample.error == "amdsmi_get_power_info: AMDSMI_STATUS_12 - Something."
    assert sample == DeviceSample("amd-0", 42.0, own_memory=0, processes=(), error=sample.error)


def test_words_and_wild_values_are_unknown_not_numbers(install: Install) -> None:
    card = instinct(0)
    for function, answer in card.items():
        if isinstance(answer, dict) and function != "gpu_enumeration_info":
            card[function] = dict.fromkeys(answer, "N/A")
    card |= {
        "pcie_info": {"pcie_static": {"max_pcie_width": 65535}, "pcie_metric": "N/A"},
        "power_info": {"socket_power": float("nan"), "average_socket_power": 0xFFFFFFFF},
        "power_cap_info": {"power_cap": 0},
        "clock_info": lambda kind: "N/A",
        "temp_metric": lambda sensor, metric: "N/A",
        "gpu_process_list": "N/A",
        "gpu_memory_usage": by(vram=True),
    }
    card["pcie_info"]["pcie_metric"] = {"pcie_width": 65535, "pcie_speed": 12345}
    _, provider = install(card)
    [info] = provider.probe()
    assert (info.name, info.arch, info.driver, info.pcie_width) == ("AMD GPU", None, None, None)
    [sample] = provider.sample(())
    assert sample == DeviceSample(info.id, 42.0, own_memory=0)


def test_memory_in_mebibytes_where_bytes_are_not_told(install: Install) -> None:
    card = radeon(0)
    del card["gpu_memory_total"]
    card["gpu_memory_usage"] = AmdSmiLibraryException(IO)
    _, provider = install(card)
    assert provider.probe()[0].memory_total == 24 * GIB
    [sample] = provider.sample(())
    assert (sample.memory_used, sample.memory_free, sample.error) == (3 * GIB, 21 * GIB, None)


def process(pid: int, vram: Any) -> dict[str, Any]:
    return {
        "name": "N/A",
        "pid": pid,
        "mem": 0,
        "engine_usage": {"gfx": 0, "enc": 0},
        "memory_usage": {"gtt_mem": 5, "cpu_mem": 5, "vram_mem": vram},
    }


def test_our_processes_and_others(install: Install) -> None:
    card = radeon(0)
    card["gpu_process_list"] = [process(200, GIB), process(100, 2 * GIB), process(300, "N/A"), {}]
    _, provider = install(card)
    provider.probe()
    [sample] = provider.sample({100, 999})
    assert sample.processes == (
        Process(100, 2 * GIB, own=True),
        Process(200, GIB, own=False),
        Process(300, None, own=False),
    )
    assert (sample.own_memory, sample.foreign_memory) == (2 * GIB, 1 * GIB)
    assert sample.foreign_utilization is None  # compute time is not told by process
    [sample] = provider.sample({999})  # our workers are elsewhere
    assert (sample.own_memory, sample.foreign_utilization) == (0, 0.37)
    card["gpu_process_list"] = AmdSmiLibraryException(NOT_SUPPORTED)
    [sample] = provider.sample({999})
    assert sample.own_memory is sample.foreign_memory is sample.foreign_utilization is None


def test_sixteen_identical_cards_are_told_apart(install: Install) -> None:
    smi, provider = install(*map(radeon, range(10)), *map(instinct, range(10, 16)))
    infos = provider.probe()
    assert len({info.id for info in infos}) == 16
    assert len({info.visibility["ROCR_VISIBLE_DEVICES"] for info in infos}) == 16
    smi.cards[9]["gpu_memory_usage"] = by(vram=7 * GIB)
    used = {sample.id: sample.memory_used for sample in provider.sample(())}
    assert [id for id in used if used[id] == 7 * GIB] == [infos[9].id]


@pytest.mark.parametrize(
    ("uuid", "rank", "ids", "rocr"),
    [
        # parts of one card, or cards without a serial number: the same words for both
        (
            "same",
            [{"hip_id": 4, "hip_uuid": "GPU-00a5"}, {"hip_id": 5, "hip_uuid": "GPU-00a5"}],
            ["0000:03:00.0", "0000:04:00.0"],
            ["4", "5"],
        ),
        (
            "",
            [{"hip_id": 1, "hip_uuid": "GPU-0000000000000000"}, {"hip_uuid": "N/A"}],
            ["0000:03:00.0", "0000:04:00.0"],
            ["1", "1"],
        ),
        (
            "N/A",
            [AmdSmiLibraryException(NOT_SUPPORTED), {"hip_uuid": "GPU-ffffffffffffffff"}],
            ["0000:03:00.0", "0000:04:00.0"],
            ["0", "1"],
        ),
    ],
)
def test_names_that_are_no_names(
    install: Install, uuid: str, rank: list[Any], ids: list[str], rocr: list[str]
) -> None:
    cards = [
        {**radeon(place), "gpu_device_uuid": uuid, "gpu_enumeration_info": each}
        for place, each in enumerate(rank)
    ]
    _, provider = install(*cards)
    infos = provider.probe()
    assert [info.id for info in infos] == ids
    assert [info.rocr for info in infos] == rocr


def test_an_older_amdsmi_lacks_functions(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    smi, provider = install(radeon(0))
    for name in ("gpu_enumeration_info", "violation_status", "energy_count"):
        monkeypatch.delattr(smi, f"amdsmi_get_{name}")
    monkeypatch.delattr(smi, "AmdSmiMemoryType")
    monkeypatch.delattr(smi, "AmdSmiClkType")
    [info] = provider.probe()
    assert info.rocr == "0"
    [sample] = provider.sample(())
    assert (sample.clock, sample.lost) == (None, False)


def test_throttle_bits_have_the_words_of_nvml() -> None:
    assert throttle_reasons(0) == frozenset()
    assert throttle_reasons(1 << 0 | 1 << 36 | 1 << 47) == {
        "sw_power_cap",
        "sw_thermal",
        "hw_thermal",
    }
    assert throttle_reasons(1 << 56) == {"bit_0x100000000000000"}
    places = [bit for bits, _ in THROTTLE for bit in bits]
    assert len(places) == len(set(places))


# ---- no cards ----


def test_amdsmi_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    provider = AmdProvider()
    assert provider.probe() == []
    assert provider.reason == "amdsmi is not installed; AMD GPUs need ROCm and blip-mesh[amd]."
    assert provider.sample({1}) == []
    provider.close()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        # what amdsmi does without ROCm: it prints, goes on, and stumbles over its own table
        (
            "libraries = {}\nlibraries['libamd_smi.so'].amdsmi_init\n",
            "KeyError: 'libamd_smi.so'",
        ),
        (
            "import ctypes\nctypes.CDLL('/nowhere/libamd_smi.so')\n",
            "OSError: /nowhere/libamd_smi.so",
        ),
        ("import a_module_that_nobody_has\n", "a_module_that_nobody_has"),
    ],
)
def test_an_import_without_rocm_is_a_reason_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, said: str
) -> None:
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    (tmp_path / "amdsmi").mkdir()
    (tmp_path / "amdsmi" / "__init__.py").write_text("from . import wrapper\n")
    (tmp_path / "amdsmi" / "wrapper.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monitor = Monitor([AmdProvider()])
    monitor.start()
    while "first look" in monitor.capacity().missing.get("amd", "first look"):
        pass  # the test's own timeout is the limit
    capacity = monitor.capacity()
    monitor.close()
    assert capacity.readings == ()
    assert said in capacity.missing["amd"]
    for name in [each for each in sys.modules if each.partition(".")[0] == "amdsmi"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AmdSmiLibraryException(DRIVER_NOT_LOADED), "The amdgpu driver is not loaded"),
        (AmdSmiLibraryException(10), "render and video"),
        (AmdSmiLibraryException(18), "amdsmi did not start: AMDSMI_STATUS_18 - Something."),
        (RuntimeError("odd"), "amdsmi did not start: RuntimeError: odd."),
    ],
)
def test_amdsmi_that_does_not_start_says_why(install: Install, error: Exception, said: str) -> None:
    smi, provider = install(radeon(0))
    smi.init_error = error
    assert provider.probe() == []
    assert provider.reason is not None
    assert said in provider.reason


def test_a_driver_without_cards(install: Install) -> None:
    smi, provider = install()
    assert provider.probe() == []
    assert provider.reason == "AMD's driver is running but lists no GPU."
    assert smi.running == 0


def test_closing_shuts_down_once_whatever_it_says(install: Install) -> None:
    smi, provider = install(radeon(0))
    provider.probe()
    provider.watch(lambda event: pytest.fail(f"amdsmi reported {event}"))
    assert smi.running == 1
    provider.close()
    provider.close()
    assert smi.running == 0
    provider.probe()
    smi.running = 0  # the next shutdown raises
    provider.close()


def test_the_stand_in_has_every_function_that_the_provider_calls() -> None:
    folder = Path(sys.modules[AmdProvider.__module__].__file__ or "").parent
    source = (folder / "amd.py").read_text() + (folder / "amd_metrics.py").read_text()
    named = {part.split('"')[0] for part in source.split('"amdsmi_get_')[1:]}
    assert named - {"processor_handles"} <= {*FUNCTIONS, "gpu_memory_{what}"}

"""The real benchmark on this machine's CPU, and what keeps its results."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from blip.protocol import ranking
from blip_node import adverts, benchmark, measurements
from blip_node.capacity import DeviceInfo, DeviceSample, Reading
from blip_node.measurements import Measurements, Program, Store, key_of

CPU = DeviceInfo("cpu", 0, "cpu", "EPYC", cores=2)
GPU = DeviceInfo("GPU-1", 0, "nvidia", "RTX 3060", driver="570.1")
FOUND = {"decode": 1e10, "fp32": 1e11, "seconds": 0.2}

#: A program that stands where the benchmark stands: it counts its runs, one that is told to wait
#: does, and prints figures or fails.
STAND_IN = """
import json, os, sys, time
with open(os.environ["RUNS"], "a") as file:
    file.write(json.dumps([os.getpid(), sys.argv[1:], os.environ["CUDA_VISIBLE_DEVICES"]]) + "\\n")
mode = os.environ["MODE"]
if mode == "crash":
    sys.exit("it went wrong")
if mode == "error":
    print('{"error": "no kernel image"}'); sys.exit(1)
time.sleep({"slow": 1.0, "stuck": 600.0}.get(mode, 0.0))
print(json.dumps({"figures": {"decode": 1e10, "fp32": 1e11, "seconds": 0.2, "odd": 1},
                  "left_out": {"fp16": "emulated"}}))
"""


# --- the benchmark itself -------------------------------------------------------------------


def test_a_processor_is_measured() -> None:
    pytest.importorskip("torch")
    found = benchmark.measure("cpu", 0.5)
    figures = found["figures"]
    assert set(figures) <= set(ranking.KEYS)
    assert {"fp32", "decode"} <= set(figures)
    # Any processor that runs this, by orders of magnitude; and no bus to cross.
    assert 1e8 < figures["fp32"] < 1e14
    assert 1e7 < figures["decode"] < 1e13
    assert not {"h2d", "d2h"} & set(figures)
    assert set(figures) | set(found["left_out"]) >= {"fp16", "bf16", "fp32", "decode"}
    assert ranking.speed(figures)


def test_what_takes_too_long_is_left_out_with_a_reason() -> None:
    pytest.importorskip("torch")
    found = benchmark.measure("cpu", 1e-9)
    assert set(found) == {"error"}
    assert "more than its share of the time" in found["error"]


def test_the_program_prints_one_line() -> None:
    pytest.importorskip("torch")
    done = _run(
        "--device", "cpu", "--budget", "0.1", "--threads", "1", "--parent", str(os.getpid())
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["figures"]["seconds"] > 0


def test_a_device_that_is_not_there_is_an_error_in_one_line() -> None:
    pytest.importorskip("torch")
    done = _run("--device", "cuda:63")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert list(json.loads(line)) == ["error"]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "blip_node.benchmark", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# --- the store ------------------------------------------------------------------------------


def test_results_are_kept_beside_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    assert store.get("a") is None
    store.put("a", FOUND)
    Store(tmp_path / "data").put("b", {"decode": 2e10})
    assert store.get("a") == FOUND
    assert store.get("b") == {"decode": 2e10}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["benchmarks.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"a": 3}', '{"a": {"decode": "fast"}}', '{"a": {"decode": -1, "fp32": NaN}}'],
)
def test_a_file_that_makes_no_sense_is_written_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "benchmarks.json").write_text(text)
    store = Store(tmp_path)
    assert store.get("a") is None
    store.put("a", FOUND)
    assert store.get("a") == FOUND


def test_only_one_at_a_time_measures(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom blip_node.measurements import Store\n"
        "with Store(pathlib.Path(sys.argv[1])).lock() as ours: print(ours)"
    )

    def another() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    with Store(tmp_path).lock() as ours:
        assert ours
        assert another() == "False"
    assert another() == "True"


def test_a_result_is_for_one_device_driver_and_torch() -> None:
    pytest.importorskip("torch")
    import torch

    key = key_of(GPU)
    assert key == f"GPU-1 | 570.1 | torch {torch.__version__}"
    assert key != key_of(DeviceInfo("GPU-1", 0, "nvidia", "RTX 3060", driver="575.0"))
    assert key_of(CPU) != key_of(DeviceInfo("cpu", 0, "cpu", "EPYC", cores=4))


# --- measuring ------------------------------------------------------------------------------


class Bed:
    """Measurements with a stand-in for the program; counts how often it ran."""

    def __init__(self, folder: Path, mode: str, **options: float) -> None:
        self.runs = folder / "runs"
        (folder / "stand_in.py").write_text(STAND_IN)
        environment = {
            "MODE": mode,
            "RUNS": str(self.runs),
            "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        }
        program = Program(
            "stand_in",
            timeout=options.get("timeout", 30.0),
            settle=options.get("settle", 0.0),
            environment=environment,
        )
        self.told = 0
        self.measurements = Measurements(Store(folder / "data"), self._tell, program)

    def _tell(self) -> None:
        self.told += 1

    def ran(self) -> list[list[object]]:
        return (
            [json.loads(line) for line in self.runs.read_text().splitlines()]
            if (self.runs.exists())
            else []
        )

    async def until(
        self,
        true: Callable[[], bool],
        readings: list[Reading],
        idle: Callable[[str], bool] = lambda device: True,
    ) -> None:
        end = time.monotonic() + 30
        while not true():
            assert time.monotonic() < end, "it never came to that"
            self.measurements.step(readings, idle)
            await asyncio.sleep(0.02)


async def test_each_device_is_measured_once(tmp_path: Path) -> None:
    bed = Bed(tmp_path, "fine")
    both = [Reading(CPU), Reading(GPU)]
    await bed.until(lambda: len(bed.measurements.figures) == 2, both)
    assert bed.measurements.figures == {"cpu": FOUND, "GPU-1": FOUND}
    assert bed.told == 2
    (_, cpu, seen), (_, gpu, own) = bed.ran()
    assert isinstance(cpu, list)
    assert isinstance(gpu, list)
    assert cpu[:2] == ["--device", "cpu"]
    assert cpu[cpu.index("--threads") + 1] == "2"
    assert seen == ""
    assert gpu[:2] == ["--device", "cuda:0"]
    assert own == "GPU-1"
    for _ in range(5):
        bed.measurements.step(both, lambda device: True)
        await asyncio.sleep(0.02)
    again = Bed(tmp_path, "crash", settle=600.0)
    # Known from the file, at once and although everything is busy.
    await again.until(lambda: len(again.measurements.figures) == 2, both, lambda device: False)
    assert len(bed.ran()) == 2
    assert not bed.measurements.pids


async def test_two_agents_on_one_machine_measure_once(tmp_path: Path) -> None:
    one, other = Bed(tmp_path, "slow"), Bed(tmp_path, "slow")
    await asyncio.gather(
        one.until(lambda: bool(one.measurements.figures), [Reading(CPU)]),
        other.until(lambda: bool(other.measurements.figures), [Reading(CPU)]),
    )
    assert one.measurements.figures == other.measurements.figures == {"cpu": FOUND}
    assert len(one.ran()) == 1


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("error", "no kernel image"),
        ("crash", "ended with code 1: it went wrong"),
        ("stuck", "more than 1 s"),
    ],
)
async def test_what_fails_is_said_once(
    tmp_path: Path, mode: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    bed = Bed(tmp_path, mode, timeout=1.0)
    await bed.until(lambda: bool(caplog.records), [Reading(CPU)])
    for _ in range(5):
        bed.measurements.step([Reading(CPU)], lambda device: True)
        await asyncio.sleep(0.02)
    (record,) = [each for each in caplog.records if each.name == measurements.__name__]
    assert reason in record.getMessage()
    assert bed.measurements.figures == {}
    assert len(bed.ran()) == 1
    assert not _alive(bed)


async def test_without_torch_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measurements, "key_of", lambda info: None)
    bed = Bed(tmp_path, "fine")
    await bed.until(lambda: bool(caplog.records), [Reading(CPU)])
    assert "torch is not installed" in caplog.text
    assert bed.ran() == []


async def test_a_data_folder_that_cannot_be_made_is_a_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").write_text("not a folder")
    bed = Bed(tmp_path, "fine")
    await bed.until(lambda: bool(caplog.records), [Reading(CPU)])
    assert "could not be measured" in caplog.text


async def test_work_goes_first_and_takes_the_device_back(tmp_path: Path) -> None:
    bed = Bed(tmp_path, "stuck")
    await bed.until(lambda: bool(bed.ran()), [Reading(CPU)])
    assert len(bed.measurements.pids) == 1
    await bed.until(lambda: not bed.measurements.pids, [Reading(CPU)], lambda device: False)
    assert not _alive(bed)
    for _ in range(5):  # not again at once, even if idle
        bed.measurements.step([Reading(CPU)], lambda device: True)
        await asyncio.sleep(0.02)
    assert len(bed.ran()) == 1


async def test_closing_kills_what_runs(tmp_path: Path) -> None:
    bed = Bed(tmp_path, "stuck")
    await bed.until(lambda: bool(bed.ran()), [Reading(CPU)])
    await bed.measurements.close()
    assert not _alive(bed)
    await bed.measurements.close()


async def test_nothing_is_measured_that_is_static_used_or_too_early(tmp_path: Path) -> None:
    static = DeviceInfo("asic", 0, "static", "ASIC")
    used = DeviceSample("GPU-1", 0.0, utilization=0.9)
    bed = Bed(tmp_path, "fine")
    late = Bed(tmp_path, "fine", settle=600.0)
    for _ in range(30):
        bed.measurements.step([Reading(static), Reading(GPU, used)], lambda device: True)
        late.measurements.step([Reading(CPU)], lambda device: True)
        await asyncio.sleep(0.02)
    assert bed.ran() == []


async def test_a_processor_that_never_rests_is_measured_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = [Reading(CPU, DeviceSample("cpu", 0.0, utilization=0.9))]
    bed = Bed(tmp_path, "fine")
    for _ in range(30):
        bed.measurements.step(busy, lambda device: True)
        await asyncio.sleep(0.02)
    assert bed.ran() == []
    monkeypatch.setattr(measurements, "PATIENCE", 0.0)
    await bed.until(lambda: bool(bed.measurements.figures), busy)


def _alive(bed: Bed) -> bool:
    return any(psutil.pid_exists(pid) for pid, *_ in bed.ran() if isinstance(pid, int))


# --- what is made of it ---------------------------------------------------------------------


def test_what_the_owner_says_goes_before_what_was_measured() -> None:
    measured = {"decode": 2 * ranking.REFERENCE_BANDWIDTH}
    assert adverts._speed(None, 1.0, measured) == 2
    assert adverts._speed(None, 1.0, {}) == 1
    assert adverts._speed(None, 3.0, measured) == 3
    assert adverts._speed(0.5, 3.0, measured) == 0.5

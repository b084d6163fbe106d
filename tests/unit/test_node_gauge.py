"""What a worker measures: on a CPU for real, on a GPU as far as the driver's words go."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy
import pytest

from blip_node.gauge import CONTEXT_BYTES, CONTEXT_MOST, Gauge, _device_used, context
from tests.fake_nvml import H100, FakeGpus

MIB = 1 << 20


def test_growth_is_what_came_after_and_a_peak_stays() -> None:
    gauge = Gauge("cpu")
    before = gauge.read()
    block = numpy.ones(64 * MIB, dtype=numpy.uint8)
    grown = gauge.read()
    assert 60 * MIB <= grown - before <= 80 * MIB
    del block
    assert gauge.read() >= grown


def _measure(pipe: Any) -> None:
    pipe.send(Gauge("cpu").read())


def test_pages_that_came_with_the_fork_do_not_count() -> None:
    ours = numpy.ones(128 * MIB, dtype=numpy.uint8)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_measure, args=(sender,))
    process.start()
    assert receiver.recv() < 16 * MIB
    process.join()
    assert ours[-1] == 1


def test_a_context_is_what_the_allocator_does_not_account_for() -> None:
    assert context(1000 * MIB, 3000 * MIB, 1600 * MIB) == 400 * MIB
    assert context(None, 3000 * MIB, 0) == CONTEXT_BYTES
    assert context(1000 * MIB, None, 0) == CONTEXT_BYTES
    assert context(3000 * MIB, 1000 * MIB, 0) == 0, "others let go meanwhile"
    assert context(0, 80 << 30, 0) == CONTEXT_MOST, "others allocated meanwhile"


def test_the_device_is_read_through_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = "GPU-11111111-2222-3333-4444-555555555555"
    gpus = FakeGpus(tmp_path / "gpus", [{**H100, "uuid": uuid, "memory_used": 5 << 30}])
    with gpus.loaded():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", uuid)
        before = _device_used()
        assert before is not None
        assert before >= 5 << 30
        gpus.set(0, memory_used=6 << 30)
        assert _device_used() == before + (1 << 30)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-of-someone-else")
        assert _device_used() is None


def test_without_a_driver_nothing_is_known() -> None:
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has NVIDIA's driver")
    assert _device_used() is None

"""The benchmark on a real card, against what no card is worse than and none better."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from blip.protocol import ranking
from blip_node.capacity import NvmlProvider

pytestmark = pytest.mark.gpu


def test_a_card_is_measured_in_a_process_that_sees_it_alone() -> None:

    provider = NvmlProvider()
    try:
        found = provider.probe()
        reason = provider.reason
    finally:
        provider.close()
    if not found:
        pytest.skip(f"no NVIDIA GPU: {reason}")
    info = found[0]
    done = subprocess.run(
        [sys.executable, "-m", "blip_node.benchmark", "--device", "cuda:0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **info.visibility},
    )
    said = json.loads(done.stdout)
    figures = said["figures"]
    print(f"{info.name}: {ranking.describe(figures)}; left out: {said['left_out']}")
    assert set(figures) | set(said["left_out"]) == set(ranking.KEYS)
    # From a riser with one lane of PCIe 1 to the fastest link there is.
    assert 1e8 < figures["h2d"] < 1e12
    assert 1e8 < figures["d2h"] < 1e12
    # From the oldest cards that run at all to twice the best of today. Reads that came out of a
    # cache would be above.
    assert 2e10 < figures["decode"] < 1.6e13
    assert 1e11 < figures["fp32"] < 1e15
    assert figures["seconds"] < 10
    speed = ranking.speed(figures)
    assert speed is not None
    assert speed > 0.02

"""Real nodes measure the machine they run on, once, and rank by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blip.protocol import ranking
from tests.mesh.rig import Rig

pytestmark = pytest.mark.timeout(120)


async def test_two_nodes_on_one_machine_measure_it_once_and_advertise_it() -> None:
    pytest.importorskip("torch")
    async with Rig(nodes=2, node={"benchmark": True}) as rig:

        def devices() -> list[tuple[float, dict[str, float]]]:
            return [
                (device.speed, device.benchmark)
                for entry in rig.dispatcher.nodes()
                for device in entry.advert.devices
            ]

        await rig.until(lambda: all(figures for _, figures in devices()), 90.0)
        (speed, figures), (other_speed, other) = devices()
        assert figures == other, "the second read what the first had measured"
        assert {"decode", "fp32"} <= set(figures)
        assert speed == other_speed == ranking.speed(figures)
        (stored,) = json.loads((Path(rig.folder) / "data" / "benchmarks.json").read_text()).values()
        assert stored == figures


async def test_the_owners_word_stands_beside_what_was_measured() -> None:
    pytest.importorskip("torch")
    async with Rig(nodes=1, node={"benchmark": True, "speed": 3.0}) as rig:

        def benchmark() -> dict[str, float]:
            (entry,) = rig.dispatcher.nodes()
            (device,) = entry.advert.devices
            assert device.speed == 3.0
            return device.benchmark

        await rig.until(lambda: bool(benchmark()), 90.0)

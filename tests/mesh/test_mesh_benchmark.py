"""Real nodes measure the machine they run on, once, and rank by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blip.protocol import ranking
from blip.protocol.messages import Device
from tests.mesh.rig import Rig

pytestmark = pytest.mark.timeout(120)


async def test_two_nodes_on_one_machine_measure_it_once_and_advertise_it() -> None:
    pytest.importorskip("torch")
    async with Rig(nodes=1, node={"benchmark": True}) as rig:
        await rig.start_node("node-2", speed=3.0)

        def devices() -> dict[str, Device]:
            return {
                entry.name: device
                for entry in rig.dispatcher.nodes()
                for device in entry.advert.devices
                if device.benchmark
            }

        await rig.until(lambda: len(devices()) == 2, 90.0)
        first, second = devices()["node-1"], devices()["node-2"]
        assert first.benchmark == second.benchmark, "one read what the other had measured"
        assert {"decode", "fp32"} <= set(first.benchmark)
        assert first.speed == ranking.speed(first.benchmark)
        assert second.speed == 3.0, "its owner's word"
        (stored,) = json.loads((Path(rig.folder) / "data" / "benchmarks.json").read_text()).values()
        assert stored == first.benchmark

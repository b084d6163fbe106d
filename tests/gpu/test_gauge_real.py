"""What a worker says its model takes on a real GPU, against what it really allocates."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from blip_node.capacity import NvmlProvider
from blip_node.gauge import CONTEXT_MOST

pytestmark = pytest.mark.gpu

MIB = 1 << 20
BLOCK = 1024 * MIB

#: In a process of its own: a CUDA context stays until the end of the one that made it.
PROGRAM = f"""
import json, torch
from blip_node.gauge import Gauge
if not torch.cuda.is_available():
    raise SystemExit(json.dumps(None))
gauge = Gauge("cuda:0")
block = torch.ones({BLOCK}, dtype=torch.uint8, device="cuda:0")
torch.cuda.synchronize()
loaded = gauge.read()
more = torch.ones({BLOCK}, dtype=torch.uint8, device="cuda:0")
del block, more
torch.cuda.empty_cache()
print(json.dumps([loaded, gauge.read()]))
"""


def test_the_peak_is_what_was_allocated_and_a_context() -> None:
    provider = NvmlProvider()
    try:
        cards = provider.probe()
        reason = provider.reason
    finally:
        provider.close()
    if not cards:
        pytest.skip(f"no GPU to test with: {reason}")
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": cards[0].id},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.stderr.strip() == "null":
        pytest.skip("this torch has no CUDA")
    assert answer.returncode == 0, answer.stderr
    loaded, peak = json.loads(answer.stdout)
    # torch rounds up to segments; a context takes some hundred MiB and is never nothing
    assert BLOCK + 50 * MIB < loaded < BLOCK + CONTEXT_MOST + 64 * MIB
    assert BLOCK - 64 * MIB < peak - loaded < BLOCK + 64 * MIB

"""What painting in blip's runtime costs beside diffusers alone: ``blip bench image`` runs this.

Both paint the same pictures in one process, one after the other and in turns first, with as many
threads. Few steps and many are painted, so that the time of a step is known apart from that of
the text encoder, the decoder and the file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.errors import BlipError
from blip.kinds import Kind
from blip.kinds.image import IMAGE, ImageInput
from blip_node.models import pipeline, weights
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.environment import WORKER_ENV
from blip_node.runtimes.image import ImageRuntime

PROMPT = "a large red heart on a white background"
_GUIDANCE = 4.0
_SEED = 3

#: Rounds that are not counted: caches fill, allocators settle.
_WARM_UP = 1

#: Seconds on the wall, and of CPU over all threads.
Taken = tuple[float, float]


@dataclass
class _Job:
    """A task whose client reads everything and never leaves."""

    input: ImageInput
    kind: Kind = IMAGE
    cancelled: bool = False
    writable: bool = True
    parts: list[bytes] = field(default_factory=list)

    def emit(self, payload: bytes | memoryview) -> None:
        self.parts.append(bytes(payload))

    async def drained(self) -> None:
        """Never waits."""

    def on_change(self, wake: Callable[[], None]) -> None:
        """Nothing ever changes."""


async def measure(folder: Path, device: str, few: int, many: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of every round, by what was painted and by whom."""
    runtime = ImageRuntime()
    runtime.load(LoadSpec("bench", str(folder), device, 1), lambda share: None)
    try:
        bare = _bare(folder, device)

        async def ours(steps: int) -> Any:
            wishes = ImageInput(
                prompt=PROMPT, steps=steps, seed=_SEED, guidance_scale=_GUIDANCE, progress=True
            )
            return (await runtime.run(_Job(wishes))).payload

        async def theirs(steps: int) -> Any:
            return await asyncio.to_thread(bare, steps)

        found: dict[str, list[dict[str, Taken]]] = {"blip": [], "bare": []}
        for number in range(rounds + _WARM_UP):
            painters = [("blip", ours), ("bare", theirs)]
            taken: dict[str, dict[str, Taken]] = {name: {} for name, _ in painters}
            for what, steps in (("few", few), ("many", many)):
                for name, paint in painters if number % 2 else reversed(painters):
                    taken[name][what] = await _timed(paint, steps)
            if number >= _WARM_UP:
                for name in found:
                    found[name].append(taken[name])
        return {"few": few, "many": many, "device": device, "rounds": found}
    finally:
        runtime.close()


def _bare(folder: Path, device: str) -> Callable[[int], Any]:
    import diffusers
    import torch

    stored = weights.main_dtype(weights.total_counts(pipeline.shards(folder)))
    pipe = diffusers.AutoPipelineForText2Image.from_pretrained(
        folder,
        dtype=getattr(torch, weights.load_dtype("auto", stored, device)),
        local_files_only=True,
    ).to(device)
    pipe.set_progress_bar_config(disable=True)

    def paint(steps: int) -> Any:
        generator = torch.Generator("cpu").manual_seed(_SEED)
        return pipe(
            PROMPT,
            num_inference_steps=steps,
            guidance_scale=_GUIDANCE,
            generator=generator,
        ).images[0]

    return paint


async def _timed(paint: Callable[[int], Awaitable[Any]], steps: int) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    await paint(steps)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> int:
    """Measure as the command line says and print one JSON document."""
    parser = argparse.ArgumentParser(prog="python -m blip_node.runtimes.diffusion.bench")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--few", type=int, default=5)
    parser.add_argument("--many", type=int, default=45)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    os.environ.update(WORKER_ENV)  # before torch is imported
    try:
        pipeline.shards(asked.folder)  # says what is wrong before seconds of imports
        found = asyncio.run(
            measure(asked.folder, asked.device, asked.few, asked.many, asked.rounds)
        )
    except BlipError as error:
        print(error.message, file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

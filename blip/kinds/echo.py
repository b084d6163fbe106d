"""``echo``: gives back what it was given, at a size and pace of your choosing.

No model and no arithmetic: what remains is the mesh itself, which is what benchmarks, load tests
and chaos tests want to see. It runs in a worker process like every other kind.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from blip.kinds.base import Kind, TaskInput

#: Largest answer, in bytes: two results of 1 MiB would do, this leaves room for bulk tests.
MAX_ECHO_BYTES = 64 * 1024 * 1024


class EchoInput(TaskInput):
    """``chunks`` answers of ``size`` bytes (or the text itself), ``interval`` seconds apart.

    ``delay`` is slept before the first chunk. ``work`` is slept too, divided by the device's
    configured speed: paced work for placement tests. With ``stamp`` each chunk is, in place of
    the text, the moment at which it was made: decimal seconds of the node's CLOCK_MONOTONIC,
    which a client on the same machine can compare with its own. Chunks of ``size`` bytes carry
    no stamp.
    """

    text: Annotated[str, Field(max_length=1024 * 1024)] = ""
    size: Annotated[int, Field(ge=0, le=MAX_ECHO_BYTES)] = 0
    chunks: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    interval: Annotated[float, Field(ge=0, le=60)] = 0.0
    delay: Annotated[float, Field(ge=0, le=600)] = 0.0
    work: Annotated[float, Field(ge=0, le=600)] = 0.0
    stamp: bool = False


def _units(value: EchoInput) -> float:
    return 0.001 + value.delay + value.work + value.interval * (value.chunks - 1)


ECHO = Kind("echo", EchoInput, _units)

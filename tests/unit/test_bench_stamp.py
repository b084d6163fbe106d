import time
from collections.abc import Callable
from typing import Any

from blip.kinds import input_from_wire, input_to_wire
from blip.kinds.echo import ECHO, EchoInput
from blip_node.runtimes.echo import EchoRuntime


class FakeJob:
    kind = ECHO
    cancelled = False
    writable = True

    def __init__(self, asked: EchoInput) -> None:
        self.input: Any = input_from_wire(ECHO, input_to_wire(asked))
        self.parts: list[bytes] = []

    def emit(self, payload: bytes | memoryview) -> None:
        self.parts.append(bytes(payload))

    async def drained(self) -> None:
        raise AssertionError("it was writable")

    def on_change(self, wake: Callable[[], None]) -> None:
        pass


async def test_stamped_chunks_say_when_they_were_made() -> None:
    before = time.monotonic()
    job = FakeJob(EchoInput(text="word", chunks=3, interval=0.001, stamp=True))
    outcome = await EchoRuntime().run(job)
    stamps = [float(part) for part in job.parts]
    assert len(stamps) == 3
    assert stamps == sorted(set(stamps))
    assert before - 1e-9 <= stamps[0]
    assert stamps[-1] <= time.monotonic() + 1e-9
    assert outcome.payload == b""


async def test_a_single_chunk_is_stamped_too() -> None:
    outcome = await EchoRuntime().run(FakeJob(EchoInput(stamp=True)))
    assert float(outcome.payload) <= time.monotonic() + 1e-9


async def test_chunks_of_bytes_and_plain_text_carry_no_stamp() -> None:
    assert (await EchoRuntime().run(FakeJob(EchoInput(size=4, stamp=True)))).payload == b"\0\1\2\3"
    assert (await EchoRuntime().run(FakeJob(EchoInput(text="word")))).payload == b"word"

"""Transcription through the whole mesh: a real node, a real gateway, and OpenAI's own client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import openai
import pytest

from blip.errors import Cancelled
from blip.gateway.settings import GatewaySettings
from blip.kinds.transcription import (
    TranscriptionInput,
    heard_from_wire,
    transcript_from_wire,
)
from tests.mesh.rig import MODELS, Rig
from tests.models.tones import keys_file
from tests.unit.gateway_mesh import served

DTMF = {"tiny-dtmf": {"source": str(MODELS / "tiny-dtmf"), "preload": True}}
KEYS = "5551234 0800"
SAID = "55512340800"

#: Over six minutes of keys: more than a second of work, in some twenty windows.
LONG = keys_file("0123456789*# 5551234 " * 70, "FLAC")


@contextlib.asynccontextmanager
async def client_of(rig: Rig) -> AsyncIterator[openai.AsyncOpenAI]:
    settings = GatewaySettings(body_limit=64 * 1024 * 1024)
    async with (
        served(rig.dispatcher, settings) as origin,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.mark.timeout(180)
async def test_hearing() -> None:
    """One mesh for all: bringing up two that listen takes longer than everything they do."""
    async with Rig(nodes=2, models=DTMF, request_timeout=50.0) as rig:
        await a_stream_tells_what_was_heard_so_far(rig)
        await a_node_that_dies_costs_a_transcript_nothing_but_time(rig)
        await going_away_frees_the_slot_within_a_window(rig)  # one node is left


async def a_stream_tells_what_was_heard_so_far(rig: Rig) -> None:
    keys = "0123456789*# 5551234 " * 12  # three windows
    async with client_of(rig) as client:
        stream = await client.audio.transcriptions.create(
            model="tiny-dtmf",
            file=("keys.flac", keys_file(keys, "FLAC")),
            stream=True,
            extra_body={"progress": True},
        )
        events = [event async for event in stream]
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    done = events[-1]
    assert done.type == "transcript.text.done"
    assert done.text == "".join(deltas) == keys.replace(" ", "")
    told = [event.seconds for event in events if event.type == "transcript.progress"]  # type: ignore[comparison-overlap,union-attr]
    assert len(told) >= 3
    assert told == sorted(told)


async def a_node_that_dies_costs_a_transcript_nothing_but_time(rig: Rig) -> None:
    call = rig.call("transcription", "tiny-dtmf", TranscriptionInput(file=LONG))
    while not call.node:  # noqa: ASYNC110  (there is no event for it)
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.2)  # in the midst of it
    assert call.outcome is None
    first = call.node
    await next(node for node in rig.nodes if node.name == first).kill()
    found = transcript_from_wire((await call.answer()).payload)
    assert call.node != first
    # the model is not quite without a mistake in six minutes
    assert found.text.startswith("0123456789*#5551234" * 50)
    assert found.text.count("0123456789*#5551234") > 66


async def going_away_frees_the_slot_within_a_window(rig: Rig) -> None:
    call = rig.call("transcription", "tiny-dtmf", TranscriptionInput(file=LONG, parts=True))
    await call.started()
    waiting = rig.call("transcription", "tiny-dtmf", TranscriptionInput(file=keys_file(KEYS)))
    began = time.monotonic()
    call.cancel()
    answer = await waiting.answer()
    taken = time.monotonic() - began
    assert transcript_from_wire(answer.payload).text == SAID
    with pytest.raises(Cancelled):
        await call.answer()
    heard = []
    with contextlib.suppress(Cancelled):
        async for parts in call.parts():
            heard += [heard_from_wire(part) for part in parts]
    assert heard
    # it did not listen to its end first
    assert heard[-1].done < heard[-1].duration / 2, taken

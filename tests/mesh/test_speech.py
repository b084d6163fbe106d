"""Speech through the whole mesh: real nodes, a real gateway, and OpenAI's own client."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import soundfile

from blip.errors import Cancelled, NodeLost
from blip.gateway.settings import GatewaySettings
from blip.kinds.speech import SpeechInput, piece_from_wire
from tests.mesh.rig import Rig
from tests.models.random_voices import make_vits
from tests.unit.gateway_mesh import served

TEXT = "the quick brown fox is here. and then the lazy dog comes over to it. and why not?"
#: Long enough that somebody can go away, or die, in the middle of it.
LONG = "and the lazy dog comes over once more. " * 20


@contextlib.asynccontextmanager
async def client_of(rig: Rig) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        served(rig.dispatcher, GatewaySettings()) as origin,
        openai.AsyncOpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def heard(file: bytes) -> Any:
    """Decode what was said; check that it is something."""
    samples, _ = soundfile.read(io.BytesIO(file))
    assert samples.std() > 0.01
    return samples


@pytest.mark.timeout(180)
async def test_speech(tmp_path: Path) -> None:
    """One mesh for all: bringing one up takes longer than everything it says."""
    models = {"voice": {"source": str(make_vits(tmp_path / "voice", speakers=3)), "preload": True}}
    async with Rig(nodes=2, models=models) as rig:
        await pieces_come_while_the_rest_is_made(rig)
        await a_node_that_dies_is_replaced_at_the_sentence(rig)
        await going_away_frees_the_voice(rig)  # one node is left


async def pieces_come_while_the_rest_is_made(rig: Rig) -> None:
    asked = SpeechInput(text=TEXT, seed=5)
    call = rig.call("speech", "voice", asked)
    parts = [piece_from_wire(part).data async for batch in call.parts() for part in batch]
    answer = await call.answer()
    assert len(parts) == 3  # a sentence each
    streamed = heard(b"".join([*parts, answer.payload]))
    assert answer.usage["samples"] == len(streamed)
    call = rig.call("speech", "voice", asked.model_copy(update={"whole": True}))
    whole = await call.answer()
    assert [part async for part in call.parts()] == []
    assert (heard(bytes(whole.payload)) == streamed).all()


async def a_node_that_dies_is_replaced_at_the_sentence(rig: Rig) -> None:
    asked = SpeechInput(text=LONG, seed=5)
    whole = await rig.call("speech", "voice", asked.model_copy(update={"whole": True})).answer()
    expected = heard(bytes(whole.payload))
    async with client_of(rig) as client:
        first, name = b"", ""
        asking = client.audio.speech.with_streaming_response.create(
            model="voice",
            voice="alloy",
            input=LONG,
            response_format="wav",
            extra_body={"seed": 5},
        )
        async with asking as response:
            async for chunk in response.iter_bytes(1024):
                if not first:
                    name = response.headers["X-Blip-Node"]
                    await next(node for node in rig.nodes if node.name == name).kill()
                first += chunk
    (ended, *_) = rig.dispatcher.tasks()
    assert (ended.state, ended.attempt) == ("succeeded", 2)
    assert ended.node != name
    resumed = heard(first)
    assert len(resumed) == len(expected)
    assert (resumed == expected).all()


async def going_away_frees_the_voice(rig: Rig) -> None:
    calls = [rig.call("speech", "voice", SpeechInput(text=LONG)) for _ in range(2)]
    await asyncio.gather(*(call.started() for call in calls))
    waiting = rig.call("speech", "voice", SpeechInput(text=TEXT, whole=True))
    for call in calls:
        call.cancel()
    assert len((await waiting.answer()).payload) > 10_000
    for call in calls:
        with pytest.raises((Cancelled, NodeLost)):
            await call.answer()

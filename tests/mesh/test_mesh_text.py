"""Real models through the mesh: streamed, resumed on another node, cancelled, refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from shutil import copytree

import pytest

from blip.errors import ModelLoadFailed
from blip.gateway.call import LiveCall
from blip.kinds.chat import ChatInput, ChatMessage
from blip.kinds.text import delta_from_wire, finish_from_wire
from tests.mesh.rig import ECHO, MODELS, TINY, Rig

CHAT = {"tiny-chat": TINY["tiny-chat"]}
ZEN = "Recite the Zen of Python."


def chat(text: str, **sampling: object) -> ChatInput:
    return ChatInput(
        messages=[ChatMessage(role="user", content=text)],
        **{"temperature": 0.0, **sampling},  # type: ignore[arg-type]
    )


async def text_of(call: LiveCall) -> tuple[str, list[int]]:
    """Return all text and token ids of a call, streamed and final."""
    text, ids = "", []
    async for parts in call.parts():
        for part in parts:
            delta = delta_from_wire(part)
            text += delta.text
            ids += delta.ids
    finish = finish_from_wire((await call.answer()).payload)
    return text + finish.text, ids + finish.ids


@pytest.mark.timeout(120)
async def test_many_nodes() -> None:
    """One mesh for what needs several: bringing one up takes longer than everything it does."""
    async with Rig(nodes=3, models=CHAT) as rig:
        await concurrent_chats_each_get_their_own_answer(rig)
        await a_stream_resumes_on_another_node_without_a_seam(rig)
        await a_stream_resumes_on_another_node_without_a_seam(rig, temperature=0.9, seed=7)


async def concurrent_chats_each_get_their_own_answer(rig: Rig) -> None:
    calls = [
        rig.call("chat", "tiny-chat", chat("What is the capital of Japan?")) for _ in range(16)
    ]
    zens = [rig.call("chat", "tiny-chat", chat(ZEN)) for _ in range(8)]
    answers = await asyncio.gather(*map(text_of, calls))
    assert {text for text, _ in answers} == {"The capital of Japan is Tokyo."}
    recited = await asyncio.gather(*map(text_of, zens))
    assert len({text for text, _ in recited}) == 1
    assert "\nBeautiful is better than ugly.\n" in recited[0][0]
    assert len({call.node for call in calls + zens}) > 1


async def a_stream_resumes_on_another_node_without_a_seam(rig: Rig, **sampling: object) -> None:
    whole, ids = await text_of(rig.call("chat", "tiny-chat", chat(ZEN, **sampling)))
    assert len(ids) > 20
    call = rig.call("chat", "tiny-chat", chat(ZEN, **sampling))
    await call.started()
    first = call.node
    await next(node for node in rig.nodes if node.name == first).kill()
    assert await text_of(call) == (whole, ids)
    assert call.task.place.attempt == 2
    assert call.node != first


async def test_cancel_frees_the_slot_within_a_token() -> None:
    models = {"tiny-chat": {**TINY["tiny-chat"], "slots": 1}}
    async with Rig(models=models) as rig:
        call = rig.call("chat", "tiny-chat", chat(ZEN))
        await call.started()
        call.cancel()
        text, _ = await text_of(
            rig.call("chat", "tiny-chat", chat("What is the capital of Japan?"))
        )
        assert text == "The capital of Japan is Tokyo."


async def test_a_model_with_broken_files_says_so_and_harms_no_other(tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    copytree(MODELS / "tiny-chat", cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    async with Rig(models={"cut": {"source": str(cut)}, **ECHO}) as rig:
        with pytest.raises(ModelLoadFailed, match=r"cut off.*node-1"):
            rig.call("chat", "cut", chat("hello"))
        assert [model.name for model in rig.dispatcher.models()] == ["echo"]


async def test_a_model_that_cannot_be_loaded_fails_once_with_its_reason(tmp_path: Path) -> None:
    # its headers are right, so it is offered; its tokenizer is not, which only loading tells
    broken = tmp_path / "broken"
    copytree(MODELS / "tiny-chat", broken)
    (broken / "tokenizer.json").write_text("{}")
    async with Rig(models={"broken": {"source": str(broken)}}) as rig:
        with pytest.raises(ModelLoadFailed):
            await rig.call("chat", "broken", chat("hello")).answer()
        await rig.until(
            lambda: any(model.error for n in rig.dispatcher.nodes() for model in n.advert.models)
        )
        await rig.until(lambda: rig.nodes[0].workers() == [])
        # from now on the reason is known, and no worker is started for it
        with pytest.raises(ModelLoadFailed):
            await rig.call("chat", "broken", chat("hello")).answer()
        assert rig.nodes[0].workers() == []

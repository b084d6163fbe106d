"""Real models through the mesh: streamed, resumed on another node, cancelled, refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from shutil import copytree

import pytest

from blip.errors import ContextTooLong, ModelLoadFailed
from blip.gateway.call import LiveCall
from blip.kinds.chat import ChatInput, ChatMessage
from blip.kinds.text import delta_from_wire, finish_from_wire
from tests.mesh.rig import ECHO, MODELS, TINY, Rig

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


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 7}])
async def test_a_stream_resumes_on_another_node_without_a_seam(
    sampling: dict[str, object],
) -> None:
    async with Rig(nodes=2, models=TINY) as rig:
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


async def test_a_prompt_that_is_too_long_says_both_numbers() -> None:
    async with Rig(models=TINY) as rig:
        call = rig.call("chat", "tiny-chat", chat("word " * 5000))
        with pytest.raises(ContextTooLong) as error:
            await call.answer()
        assert error.value.details["prompt_tokens"] > error.value.details["limit"]
        for number in ("prompt_tokens", "limit"):
            assert str(error.value.details[number]) in error.value.message.replace(",", "")


async def test_concurrent_chats_each_get_their_own_answer() -> None:
    questions = {
        "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    }
    async with Rig(nodes=2, models=TINY) as rig:
        calls = [rig.call("chat", "tiny-chat", chat(q)) for q in questions for _ in range(16)]
        texts = await asyncio.gather(*map(text_of, calls))
        assert {text for text, _ in texts} == set(questions.values())
        assert {call.node for call in calls} == {"node-1", "node-2"}


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

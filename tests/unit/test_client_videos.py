"""Videos through the SDK and ``blip video``, against the gateway's real routes."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from blip.cli import main
from blip.client import AsyncBlip, Blip, VideoProgress
from blip.errors import InvalidRequest, RuntimeFailed
from blip.kinds.image import Step, step_to_wire
from tests.unit.gateway_mesh import MemoryMesh, Work, failing, mesh, mp4, png, served

HEART = "a red heart"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLIP_API_KEY", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr("blip.cli.film._POLL", 0.01)


async def blip(backend: MemoryMesh, *args: str) -> int:
    async with served(backend) as url:
        return await asyncio.to_thread(main, ["video", *args, "--url", url])


# --- the SDK --------------------------------------------------------------------------------


async def test_sdk() -> None:
    backend = mesh()
    async with served(backend) as url, AsyncBlip(url) as client:
        answer = await client.video(
            "wan", HEART, seconds=1.5, size="64x32", seed=7, steps=None, poll=0.01, priority=1
        )
        assert answer.file == mp4(7)
        assert (answer.media, answer.size) == ("video/mp4", "64x32")
        assert (answer.seed, answer.frames, answer.fps) == (7, 12, 8)
        assert answer.url.startswith(f"{url}/v1/files/")
        assert answer.origin.task_id == backend.calls[0].task_id
        assert backend.options[0].priority == 1
        await client.video("wan", HEART, image=png(8, 8), num_frames=5, poll=0.01)
        assert backend.inputs[1].image == png(8, 8)
        assert backend.inputs[1].num_frames == 5


async def test_progress_is_told() -> None:
    backend = mesh()
    go = asyncio.Event()

    async def slow(value: object) -> Work:
        for number in (1, 3):
            yield step_to_wire(Step(number, 4))
            await go.wait()
            go.clear()
        raise RuntimeFailed("NaN", hint="Use bfloat16.", param="prompt")

    backend.nodes_by_model["slow"] = slow
    told: list[VideoProgress] = []

    def tell(progress: VideoProgress) -> None:
        told.append(progress)
        if progress.percent:
            go.set()

    async with served(backend) as url, AsyncBlip(url) as client:
        with pytest.raises(RuntimeFailed, match="NaN") as caught:
            await client.video("slow", HEART, progress=tell, poll=0.01)
        assert (caught.value.hint, caught.value.param) == ("Use bfloat16.", "prompt")
    assert [(each.status, each.percent) for each in told if each.percent] == [
        ("in_progress", 25),
        ("in_progress", 75),
    ]


async def test_who_stops_waiting_stops_the_video() -> None:
    backend = mesh()
    async with served(backend) as url, AsyncBlip(url) as client:
        waiting = asyncio.create_task(client.video("silent", HEART, poll=0.01))
        await asyncio.wait_for(backend.called.wait(), 10)
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(backend.calls[0].ended.wait(), 10)
        assert backend.calls[0].cancelled


async def test_ctrl_c_stops_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = mesh()
    wait = Blip._wait

    def interrupted(self: Blip, work: Any) -> Any:
        if work.__name__ != "ask":
            return wait(self, work)

        async def begun() -> None:
            while not backend.calls:  # noqa: ASYNC110  (it is another loop's)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)

        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        wait(self, begun())
        future.cancel()
        raise KeyboardInterrupt

    monkeypatch.setattr(Blip, "_wait", interrupted)

    def ask(url: str) -> None:
        with Blip(url) as client, pytest.raises(KeyboardInterrupt):
            client.video("silent", HEART, poll=0.01)

    async with served(backend) as url:
        await asyncio.to_thread(ask, url)
        await asyncio.wait_for(backend.calls[0].ended.wait(), 10)
        assert backend.calls[0].cancelled


async def test_sdk_without_asyncio() -> None:
    async with served(mesh()) as url:

        def ask() -> bytes:
            with Blip(url) as client:
                return client.video("wan", HEART, seed=3, poll=0.01).file

        assert await asyncio.to_thread(ask) == mp4(3)


# --- the command ----------------------------------------------------------------------------


async def test_a_file_is_named_by_the_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = mesh()
    asked = ("wan", HEART, "--seed", "5", "--size", "64x32", "--seconds", "1")
    assert await blip(backend, *asked) == 0
    said = "a-red-heart.mp4  64x32, 8 frames at 8 a second, seed 5\n"
    assert capsys.readouterr().out == said
    assert (tmp_path / "a-red-heart.mp4").read_bytes() == mp4(5)
    assert await blip(backend, *asked) == 0  # and none is overwritten
    assert capsys.readouterr().out.startswith("a-red-heart-1.mp4")


async def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = mesh()
    (tmp_path / "in.png").write_bytes(png(8, 8))
    options = ["--steps", "9", "--negative", "blue", "--guidance", "3", "--scheduler", "unipc"]
    options += ["--from", "in.png", "--seed", "1", "--frames", "9", "--fps", "12"]
    out = tmp_path / "new" / "x.webp"
    assert await blip(backend, "wan", HEART, "-o", str(out), "--json", *options) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["file"] == str(out)
    assert out.read_bytes() == mp4(1)
    assert (answer["seed"], answer["frames"], answer["fps"]) == (1, 9, 12)
    assert answer["task"] == backend.calls[0].task_id
    assert backend.inputs[0].model_dump(exclude_defaults=True) == {
        "prompt": HEART,
        "negative_prompt": "blue",
        "steps": 9,
        "guidance_scale": 3.0,
        "scheduler": "unipc",
        "seed": 1,
        "image": png(8, 8),
        "num_frames": 9,
        "fps": 12,
        "format": "webp",
        "progress": True,
    }


async def test_stdout(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert await blip(mesh(), "wan", HEART, "--out", "-", "--seed", "2") == 0
    assert capfdbinary.readouterr().out == mp4(2)


async def test_progress_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert await blip(mesh(), "wan", HEART) == 0
    said = capsys.readouterr().err
    assert "queued" in said
    assert said.endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--out", "x.avi"), 2, "ending"),
        (("--out", "-", "--json"), 2, "nothing else"),
        (("--from", "nowhere.png"), 1, "nowhere.png"),
        (("--size", "7x7"), 1, "'size'"),
        (("--seconds", "1", "--frames", "2"), 1, "both"),
    ],
)
async def test_wrong_usage(
    args: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await blip(mesh(), "wan", HEART, *args) == code
    assert says in capsys.readouterr().err


async def test_a_video_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    backend = mesh()
    backend.nodes_by_model["wan"] = failing(InvalidRequest("no", hint="Do so.", param="size"))
    assert await blip(backend, "wan", HEART) == 1
    assert "hint: Do so." in capsys.readouterr().err

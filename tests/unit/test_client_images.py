"""Pictures through the SDK and ``blip image``, against the gateway's real routes."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest

from blip.cli import main
from blip.client import AsyncBlip, Blip
from blip.client.answers import Origin, pictures_from
from blip.errors import InternalError, InvalidRequest
from tests.unit.gateway_mesh import MemoryMesh, mesh, png, served

HEART = "a large red heart"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLIP_API_KEY", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))


async def blip(backend: MemoryMesh, *args: str) -> int:
    async with served(backend) as url:
        return await asyncio.to_thread(main, ["image", *args, "--url", url])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the SDK --------------------------------------------------------------------------------


async def test_sdk() -> None:
    backend = mesh()
    async with served(backend) as url, AsyncBlip(url) as client:
        answer = await client.image(
            "toy-shapes", HEART, n=2, size="32x64", seed=7, steps=None, negative_prompt="blue"
        )
        assert [picture.file for picture in answer.pictures] == [png(32, 64, 7), png(32, 64, 8)]
        assert [picture.seed for picture in answer.pictures] == [7, 8]
        assert (answer.size, answer.format) == ("32x64", "png")
        assert answer.usage["input_tokens"] == 8
        assert answer.origin.node
        image, mask = png(8, 8), png(8, 8, 1)
        await client.image("toy-shapes", HEART, image=image, mask=mask, strength=0.25)
        edited = backend.inputs[-1]
        assert (edited.prompt, edited.image, edited.mask) == (HEART, image, mask)
        assert edited.strength == 0.25
        await client.image("toy-shapes", image=image, output_format="webp")
        assert (backend.inputs[-1].prompt, backend.inputs[-1].format) == ("", "webp")
        guide = {"type": "canny", "image": png(8, 8, 2), "weight": 0.5}
        for source in (None, image):
            await client.image(
                "toy-shapes", HEART, image=source, loras={"ink": 0.8, "oil": -1}, control=guide
            )
            sent = backend.inputs[-1]
            assert [(lora.name, lora.weight) for lora in sent.loras] == [("ink", 0.8), ("oil", -1)]
            assert (sent.control.type, sent.control.weight) == ("canny", 0.5)
            assert sent.control.image == png(8, 8, 2)
            assert sent.image == source
        with pytest.raises(InvalidRequest, match="needs an image"):
            await client.image("toy-shapes", HEART, mask=mask)
        with pytest.raises(InvalidRequest, match="bytes of their files"):
            await client.image("toy-shapes", HEART, response_format="url")
        with pytest.raises(InvalidRequest, match="8 x 9") as caught:
            await client.image("toy-shapes", HEART, image=image, mask=png(8, 9))
        assert caught.value.param == "mask"


async def test_sdk_without_asyncio() -> None:
    async with served(mesh()) as url:

        def ask() -> bytes:
            with Blip(url) as client:
                return client.image("toy-shapes", HEART, seed=3).pictures[0].file

        assert await asyncio.to_thread(ask) == png(64, 64, 3)


def test_answers_that_are_no_pictures() -> None:
    body = {"data": [{"b64_json": "a", "seed": 1}], "size": "1x1", "output_format": "png"}
    with pytest.raises(InternalError, match="base64"):
        pictures_from(body, Origin())


# --- the command ----------------------------------------------------------------------------


async def test_files_are_named_by_the_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = mesh()
    assert await blip(backend, "toy-shapes", HEART, "--seed", "5", "--size", "16x16") == 0
    assert capsys.readouterr().out == "a-large-red-heart.png  16x16, seed 5\n"
    assert (tmp_path / "a-large-red-heart.png").read_bytes() == png(16, 16, 5)
    # and none is overwritten
    assert await blip(backend, "toy-shapes", HEART, "--seed", "6", "--n", "2") == 0
    assert names_in(tmp_path) == [f"a-large-red-heart{end}.png" for end in ("-1", "-2", "")]


async def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = mesh()
    (tmp_path / "in.png").write_bytes(png(8, 8))
    (tmp_path / "mask.png").write_bytes(png(8, 8, 255))
    options = ["--steps", "9", "--negative", "blue", "--guidance", "3", "--scheduler", "heun"]
    options += ["--from", "in.png", "--mask", "mask.png", "--strength", "0.5", "--seed", "1"]
    out = str(tmp_path / "new" / "x.jpg")
    assert await blip(backend, "toy-shapes", HEART, "-o", out, "-n", "2", "--json", *options) == 0
    answer = json.loads(capsys.readouterr().out)
    files = [Path(picture["file"]) for picture in answer["pictures"]]
    assert [path.name for path in files] == ["x-1.jpg", "x-2.jpg"]
    assert all(path.is_file() for path in files)
    assert [picture["seed"] for picture in answer["pictures"]] == [1, 2]
    assert answer["node"]
    assert backend.inputs[0].model_dump(exclude_defaults=True) == {
        "prompt": HEART,
        "negative_prompt": "blue",
        "steps": 9,
        "guidance_scale": 3.0,
        "scheduler": "heun",
        "strength": 0.5,
        "seed": 1,
        "image": png(8, 8),
        "mask": png(8, 8, 255),
        "format": "jpeg",
    }


async def test_loras_and_controls(tmp_path: Path) -> None:
    backend = mesh()
    (tmp_path / "a=b.png").write_bytes(png(8, 8, 3))
    args = [HEART, "--lora", "ink:0.8", "--lora", "oil"]
    assert await blip(backend, "toy-shapes", *args, "--control", "canny:0.5=a=b.png") == 0
    sent = backend.inputs[-1].model_dump(exclude_defaults=True)
    assert sent["loras"] == [{"name": "ink", "weight": 0.8}, {"name": "oil"}]
    assert sent["control"] == {"type": "canny", "image": png(8, 8, 3), "weight": 0.5}
    assert await blip(backend, "toy-shapes", HEART, "--control-map", "depth=a=b.png") == 0
    assert backend.inputs[-1].control.preprocess is False


async def test_a_picture_is_varied_without_a_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "heart.png").write_bytes(png(8, 8))
    assert await blip(mesh(), "toy-shapes", "--from", "heart.png") == 0
    assert capsys.readouterr().out.startswith("heart-1.png  ")


async def test_stdout(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert await blip(mesh(), "toy-shapes", HEART, "--out", "-", "--seed", "2") == 0
    assert capfdbinary.readouterr().out == png(64, 64, 2)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 1, "nothing to paint"),
        ((HEART, "--out", "x.gif"), 2, "ending"),
        ((HEART, "--out", "-", "--n", "2"), 2, "one picture"),
        ((HEART, "--from", "nowhere.png"), 1, "nowhere.png"),
        ((HEART, "--mask", "here.png"), 1, "needs an image"),
        ((HEART, "--size", "7x7"), 1, "'size'"),
        ((HEART, "--lora", "ink:much"), 2, "NAME:WEIGHT"),
        ((HEART, "--control", "canny"), 2, "TYPE=IMAGE"),
        ((HEART, "--control", "a=here.png", "--control-map", "a=here.png"), 2, "exclude"),
    ],
)
async def test_wrong_usage(
    args: tuple[str, ...],
    code: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here.png").write_bytes(png(8, 8))
    assert await blip(mesh(), "toy-shapes", *args) == code
    assert says in capsys.readouterr().err
    assert names_in(tmp_path) == ["here.png"]

"""Pictures looked at through the SDK and ``blip see``, against the gateway's real routes."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest

from blip.cli import main
from blip.client import AsyncBlip, Blip
from blip.client.answers import Origin
from blip.client.vision_answers import depth_from
from blip.errors import InternalError, InvalidRequest, ModelNotFound
from tests.unit.gateway_mesh import MemoryMesh, mesh, png, served

PICTURE = png(8, 6)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLIP_API_KEY", raising=False)
    (tmp_path / "in.png").write_bytes(PICTURE)


async def see(backend: MemoryMesh, *args: str) -> int:
    async with served(backend) as url:
        return await asyncio.to_thread(main, ["see", *args, "--url", url])


async def test_sdk() -> None:
    backend = mesh()
    async with served(backend) as url, AsyncBlip(url) as client:
        caption = await client.caption("toy-caption", PICTURE, "a photo of", max_tokens=9)
        assert caption.text == f"{len(PICTURE)} bytes a photo of"
        assert caption.usage["completion_tokens"] == 3
        assert caption.origin.node
        found = await client.detect("owlv2", PICTURE, ["a cat, asleep", "a dog"], priority=1)
        labels = [each.label for each in found.objects]
        assert labels == ["a cat, asleep", "a dog"]
        assert found.objects[0].box == (1.5, 2.0, 6.0, 7.25)
        assert backend.options[-1].priority == 1
        named = await client.classify_image("clip", PICTURE, top=1)
        assert named.labels == [("cat", 1.0)]
        depth = await client.depth("depth-anything", PICTURE)
        assert (depth.low, depth.high, depth.file) == (0.5, 4.5, PICTURE)
        parts = await client.segment("segformer", PICTURE, mode="instance")
        assert [(part.label, part.mask) for part in parts.segments] == [
            ("sky", PICTURE),
            ("sea", PICTURE),
        ]
        with pytest.raises(InvalidRequest, match="not a PNG"):
            await client.depth("depth-anything", b"nothing")
        with pytest.raises(ModelNotFound):
            await client.caption("nobody", PICTURE)


async def test_blocking_sdk() -> None:
    async with served(mesh()) as url:

        def ask() -> None:
            with Blip(url) as client:
                assert client.caption("toy-caption", PICTURE).text == f"{len(PICTURE)} bytes"
                assert client.detect("owlv2", PICTURE).objects[0].label == "cat"
                assert client.classify_image("clip", PICTURE).labels[1] == ("dog", 0.5)
                assert client.depth("depth-anything", PICTURE).file == PICTURE
                assert client.segment("segformer", PICTURE).mode == "semantic"

        await asyncio.to_thread(ask)


def test_a_file_that_is_none() -> None:
    body = {"b64_json": "!", "min": 0, "max": 1, "width": 1, "height": 1}
    with pytest.raises(InternalError, match="not base64"):
        depth_from(body, Origin())


async def test_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert await see(mesh(), "caption", "toy-caption", "in.png", "-p", "x") == 0
    assert capsys.readouterr().out == f"{len(PICTURE)} bytes x\n"
    assert await see(mesh(), "detect", "owlv2", "in.png", "-l", "a cat", "-l", "a dog") == 0
    out = capsys.readouterr().out
    assert "a dog" in out
    assert "0.75" in out
    assert await see(mesh(), "classify", "clip", "in.png", "--top", "1") == 0
    out = capsys.readouterr().out
    assert "1.000" in out
    assert "dog" not in out


async def test_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert await see(mesh(), "depth", "depth-anything", "in.png", "-o", "far/depth.png") == 0
    assert (tmp_path / "far" / "depth.png").read_bytes() == PICTURE
    assert "from 0.5 (black) to 4.5 (white)" in capsys.readouterr().out
    assert await see(mesh(), "segment", "segformer", "in.png", "-o", "masks") == 0
    written = sorted(path.name for path in (tmp_path / "masks").iterdir())
    assert written == ["00-sky.png", "01-sea.png"]
    assert "62%" in capsys.readouterr().out  # 40 of 64 pixels


async def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    for args, key in (
        (("caption", "toy-caption", "in.png"), "text"),
        (("detect", "owlv2", "in.png"), "objects"),
        (("classify", "clip", "in.png"), "labels"),
        (("depth", "depth-anything", "in.png", "-o", "d.png"), "max"),
        (("segment", "segformer", "in.png"), "segments"),
    ):
        assert await see(mesh(), *args, "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert key in document
        assert document["origin"]["node"]


async def test_what_goes_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert await see(mesh(), "caption", "toy-caption", "absent.png") == 1
    assert "cannot read absent.png" in capsys.readouterr().err
    assert await see(mesh(), "depth", "depth-anything", "in.png", "-o", "in.png/x.png") == 1
    assert "cannot write" in capsys.readouterr().err
    stdin = io.TextIOWrapper(io.BytesIO(PICTURE))
    monkeypatch.setattr("sys.stdin", stdin)
    assert await see(mesh(), "caption", "toy-caption", "-") == 0

"""The video runtime with random pipelines of the families that it runs, and its files."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy
import pytest
from PIL import Image

from blip.errors import (
    Cancelled,
    ContextTooLong,
    InvalidRequest,
    ModelLoadFailed,
    PayloadTooLarge,
    RuntimeFailed,
    UnsupportedField,
)
from blip.kinds.image import step_from_wire
from blip.kinds.video import ENDINGS, VIDEO, VideoInput, video_format
from blip_node.models import ModelSpec, describe
from blip_node.models.pipeline import TEXT_TO_VIDEO
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.diffusion import films
from blip_node.runtimes.video import VideoRuntime
from tests.models.jobs import RecordingJob
from tests.models.random_videos import FAMILIES, make_video_pipeline

QUICK: dict[str, Any] = {"width": 32, "height": 32, "num_frames": 9, "steps": 3, "seed": 1}


def load(folder: Path) -> VideoRuntime:
    runtime = VideoRuntime()
    runtime.load(LoadSpec("a-model", str(folder), "cpu", 1), lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def ltx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VideoRuntime]:
    runtime = load(make_video_pipeline(tmp_path_factory.mktemp("ltx"), "ltx"))
    yield runtime
    runtime.close()


def frames_of(file: bytes) -> Any:
    """Decode a file into [frames, height, width, 3]."""
    if video_format(file) == "mp4":
        with av.open(io.BytesIO(file)) as container:
            return numpy.stack(
                [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            )
    picture = Image.open(io.BytesIO(file))
    found = []
    for number in range(picture.n_frames):  # type: ignore[attr-defined]
        picture.seek(number)
        found.append(numpy.asarray(picture.convert("RGB")))
    return numpy.stack(found)


async def film(runtime: VideoRuntime, **fields: Any) -> bytes:
    asked = {"prompt": "a red circle", **QUICK, **fields}
    return bytes((await runtime.run(RecordingJob("video", **asked))).payload)


# Mochi wants a half precision that CPUs do not have here
@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
async def test_every_family_films(family: str, tmp_path: Path) -> None:
    folder = make_video_pipeline(tmp_path, family)
    assert describe(ModelSpec("m", str(folder))).kinds == ("video",)
    runtime = load(folder)
    try:
        fields = QUICK | {"num_frames": 13 if family == "mochi" else 9}
        job = RecordingJob("video", prompt="a red circle", progress=True, **fields)
        outcome = await runtime.run(job)
    finally:
        runtime.close()
    count = fields["num_frames"]
    assert frames_of(bytes(outcome.payload)).shape == (count, 32, 32, 3)
    assert outcome.usage["frames"] == count
    assert outcome.usage["steps"] == 3
    assert [step_from_wire(part)[:2] for part in job.parts] == [(n, 3) for n in range(4)]
    # what was done is what was asked for, so it is the work that was expected
    assert outcome.units == VIDEO.units(VideoInput(**fields))


def test_every_pipeline_that_is_listed_is_tried() -> None:
    assert {type(make()).__name__ for make in FAMILIES.values()} == set(TEXT_TO_VIDEO)


async def test_the_same_seed_is_the_same_video(ltx: VideoRuntime) -> None:
    one, again = await film(ltx, format="apng"), await film(ltx, format="apng")
    other = await film(ltx, format="apng", seed=2)
    assert (frames_of(one) == frames_of(again)).all()
    assert (frames_of(one) != frames_of(other)).any()


@pytest.mark.parametrize("family", ["ltx", "wan_of_both"])
async def test_a_video_begins_with_the_picture(family: str, tmp_path: Path) -> None:
    runtime = load(make_video_pipeline(tmp_path, family))
    try:
        made = [await film(runtime, format="apng")]
        for colour in ((255, 0, 0), (0, 0, 255)):
            file = io.BytesIO()
            Image.new("RGB", (40, 80), colour).save(file, "PNG")
            made.append(await film(runtime, format="apng", image=file.getvalue()))
        with pytest.raises(InvalidRequest, match="input_reference"):
            await film(runtime, image=b"GIF89a")
    finally:
        runtime.close()
    plain, red, blue = map(frames_of, made)
    assert red.shape == (9, 32, 32, 3)
    # the decoder here is random, and yet the first frame is the one that depends on the picture
    assert (red[0] != blue[0]).any()
    assert (red != plain).any()


@pytest.mark.parametrize("format", ENDINGS)
async def test_files_say_how_they_were_made(ltx: VideoRuntime, format: Any) -> None:
    file = await film(ltx, format=format, fps=20, negative_prompt="blue", guidance_scale=2.5)
    assert video_format(file) == format
    frames = frames_of(file)
    assert frames.shape == (9, 32, 32, 3)
    if format == "gif":
        return  # it has no room for it
    if format == "mp4":
        with av.open(io.BytesIO(file)) as container:
            stream = container.streams.video[0]
            assert (stream.average_rate, stream.codec_context.name) == (20, "h264")
            said = json.loads(container.metadata["comment"])
    else:
        said = json.loads(Image.open(io.BytesIO(file)).getexif()[0x010E])
    said.pop("Software", None)
    assert said == {
        "prompt": "a red circle",
        "negative_prompt": "blue",
        "seed": 1,
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "num_frames": 9,
        "fps": 20,
        "model": "a-model",
        "steps": 3,
        "guidance_scale": 2.5,
    }


async def test_seconds_become_the_nearest_frames(ltx: VideoRuntime) -> None:
    job = RecordingJob(
        "video", prompt="a circle", **QUICK | {"num_frames": None, "seconds": 0.5, "fps": 20}
    )
    assert (await ltx.run(job)).usage["frames"] == 9  # 10 is not eight times anything, plus 1


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"num_frames": 10}, "num_frames", "9"),
        ({"width": 40}, "size", "32x32"),
        ({"width": 4096, "height": 4096, "num_frames": 25}, "size", "pixels"),
        ({"num_frames": None, "seconds": 100, "fps": 60}, "seconds", "1024"),
        ({"scheduler": "magic"}, "scheduler", "euler-a"),
        ({"negative_prompt": "blue", "guidance_scale": 1}, "negative_prompt", "above 1"),
    ],
)
async def test_what_cannot_be_filmed(
    ltx: VideoRuntime, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await film(ltx, **fields)
    assert caught.value.param == param
    assert says in caught.value.message + caught.value.hint


async def test_prompts_are_not_cut(ltx: VideoRuntime) -> None:
    with pytest.raises(ContextTooLong, match="128"):
        await film(ltx, prompt="red circle " * 80)


async def test_a_language_model_reads_more_than_the_clip_beside_it(tmp_path: Path) -> None:
    runtime = load(make_video_pipeline(tmp_path, "hunyuan"))
    try:
        await film(runtime, prompt="a red circle on white " * 8)  # CLIP stops at 77 letters
        with pytest.raises(UnsupportedField, match="negative_prompt"):
            await film(runtime, negative_prompt="blue")
        with pytest.raises(UnsupportedField, match="input_reference"):
            await film(runtime, image=b"any")
    finally:
        runtime.close()


async def test_a_cancelled_video_ends_within_a_step(ltx: VideoRuntime) -> None:
    def leave(job: RecordingJob) -> None:
        job.cancelled = len(job.parts) == 3

    job = RecordingJob("video", on_emit=leave, prompt="a", progress=True, **QUICK | {"steps": 50})
    with pytest.raises(Cancelled):
        await ltx.run(job)
    assert [step_from_wire(part).step for part in job.parts] == [0, 1, 2]
    assert await asyncio.wait_for(film(ltx), 30)


async def test_nobody_reads_so_nothing_is_told(ltx: VideoRuntime) -> None:
    job = RecordingJob("video", prompt="a", progress=True, **QUICK)
    job.writable = False
    assert (await ltx.run(job)).payload
    assert job.parts == []


def test_other_pipelines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableVideoDiffusionPipeline"}')
    with pytest.raises(ModelLoadFailed, match="StableVideoDiffusionPipeline"):
        describe(ModelSpec("m", str(tmp_path)))


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["PyAV", "x264"])
def test_without_pyav_there_is_webp(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    assert films.chosen_format(None) == "mp4"
    if lacking == "PyAV":
        monkeypatch.setitem(sys.modules, "av", None)
    else:
        monkeypatch.setattr(films, "_ENCODER", "libx2640")
    assert films.chosen_format(None) == "webp"
    assert films.chosen_format("gif") == "gif"
    with pytest.raises(UnsupportedField, match="PyAV") as caught:
        films.chosen_format("mp4")
    assert "blip-mesh[video]" in caught.value.hint


def test_numbers_that_are_none() -> None:
    pixels = numpy.full((2, 4, 4, 3), 0.5)
    assert (films.to_frames(pixels) == 128).all()
    pixels[1, 0, 0, 0] = numpy.nan
    with pytest.raises(RuntimeFailed, match="NaN"):
        films.to_frames(pixels)


def test_a_file_that_no_message_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "MAX_FILE", 100)
    with pytest.raises(PayloadTooLarge, match="100 can be sent"):
        films.encode(numpy.zeros((2, 16, 16, 3), "uint8"), 8, "mp4")


@pytest.mark.parametrize(("fps", "grain"), [(24, 1), (30, 10), (8, 10), (120, 10)])
def test_durations_add_up(fps: int, grain: int) -> None:
    found = films.durations(fps, fps, grain)
    assert len(found) == fps
    assert all(each % grain == 0 and each > 0 for each in found)
    if 1000 / fps >= grain:
        assert sum(found) == 1000
        assert max(found) - min(found) <= grain


def test_odd_sides_lose_a_row() -> None:
    file = films.encode(numpy.zeros((3, 17, 19, 3), "uint8"), 8, "mp4")
    assert frames_of(file).shape == (3, 16, 18, 3)


@pytest.mark.parametrize("start", [b"", b"RIFF1234WAVE", b"%PDF-1.7", b"\0\0\0"])
def test_what_is_no_video(start: bytes) -> None:
    assert video_format(start) is None

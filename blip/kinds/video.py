"""``video``: a prompt, and maybe a picture to begin with, in; one file of moving pictures out.

The parts of an answer are :class:`~blip.kinds.image.Step` records without previews: they tell how
far it is and hold nothing of the video, so a task that moves to another node begins again there
and nothing is doubled. The DONE payload is the file.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from blip.kinds.base import Kind, TaskInput
from blip.kinds.image import MAX_STEPS, Side

VideoFormat = Literal["mp4", "webp", "gif", "apng"]

#: What each format is called in HTTP, and how its files' names end.
MEDIA_TYPES: dict[VideoFormat, str] = {
    "mp4": "video/mp4",
    "webp": "image/webp",
    "gif": "image/gif",
    "apng": "image/apng",
}
ENDINGS: dict[VideoFormat, str] = {"mp4": "mp4", "webp": "webp", "gif": "gif", "apng": "png"}

#: Most frames of a video: the longest that current models make are a third of that.
MAX_FRAMES = 1024

#: Seconds and frames a second. Models are made for 8 to 30 frames a second.
MAX_SECONDS = 120.0
MAX_FPS = 120

#: Most pixels of all frames together: ten seconds of 1280 x 720 at 24 frames a second. As floats,
#: in which a decoder gives them, they take 3 GB of the node's memory.
MAX_VIDEO_PIXELS = 1 << 28

#: Bytes of a file. A message between machines has at most 64 MiB, with some room for its fields.
MAX_FILE = 60 * 1024 * 1024

#: What is assumed of a request that leaves them to its model, so that what the broker learns from
#: such requests holds for the next of them.
TYPICAL_MEGAPIXELS = 0.4
TYPICAL_FRAMES = 81
TYPICAL_STEPS = 50
TYPICAL_FPS = 16


class VideoInput(TaskInput):
    """What to film. What is None is left to the model's pipeline.

    ``num_frames`` is how long it is, or ``seconds`` by ``fps``. With ``image`` (the bytes of a
    file) it begins with that picture. ``format`` None is mp4 where the node can write it, else
    webp. Progress is told after every step, if ``progress``.
    """

    #: No unfinished frames are shown: decoding even one takes the whole decoder.
    previews: ClassVar[int] = 0

    prompt: Annotated[str, StringConstraints(max_length=32_000)] = ""
    negative_prompt: Annotated[str, StringConstraints(max_length=32_000)] = ""
    width: Side | None = None
    height: Side | None = None
    num_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None
    seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = None
    fps: Annotated[int, Field(ge=1, le=MAX_FPS)] | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    scheduler: Annotated[str, StringConstraints(max_length=64)] | None = None
    image: bytes | None = None
    progress: bool = False
    format: VideoFormat | None = None


def _units(value: VideoInput) -> float:
    """Steps times megapixels of all frames, twice that with guidance."""
    megapixels = TYPICAL_MEGAPIXELS
    if value.width and value.height:
        megapixels = value.width * value.height / 1e6
    frames: float = TYPICAL_FRAMES
    if value.num_frames is not None:
        frames = value.num_frames
    elif value.seconds is not None:
        frames = max(1.0, value.seconds * (value.fps or TYPICAL_FPS))
    guided = value.guidance_scale is None or value.guidance_scale > 1
    return (value.steps or TYPICAL_STEPS) * megapixels * frames * (2 if guided else 1)


def _again(value: VideoInput, last: bytes | memoryview) -> VideoInput:
    """Return the input itself: parts only tell how far it is, so another node may begin again."""
    return value


VIDEO = Kind("video", VideoInput, _units, resumable=True, resume=_again)


def video_format(data: bytes | memoryview) -> VideoFormat | None:
    """Return what a file is, by its first bytes; None for what no runtime of ours writes."""
    start = bytes(memoryview(data)[:12])
    if start[4:8] == b"ftyp":
        return "mp4"
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return "webp"
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    return "apng" if start.startswith(b"\x89PNG\r\n\x1a\n") else None

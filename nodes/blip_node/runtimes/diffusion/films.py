"""Frames into a file: MP4 where PyAV is installed, else what Pillow animates."""

from __future__ import annotations

import io
import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy
from PIL import Image

from blip.errors import PayloadTooLarge, RuntimeFailed, UnsupportedField
from blip.kinds.video import MAX_FILE, VideoFormat

#: The encoder of H.264.
_ENCODER = "libx264"

#: x264's quality, 0 to 51, less is better: 18 is taken to look like its source.
_CRF = "18"

#: WebP's quality. A still is kept at 95; in a film the eye has no time to look for artefacts, and
#: the file is a third as large.
_WEBP_QUALITY = 80

#: EXIF tags: what the picture shows, and what made it.
_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131

Facts = Mapping[str, str | int | float]


def can_write_mp4() -> bool:
    """Return whether PyAV is installed, with an encoder of H.264; some builds come without."""
    try:
        import av

        av.codec.Codec(_ENCODER, "w")
    except (ImportError, ValueError):
        return False
    return True


def chosen_format(asked: VideoFormat | None) -> VideoFormat:
    """Return the format to write: what was asked for, else mp4 where that can be.

    Raises :class:`~blip.errors.UnsupportedField` for mp4 without PyAV.
    """
    able = can_write_mp4()
    if asked == "mp4" and not able:
        raise UnsupportedField(
            "'output_format': this node cannot write mp4: PyAV with x264 is not installed there.",
            hint="Install it: pip install 'blip-mesh[video]'. Or ask for webp, gif or apng.",
            param="output_format",
        )
    return asked or ("mp4" if able else "webp")


def to_frames(pixels: Any) -> Any:
    """Turn a pipeline's numbers, float [frames, height, width, 3] from 0 to 1, into bytes.

    Raises :class:`~blip.errors.RuntimeFailed` if they are no numbers.
    """
    frames = numpy.empty(pixels.shape, "uint8")
    for number, frame in enumerate(pixels):  # one at a time: a copy of all would be gigabytes
        if not numpy.isfinite(frame).all():
            raise RuntimeFailed(
                "the model computed NaN or infinity instead of a video",
                hint="Its weights or its decoder overflow in half precision: set its dtype to "
                "bfloat16 or float32.",
            )
        frames[number] = (frame * 255).round().clip(0, 255)
    return frames


def encode(
    frames: Any,
    fps: int,
    format: VideoFormat,
    facts: Facts | None = None,
    look: Callable[[], None] = lambda: None,
) -> bytes:
    """Write a file of frames, uint8 [frames, height, width, 3], with facts about it inside.

    ``look`` is called before each frame of an mp4, and ends it by raising. GIF has no room for
    facts. Raises :class:`~blip.errors.PayloadTooLarge` for a file that no message between machines
    could carry.
    """
    file = (
        _mp4(frames, fps, facts or {}, look)
        if format == "mp4"
        else _pillow(frames, fps, format, facts)
    )
    if len(file) > MAX_FILE:
        raise PayloadTooLarge(
            f"the video is a file of {len(file)} bytes; {MAX_FILE} can be sent",
            hint="Ask for fewer frames, a smaller size, or mp4.",
            details={"size": len(file), "limit": MAX_FILE},
        )
    return file


def _mp4(frames: Any, fps: int, facts: Facts, look: Callable[[], None]) -> bytes:
    """H.264 in MP4, its index in front, so that browsers play it while it comes."""
    import av

    _, height, width, _ = frames.shape
    # PyAV needs a real file: the index is moved to the front by reading what was written
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with av.open(file.name, "w", options={"movflags": "faststart"}) as container:
            if facts:
                container.metadata["comment"] = json.dumps(dict(facts))
            stream = container.add_stream(_ENCODER, rate=Fraction(fps), options={"crf": _CRF})
            # players know colours at half the resolution only, which needs even sides
            stream.width, stream.height = width - width % 2, height - height % 2
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                look()
                picture = av.VideoFrame.from_ndarray(
                    numpy.ascontiguousarray(frame[: stream.height, : stream.width]), format="rgb24"
                )
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        file.seek(0)
        return file.read()


def _pillow(frames: Any, fps: int, format: VideoFormat, facts: Facts | None) -> bytes:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    options: dict[str, Any] = {"save_all": True, "append_images": rest, "loop": 0}
    options["duration"] = durations(len(frames), fps, 10 if format == "gif" else 1)
    if format == "webp":
        options |= {"quality": _WEBP_QUALITY, "method": 2, "exif": _exif(facts)}
    elif format == "apng":
        options |= {"exif": _exif(facts)}
    file = io.BytesIO()
    first.save(file, "PNG" if format == "apng" else format.upper(), **options)
    return file.getvalue()


def _exif(facts: Facts | None) -> Image.Exif:
    exif = Image.Exif()
    if facts:
        rest = {key: value for key, value in facts.items() if key != "Software"}
        exif[_DESCRIPTION] = json.dumps(rest)  # ASCII, as EXIF wants it
        exif[_SOFTWARE] = str(facts.get("Software", ""))
    return exif


def durations(frames: int, fps: int, grain: int = 1) -> Sequence[int]:
    """Return how long each frame is shown, in milliseconds that are multiples of ``grain``.

    They differ by one grain at most, and their sum is that of the video to half a grain.
    """
    ends = [round(number * 1000 / fps / grain) * grain for number in range(frames + 1)]
    return [max(grain, end - begin) for begin, end in itertools.pairwise(ends)]

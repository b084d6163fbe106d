"""From a sound file to the samples that a model takes: one channel, at the model's own rate."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy
import soundfile
import soxr

from blip.errors import InvalidRequest
from blip.kinds.sounds import MAX_SECONDS, Header, check_seconds, check_sound, cut_off

#: Frames that are decoded at a time: some ten seconds, so that neither all channels at the file's
#: own rate are ever in memory at once, nor a cancel has to wait.
_BLOCK = 1 << 19

#: What decoders may leave out of what the header of an MP3 tells: their own delay and padding, some
#: frames of 72 ms at most.
_SLACK_SECONDS = 0.3


def decode(
    data: bytes, rate: int, field: str = "file", look: Callable[[], None] = lambda: None
) -> Any:
    """Decode a file to float32 [samples] at ``rate`` samples a second, channels mixed to one.

    WAV, MP3, FLAC and Ogg (Vorbis, Opus) are decoded by libsndfile, and resampled by soxr. The
    header is checked before anything is decoded, and the length again on the way, whatever the
    header said. ``look`` is called between blocks and may raise. Raises
    :class:`~blip.errors.InvalidRequest` naming the field.
    """
    header = check_sound(data, field)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.channels != header.channels:  # what was checked is what is decoded
                raise _broken(field, header, f"it has {file.channels} channels")
            samples, seconds = _read(file, rate, field, look)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
        raise _broken(field, header, str(error)) from None
    told = None if header.guessed else header.seconds
    if told is not None and seconds < told - _SLACK_SECONDS:
        raise cut_off(field)
    check_seconds(seconds, field)
    if not numpy.isfinite(samples).all():
        raise InvalidRequest(f"'{field}' holds samples that are no numbers.", param=field)
    return samples


def _read(file: Any, rate: int, field: str, look: Callable[[], None]) -> tuple[Any, float]:
    own = file.samplerate
    resampler = None if own == rate else soxr.ResampleStream(own, rate, 1, dtype="float32")
    blocks = []
    frames = 0
    while True:
        look()
        block = file.read(_BLOCK, dtype="float32", always_2d=True)
        frames += len(block)
        if frames > MAX_SECONDS * own:
            check_seconds(frames / own, field)
        last = len(block) < _BLOCK
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(1)
        blocks.append(mono if resampler is None else resampler.resample_chunk(mono, last=last))
        if last:
            return numpy.concatenate(blocks), frames / own


def _broken(field: str, header: Header, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{field}' is a {header.format.upper()} file that cannot be decoded: {why}",
        hint="It may be cut off or damaged; send the whole file.",
        param=field,
    )

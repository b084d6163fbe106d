"""Samples to audio files, piece by piece as they come, or whole.

Samples are one channel of float32 between -1 and 1; what is beyond is cut. MP3, FLAC and Opus are
written by libsndfile, through a file in memory.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy

from blip.errors import InvalidRequest

#: Samples a second that the formats know; the others take any.
RATES: dict[str, tuple[int, ...]] = {
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "opus": (8000, 12000, 16000, 24000, 48000),
}

#: What libsndfile calls the formats that it writes for us, and how hard to compress. MP3 at half is
#: 80 kbit/s for a voice, all frames alike: players tell the length of such a stream from its size.
_CONTAINERS: dict[str, dict[str, Any]] = {
    "mp3": {
        "format": "MP3",
        "subtype": "MPEG_LAYER_III",
        "compression_level": 0.5,
        "bitrate_mode": "CONSTANT",
    },
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
}

#: What a WAV header has for a length that nobody knows yet. ffmpeg, sox and libsndfile read on to
#: the end of the file.
_UNKNOWN = 0xFFFFFFFF

#: Bytes of a WAV header as it is written here.
_WAV_HEADER = 44

_FULL_SCALE = 32767


def fit_rate(format: str, asked: int | None, own: int) -> int:
    """Return the rate to encode at: the asked one, or ``own``, or the next that the format knows.

    Raises :class:`~blip.errors.InvalidRequest` if the format does not know the asked one.
    """
    known = RATES.get(format)
    if asked is not None:
        if known is not None and asked not in known:
            raise InvalidRequest(
                f"'sample_rate': {format} does not know {asked}.",
                hint=f"It knows {', '.join(map(str, known))}.",
                param="sample_rate",
            )
        return asked
    if known is None or own in known:
        return own
    return next((rate for rate in known if rate > own), known[-1])


class Encoder:
    """A file that is written while its samples are still being made.

    With ``whole`` all of it comes at the end, and its header says how long it is. FLAC does so
    always: few readers take one that does not say. With ``begun`` a WAV's header is not written:
    somebody else has done that.
    """

    def __init__(self, rate: int, format: str, *, whole: bool = False, begun: bool = False) -> None:
        self._rate = rate
        self._format = format
        self._whole = whole or format == "flac"
        self._begun = begun
        self._sink = _Sink()
        self._file = _open(self._sink, rate, format) if format in _CONTAINERS else None

    @property
    def held(self) -> int:
        """Bytes of the file that were written and not returned yet."""
        return self._sink.held

    def feed(self, samples: Any) -> bytes:
        """Take samples; return what of the file is ready, possibly nothing."""
        if self._file is not None:
            self._file.write(samples)
        else:
            if not self._begun and self._format == "wav":
                self._sink.write(_wav_header(self._rate, None))
            self._sink.write(_integers(samples))
        self._begun = True
        return b"" if self._whole else self._sink.take()

    def finish(self) -> bytes:
        """Return the rest of the file."""
        if self._file is not None:
            self._file.close()
        elif self._whole and self._format == "wav":
            size = self._sink.tell() - _WAV_HEADER
            self._sink.seek(0)
            self._sink.write(_wav_header(self._rate, size))
        return self._sink.take()

    def close(self) -> None:
        """Let go of a file that will not be finished. Idempotent."""
        if self._file is not None:
            self._file.close()


class _Sink(io.RawIOBase):
    """A file whose beginning is taken away while its end is written.

    Headers are written anew once the length is known; where they have been taken, they stay as
    they were.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._taken = 0
        self._at = 0

    @property
    def held(self) -> int:
        return len(self._data)

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        self._taken += len(data)
        return data

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        begin = self._at - self._taken
        self._at += size
        if begin < 0:
            view = view[-begin:]
            begin = 0
        if view:
            if begin > len(self._data):
                self._data.extend(bytes(begin - len(self._data)))
            self._data[begin : begin + len(view)] = view
        return size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._taken + len(self._data)}
        self._at = bases[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at


def _open(sink: _Sink, rate: int, format: str) -> Any:
    import soundfile

    return soundfile.SoundFile(sink, "w", samplerate=rate, channels=1, **_CONTAINERS[format])


def _integers(samples: Any) -> bytes:
    scaled = numpy.rint(numpy.clip(samples, -1, 1) * _FULL_SCALE)
    data: bytes = scaled.astype("<i2").tobytes()
    return data


def _wav_header(rate: int, size: int | None) -> bytes:
    """Return the header of 16-bit mono; ``size`` is the bytes of the samples, None if unknown."""
    known = _UNKNOWN if size is None else size
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * 2, 2, 16)
    whole = _UNKNOWN if size is None else size + _WAV_HEADER - 8
    return b"RIFF%bWAVEfmt %b%bdata%b" % (
        struct.pack("<I", whole),
        struct.pack("<I", len(form)),
        form,
        struct.pack("<I", known),
    )

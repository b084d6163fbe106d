"""What the first bytes of a sound file say: its format, channels and length. Nothing is decoded.

A gateway asks this of everything it is sent, so that ten hours of silence in a megabyte are refused
for their header, before anything is done with them; and the broker is told how long a task is.
"""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

from blip.errors import InvalidRequest

SoundFormat = Literal["wav", "mp3", "flac", "ogg"]

#: Longest sound that is taken: two hours, a long lecture or film. At the 16 kHz of every model of
#: speech, as float32, they take 460 MB of a node's memory.
MAX_SECONDS = 2 * 3600.0

#: Shortest sound that is taken, as OpenAI has it: nobody says anything in less.
MIN_SECONDS = 0.1

#: Most channels: 7.1 surround. Of formats with more, decoders are seldom tested.
MAX_CHANNELS = 8

#: Samples a second that recorders use, with room: below nothing can be understood, above is no
#: sound.
MIN_RATE, MAX_RATE = 4_000, 384_000

#: An Ogg page takes 65,307 bytes at most, so the last one begins within these.
_OGG_TAIL = 1 << 16

#: Where to look for an MP3's first frame; some encoders put zeros before it.
_MP3_SEARCH = 1 << 13

#: kbit/s of MPEG 1 and of MPEG 2 and 2.5, both Layer III, by the header's four bits.
_MP3_BITRATES = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
#: Samples a second by the header's version bits (2.5, reserved, 2, 1) and rate bits.
_MP3_RATES = {
    0: (11_025, 12_000, 8_000),
    2: (22_050, 24_000, 16_000),
    3: (44_100, 48_000, 32_000),
}

#: How files begin that hold sound in a form that nothing here decodes, and what they are called.
_FOREIGN = (
    (4, b"ftyp", "an MP4 (m4a)"),
    (0, b"\x1a\x45\xdf\xa3", "a WebM or Matroska"),
    (0, b"FORM", "an AIFF"),
    (0, b"#!AMR", "an AMR"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media"),
)


#: What is assumed of a sound that does not say how long it is, before it was decoded.
TYPICAL_SECONDS = 30.0


class Header(NamedTuple):
    """What a sound says of itself; ``seconds`` is None where it does not.

    ``cut`` says that it ends before its own header's end, ``guessed`` that the seconds follow from
    the first frame and the size of the file only.
    """

    format: SoundFormat
    rate: int
    channels: int
    seconds: float | None
    cut: bool = False
    guessed: bool = False


def read_header(data: bytes | memoryview) -> Header | None:
    """Return the header of a WAV, MP3, FLAC or Ogg (Vorbis, Opus) file; None for all else."""
    view = memoryview(data)
    try:
        start = bytes(view[:12])
        if start[:4] == b"RIFF" and start[8:] == b"WAVE":
            return _wav(view)
        if start[:4] == b"OggS":
            return _ogg(view)
        at = _after_tag(view)
        if bytes(view[at : at + 4]) == b"fLaC":
            return _flac(view, at)
        return _mp3(view, at)
    except (struct.error, IndexError, ZeroDivisionError):
        return None


def seconds_of(data: bytes | memoryview) -> float:
    """Return about how many seconds of sound a file holds, as its header has it; never 0."""
    header = read_header(data)
    seconds = header.seconds if header is not None else None
    return max(MIN_SECONDS, TYPICAL_SECONDS if seconds is None else seconds)


def check_sound(data: bytes | memoryview, field: str) -> Header:
    """Return the header of a sound that a request carries in ``field``.

    Raises :class:`~blip.errors.InvalidRequest` naming the field for what is no sound of a known
    format, is cut off, or has too many seconds or channels.
    """
    header = read_header(data)
    if header is None:
        kind = _foreign(data)
        what = f"is {kind} file, which is not read here" if kind else "is not a sound file"
        raise InvalidRequest(
            f"'{field}' {what}: WAV, MP3, FLAC and Ogg (Vorbis, Opus) are.",
            hint="Convert it; the file's content counts, not its name."
            if data
            else "The file is empty.",
            param=field,
        )
    if header.seconds is not None:
        check_seconds(header.seconds, field)
    if not 1 <= header.channels <= MAX_CHANNELS:
        raise InvalidRequest(
            f"'{field}' has {header.channels} channels; 1 to {MAX_CHANNELS} are taken.",
            hint="Mix it down to one.",
            param=field,
        )
    if not MIN_RATE <= header.rate <= MAX_RATE:
        raise InvalidRequest(
            f"'{field}' has {header.rate} samples a second; {MIN_RATE} to {MAX_RATE} are taken.",
            param=field,
        )
    if header.cut:
        raise cut_off(field)
    return header


def check_seconds(seconds: float, field: str) -> None:
    """Raise :class:`~blip.errors.InvalidRequest` for a sound that is too long, or hardly there."""
    if seconds > MAX_SECONDS:
        raise InvalidRequest(
            f"'{field}' is {seconds:.0f} seconds long; {MAX_SECONDS:.0f} are the most.",
            hint="Cut it in parts.",
            param=field,
            details={"seconds": seconds, "limit": MAX_SECONDS},
        )
    if seconds < MIN_SECONDS:
        raise InvalidRequest(
            f"'{field}' is {seconds:.3f} seconds long; {MIN_SECONDS} are the least.",
            param=field,
            details={"seconds": seconds, "limit": MIN_SECONDS},
        )


def cut_off(field: str) -> InvalidRequest:
    """Return the error for a file that ends too early."""
    return InvalidRequest(
        f"'{field}' is cut off: it ends before the end that its header tells of.",
        hint="Send the whole file.",
        param=field,
    )


def _foreign(data: bytes | memoryview) -> str:
    start = bytes(memoryview(data)[:16])
    return next((name for at, mark, name in _FOREIGN if start[at:].startswith(mark)), "")


def _wav(view: memoryview) -> Header | None:
    at = 12
    rate = channels = byte_rate = 0
    while at + 8 <= len(view):
        name, size = bytes(view[at : at + 4]), struct.unpack_from("<I", view, at + 4)[0]
        at += 8
        if name == b"fmt ":
            channels, rate, byte_rate = struct.unpack_from("<HII", view, at + 2)
        elif name == b"data":
            there = len(view) - at
            # who writes into a pipe does not know the size, and writes nothing or everything
            streamed = size in (0, 0xFFFFFFFF, 0x7FFFFFFF) or size >= 0xFFFFFF00
            length = there if streamed else size
            cut = not streamed and size > there
            return Header("wav", rate, channels, length / byte_rate, cut)
        at += size + size % 2
    return None


def _flac(view: memoryview, at: int) -> Header:
    packed = int.from_bytes(view[at + 18 : at + 26], "big")
    if len(view) < at + 42:
        raise IndexError
    rate, channels, samples = packed >> 44, (packed >> 41 & 7) + 1, packed & (1 << 36) - 1
    return Header("flac", rate, channels, samples / rate if samples else None)


def _ogg(view: memoryview) -> Header | None:
    begin = 27 + view[26]
    head = bytes(view[begin : begin + 64])
    skip = 0
    if head.startswith(b"OpusHead"):
        channels, skip = struct.unpack_from("<BH", head, 9)
        rate = 48_000  # whatever it was made from: Opus counts in these
    elif head.startswith(b"\x01vorbis"):
        channels, rate = struct.unpack_from("<BI", head, 11)
    elif head.startswith(b"\x7fFLAC"):
        inner = _flac(memoryview(head), 9)
        channels, rate = inner.channels, inner.rate
    else:
        return None
    base = max(0, len(view) - _OGG_TAIL)
    tail = bytes(view[base:])
    last = tail.rfind(b"OggS")
    (samples,) = struct.unpack_from("<q", tail, last + 6)
    lengths = tail[last + 27 : last + 27 + tail[last + 26]]
    end = last + 27 + tail[last + 26] + sum(lengths)
    seconds = (samples - skip) / rate if samples > 0 else None
    return Header("ogg", rate, channels, seconds, cut=end > len(tail))


def _after_tag(view: memoryview) -> int:
    """Return where an ID3v2 tag ends, 0 where there is none."""
    if bytes(view[:3]) != b"ID3" or len(view) < 10:
        return 0
    size = 0
    for byte in view[6:10]:
        size = size << 7 | byte & 0x7F
    return size + (20 if view[5] & 0x10 else 10)


class _Frame(NamedTuple):
    version: int
    rate: int
    channels: int
    bitrate: int
    size: int


def _frame(view: memoryview, at: int) -> _Frame | None:
    """Read the header of an MP3 frame (Layer III); None if there is none at this place."""
    (bits,) = struct.unpack_from(">I", view, at)
    version, layer = bits >> 19 & 3, bits >> 17 & 3
    bitrate, rate = bits >> 12 & 15, bits >> 10 & 3
    if bits >> 21 != 0x7FF or version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
        return None
    kilobits = _MP3_BITRATES[0 if version == 3 else 1][bitrate]
    hertz = _MP3_RATES[version][rate]
    size = (144 if version == 3 else 72) * kilobits * 1000 // hertz + (bits >> 9 & 1)
    return _Frame(version, hertz, 1 if bits >> 6 & 3 == 3 else 2, kilobits * 1000, size)


def _mp3(view: memoryview, at: int) -> Header | None:
    stop = min(len(view) - 4, at + _MP3_SEARCH)
    while at < stop:
        frame = _frame(view, at) if view[at] == 0xFF else None
        # bytes like a header's are common; two of them, a frame apart, are not
        if frame is not None and (at + frame.size + 4 > len(view) or _frame(view, at + frame.size)):
            break
        at += 1
    else:
        return None
    assert frame is not None
    samples = 1152 if frame.version == 3 else 576
    side = 32 if frame.version == 3 else 17
    if frame.channels == 1:
        side = 17 if frame.version == 3 else 9
    tag = at + 4 + side
    if bytes(view[tag : tag + 4]) in (b"Xing", b"Info"):
        flags, frames, size = struct.unpack_from(">III", view, tag + 4)
        if flags & 1:
            cut = flags & 3 == 3 and at + size > len(view)
            return Header("mp3", frame.rate, frame.channels, frames * samples / frame.rate, cut)
    seconds = (len(view) - at) * 8 / frame.bitrate
    return Header("mp3", frame.rate, frame.channels, seconds, guessed=True)

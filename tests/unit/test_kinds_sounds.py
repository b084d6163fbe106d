"""What the first bytes of sound files say, against what libsndfile makes of whole ones."""

from __future__ import annotations

import io
import struct

import numpy
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st

from blip.errors import InvalidRequest
from blip.kinds import KINDS, input_from_wire, input_to_wire
from blip.kinds.sounds import MAX_SECONDS, TYPICAL_SECONDS, Header, check_sound, read_header
from blip.kinds.transcription import (
    Heard,
    Segment,
    Transcript,
    TranscriptionInput,
    Word,
    heard_from_wire,
    heard_to_wire,
    transcript_from_wire,
)
from tests.models.tones import keys_file, sound_file, tones

FILES = {
    (format, subtype, rate, channels): sound_file(
        numpy.tile(tones("0123", rate)[:, None], (1, channels)), rate, format, subtype
    )
    for format, subtype, rate, channels in (
        ("WAV", "PCM_16", 8_000, 1),
        ("WAV", "FLOAT", 44_100, 2),
        ("WAV", "ULAW", 8_000, 1),
        ("WAVEX", "PCM_24", 48_000, 6),
        ("MP3", None, 44_100, 2),
        ("MP3", None, 16_000, 1),
        ("MP3", None, 8_000, 1),
        ("FLAC", None, 22_050, 3),
        ("OGG", "VORBIS", 44_100, 2),
        ("OGG", "OPUS", 48_000, 1),
        ("OGG", "OPUS", 16_000, 2),
    )
}


@pytest.mark.parametrize("what", FILES)
def test_headers_are_what_libsndfile_finds(what: tuple[str, str | None, int, int]) -> None:
    format, subtype, rate, channels = what
    header = read_header(FILES[what])
    assert header is not None
    assert header.format == format.lower().removesuffix("ex")
    assert header.rate == (48_000 if subtype == "OPUS" else rate)
    assert header.channels == channels
    assert header.seconds is not None
    assert not header.cut
    info = soundfile.info(io.BytesIO(FILES[what]))
    # an MP3's own count has its padding, two or three frames
    assert header.seconds == pytest.approx(info.duration, abs=0.25 if format == "MP3" else 1e-3)
    assert check_sound(FILES[what], "file") == header


def patched(data: bytes, at: int, code: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(code, changed, at, *values)
    return bytes(changed)


def ten_hours(format: str) -> bytes:
    """A small file whose header tells of ten hours."""
    data = keys_file("0123", format)
    samples = 36_000 * 16_000
    if format == "FLAC":
        (packed,) = struct.unpack_from(">Q", data, 18)
        return patched(data, 18, ">Q", packed & ~((1 << 36) - 1) | samples)
    if format == "OGG":
        return patched(data, data.rfind(b"OggS") + 6, "<q", samples * 3)
    if format == "MP3":
        tag = max(data.find(b"Xing"), data.find(b"Info"))
        assert tag > 0
        return patched(data, tag + 8, ">I", samples // 576)
    return patched(data, data.find(b"data") + 4, "<I", samples * 2)


@pytest.mark.parametrize("format", ["WAV", "MP3", "FLAC", "OGG"])
def test_ten_hours_are_refused_by_their_header(format: str) -> None:
    with pytest.raises(InvalidRequest, match=r"'file' is \d+ seconds long") as caught:
        check_sound(ten_hours(format), "file")
    assert caught.value.param == "file"
    assert caught.value.details["limit"] == MAX_SECONDS


def test_what_is_cut_off_says_so() -> None:
    for format in ("WAV", "MP3", "OGG"):
        data = keys_file("0123456789", format)
        with pytest.raises(InvalidRequest, match="cut off"):
            check_sound(data[: len(data) * 2 // 3], "file")
    # FLAC does not say how many bytes it has: its decoder finds out
    data = keys_file("0123456789", "FLAC")
    assert check_sound(data[: len(data) * 2 // 3], "file")


def test_a_wav_from_a_pipe_is_as_long_as_it_is() -> None:
    data = keys_file("0123")
    at = data.find(b"data") + 4
    whole = read_header(data)
    for size in (0, 0xFFFFFFFF, 0x7FFFFFFF):
        assert read_header(patched(data, at, "<I", size)) == whole


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"\x00\x00\x00\x20ftypM4A \x00", "MP4"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "WebM"),
        (b"FORM" + bytes(40), "AIFF"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "not a sound"),
        (b"OggS" + bytes(60), "not a sound"),
        (b"\xff\xfb\x90\x00" + bytes(4000), "not a sound"),
        (b"hello, this is text", "not a sound"),
        (bytes(range(256)) * 50, "not a sound"),
    ],
)
def test_what_is_no_sound_is_refused_by_name(data: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_sound(data, "file")
    assert caught.value.param == "file"
    assert says in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"channels": 9}, "channels"),
        ({"rate": 1000}, "samples a second"),
        ({"frames": 100}, "least"),
    ],
)
def test_limits(header: dict[str, int], says: str) -> None:
    rate, channels = header.get("rate", 8000), header.get("channels", 1)
    data = sound_file(
        numpy.zeros((header.get("frames", rate), channels), dtype="float32"), rate, "WAV"
    )
    with pytest.raises(InvalidRequest, match=says):
        check_sound(data, "file")


def test_a_tag_before_the_sound_is_skipped() -> None:
    for format in ("MP3", "FLAC"):
        data = keys_file("0123", format)
        tag = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
        assert read_header(tag + data) == read_header(data)


STARTS = [data[:64] for data in FILES.values()]


@given(st.sampled_from(STARTS), st.binary(max_size=300), st.integers(0, 64))
@example(b"OggS", b"", 4)
def test_no_bytes_make_it_raise(start: bytes, rest: bytes, kept: int) -> None:
    found = read_header(start[:kept] + rest)
    assert found is None or isinstance(found, Header)


def test_units_are_seconds() -> None:
    units = KINDS["transcription"].units
    assert units(TranscriptionInput(file=keys_file("5551234"))) == pytest.approx(1.31)
    assert units(TranscriptionInput(file=b"?")) == TYPICAL_SECONDS
    assert KINDS["translation"].units is units


def test_the_input_travels() -> None:
    value = TranscriptionInput(file=b"\x00\xff", language="de", words=True)
    for kind in ("transcription", "translation"):
        assert input_from_wire(KINDS[kind], input_to_wire(value)) == value
    with pytest.raises(InvalidRequest, match="temperature"):
        input_from_wire(KINDS["transcription"], b"\x82\xa4file\xc4\x00\xabtemperature\x02")


def test_what_was_heard_travels() -> None:
    word = Word("Hello", 0.5, 0.75)
    full = Segment(0.5, 1.0, " Hello", [1, 2], 0.0, 0.0, -0.25, 1.5, 0.125, [word])
    bare = Segment(1.0, 2.0, " you.", [3], 0.0)
    heard = Heard([full], 1.0, 2.0)
    assert heard_from_wire(heard_to_wire(heard)) == heard
    whole = Transcript([full, bare], 2.0, "english")
    assert transcript_from_wire(heard_to_wire(whole)) == whole
    assert whole.text == "Hello you."
    for noise in (b"", b"\x93\x01\x02\x03", b"\xc1", b"\x93\x91\x01\x02\xc0"):
        with pytest.raises((ValueError, TypeError)):
            transcript_from_wire(noise)
        with pytest.raises((ValueError, TypeError)):
            heard_from_wire(noise)

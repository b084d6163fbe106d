"""Sound files to samples: every format, every rate, and everything that can be wrong with them."""

from __future__ import annotations

import contextlib
import struct

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.errors import Cancelled, InvalidRequest
from blip.kinds import sounds
from blip_node.audio import decode as decoding
from blip_node.audio.decode import decode
from tests.models.tones import keys_file, sound_file

RATE = 16_000


def sine(rate: int, hertz: float = 440.0, seconds: float = 1.0) -> numpy.ndarray:
    time = numpy.arange(int(rate * seconds)) / rate
    return (0.5 * numpy.sin(2 * numpy.pi * hertz * time)).astype("float32")


def pitch(samples: numpy.ndarray) -> float:
    """The loudest frequency in hertz."""
    spectrum = abs(numpy.fft.rfft(samples * numpy.hanning(len(samples))))
    return float(spectrum.argmax()) * RATE / len(samples)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 96_000])
def test_every_rate_becomes_the_models(rate: int) -> None:
    samples = decode(sound_file(sine(rate), rate), RATE)
    assert samples.dtype == numpy.float32
    assert len(samples) == pytest.approx(RATE, abs=2)
    assert pitch(samples) == pytest.approx(440, abs=2)
    middle = samples[1000:-1000]
    assert abs(middle).max() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_24"),
        ("WAV", "FLOAT"),
        ("WAV", "ALAW"),
        ("MP3", None),
        ("FLAC", None),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
    ],
)
def test_every_format_is_mixed_to_one_channel(format: str, subtype: str | None) -> None:
    both = numpy.stack([sine(48_000), sine(48_000, 1000.0)], 1)
    samples = decode(sound_file(both, 48_000, format, subtype), RATE)
    assert len(samples) == pytest.approx(RATE, abs=RATE // 10)
    spectrum = abs(numpy.fft.rfft(samples[:RATE], RATE))
    loudest = set(numpy.argsort(spectrum)[-2:].tolist())
    assert {round(hertz / 10) for hertz in loudest} == {44, 100}


def test_long_files_are_decoded_in_blocks_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sound_file(sine(44_100, seconds=3.0), 44_100)
    whole = decode(data, RATE)
    monkeypatch.setattr(decoding, "_BLOCK", 10_000)
    assert numpy.allclose(decode(data, RATE), whole, atol=1e-6)


def test_a_cancel_stops_it_between_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_BLOCK", 1_000)
    looks = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise Cancelled("the client went away")

    with pytest.raises(Cancelled):
        decode(sound_file(sine(8_000), 8_000), RATE, look=look)
    assert len(looks) == 3


@pytest.mark.parametrize("format", ["WAV", "MP3", "FLAC", "OGG"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_is_cut_off_is_refused(format: str, share: float) -> None:
    data = keys_file("0123456789*#" * 4, format)
    with pytest.raises(InvalidRequest, match=r"cut off|lost sync") as caught:
        decode(data[: int(len(data) * share)], RATE)
    assert caught.value.param == "file"


def test_a_header_that_lies_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length is looked at again while decoding: a header need not tell it."""
    data = bytearray(sound_file(sine(8_000, seconds=3.0), 8_000, "FLAC"))
    (packed,) = struct.unpack_from(">Q", data, 18)
    struct.pack_into(">Q", data, 18, packed & ~((1 << 36) - 1))  # "unknown"
    for module in (sounds, decoding):
        monkeypatch.setattr(module, "MAX_SECONDS", 2.0)
    monkeypatch.setattr(decoding, "_BLOCK", 1_000)
    with pytest.raises(InvalidRequest, match="2 are the most"):
        decode(bytes(data), RATE)


def test_numbers_that_are_none_are_refused() -> None:
    samples = sine(16_000)
    samples[5000] = numpy.nan
    with pytest.raises(InvalidRequest, match="no numbers"):
        decode(sound_file(samples, 16_000, "WAV", "FLOAT"), RATE)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_files_are_refused_or_decoded_but_nothing_else(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["WAV", "MP3", "FLAC", "OGG"]))
    file = bytearray(keys_file("0123456789", format))
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidRequest):
        assert numpy.isfinite(decode(bytes(file), RATE)).all()

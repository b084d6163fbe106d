"""Audio files that are written piece by piece, read back by libsndfile and by Python."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy
import pytest
import soundfile

from blip.errors import InvalidRequest
from blip_node.audio.encode import RATES, Encoder, fit_rate


def tone(rate: int, seconds: float) -> Any:
    """440 Hz, at half of full scale."""
    moments = numpy.arange(round(rate * seconds)) / rate
    return (0.5 * numpy.sin(2 * numpy.pi * 440 * moments)).astype(numpy.float32)


def written(rate: int, format: str, pieces: int = 4, *, whole: bool = False) -> list[bytes]:
    encoder = Encoder(rate, format, whole=whole)
    parts = [encoder.feed(tone(rate, 1.0)) for _ in range(pieces)]
    parts.append(encoder.finish())
    encoder.close()
    return parts


def strongest(samples: Any, rate: int) -> float:
    """Return the frequency that there is most of."""
    spectrum = numpy.abs(numpy.fft.rfft(samples))
    return float(numpy.fft.rfftfreq(len(samples), 1 / rate)[spectrum.argmax()])


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("format", "rate"),
    [("wav", 22050), ("flac", 22050), ("mp3", 16000), ("mp3", 22050), ("mp3", 44100)]
    + [("opus", rate) for rate in RATES["opus"]],
)
def test_it_sounds_the_same(format: str, rate: int, whole: bool) -> None:
    parts = written(rate, format, whole=whole)
    samples, found = soundfile.read(io.BytesIO(b"".join(parts)))
    assert found == rate
    assert len(samples) / rate == pytest.approx(4, abs=0.2)
    assert strongest(samples, rate) == pytest.approx(440, abs=2)
    # not where the tone begins and ends at once: codecs ring there
    assert abs(samples[rate : 3 * rate]).max() == pytest.approx(0.5, abs=0.06)
    if whole or format == "flac":
        assert not any(parts[:-1])
        # nothing is added, where the file says how long it is
        assert abs(len(samples) - 4 * rate) < (rate if format == "opus" else 1) * 0.05 + 1
    else:
        assert all(parts[:-1]), "something of every second is there before the next"


def test_pcm_and_wav_are_the_samples() -> None:
    expected = numpy.rint(tone(8000, 1.0) * 32767).astype("<i2").tobytes() * 2
    assert b"".join(written(8000, "pcm", 2)) == expected
    assert b"".join(written(8000, "pcm", 2, whole=True)) == expected
    for whole in (False, True):
        file = b"".join(written(8000, "wav", 2, whole=whole))
        assert file[44:] == expected
        with wave.open(io.BytesIO(file)) as reader:
            assert (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) == (
                8000,
                1,
                2,
            )
            assert not whole or reader.getnframes() == 16_000
            assert reader.readframes(20_000) == expected


def test_what_is_too_loud_is_cut() -> None:
    encoder = Encoder(8000, "pcm")
    assert encoder.feed(numpy.array([2.0, -2.0, 0.0])) == b"\xff\x7f\x01\x80\x00\x00"


@pytest.mark.parametrize(
    ("format", "asked", "own", "rate"),
    [
        ("wav", None, 22050, 22050),
        ("wav", 8001, 22050, 8001),
        ("opus", None, 22050, 24000),
        ("opus", None, 16000, 16000),
        ("opus", None, 96000, 48000),
        ("mp3", None, 22050, 22050),
        ("mp3", 44100, 16000, 44100),
    ],
)
def test_rates(format: str, asked: int | None, own: int, rate: int) -> None:
    assert fit_rate(format, asked, own) == rate


def test_a_rate_that_a_format_does_not_know() -> None:
    with pytest.raises(InvalidRequest, match="opus does not know 44100") as caught:
        fit_rate("opus", 44100, 22050)
    assert caught.value.param == "sample_rate"
    assert "48000" in caught.value.hint

"""Telephone key tones (DTMF), which ``tiny-dtmf`` writes down: sound for tests, made by numpy.

The frequencies are those of ITU-T Q.23: https://www.itu.int/rec/T-REC-Q.23
"""

from __future__ import annotations

import io
from typing import Any

import numpy
import soundfile

#: Samples a second that the model takes.
RATE = 16_000

#: The two frequencies of each key.
KEYS: dict[str, tuple[int, int]] = {
    key: (row, column)
    for row, keys in zip((697, 770, 852, 941), ("123A", "456B", "789C", "*0#D"), strict=True)
    for key, column in zip(keys, (1209, 1336, 1477, 1633), strict=True)
}

#: Seconds that a key is pressed, that lie between two, and of a space.
PRESSED, BETWEEN, SPACE = 0.12, 0.06, 1.0


def tones(keys: str, rate: int = RATE) -> Any:
    """Return float32 samples of keys pressed one after the other; a space is a second's rest."""
    pieces = [numpy.zeros(int(rate * 0.05))]
    for key in keys:
        if key == " ":
            pieces.append(numpy.zeros(int(rate * SPACE)))
            continue
        time = numpy.arange(int(rate * PRESSED)) / rate
        row, column = KEYS[key]
        pieces.append(0.3 * numpy.sin(2 * numpy.pi * row * time))
        pieces[-1] += 0.3 * numpy.sin(2 * numpy.pi * column * time)
        pieces.append(numpy.zeros(int(rate * BETWEEN)))
    samples = numpy.concatenate(pieces)
    # a line is never quite silent, and the model was trained on one
    noise = numpy.random.default_rng(0).standard_normal(len(samples)) * 0.01
    return (samples + noise).astype("float32")


def sound_file(
    samples: Any, rate: int = RATE, format: str = "WAV", subtype: str | None = None
) -> bytes:
    """Write samples, one channel or [frames, channels], as a file."""
    written = io.BytesIO()
    soundfile.write(written, samples, rate, format=format, subtype=subtype)
    return written.getvalue()


def keys_file(keys: str, format: str = "WAV", rate: int = RATE) -> bytes:
    """Return a file of keys pressed."""
    return sound_file(tones(keys, rate), rate, format)

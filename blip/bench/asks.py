"""Requests that take as many steps as one likes, for every kind of task. Pure."""

from __future__ import annotations

import io
import json
import random
import struct
import wave
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Texts that runtimes of one pass compute together (``blip_node.runtimes.batching.BATCH_TEXTS``).
BATCH = 32

#: Pixels of an upscaler's tile, and of a side that two of them share
#: (``blip_node.runtimes.upscaling.tiles``).
TILE, OVERLAP = 256, 32

#: Sides of a picture that is read in one pass: one that takes a while to decode, the largest that
#: is taken (``blip.kinds.pictures.MAX_PIXELS``), and one that does not.
LARGE, SMALL = 4096, 64

#: Seconds of Whisper's window, and samples a second that it hears.
WINDOW, RATE = 30, 16_000

#: Seconds between two chunks of an echo: a step of a fast model.
PAUSE = 0.02

_SENTENCE = "We bake bread in the oven, and the whole house is warm."
_TEXT = " ".join([_SENTENCE] * 5)
_COUNT = "Count from one to a thousand, one number a line, and leave none out."


@dataclass(frozen=True, slots=True)
class Request:
    """What is posted: JSON, or a form where there is a file."""

    path: str
    body: Mapping[str, Any]
    #: The form's field, and what is in it.
    file: tuple[str, bytes] | None = None
    #: Whether the answer is a job that goes on by itself (:mod:`blip.gateway.jobs`).
    job: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """How a kind is asked for work of so many steps.

    A step takes the difference between ``many`` and ``few`` of them, divided; where ``few`` is 0,
    all of the work is the step. ``short`` steps are the least there can be to ask for.
    """

    step: str
    few: int
    many: int
    make: Callable[[str, int], Request]
    short: int = 1
    #: How many steps an answer took, where that is not for the request to say.
    took: Callable[[Mapping[str, Any]], int] | None = field(default=None, compare=False)


def _tokens(answer: Mapping[str, Any]) -> int:
    return int(answer["usage"]["completion_tokens"])


def _chat(model: str, steps: int) -> Request:
    messages = [{"role": "user", "content": _COUNT}]
    body = {"model": model, "messages": messages, "max_tokens": steps, "temperature": 0}
    return Request("/v1/chat/completions", body)


def _completion(model: str, steps: int) -> Request:
    # what a model would say next is more of the same, and no end of it
    body = {"model": model, "prompt": _TEXT, "max_tokens": steps, "temperature": 0}
    return Request("/v1/completions", body)


def _texts(steps: int, text: str = _SENTENCE) -> list[str]:
    return [text] * max(1, BATCH * steps)


def _embedding(model: str, steps: int) -> Request:
    return Request("/v1/embeddings", {"model": model, "input": _texts(steps)})


def _rerank(model: str, steps: int) -> Request:
    return Request("/v1/rerank", {"model": model, "query": "bread", "documents": _texts(steps)})


def _moderation(model: str, steps: int) -> Request:
    return Request("/v1/moderations", {"model": model, "input": _texts(steps)})


def _pipeline(task: str, text: str = _SENTENCE, **parameters: Any) -> Callable[[str, int], Request]:
    asked = {"truncate": True, **parameters}

    def make(model: str, steps: int) -> Request:
        body = {"model": model, "inputs": _texts(steps, text), "parameters": asked}
        return Request(f"/v1/pipelines/{task}", body)

    return make


def _questions(model: str, steps: int) -> Request:
    asked = {"question": "What is warm?", "context": _SENTENCE}
    body = {"model": model, "inputs": [asked] * max(1, BATCH * steps)}
    return Request("/v1/pipelines/question-answering", body)


def _written(model: str, steps: int) -> Request:
    exactly = {"max_new_tokens": steps, "min_new_tokens": steps}
    body = {"model": model, "inputs": [_SENTENCE], "parameters": exactly}
    return Request("/v1/pipelines/text2text-generation", body)


def _image(model: str, steps: int) -> Request:
    body = {"model": model, "prompt": "a red heart", "steps": steps, "seed": 1}
    return Request("/v1/images/generations", body)


def _video(model: str, steps: int) -> Request:
    # small and short: what models film by default takes a CPU minutes
    body = {"model": model, "prompt": "a red heart", "steps": steps, "seed": 1}
    small = {"size": "64x64", "seconds": "1"}
    return Request("/v1/videos", body | small, job=True)


def _upscale(model: str, steps: int) -> Request:
    # tiles in a row; the least there can be is a picture much smaller than one
    width = TILE + (steps - 1) * (TILE - OVERLAP) if steps else SMALL
    file = ("image", png(width, TILE if steps else SMALL))
    return Request("/v1/images/upscale", {"model": model}, file)


def _sound(path: str) -> Callable[[str, int], Request]:
    def make(model: str, steps: int) -> Request:
        # a temperature above 0: one try a window, however bad what noise says may be
        body = {"model": model, "temperature": 0.2, "seed": 1, "language": "en"}
        return Request(path, body, ("file", noise(WINDOW * steps or 1)))

    return make


def _speech(model: str, steps: int) -> Request:
    said = " ".join([_SENTENCE] * steps)
    # without a seed: with one, a voice of Piper's is loaded once more for each request
    body = {"model": model, "input": said, "response_format": "wav"}
    return Request("/v1/audio/speech", body)


def _seen(path: str) -> Callable[[str, int], Request]:
    def make(model: str, steps: int) -> Request:
        side = LARGE if steps else SMALL
        return Request(path, {"model": model}, ("image", png(side, side)))

    return make


def _shown(task: str) -> Callable[[str, int], Request]:
    def make(model: str, steps: int) -> Request:
        side = LARGE if steps else SMALL
        return Request(f"/v1/pipelines/{task}", {"model": model}, ("inputs", png(side, side)))

    return make


def _sorted(task: str, **parameters: Any) -> Callable[[str, int], Request]:
    def make(model: str, steps: int) -> Request:
        body = {"model": model, "parameters": json.dumps(parameters)}
        file = ("inputs", noise(WINDOW * steps or 1))
        return Request(f"/v1/pipelines/{task}", body, file)

    return make


def _echo(model: str, steps: int) -> Request:
    body = {"model": model, "text": "x", "chunks": steps, "interval": PAUSE}
    return Request("/v1/echo", body)


def _picture(path: str) -> Ask:
    return Ask("picture", 0, 1, _seen(path), short=0)


def _batches(make: Callable[[str, int], Request], many: int = 12) -> Ask:
    return Ask(f"{BATCH} texts", 1, many, make, short=0)


#: By kind. What a plugin's kind takes is for its author to know.
ASKS: dict[str, Ask] = {
    "chat": Ask("token", 4, 96, _chat, took=_tokens),
    "completion": Ask("token", 4, 96, _completion, took=_tokens),
    "embedding": _batches(_embedding),
    "rerank": _batches(_rerank),
    "text-classification": _batches(_pipeline("text-classification")),
    "zero-shot-classification": _batches(
        _pipeline("zero-shot-classification", candidate_labels=["animals"])
    ),
    "token-classification": _batches(_pipeline("token-classification")),
    "fill-mask": _batches(_pipeline("fill-mask", "We bake [MASK] in the oven.")),
    "question-answering": _batches(_questions),
    # its answers are all numbers that were computed, so its texts are short
    "feature-extraction": _batches(_pipeline("feature-extraction", "A loaf."), 8),
    "text2text-generation": Ask("token", 4, 128, _written),
    # 256 texts are the most
    "moderation": _batches(_moderation, 8),
    "image": Ask("denoising step", 5, 100, _image),
    "video": Ask("denoising step", 2, 40, _video),
    "upscale": Ask("tile", 1, 6, _upscale, short=0),
    "transcription": Ask("window", 1, 4, _sound("/v1/audio/transcriptions"), short=0),
    "translation": Ask("window", 1, 4, _sound("/v1/audio/translations"), short=0),
    "speech": Ask("sentence", 1, 12, _speech),
    "caption": _picture("/v1/vision/caption"),
    "detection": _picture("/v1/vision/detect"),
    "image-classification": _picture("/v1/vision/classify"),
    "depth": _picture("/v1/vision/depth"),
    "segmentation": _picture("/v1/vision/segment"),
    "image-feature-extraction": Ask("picture", 0, 1, _shown("image-feature-extraction"), short=0),
    "audio-classification": Ask("piece", 1, 8, _sorted("audio-classification"), short=0),
    "zero-shot-audio-classification": Ask(
        "piece",
        1,
        8,
        _sorted("zero-shot-audio-classification", candidate_labels=["a dog"]),
        short=0,
    ),
    "echo": Ask("chunk", 5, 50, _echo),
}


def png(width: int, height: int) -> bytes:
    """Return a picture of one colour: what is in it is nobody's concern here."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    row = b"\0" + b"\xc0\x30\x30" * width
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(row * height, 1)),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def noise(seconds: int) -> bytes:
    """Return a WAV file of white noise, the same every time."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes(random.Random(0).randbytes(2 * RATE * seconds))
    return file.getvalue()

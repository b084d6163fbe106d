"""The canary: a small real task that shows whether a device works again. Pure.

It goes the way of every task, through supervisor and worker to a model on that device, only that
no gateway has sent it. Its answer must be there, and be made of finite numbers: a GPU that is
broken in earnest often computes NaN without a word.
"""

from __future__ import annotations

import base64
import io
import math
import struct
import wave
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from blip.kinds.base import TaskInput, input_to_wire
from blip.kinds.caption import CaptionInput
from blip.kinds.chat import ChatInput, ChatMessage
from blip.kinds.completion import CompletionInput
from blip.kinds.echo import EchoInput
from blip.kinds.embedding import EmbeddingInput
from blip.kinds.image import ImageInput
from blip.kinds.moderation import ModerationInput, verdicts_from_wire
from blip.kinds.pictures import read_header
from blip.kinds.pipelines import (
    FeatureExtractionInput,
    FillMaskInput,
    QuestionAnsweringInput,
    Text2TextInput,
    TextClassificationInput,
    TokenClassificationInput,
    ZeroShotInput,
    results_from_wire,
)
from blip.kinds.rerank import RerankInput
from blip.kinds.sound_classification import AudioClassificationInput, ZeroShotAudioInput
from blip.kinds.speech import SpeechInput
from blip.kinds.text import Delta, Finish, delta_from_wire, finish_from_wire
from blip.kinds.transcription import TranscriptionInput, transcript_from_wire
from blip.kinds.upscale import UpscaleInput
from blip.kinds.video import VideoInput, video_format
from blip.kinds.vision import (
    ClassificationInput,
    DepthInput,
    DetectionInput,
    ImageFeaturesInput,
    SegmentationInput,
    depths_from_wire,
    detections_from_wire,
    features_from_wire,
    guesses_from_wire,
    segments_from_wire,
)
from blip.protocol.messages import TASK_ID_BYTES, Submit
from blip_node.catalogue import Entry
from blip_node.executions import Event, Execution
from blip_node.models.abilities import COMPARERS, LABEL_FINDERS

#: Seconds until a canary has failed, loading its model included. A cold model of some GiB from a
#: slow disk takes a minute or two; a device that needs longer is of no use yet.
TIMEOUT = 300.0

#: Bytes of answer that the worker may send: more than any canary's.
WINDOW = 1024 * 1024

_ASKED = "1, 2, 3,"

#: Voices read the script of their language, and often no digits. This has a word of most scripts
#: in one sentence; each voice says what it can.
_COUNTED = "one, один, ένα, واحد, אחת, एक, এক, ஒன்று, หนึ่ง, 一, 하나, いち, አንድ, ერთი, մեկ"
#: A grey PNG of eight by eight pixels.
_DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAADklEQVR42mNogAIGyhgAgIQgARDoahcAAAAASUVORK5CYII="
)


def _check_text(parts: list[bytes], end: bytes) -> str:
    try:
        finish = finish_from_wire(end)
        steps: list[Delta | Finish] = [*map(delta_from_wire, parts), finish]
    except (ValueError, TypeError) as error:
        return f"its answer cannot be read ({error})"
    if not any(step.ids for step in steps):
        return "its answer is empty"
    chances = [each.logprob for step in steps for each in step.logprobs or ()]
    return "" if all(map(math.isfinite, chances)) else "its answer is not finite"


def _check_vector(parts: list[bytes], end: bytes) -> str:
    if not end or len(end) % 4:
        return "its answer is empty" if not end else "its answer is no vector"
    numbers = [number for (number,) in struct.iter_unpack("<f", end)]
    if not all(map(math.isfinite, numbers)):
        return "its answer is not finite"
    return "" if any(numbers) else "its answer is all zeros"


def _check_picture(parts: list[bytes], end: bytes) -> str:
    # the runtime itself fails a picture of numbers that are none
    return "" if read_header(end) is not None else "its answer is no picture"


def _check_transcript(parts: list[bytes], end: bytes) -> str:
    # the runtime itself fails letters that come of numbers that are none; a tone may have no words
    try:
        segments = transcript_from_wire(end).segments
    except (ValueError, TypeError) as error:
        return f"its answer cannot be read ({error})"
    chances = [each.avg_logprob for each in segments if each.avg_logprob is not None]
    return "" if all(map(math.isfinite, chances)) else "its answer is not finite"


def _tone() -> bytes:
    """Return half a second of a tone of 1 kHz, as a WAV file."""
    rate = 16_000
    samples = (round(8000 * math.sin(math.tau * 1000 * at / rate)) for at in range(rate // 2))
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return written.getvalue()


def _check_speech(parts: list[bytes], end: bytes) -> str:
    # the runtime itself fails samples that are no numbers
    if not end or len(end) % 2:
        return "its answer is no audio"
    return "" if any(end) else "its answer is silence"


def _check_seen(parts: list[bytes], end: bytes, read: Callable[[bytes], object]) -> str:
    # the runtime itself fails numbers that are none
    try:
        read(end)
    except (ValueError, TypeError) as error:
        return f"its answer cannot be read ({error})"
    return ""


_check_results = partial(_check_seen, read=partial(results_from_wire, count=1))
_check_verdict = partial(_check_seen, read=partial(verdicts_from_wire, count=1))


def _check_video(parts: list[bytes], end: bytes) -> str:
    return "" if video_format(end) is not None else "its answer is no video"


def _check_echo(parts: list[bytes], end: bytes) -> str:
    return "" if end == _ASKED.encode() else "its answer is not what was sent"


#: What is looked at: a gray picture of 32 x 32 pixels, as small as models take it.
_PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000200000002008000000005611252800000016494441"
    "5478da636820001846158c2a185530521500004200001f379736000000000049454e44ae426082"
)


class Question(NamedTuple):
    """What a kind is asked, and what is wrong with an answer ("" if nothing is).

    Models whose architecture ends in one of ``not_for`` would not understand it.
    """

    input: TaskInput
    check: Callable[[list[bytes], bytes], str]
    not_for: tuple[str, ...] = ()


#: By kind, best first: a completion needs no chat template.
QUESTIONS: dict[str, Question] = {
    "completion": Question(
        CompletionInput(prompt=_ASKED, max_tokens=1, temperature=0, logprobs=1), _check_text
    ),
    "chat": Question(
        ChatInput(
            messages=[ChatMessage(role="user", content=_ASKED)],
            max_tokens=1,
            temperature=0,
            logprobs=1,
        ),
        _check_text,
    ),
    "embedding": Question(EmbeddingInput(texts=[_ASKED]), _check_vector),
    "rerank": Question(RerankInput(query=_ASKED, documents=[_ASKED], raw=True), _check_vector),
    "text-classification": Question(TextClassificationInput(texts=[_ASKED]), _check_results),
    "zero-shot-classification": Question(
        ZeroShotInput(texts=[_ASKED], candidates=["1"]), _check_results
    ),
    "token-classification": Question(TokenClassificationInput(texts=[_ASKED]), _check_results),
    "question-answering": Question(
        QuestionAnsweringInput(questions=[_ASKED], contexts=[_ASKED]), _check_results
    ),
    "fill-mask": Question(FillMaskInput(texts=[f"{_ASKED} [MASK]"]), _check_results),
    "feature-extraction": Question(FeatureExtractionInput(texts=[_ASKED]), _check_results),
    "text2text-generation": Question(
        Text2TextInput(texts=[_ASKED], max_new_tokens=2), _check_results
    ),
    "image": Question(ImageInput(prompt="1, 2, 3", steps=2, seed=0), _check_picture),
    "speech": Question(SpeechInput(text=_COUNTED, format="pcm", lenient=True), _check_speech),
    "caption": Question(CaptionInput(image=_PICTURE, max_tokens=1, logprobs=1), _check_text),
    "detection": Question(
        DetectionInput(image=_PICTURE),
        partial(_check_seen, read=detections_from_wire),
        LABEL_FINDERS,
    ),
    "image-classification": Question(
        ClassificationInput(image=_PICTURE),
        partial(_check_seen, read=guesses_from_wire),
        COMPARERS,
    ),
    "depth": Question(DepthInput(image=_PICTURE), partial(_check_seen, read=depths_from_wire)),
    "segmentation": Question(
        SegmentationInput(image=_PICTURE), partial(_check_seen, read=segments_from_wire)
    ),
    "image-feature-extraction": Question(
        ImageFeaturesInput(image=_PICTURE), partial(_check_seen, read=features_from_wire)
    ),
    "audio-classification": Question(
        AudioClassificationInput(file=_tone()), partial(_check_seen, read=guesses_from_wire)
    ),
    "zero-shot-audio-classification": Question(
        ZeroShotAudioInput(file=_tone(), labels=["one", "two"]),
        partial(_check_seen, read=guesses_from_wire),
    ),
    # small and short: its own size would take minutes
    "video": Question(
        VideoInput(prompt="1, 2, 3", width=256, height=256, seconds=0.25, steps=1, seed=0),
        _check_video,
    ),
    "upscale": Question(UpscaleInput(image=_DOT), _check_picture),
    "moderation": Question(
        ModerationInput(texts=[_ASKED]), _check_verdict, ("ForImageClassification",)
    ),
    "transcription": Question(TranscriptionInput(file=_tone(), seed=0), _check_transcript),
    "translation": Question(TranscriptionInput(file=_tone(), seed=0), _check_transcript),
    "echo": Question(EchoInput(text=_ASKED), _check_echo),
}


def _able(entries: Iterable[Entry], now: float) -> Iterator[tuple[Entry, str]]:
    for entry in entries:
        if entry.spec.engine is not None:
            continue  # an engine's answer says nothing about our device
        if entry.error is None or now >= entry.retry_at:
            architecture = entry.description.architecture
            yield from (
                (entry, kind)
                for kind, question in QUESTIONS.items()
                if kind in entry.kinds and not architecture.endswith(question.not_for)
            )


def possible(entries: Iterable[Entry], now: float) -> bool:
    """Tell whether :func:`choose` would find one; far cheaper where there are many models."""
    return any(True for _ in _able(entries, now))


def choose(entries: Iterable[Entry], *, gpu: bool, now: float) -> tuple[Entry, str] | None:
    """Choose the model and kind for a canary: the one that takes least of the device.

    A model that takes nothing of it, an echo, shows only that workers start there; it serves where
    there is no other. None if no model will do; one that could not be loaded lately will not.
    """
    able = _able(entries, now)

    def cost(option: tuple[Entry, str]) -> float:
        return option[0].memory(gpu=gpu) or math.inf

    return min(able, key=cost, default=None)


class Canary:
    """One canary under way. ``execution`` runs like any other, with nobody to answer to."""

    def __init__(self, entry: Entry, kind: str, device: str, now: float) -> None:
        self.entry = entry
        self.kind = kind
        self.device = device
        self.deadline = now + TIMEOUT
        #: What was known about loading the model: a sick device says nothing about the model.
        self.before = entry.error, entry.retry_at
        payload = input_to_wire(QUESTIONS[kind].input)
        task = bytes(TASK_ID_BYTES)  # it never meets another: it is not among the node's attempts
        submit = Submit(task, 1, kind, entry.spec.name, device, TIMEOUT, WINDOW, payload)
        self.execution = Execution(submit, None, now)
        self._parts: list[bytes] = []

    def part(self, payload: bytes) -> None:
        """Take a part of the answer."""
        self._parts.append(payload)

    def done(self, payload: bytes) -> str:
        """Take the end of the answer; return what is wrong with it, "" if nothing is."""
        self.execution.move(Event.END)
        return QUESTIONS[self.kind].check(self._parts, payload)

    def failed(self) -> None:
        """It failed, or was given up: what is known about its model is as it was before."""
        self.execution.move(Event.END)
        self.entry.error, self.entry.retry_at = self.before

"""A mesh in memory for tests of the HTTP layer, with the semantics that the real one promises."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import itertools
import json
import struct
import time
import wave
import zlib
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from blip.errors import Cancelled, ModelNotFound
from blip.gateway.app import build_app
from blip.gateway.mesh import (
    Answer,
    Call,
    Health,
    Mesh,
    Options,
    ServedModel,
    TaskStory,
    TaskView,
    Timing,
)
from blip.gateway.settings import GatewaySettings
from blip.kinds import Kind, TaskInput
from blip.kinds.caption import CaptionInput
from blip.kinds.chat import ChatInput
from blip.kinds.completion import CompletionInput
from blip.kinds.echo import EchoInput
from blip.kinds.embedding import EmbeddingInput
from blip.kinds.image import ImageInput, Step, step_to_wire
from blip.kinds.moderation import ModerationInput, Verdict, verdicts_to_wire
from blip.kinds.pictures import read_header
from blip.kinds.pipelines import (
    FeatureExtractionInput,
    FillMaskInput,
    QuestionAnsweringInput,
    Text2TextInput,
    TextClassificationInput,
    TokenClassificationInput,
    ZeroShotInput,
    results_to_wire,
)
from blip.kinds.plugin import JSON, Piece, PluginInput, Progress, piece_to_wire
from blip.kinds.rerank import RerankInput
from blip.kinds.sound_classification import AudioClassificationInput, ZeroShotAudioInput
from blip.kinds.speech import Piece as SpokenPiece
from blip.kinds.speech import SpeechInput
from blip.kinds.speech import piece_to_wire as spoken_to_wire
from blip.kinds.text import Delta, Finish, TextInput, TokenLogprob, delta_to_wire
from blip.kinds.transcription import (
    Heard,
    Transcript,
    TranscriptionInput,
    Word,
    heard_to_wire,
)
from blip.kinds.transcription import Segment as HeardSegment
from blip.kinds.upscale import UpscaleInput
from blip.kinds.video import VideoInput
from blip.kinds.vision import (
    Box,
    ClassificationInput,
    DepthInput,
    Depths,
    DetectionInput,
    Detections,
    Features,
    Found,
    Guess,
    ImageFeaturesInput,
    Segment,
    SegmentationInput,
    Segments,
    to_wire,
)
from blip.protocol.messages import (
    Advert,
    Device,
    Model,
    NodeEntry,
    Order,
    Ordered,
    Payload,
    PluginKind,
    Replica,
    Running,
)

TEXT_KINDS = ("chat", "completion")

#: Kinds of the models that serve others than text.
KINDS_BY_MODEL: dict[str, tuple[str, ...]] = {"swin2sr": ("upscale",)}

#: What runs a task: yields payloads, then an Answer; or raises.
Work = AsyncGenerator[Payload | Answer, None]
Node = Callable[[Any], Work]


class MemoryCall:
    """A :class:`blip.gateway.mesh.Call` whose node is an async generator in this process."""

    def __init__(self, task_id: str, work: Work) -> None:
        self.task_id = task_id
        self.node = ""
        self.timing = Timing()
        self.cancelled = False
        self.ended = asyncio.Event()
        self._begun = time.monotonic()
        self._parts: list[Payload] = []
        self._news = asyncio.Event()
        self._begun_answering = asyncio.Event()
        self._answer: Answer | None = None
        self._error: Exception | None = None
        self._task = asyncio.create_task(self._run(work))

    async def _run(self, work: Work) -> None:
        self.node = "büro-1"
        try:
            async with contextlib.aclosing(work):
                async for item in work:
                    if self.timing.first is None:
                        self.timing.first = time.monotonic() - self._begun
                        self._begun_answering.set()
                    if isinstance(item, Answer):
                        self._answer = item
                    else:
                        self._parts.append(item)
                    self._news.set()
        except Exception as error:
            self._error = error
        except asyncio.CancelledError:
            self._error = Cancelled("cancelled")
        finally:
            self.timing.total = time.monotonic() - self._begun
            self.ended.set()
            self._begun_answering.set()
            self._news.set()

    async def parts(self) -> AsyncIterator[list[Payload]]:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._parts:
                batch, self._parts = self._parts, []
                yield batch
            elif self.ended.is_set():
                if self._error is not None:
                    raise self._error
                return
            if self.ended.is_set():
                self._news.set()

    async def answer(self) -> Answer:
        await self.ended.wait()
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    async def started(self) -> None:
        await self._begun_answering.wait()
        if self._error is not None and self.timing.first is None:
            raise self._error

    @property
    def waiting(self) -> int:
        """Parts that nobody has taken yet."""
        return len(self._parts)

    def cancel(self) -> None:
        if not self.ended.is_set():
            self.cancelled = True
            self._task.cancel()


@dataclass
class MemoryMesh:
    """A :class:`blip.gateway.mesh.Mesh`. ``nodes_by_model`` is what each model does."""

    nodes_by_model: dict[str, Node] = field(default_factory=dict)
    calls: list[MemoryCall] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    options: list[Options] = field(default_factory=list)
    checks: list[Health] = field(default_factory=list)
    #: What is remembered, by the task's id.
    stories: dict[bytes, TaskStory] = field(default_factory=dict)
    #: Orders that nodes were given, what each node says to one, and whose orders are over.
    orders: list[tuple[str, Order]] = field(default_factory=list)
    words: dict[str, list[Ordered]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    #: Raised by the call with this number.
    refuse: dict[int, Exception] = field(default_factory=dict)
    #: Set by the first call.
    called: asyncio.Event = field(default_factory=asyncio.Event)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def call(self, kind: Kind, model: str, value: TaskInput, options: Options) -> Call:
        number = next(self._numbers)
        if number in self.refuse:
            raise self.refuse[number]
        node = self.nodes_by_model.get(model)
        if node is None:
            raise ModelNotFound(f"No node serves '{model}'.", param="model")
        self.inputs.append(value)
        self.options.append(options)
        call = MemoryCall(f"{number:032x}", node(value))
        self.calls.append(call)
        self.called.set()
        return call

    def models(self) -> list[ServedModel]:
        return [
            ServedModel(name, KINDS_BY_MODEL.get(name, TEXT_KINDS), 2048, ("büro-1",), 1)
            for name in sorted(self.nodes_by_model)
        ]

    def nodes(self) -> list[NodeEntry]:
        advert = Advert(
            number=1,
            draining=False,
            devices=[Device("cpu", "cpu", "a CPU", 2**30, 2**29)],
            models=[Model("parrot", ["chat"], context=2048)],
            replicas=[Replica("parrot", "cpu", "ready", 4)],
            running=[Running(b"\0" * 16, 1)],
            kinds=[WORDCOUNT],
        )
        return [NodeEntry("n1", 7, "büro-1", "h1", ["tcp://[::1]:1"], "ready", advert)]

    def tasks(self) -> list[TaskView]:
        return [TaskView("0" * 32, "chat", "parrot", "running", "büro-1", 1, 0.5)]

    async def order(self, node: NodeEntry, order: Order) -> AsyncGenerator[Ordered, None]:
        self.orders.append((node.id, order))
        try:
            for word in self.words.get(node.id, [Ordered(0, "running"), Ordered(0, "done")]):
                if word.state == "silent":
                    await asyncio.Event().wait()
                await asyncio.sleep(0)
                yield word
        finally:
            self.left.append(node.id)

    async def why(self, task: bytes) -> TaskStory:
        return self.stories.get(task, TaskStory([]))

    async def health(self) -> list[Health]:
        return self.checks


# --- what models do --------------------------------------------------------------------------


def tokens_of(value: ChatInput | CompletionInput) -> list[str]:
    """What ``parrot`` says: the prompt's words, and the seed if there is one."""
    if isinstance(value, ChatInput):
        prompt = value.messages[-1].content
    else:
        prompt = value.prompt if isinstance(value.prompt, str) else f"tokens {value.prompt}"
    words = prompt.split(" ")
    if value.seed is not None:
        words.append(f"#{value.seed}")
    return [word if index == 0 else f" {word}" for index, word in enumerate(words)]


def logprobs_of(value: TextInput, token: str) -> list[TokenLogprob] | None:
    if value.logprobs is None:
        return None
    top = [("the", -0.25, b"the"), ("\ufffd", float("-inf"), b"\xf0\x9f")][: value.logprobs]
    return [TokenLogprob(token, -0.5, token.encode(), top)]


async def parrot(value: ChatInput | CompletionInput) -> Work:
    """Say the prompt again, a word at a time; the last word comes with the end."""
    tokens = tokens_of(value)
    limit = value.max_tokens
    reason = "stop" if limit is None or limit >= len(tokens) else "length"
    tokens = tokens[:limit]
    for number, token in enumerate(tokens[:-1]):
        yield delta_to_wire(Delta(token, [number], logprobs_of(value, token)))
        yield delta_to_wire(Delta("", [number]))  # text that is held back
        if number % 3 == 0:
            await asyncio.sleep(0)
    last = tokens[-1]
    finish = Finish(reason, last, [99], logprobs_of(value, last))  # type: ignore[arg-type]
    prompt = len(tokens_of(value)) - (value.seed is not None)
    usage = {"prompt_tokens": prompt, "completion_tokens": len(tokens)}
    yield Answer(delta_to_wire(finish), usage, float(len(tokens)))


def vector(text: str | list[int], size: int) -> list[float]:
    """A text's vector: any will do as long as it is the text's own."""
    digest = hashlib.sha256(repr(text).encode()).digest()
    return list(array("f", [byte / 255 - 0.5 for byte in digest[:size]]))


async def embedder(value: EmbeddingInput) -> Work:
    size = value.dimensions or 8
    raw = b"".join(array("f", vector(text, size)).tobytes() for text in value.texts)
    yield Answer(raw, {"prompt_tokens": len(value.texts) * 3}, 1.0)


async def reranker(value: RerankInput) -> Work:
    """Score a document by the share of the query's words that it has."""
    words = set(value.query.split())
    scores = [len(words & set(text.split())) / len(words) for text in value.documents]
    usage = {"prompt_tokens": len(scores)} | ({"truncated": 1} if value.truncate else {})
    yield Answer(array("f", scores).tobytes(), usage, 1.0)


#: Models of the examples of the pipelines' routes.
PIPELINE_MODELS = ("sentiment", "nli", "ner", "bert", "squad", "bart", "nllb", "flan-t5")


async def labeller(value: Any) -> Work:
    """Do every task of a pipeline: results that are the text's own, whatever they mean."""
    results: list[Any]
    match value:
        case ZeroShotInput():
            results = [[(label, 0.5) for label in value.candidates] for _ in value.texts]
        case TextClassificationInput():
            results = [[(text.upper(), 0.75), ("OTHER", 0.25)] for text in value.texts]
        case TokenClassificationInput():
            results = [[("PER", 0.5, text[:3], 0, 3)] for text in value.texts]
        case FillMaskInput():
            results = [[[(7, "it", 0.5, text)]] for text in value.texts]
        case FeatureExtractionInput():
            results = [(2, array("f", [0, 1, 2, 3]).tobytes()) for _ in value.texts]
        case QuestionAnsweringInput():
            results = [[(text[:3], 0.5, 0, 3)] for text in value.contexts]
        case Text2TextInput():
            results = [f"{value.task} of {text}" for text in value.texts]
    usage = {"prompt_tokens": len(results), "completion_tokens": 1}
    yield Answer(results_to_wire(results), usage, 1.0)


async def echoer(value: EchoInput) -> Work:
    chunk: Payload = memoryview(bytes(value.size)) if value.size else value.text.encode()
    for number in range(value.chunks - 1):
        yield chunk
        if value.interval or number % 7 == 0:
            await asyncio.sleep(value.interval)
    yield Answer(chunk, {}, 0.001)


def png(width: int, height: int, seed: int = 0) -> bytes:
    """A picture of one colour, written by hand: the HTTP layer needs no library for them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    row = b"\0" + bytes((seed % 256, 0, 0)) * width
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(row * height)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


async def painter(value: ImageInput) -> Work:
    """Paint in four steps; the seed is the colour."""
    width, height, seed = value.width or 64, value.height or 64, value.seed or 0
    for number in range(1, 5):
        shown = png(width, height, seed) if 0 < number <= value.previews else None
        if value.progress or shown is not None:
            yield step_to_wire(Step(number, 4, shown))
        await asyncio.sleep(0)
    usage = {"prompt_tokens": len(value.prompt.split()), "width": width, "height": height}
    yield Answer(png(width, height, seed), usage, 1.0)


async def speaker(value: SpeechInput) -> Work:
    """Say the words one by one, as bytes that say who speaks; the last comes with the end."""
    *words, last = value.text.split()
    for number, word in enumerate(words):
        said = f"{word}/{value.voice}/{value.speed:g} ".encode()
        yield spoken_to_wire(SpokenPiece(number + 1, said))
        if number % 3 == 0:
            await asyncio.sleep(0)
    usage = {"prompt_tokens": len(words) + 1, "samples": 24_000, "sample_rate": 16_000}
    yield Answer(f"{last}/{value.voice}/{value.speed:g}".encode(), usage, 1.0)


async def captioner(value: CaptionInput) -> Work:
    """Say how many bytes the picture has, and what was asked."""
    text = f" {len(value.image)} bytes {value.prompt}".rstrip()
    finish = delta_to_wire(Finish("stop", text, [1, 2, 3]))
    yield Answer(finish, {"prompt_tokens": 2, "completion_tokens": 3}, 3.0)


async def classifier(value: ClassificationInput) -> Work:
    labels = value.labels or ["cat", "dog"]
    guesses = [Guess(label, 1 / (number + 1)) for number, label in enumerate(labels)]
    yield Answer(to_wire(guesses[: value.top]), {}, 1.0)


async def detector(value: DetectionInput) -> Work:
    box = Box(1.5, 2.0, 6.0, 7.25)
    found = [Found(label, 0.75, box) for label in value.labels or ["cat"]]
    yield Answer(to_wire(Detections(8, 8, found)), {}, 1.0)


async def depth_finder(value: DepthInput) -> Work:
    yield Answer(to_wire(Depths(8, 8, 0.5, 4.5, value.image)), {}, 1.0)


async def segmenter(value: SegmentationInput) -> Work:
    mode = value.mode or "semantic"
    parts = [Segment("sky", None, 40, value.image), Segment("sea", 0.5, 24, value.image)]
    yield Answer(to_wire(Segments(8, 8, mode, parts)), {}, 1.0)


async def sorter(value: AudioClassificationInput | ZeroShotAudioInput) -> Work:
    """Guess the request's labels, or two of its own."""
    labels = value.labels if isinstance(value, ZeroShotAudioInput) else ["bell", "rain"]
    guesses = [Guess(label, 1 / (number + 1)) for number, label in enumerate(labels)]
    yield Answer(to_wire(guesses), {"audio_ms": 500}, 0.5)


async def encoder(value: ImageFeaturesInput) -> Work:
    rows = 1 if value.pool else 3
    yield Answer(to_wire(Features(rows, array("f", range(2 * rows)).tobytes())), {}, 1.0)


def mp4(seed: int) -> bytes:
    """What begins like an MP4, of some kilobytes; the seed is in it."""
    return b"\0\0\0\x20ftypisom" + seed.to_bytes(8, "big", signed=True) * 500


async def filmer(value: VideoInput) -> Work:
    """Film in four steps."""
    width, height, fps = value.width or 64, value.height or 32, value.fps or 8
    frames = value.num_frames or int((value.seconds or 2) * fps)
    for number in range(5):
        yield step_to_wire(Step(number, 4))
        await asyncio.sleep(0)
    usage = {"width": width, "height": height, "frames": frames, "fps": fps, "prompt_tokens": 3}
    yield Answer(mp4(value.seed or 0), usage, 1.0)


async def upscaler(value: UpscaleInput) -> Work:
    """Enlarge in two tiles: a picture of one colour, twice as long each way or as asked."""
    header = read_header(value.image)
    assert header is not None
    for number in (1, 2):
        if value.progress:
            yield step_to_wire(Step(number, 2))
        await asyncio.sleep(0)
    width, height = (round(side * (value.scale or 2)) for side in header[1:])
    yield Answer(png(width, height, 9), {"width": width, "height": height, "steps": 2}, 1.0)


def wav(seconds: float = 0.5) -> bytes:
    """A sound of silence, 8,000 samples a second."""
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(bytes(2 * round(8_000 * seconds)))
    return written.getvalue()


#: What ``listener`` hears in everything.
HEARD = [
    HeardSegment(0.0, 0.25, " Hello", [1], 0.0, 0.0, -0.25, 1.0, 0.01, [Word("Hello", 0.0, 0.25)]),
    HeardSegment(
        0.25, 0.5, " there.", [2], 0.0, 0.0, -0.25, 1.0, 0.01, [Word("there.", 0.25, 0.5)]
    ),
]


async def listener(value: TranscriptionInput) -> Work:
    """Hear two words in everything, one on the way."""
    segments = HEARD if value.words else [each._replace(words=None) for each in HEARD]
    if value.parts:
        yield heard_to_wire(Heard(segments[:1], 0.25, 0.5))
    yield Answer(heard_to_wire(Transcript(segments, 0.5, "english")), {"audio_ms": 500}, 0.5)


def failing(error: Exception, after: int = 0) -> Node:
    """A model that says ``after`` words and then fails."""

    async def node(value: Any) -> Work:
        for number in range(after):
            yield delta_to_wire(Delta(f"{number} ", [number]))
        raise error

    return node


def endless(interval: float = 0.001) -> Node:
    """A model that never stops."""

    async def node(value: Any) -> Work:
        for number in itertools.count():
            yield delta_to_wire(Delta(f"{number} ", [number]))
            await asyncio.sleep(interval)

    return node


WORDCOUNT = PluginKind(
    "wordcount",
    json.dumps(
        {
            "type": "object",
            "properties": {
                "text": {"type": "string", "pattern": "^(a+)+$"},
                "most": {"type": "integer", "maximum": 9},
            },
            "required": ["text"],
        }
    ),
    units="text",
    about="Counts words.",
)


async def counter(value: PluginInput) -> Work:
    """Progress, and the number of words."""
    asked = json.loads(value.document)
    yield piece_to_wire(Progress(0.5, "half\nway"))
    count = len(asked["text"].split())
    yield Answer(piece_to_wire(Piece(JSON, b'{"words":\n%d}' % count)), {}, 2.0)


async def guard(value: ModerationInput) -> Work:
    """Flag texts by a word, and small pictures that are red."""
    red = [png(side, side, 250) for side in (8, 16)]
    verdicts = [{"violence": 0.9 if "grumph" in text else 0.1} for text in value.texts]
    verdicts += [{"violence": 0.8 if file in red else 0.2} for file in value.images]
    yield Answer(
        verdicts_to_wire(
            [Verdict(each, [name for name in each if each[name] > 0.5]) for each in verdicts]
        ),
        {"prompt_tokens": 3},
        1.0,
    )


async def silent(value: Any) -> Work:
    """Think for ever."""
    if await asyncio.Event().wait():
        yield b""


def mesh() -> MemoryMesh:
    """A mesh with a model of each kind."""
    return MemoryMesh(
        {
            "parrot": parrot,
            "org/parrot": parrot,
            "embedder": embedder,
            "tiny-rerank": reranker,
            **dict.fromkeys(PIPELINE_MODELS, labeller),
            "echo": echoer,
            "toy-shapes": painter,
            "joe": speaker,
            "toy-caption": captioner,
            "clip": classifier,
            "owlv2": detector,
            "depth-anything": depth_finder,
            "segformer": segmenter,
            "ast": sorter,
            "clap": sorter,
            "dinov2": encoder,
            "wan": filmer,
            "swin2sr": upscaler,
            "wordcount": counter,
            "guard": guard,
            "whisper": listener,
            "endless": endless(),
            "silent": silent,
        }
    )


@contextlib.asynccontextmanager
async def served(
    backend: Mesh, settings: GatewaySettings | None = None, shutdown_timeout: float = 1.0
) -> AsyncIterator[str]:
    """Serve ``backend`` on a loopback port as the real server does; yields the origin."""
    app = build_app(backend, settings or GatewaySettings())
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=shutdown_timeout
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()

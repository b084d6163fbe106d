"""What a demo asks of a mesh, and how it checks the answers: every claim is tested."""

from __future__ import annotations

import asyncio
import re
import time

from blip.cli import render
from blip.cli.ask import cosine
from blip.cli.exhibits import Exhibit
from blip.client import AsyncBlip
from blip.errors import RuntimeFailed
from blip.kinds.pictures import read_header

CHAT, EMBEDDING, PAINTER, VOICE, EARS, EYES = (
    "smollm2",
    "minilm",
    "toy-shapes",
    "joe",
    "whisper",
    "toy-caption",
)

QUESTION = "What is the capital of France?"
ANSWER = "Paris"
BEGINNING, CONTINUATION = "The capital of Spain is", "Madrid"
SENTENCES = (
    "A recipe for sourdough bread.",
    "How to bake a loaf at home.",
    "The stock market fell sharply today.",
)
TWO_QUESTIONS = ("What is the capital of Japan?", "What is 2 + 2?")
PICTURE = "a large red heart on a white background"
SAID = "The quick brown fox jumps over the lazy dog, and the dog does not mind."

#: Of the words that the voice said, the share that may come back wrong: the voice is small, and so
#: is the model that listens.
WORD_ERRORS = 0.2


async def show(client: AsyncBlip) -> list[Exhibit]:
    """Ask for one thing after the other; return what came of it.

    Raises :class:`~blip.errors.RuntimeFailed` for an answer that is not right, and what the client
    raises.
    """
    exhibits = [
        await show_chat(client),
        await show_completion(client),
        await show_embedding(client),
        await show_two(client),
    ]
    painted = await show_picture(client)
    spoken = await show_speech(client)
    return [
        *exhibits,
        painted,
        await show_caption(client, *painted.files.values()),
        spoken,
        await show_transcription(client, *spoken.files.values()),
    ]


async def show_chat(client: AsyncBlip) -> Exhibit:
    """Stream an answer."""
    heading(f"chat, streamed: {QUESTION}")
    began = time.monotonic()
    first = 0.0
    said = []
    print("  ", end="", flush=True)
    async with client.chat_stream(CHAT, QUESTION, temperature=0, max_tokens=48) as stream:
        async for piece in stream:
            first = first or time.monotonic() - began
            said.append(piece)
            print(piece, end="", flush=True)
    took = time.monotonic() - began
    tokens = stream.usage.get("completion_tokens", 0)
    print(
        f"\n  [{stream.origin.node}; {tokens} tokens, the first after {render.duration(first)}, "
        f"{tokens / took:.1f} tokens/s]",
        flush=True,
    )
    expect(ANSWER in "".join(said), f"the answer says {ANSWER}")
    expect(len(said) > 1, "the answer came in pieces")
    return Exhibit("chat", QUESTION, "".join(said), stream.origin.node)


async def show_completion(client: AsyncBlip) -> Exhibit:
    """Have a text continued."""
    heading(f"completion: {BEGINNING} ...")
    answer = await client.complete(CHAT, BEGINNING, temperature=0, max_tokens=16)
    text = " ".join(answer.text.split())
    print(f"  ... {text}\n  [{answer.origin.node}]", flush=True)
    expect(CONTINUATION in answer.text, f"the text goes on with {CONTINUATION}")
    return Exhibit("completion", f"{BEGINNING} ...", f"... {text}", answer.origin.node)


async def show_embedding(client: AsyncBlip) -> Exhibit:
    """Compare three sentences by their vectors."""
    heading("embedding")
    answer = await client.embed(EMBEDDING, SENTENCES)
    for number, sentence in enumerate(SENTENCES, 1):
        print(f"  {number}  {sentence}")
    one, two, three = answer.vectors
    related, unrelated = cosine(one, two), cosine(one, three)
    found = f"cosine of 1 and 2: {related:.3f}   of 1 and 3: {unrelated:.3f}"
    print(f"  {found}\n  [{answer.origin.node}; {len(one)} dimensions]", flush=True)
    expect(related > unrelated, "the related pair is nearer than the unrelated one")
    asked = "\n".join(f"{number}  {text}" for number, text in enumerate(SENTENCES, 1))
    return Exhibit("embedding", asked, found, answer.origin.node)


async def show_two(client: AsyncBlip) -> Exhibit:
    """Ask two questions at once."""
    heading("two chats at the same time")
    names = {str(node["name"]) for node in (await client.mesh())["nodes"]}
    answers = await asyncio.gather(
        *(client.chat(CHAT, text, temperature=0, max_tokens=32) for text in TWO_QUESTIONS)
    )
    said = []
    for question, answer in zip(TWO_QUESTIONS, answers, strict=True):
        text = " ".join(answer.text.split())
        said.append(text)
        print(f"  {question} {text}\n  [{answer.origin.node}]", flush=True)
        expect(bool(text), "the answer has text")
        expect(answer.origin.node in names, "a node of this mesh served it")
    nodes = ", ".join(answer.origin.node for answer in answers)
    return Exhibit("two at once", "\n".join(TWO_QUESTIONS), "\n".join(said), nodes)


async def show_picture(client: AsyncBlip) -> Exhibit:
    """Have a picture painted."""
    heading(f"image: {PICTURE}")
    answer = await client.image(PAINTER, PICTURE, seed=3, steps=20)
    file = answer.pictures[0].file
    header = read_header(file)
    print(f"  {answer.size} pixels\n  [{answer.origin.node}]", flush=True)
    expect(header is not None and header.format == "png", "the picture is a PNG file")
    return Exhibit("image", PICTURE, "", answer.origin.node, {"heart.png": file})


async def show_caption(client: AsyncBlip, file: bytes) -> Exhibit:
    """Ask what is in the picture that was painted."""
    heading("caption of that image")
    answer = await client.caption(EYES, file)
    print(f"  {answer.text}\n  [{answer.origin.node}]", flush=True)
    expect(words(answer.text) == words(PICTURE), "the caption says what was painted")
    return Exhibit("caption", "What does the image show?", answer.text, answer.origin.node)


async def show_speech(client: AsyncBlip) -> Exhibit:
    """Have a sentence spoken."""
    heading(f"speech: {SAID}")
    # voices draw by chance how they say a thing; this one is to be understood every time
    answer = await client.speak(VOICE, SAID, format="wav", seed=1)
    size = render.size(len(answer.audio))
    print(f"  {size} of {answer.media_type}\n  [{answer.origin.node}]", flush=True)
    expect(answer.audio.startswith(b"RIFF"), "the speech is a WAV file")
    return Exhibit("speech", SAID, "", answer.origin.node, {"fox.wav": answer.audio})


async def show_transcription(client: AsyncBlip, audio: bytes) -> Exhibit:
    """Have written down what was spoken."""
    heading("transcription of that speech")
    answer = await client.transcribe(EARS, audio)
    errors = word_error_rate(SAID, answer.text)
    print(f"  {answer.text}\n  [{answer.origin.node}; {errors:.0%} of the words wrong]", flush=True)
    expect(errors < WORD_ERRORS, "the words that were heard are those that were spoken")
    return Exhibit("transcription", "What was said?", answer.text, answer.origin.node)


def words(text: str) -> list[str]:
    """Return the words of a text, as they sound."""
    return re.findall(r"[a-z0-9']+", text.lower())


def word_error_rate(said: str, heard: str) -> float:
    """Return the fewest words to insert, delete and replace, as a share of what was said."""
    wanted, found = words(said), words(heard)
    row = list(range(len(found) + 1))
    for number, word in enumerate(wanted, 1):
        before, row = row, [number]
        for at, other in enumerate(found, 1):
            row.append(min(row[-1] + 1, before[at] + 1, before[at - 1] + (word != other)))
    return row[-1] / max(1, len(wanted))


def heading(text: str) -> None:
    """Begin another part of what is printed."""
    print(f"\n{text}", flush=True)


def expect(fact: bool, claim: str) -> None:
    """Fail the demo if what it claims is not so.

    Raises :class:`~blip.errors.RuntimeFailed`.
    """
    if not fact:
        raise RuntimeFailed(f"the demo went wrong: it is not true that {claim}")

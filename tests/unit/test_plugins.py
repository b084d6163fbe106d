"""Plugins: what their classes may say, where they are found, and how they run."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from blip.errors import (
    BlipError,
    Cancelled,
    ConfigError,
    InvalidRequest,
    ModelLoadFailed,
    NoCapacity,
    RuntimeFailed,
)
from blip.kinds.plugin import (
    JSON,
    Piece,
    PluginInput,
    Progress,
    piece_from_wire,
    plugin_kind,
)
from blip_node.catalogue import Catalogue
from blip_node.models.spec import ModelSpec, parse_source
from blip_node.models.spec import Plugin as Source
from blip_node.plugin import Context, Plugin, Result
from blip_node.plugins.card import MAX_SCHEMA_BYTES, Card, card_of
from blip_node.plugins.describe import describe_plugin
from blip_node.plugins.place import announced, find_class
from blip_node.runtimes import runtime_for
from blip_node.runtimes.base import LoadSpec, Outcome
from blip_node.runtimes.plugin import PluginRuntime
from tests.models.jobs import RecordingJob


class Words(BaseModel):
    text: str
    n: int = 1


class Counting(Plugin):
    """Counts.

    More about it.
    """

    kind = "counting"
    Input = Words
    Output = list[int]
    units = "text"
    slots = 2
    memory = 1024

    def run(self, input: Any, context: Context) -> Any:
        context.check()
        context.progress(7.0, "x" * 1000)
        context.progress(float("nan"))
        return [len(input.text)]


class Streaming(Plugin):
    kind = "streaming"
    Input = Words

    def run(self, input: Any, context: Context) -> Iterator[Any]:
        for number in range(input.n):
            yield {"number": number, "thread": threading.current_thread().name}


class Waiting(Plugin):
    kind = "waiting"
    Input = Words

    async def run(self, input: Any, context: Context) -> Any:
        if input.n == 0:
            raise ValueError("no\nmore")
        await asyncio.sleep(0 if input.text else 3600)
        return b"bytes"


class AsyncStreaming(Plugin):
    kind = "async-streaming"
    Input = Words

    async def run(self, input: Any, context: Context) -> AsyncIterator[Any]:
        for number in range(input.n):
            await asyncio.sleep(0)
            yield number


@dataclass
class Row:
    raw: bytes
    number: float


class Odd(Plugin):
    """Answers what it is told to."""

    kind = "odd"
    Input = Words
    Output = None

    def run(self, input: Any, context: Context) -> Any:
        answers: dict[str, Any] = {
            "row": Row(b"\xff\x00", float("nan")),
            "picture": Result(b"png", "image/png"),
            "json": Result(b'{\n "a": 1}', JSON),
            "no json": Result(b"{", JSON),
            "no media": Result(b"", "text/html\r\nX-Evil: 1"),
            "object": object(),
            "array": memoryview(b"view"),
        }
        if input.text == "memory":
            raise MemoryError
        if input.text == "refuse":
            raise InvalidRequest("no", param="input.text")
        if input.text == "huge":
            return bytes(49 * 1024 * 1024)
        return answers[input.text]


class Unready(Plugin):
    kind = "unready"
    Input = Words

    def load(self, spec: LoadSpec) -> None:
        raise MemoryError if spec.options.get("memory") else OSError("no such disk\nat all")

    def run(self, input: Any, context: Context) -> Any: ...


def job_of(plugin: type[Plugin], **fields: Any) -> RecordingJob:
    job = RecordingJob("echo")
    job.kind = plugin_kind(plugin.kind)
    job.input = PluginInput(document=json.dumps({"text": "abc", **fields}))
    return job


def loaded(plugin: type[Plugin], **options: Any) -> PluginRuntime:
    runtime = PluginRuntime()
    place = f"{__name__}:{plugin.__name__}"
    spec = LoadSpec("m", "", "cpu", plugin.slots, plugin=place, options=options)
    runtime.load(spec, lambda share: None)
    return runtime


async def answer(plugin: type[Plugin], **fields: Any) -> tuple[list[Any], Outcome]:
    runtime = loaded(plugin)
    try:
        job = job_of(plugin, **fields)
        outcome = await runtime.run(job)
        return [piece_from_wire(part) for part in job.parts], outcome
    finally:
        runtime.close()


def body(outcome: Outcome) -> Any:
    piece = piece_from_wire(outcome.payload)
    assert isinstance(piece, Piece)
    return json.loads(bytes(piece.body)) if piece.media == JSON else bytes(piece.body)


# --- running ---------------------------------------------------------------------------------


async def test_a_function() -> None:
    parts, outcome = await answer(Counting, text="four")
    assert parts == [Progress(1.0, "x" * 500)]
    assert body(outcome) == [4]
    assert outcome.units == 4


async def test_generators() -> None:
    parts, outcome = await answer(Streaming, n=3)
    values = [json.loads(part.body) for part in parts]
    assert [value["number"] for value in values] == [0, 1, 2]
    assert {value["thread"] for value in values} == {"plugin-0_0"}
    assert outcome == Outcome(units=1)
    parts, _ = await answer(AsyncStreaming, n=2)
    assert [part.body for part in parts] == [b"0", b"1"]


@pytest.mark.parametrize("plugin", [Streaming, AsyncStreaming])
async def test_generators_wait_for_credit_and_end_when_cancelled(plugin: type[Plugin]) -> None:
    runtime = loaded(plugin)
    job = job_of(plugin, n=1_000_000)
    job.writable = False
    running = asyncio.create_task(runtime.run(job))
    await asyncio.sleep(0.05)
    assert job.parts == []
    job.let(True)
    while not job.parts:  # noqa: ASYNC110  (there is no event for it)
        await asyncio.sleep(0.01)
    job.cancel()
    with pytest.raises(Cancelled):
        await running
    assert len(job.parts) < 1_000_000
    assert await runtime.run(job_of(plugin, n=0)) == Outcome(units=1)  # its slot is free
    runtime.close()


async def test_a_runtime_that_closes_while_a_part_waits_ends() -> None:
    runtime = loaded(Streaming)
    job = job_of(Streaming, n=5)
    job.writable = False
    running = asyncio.create_task(runtime.run(job))
    await asyncio.sleep(0.05)
    await asyncio.to_thread(runtime.close)
    with pytest.raises(BlipError, match="unloaded"):
        await running


async def test_a_coroutine_is_cancelled_where_it_waits() -> None:
    runtime = loaded(Waiting)
    job = job_of(Waiting, text="")
    running = asyncio.create_task(runtime.run(job))
    await asyncio.sleep(0.01)
    job.cancel()
    with pytest.raises(Cancelled):
        await running
    assert body(await runtime.run(job_of(Waiting))) == b"bytes"
    with pytest.raises(RuntimeFailed, match=r"no$"):
        await runtime.run(job_of(Waiting, n=0))
    stopped = asyncio.create_task(runtime.run(job_of(Waiting, text="")))
    await asyncio.sleep(0.01)
    stopped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopped


async def test_answers() -> None:
    assert body((await answer(Odd, text="row"))[1]) == {"raw": "_wA=", "number": None}
    picture = piece_from_wire((await answer(Odd, text="picture"))[1].payload)
    assert picture == Piece("image/png", b"png")
    plain = piece_from_wire((await answer(Odd, text="json"))[1].payload)
    assert plain == Piece(JSON, b'{"a":1}')
    assert body((await answer(Odd, text="array"))[1]) == b"view"


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("no json", RuntimeFailed, "JSON that is none"),
        ("no media", RuntimeFailed, "media type"),
        ("object", RuntimeFailed, "cannot be written as JSON"),
        ("huge", RuntimeFailed, "in parts|at once"),
        ("memory", NoCapacity, "memory"),
        ("refuse", InvalidRequest, "no"),
        ("other", RuntimeFailed, "KeyError: 'other'|failed"),
    ],
)
async def test_answers_that_are_none(text: str, error: type[BlipError], says: str) -> None:
    with pytest.raises(error, match=says):
        await answer(Odd, text=text)


async def test_what_is_not_its_input_or_output(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await answer(Counting, n="many")
    assert caught.value.param == "input.n"
    monkeypatch.setattr(Counting, "run", lambda self, input, context: "text")
    with pytest.raises(RuntimeFailed, match="not its Output"):
        await answer(Counting)


def test_what_cannot_be_loaded() -> None:
    with pytest.raises(ModelLoadFailed, match=r"model 'm': OSError: no such disk$"):
        loaded(Unready)
    with pytest.raises(NoCapacity):
        loaded(Unready, memory=True)
    assert runtime_for(["counting"], plugin=True) is PluginRuntime


# --- what a class says -----------------------------------------------------------------------


def test_a_card() -> None:
    card = card_of(Counting)
    assert (card.slots, card.memory) == (2, 1024)
    kind = card.kind
    assert (kind.name, kind.units, kind.about, kind.streams) == (
        "counting",
        "text",
        "Counts.",
        False,
    )
    assert json.loads(kind.input_schema)["required"] == ["text"]
    assert json.loads(kind.output_schema) == TypeAdapter(list[int]).json_schema()
    assert Card.from_json(card.to_json()) == card
    assert card_of(Streaming).kind.about == ""
    assert card_of(Streaming).kind.streams
    assert card_of(AsyncStreaming).kind.streams


class Large(BaseModel):
    text: Annotated[str, Field(description="x" * MAX_SCHEMA_BYTES)]


class Elsewhere(BaseModel):
    text: Annotated[str, Field(json_schema_extra={"$ref": "http://192.0.2.1/x.json"})]


class Deep(BaseModel):
    text: Annotated[str, Field(json_schema_extra={"examples": json.loads("[" * 40 + "]" * 40)})]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": ""}, "kind must be"),
        ({"kind": "Big Name"}, "kind must be"),
        ({"kind": "chat"}, "built in"),
        ({"run": Plugin.run}, "no run"),
        ({"Input": int}, "pydantic model"),
        ({"slots": -1}, "slots"),
        ({"memory": 1.5}, "memory"),
        ({"units": "nothing"}, "no field"),
        ({"Output": threading.Lock}, "schema cannot be made"),
        ({"Input": Large, "units": ""}, "more than 65536 bytes"),
        ({"Input": Elsewhere}, r"refers to 'http://192\.0\.2\.1/x\.json'"),
        ({"Input": Deep}, "nested more than"),
    ],
)
def test_classes_that_will_not_do(changes: dict[str, Any], says: str) -> None:
    plugin = type("Bad", (Counting,), {"Input": Words, "units": "text", **changes})
    with pytest.raises(ModelLoadFailed, match=says):
        card_of(plugin)


# --- where it is -----------------------------------------------------------------------------

FILE = """
print("hello from the import")
from pydantic import BaseModel
from blip_node.plugin import Plugin

class Shout(Plugin):
    kind = "shout"
    memory = MEMORY
    class Input(BaseModel):
        text: str
    def run(self, input: "Input", context):
        return input.text.upper()

class Other(Shout):
    class Input(BaseModel):
        other: str
"""


def test_sources() -> None:
    for place in ("shout", "my.module:Class", "shout.py:Shout", "/a b/shout.py:Shout"):
        assert parse_source(f"plugin:{place}") == Source(place)
    for wrong in ("plugin:", "plugin:a:b:c", "plugin:a:1", "plugin:a b"):
        with pytest.raises(ConfigError):
            parse_source(wrong)


def test_a_file_is_described_in_a_child(tmp_path: Path) -> None:
    file = tmp_path / "shouting.py"
    file.write_text(FILE.replace("MEMORY", "2048"))
    card = describe_plugin(f"{file}:Shout")
    assert (card.kind.name, card.memory) == ("shout", 2048)
    assert "shouting" not in sys.modules
    for text, says in (
        ("import os; os._exit(4)", "status 4"),
        ("1 / 0", "ZeroDivisionError"),
        ("Shout = 1", "not a subclass"),
        ("", "AttributeError"),
    ):
        file.write_text(text)
        with pytest.raises(ModelLoadFailed, match=says):
            describe_plugin(f"{file}:Shout")


def test_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shouting_package.py").write_text(FILE.replace("MEMORY", "0"))
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[blip.kinds]\nloud = shouting_package:Shout\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert announced() == ["loud"]
    assert find_class("loud").kind == "shout"
    with pytest.raises(ModelLoadFailed, match="announced: loud"):
        find_class("quiet")


def test_the_catalogue_has_one_class_a_kind(tmp_path: Path) -> None:
    file = tmp_path / "shouting.py"
    file.write_text(FILE.replace("MEMORY", "1 << 20"))
    catalogue = Catalogue()
    catalogue.add(
        [
            ModelSpec("one", f"plugin:{file}:Shout", slots=3),
            ModelSpec("two", f"plugin:{file}:Shout"),
            ModelSpec("other", f"plugin:{file}:Other"),
            ModelSpec("none", f"plugin:{file}:Nothing"),
        ]
    )
    assert [entry.spec.name for entry in catalogue] == ["one", "two"]
    one, two = catalogue
    assert (one.slots, two.slots) == (3, 1)
    assert not one.weightless
    assert one.memory(gpu=False) > 1 << 20
    assert [kind.name for kind in catalogue.kinds] == ["shout"]
    assert "is not the same" in catalogue.rejected["other"].message
    assert "AttributeError" in catalogue.rejected["none"].message

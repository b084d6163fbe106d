"""A plugin through the whole mesh: the walk-through of docs/your-kind.md, and trouble."""

from __future__ import annotations

import asyncio
import json
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from blip.client import AsyncBlip
from blip.errors import InvalidRequest, ModelLoadFailed
from tests.mesh.rig import Rig
from tests.unit.gateway_mesh import served

PAGE = Path(__file__).parents[2] / "docs" / "your-kind.md"

TROUBLE = """
import asyncio, os, time
from pydantic import BaseModel, field_validator
from blip.errors import InvalidRequest
from blip_node.plugin import Plugin, Result

class Trouble(Plugin):
    kind = "trouble"
    slots = 2
    class Input(BaseModel):
        do: str
        @field_validator("do")
        @classmethod
        def known(cls, do):
            if do == "unknown":
                raise ValueError("the node knows better")
            return do
    def load(self, spec):
        self.word = spec.options["word"]
    def run(self, input, context):
        if input.do == "die":
            os._exit(3)
        if input.do == "raise":
            raise KeyError("nothing\\nto see")
        if input.do == "refuse":
            raise InvalidRequest("no", param="input.do")
        if input.do == "wait":
            while not context.cancelled:
                time.sleep(0.01)
            context.check()
        if input.do == "page":
            return Result(b"<b>", "text/html")
        return [self.word, input.do, os.getpid()]

class Parts(Plugin):
    kind = "parts"
    class Input(BaseModel):
        n: int
        wait: float = 0
    async def run(self, input, context):
        for number in range(input.n):
            await asyncio.sleep(input.wait)
            yield {"number": number}
"""


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


async def test_kinds_of_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One mesh for all that plugins do."""
    monkeypatch.chdir(tmp_path)  # nodes are started there
    [code] = blocks("python")
    assert len(code.splitlines()) < 40
    name = code.splitlines()[0].removeprefix("# ")
    (tmp_path / name).write_text(code)
    (tmp_path / "trouble.py").write_text(textwrap.dedent(TROUBLE))
    models: dict[str, Any] = tomllib.loads(blocks("toml")[0])["models"]
    models["wordcount"]["preload"] = True
    models["trouble"] = {"source": "plugin:trouble:Trouble", "options": {"word": "yes"}}
    models["parts"] = {"source": "plugin:trouble.py:Parts"}
    models["broken"] = {"source": "plugin:nowhere.py:Class"}
    async with Rig(nodes=1, models=models) as rig, served(rig.dispatcher) as origin:
        await the_page_says_what_happens(origin)
        await inputs_are_checked(rig, origin)
        await trouble_stays_where_it_is(rig, origin)
        await parts_come_as_they_are_made(rig, origin)


async def the_page_says_what_happens(origin: str) -> None:
    """The page's curl line, with its JSON, to this gateway."""
    [line] = [line for line in blocks("sh")[0].splitlines() if line.startswith("curl")]
    found = re.fullmatch(r"curl localhost:8001(\S+) --json '(.*)'", line)
    assert found is not None
    said: Any = json.loads(blocks("json")[0])
    async with aiohttp.ClientSession() as http:
        path, body = found.groups()
        headers = {"Content-Type": "application/json"}
        async with http.post(origin + path, data=body, headers=headers) as response:
            answer = await response.json()
    assert answer.pop("id") == response.headers["X-Blip-Task"]
    del said["id"]
    assert answer == said
    async with AsyncBlip(origin) as client:
        result = await client.run_task("wordcount", {"text": "one two two"})
        assert result.output == said["output"]
        listed = {kind["name"]: kind for kind in await client.kinds()}
    assert listed["wordcount"]["about"] == "Counts the words of a text."
    assert listed["wordcount"]["models"] == ["wordcount"]
    assert listed["chat"]["builtin"]


async def inputs_are_checked(rig: Rig, origin: str) -> None:
    async with AsyncBlip(origin) as client:
        for value, where, says in (
            ({"text": 1}, "input.text", "string"),
            ({"text": "", "most": 1000}, "input.most", "maximum"),
            ({}, "input", "required"),
        ):
            before = len(rig.dispatcher.tasks())
            with pytest.raises(InvalidRequest, match=says) as caught:
                await client.run_task("wordcount", value)
            assert caught.value.param == where
            assert len(rig.dispatcher.tasks()) == before  # no node was asked
        with pytest.raises(InvalidRequest, match="the node knows better") as caught:
            await client.run_task("trouble", {"do": "unknown"})
        assert caught.value.param == "input.do"
        with pytest.raises(ModelLoadFailed, match=r"no file .*nowhere\.py"):
            await client.run_task("wordcount", {"text": ""}, model="broken")


async def trouble_stays_where_it_is(rig: Rig, origin: str) -> None:
    async with AsyncBlip(origin) as client:
        word, _, pid = (await client.run_task("trouble", {"do": "tell"})).output
        assert word == "yes"
        assert pid in rig.nodes[0].workers()
        with pytest.raises(Exception, match="KeyError: 'nothing"):
            await client.run_task("trouble", {"do": "raise"})
        with pytest.raises(InvalidRequest, match="no"):
            await client.run_task("trouble", {"do": "refuse"})
        page = await client.run_task("trouble", {"do": "page"})
        assert (page.output, page.media) == (b"<b>", "text/html")

        waiting = [asyncio.create_task(client.run_task("trouble", {"do": "wait"})) for _ in "12"]
        await rig.until(lambda: sum(t.state == "running" for t in rig.dispatcher.tasks()) == 2)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        # both threads are free again
        assert (await client.run_task("trouble", {"do": "tell"})).output[2] == pid

        with pytest.raises(Exception, match="exit code 3"):
            await client.run_task("trouble", {"do": "die"})
        assert (await client.run_task("wordcount", {"text": "a"})).output["words"] == 1
        assert (await client.run_task("trouble", {"do": "tell"})).output[2] != pid


async def parts_come_as_they_are_made(rig: Rig, origin: str) -> None:
    async with AsyncBlip(origin) as client:
        assert (await client.run_task("parts", {"n": 3})).output == [
            {"number": n} for n in range(3)
        ]
        events = [event async for event in client.stream_task("parts", {"n": 2})]
        assert [event["type"] for event in events] == ["part", "part", "completed"]
        assert [event["output"] for event in events[:2]] == [{"number": 0}, {"number": 1}]
        counted = client.stream_task("wordcount", {"text": "a\nb b"})
        progress = [event async for event in counted]
        assert [event["type"] for event in progress] == ["progress", "progress", "completed"]
        assert progress[1]["progress"] == 0.5
        assert progress[2]["output"]["words"] == 3

        endless = client.stream_task("parts", {"n": 10**6, "wait": 0.01})
        async for event in endless:
            if event["index"] == 3:
                break
        await endless.aclose()
        # its one slot is free
        assert len((await client.run_task("parts", {"n": 1})).output) == 1

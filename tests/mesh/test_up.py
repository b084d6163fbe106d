"""`blip up` as a user runs it: real processes, real models, the unmodified openai package."""

from __future__ import annotations

import asyncio
import collections
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam

from blip.cli.local import free_port
from tests.mesh.rig import ECHO, TINY

QUESTION = "What is the capital of Japan?"
JAPAN: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
TOKYO = "The capital of Japan is Tokyo."


class Up:
    """A mesh of two nodes, started with `blip up`."""

    def __init__(self, folder: Path, *extra: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = folder / "blip.toml"
        models = "".join(
            f'[models.{name}]\nsource = "{model["source"]}"\npreload = true\n'
            for name, model in {**TINY, **ECHO}.items()
        )
        config.write_text(
            f'[mesh]\nstate_dir = "{folder / "state"}"\n'
            f'[broker]\nbind = "tcp://127.0.0.1:{free_port()}"\n'
            f'[node]\nname = "rig"\ndata_dir = "{folder / "data"}"\n'
            f"find_models = false\nnvml = false\n{models}"
        )
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "blip",
                "up",
                "--nodes",
                "2",
                "--port",
                str(self.port),
                "--config",
                str(config),
                *extra,
            ],
            stdout=subprocess.DEVNULL,
        )

    def wait(self, seconds: float = 90.0) -> None:
        """Wait until two nodes have loaded every model."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                models = self.get("/v1/models")["data"]
                if len(models) == 3 and all(model["ready"] == 2 for model in models):
                    return
            except OSError:
                pass
            assert self.process.poll() is None, "`blip up` has ended"
            time.sleep(0.1)
        raise AssertionError("the mesh did not come up")

    def get(self, path: str) -> dict[str, list[dict[str, object]]]:
        """GET a JSON document."""
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            document: dict[str, list[dict[str, object]]] = json.load(response)
        return document

    def agents(self) -> list[psutil.Process]:
        """Return the processes of the two nodes' agents."""
        return [
            child
            for child in psutil.Process(self.process.pid).children()
            if "blip_node" in child.cmdline()
        ]

    def client(self) -> openai.AsyncOpenAI:
        """Return the unmodified client of OpenAI."""
        return openai.AsyncOpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="blip-up-") as folder:
        made = Up(Path(folder))
        try:
            made.wait()
            yield made
        finally:
            everyone = psutil.Process(made.process.pid).children(recursive=True)
            made.process.send_signal(signal.SIGINT)
            assert made.process.wait(60) in (0, 130)
            _, left = psutil.wait_procs(everyone, timeout=10)
            assert left == [], "orphans"


async def test_models(up: Up) -> None:
    async with up.client() as client:
        names = {model.id async for model in client.models.list()}
        assert names == {"tiny-chat", "tiny-embed", "echo"}
        assert (await client.models.retrieve("tiny-chat")).id == "tiny-chat"


async def test_chat_plain_and_streamed(up: Up) -> None:
    async with up.client() as client:
        answer = await client.chat.completions.create(
            model="tiny-chat",
            messages=JAPAN,
            temperature=0,
        )
        assert answer.choices[0].message.content == TOKYO
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == (
            answer.usage.prompt_tokens + answer.usage.completion_tokens
        )
        stream = await client.chat.completions.create(
            model="tiny-chat",
            messages=JAPAN,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, usage = "", None
        async for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            usage = chunk.usage or usage
        assert text == TOKYO
        assert usage == answer.usage


async def test_completion_stops_and_biases(up: Up) -> None:
    async with up.client() as client:
        answer = await client.completions.create(
            model="tiny-chat", prompt="Beautiful is", temperature=0, max_tokens=20, stop=["than"]
        )
        assert "than" not in answer.choices[0].text
        assert answer.choices[0].finish_reason == "stop"
        several = await client.completions.create(
            model="tiny-chat",
            prompt=["Beautiful is", "Simple is"],
            n=2,
            seed=1,
            max_tokens=5,
            logit_bias={"5": -100},
        )
        assert [choice.index for choice in several.choices] == [0, 1, 2, 3]


def _dot(one: list[float], two: list[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))


async def test_embeddings(up: Up) -> None:
    async with up.client() as client:
        texts = ["the soup needs salt", "add pepper to the soup", "the team won the match"]
        answer = await client.embeddings.create(model="tiny-embed", input=texts)
        one, two, three = (row.embedding for row in answer.data)
        assert _dot(one, two) > _dot(one, three)
        assert answer.usage.prompt_tokens > 0


async def test_errors_are_openais_typed_exceptions(up: Up) -> None:
    async with up.client() as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="tiny-chta", messages=JAPAN)
        assert "tiny-chat" in str(unknown.value)
        with pytest.raises(openai.BadRequestError, match="messages"):
            await client.chat.completions.create(model="tiny-chat", messages=[])
        with pytest.raises(openai.BadRequestError) as long:
            await client.chat.completions.create(
                model="tiny-chat", messages=[{"role": "user", "content": "word " * 9000}]
            )
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="functions"):
            await client.chat.completions.create(
                model="tiny-chat", messages=JAPAN, extra_body={"functions": [{"name": "f"}]}
            )


async def test_headers_tell_who_served_and_where_time_went(up: Up) -> None:
    async with up.client() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="tiny-chat",
            messages=JAPAN,
            extra_headers={"X-Request-ID": "mine-1"},
        )
        assert raw.headers["X-Request-ID"] == "mine-1"
        assert raw.headers["X-Blip-Node"] in ("rig-1", "rig-2")
        timing = dict(part.split("=") for part in raw.headers["X-Blip-Timing"].split(";"))
        assert set(timing) == {"queue", "load", "first", "total"}
        assert float(timing["total"]) > 0


async def test_ready_tells_each_dependency(up: Up) -> None:
    report = up.get("/readyz")
    assert {str(check["name"]): check["ok"] for check in report["checks"]} == {
        "broker": True,
        "nodes": True,
        "accepting": True,
        "store": True,
    }


async def test_losing_a_node_fails_no_request_that_had_not_streamed(up: Up) -> None:
    async with up.client() as client:

        async def ask() -> tuple[str, str]:
            raw = await client.chat.completions.with_raw_response.create(
                model="tiny-chat",
                messages=JAPAN,
                temperature=0,
            )
            answer = raw.parse()
            return answer.choices[0].message.content or "", raw.headers["X-Blip-Node"]

        answers = await asyncio.gather(*(ask() for _ in range(32)))
        assert {text for text, _ in answers} == {TOKYO}
        shares = collections.Counter(node for _, node in answers)
        assert min(shares["rig-1"], shares["rig-2"]) >= 8

        asked = [asyncio.create_task(ask()) for _ in range(32)]
        await asyncio.sleep(0.02)  # some are on their way, some run, some have ended
        up.agents()[0].kill()
        answers = await asyncio.gather(*asked)
        assert {text for text, _ in answers} == {TOKYO}
        # `blip up` starts the node again
        await asyncio.to_thread(up.wait)


async def test_losing_the_store_stops_no_synchronous_request(up: Up) -> None:
    server = next(
        child
        for child in psutil.Process(up.process.pid).children(recursive=True)
        if "valkey-server" in child.name() or "valkey-server" in " ".join(child.cmdline())
    )
    server.kill()
    async with up.client() as client:
        for _ in range(10):
            answer = await client.chat.completions.create(
                model="tiny-chat",
                messages=JAPAN,
                temperature=0,
            )
            assert answer.choices[0].message.content == TOKYO


async def test_cli_against_it(up: Up) -> None:
    async def blip(*args: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "blip",
            *args,
            "--url",
            up.url,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    assert TOKYO in await blip("run", "tiny-chat", QUESTION, "--temperature", "0")
    assert "tiny-embed" in await blip("models")
    assert {node["name"] for node in json.loads(await blip("status", "--json"))["nodes"]} == {
        "rig-1",
        "rig-2",
    }
    assert isinstance(json.loads(await blip("ps", "--json")), dict | list)


def test_killing_up_leaves_no_orphan() -> None:
    with tempfile.TemporaryDirectory(prefix="blip-up-") as folder:
        made = Up(Path(folder))
        made.wait()
        everyone = psutil.Process(made.process.pid).children(recursive=True)
        assert len(everyone) >= 6
        made.process.kill()
        made.process.wait()
        _, left = psutil.wait_procs(everyone, timeout=40)
        assert left == []


def test_several_gateway_processes_share_the_port() -> None:
    with tempfile.TemporaryDirectory(prefix="blip-up-") as folder:
        made = Up(Path(folder), "--processes", "2")
        try:
            made.wait()
            seen = set()
            for _ in range(60):
                with urllib.request.urlopen(made.url + "/healthz", timeout=10) as response:
                    seen.add(response.headers["X-Request-ID"].rsplit("_", 1)[0])
            assert len(seen) == 2
        finally:
            made.process.send_signal(signal.SIGTERM)
            made.process.wait(60)

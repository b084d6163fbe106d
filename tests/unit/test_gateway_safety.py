"""Moderation and policies against a mesh in memory: above all, that they fail closed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import pytest

from blip.cli import main
from blip.client import Blip
from blip.client import safety as client_safety
from blip.config import load
from blip.errors import ConfigError, NoNode, NotPermitted, Unavailable, WorkerCrashed
from blip.gateway.mesh import Answer
from blip.gateway.policy import Policies, Policy
from blip.gateway.server import _policies
from blip.gateway.settings import GatewaySettings
from blip.kinds.moderation import MODERATION, ModerationInput, Verdict, verdicts_from_wire
from tests.unit.gateway_mesh import MemoryMesh, Work, mesh, png, served

KEYS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("school", "studio", "museum")}


def settings(**policy: Any) -> GatewaySettings:
    return GatewaySettings(
        api_keys=KEYS,
        moderation_model="guard",
        moderation_image_model="guard",
        policies=[Policy("strict", keys=("school",), **policy)],
    )


@contextlib.asynccontextmanager
async def as_key(
    backend: MemoryMesh, told: GatewaySettings, key: str = "school"
) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        served(backend, told) as origin,
        aiohttp.ClientSession(origin, headers=headers) as http,
    ):
        yield http


async def post(http: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as response:
        return response.status, await response.json()


async def paint(http: aiohttp.ClientSession, prompt: str, **fields: Any) -> tuple[int, Any]:
    body = {"model": "toy-shapes", "prompt": prompt, **fields}
    return await post(http, "/v1/images/generations", **body)


async def dies(value: Any) -> Work:
    if value is not None:
        raise WorkerCrashed("the worker ended: signal 9")
    yield b""


def answering(payload: bytes) -> Any:
    async def node(value: Any) -> Work:
        yield Answer(payload, {}, 1.0)

    return node


# --- moderations -----------------------------------------------------------------------------


async def test_moderations() -> None:
    backend = mesh()
    async with as_key(backend, settings(), "studio") as http:
        status, answer = await post(http, "/v1/moderations", input=["a grumph", "a word"])
        assert status == 200
        first, second = answer["results"]
        assert (first["flagged"], second["flagged"]) == (True, False)
        assert first["categories"]["violence"]
        assert first["category_scores"]["violence"] == 0.9
        assert not first["categories"]["hate"]
        assert first["category_applied_input_types"]["violence"] == ["text"]
        assert first["category_applied_input_types"]["hate"] == []
        assert len(first["categories"]) == 13
        assert backend.inputs[-1] == ModerationInput(texts=["a grumph", "a word"])
        async with http.get("/metrics") as response:
            assert 'kind="moderation",outcome="succeeded"' in await response.text()


async def test_what_moderations_refuse() -> None:
    async with served(mesh()) as origin, aiohttp.ClientSession(origin) as http:
        part = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
        broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,???"}}
        text = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
        good = {"type": "image_url", "image_url": {"url": _data(png(8, 8))}}
        for body, code, param, says in (
            ({"input": "a"}, "model_not_found", "model", "no moderation model of its own"),
            (
                {"input": "a", "model": "omni-moderation-latest"},
                "model_not_found",
                "model",
                "omni-moderation-latest",
            ),
            ({"input": [], "model": "guard"}, "invalid_request", "input", "at least 1"),
            ({"input": [part]}, "unsupported_field", "input.0.image_url.url", "data URL"),
            ({"input": [broken]}, "invalid_request", "input.0.image_url.url", "base64"),
            ({"input": [text]}, "invalid_request", "input.0.image_url.url", "not a PNG"),
            ({"input": [good]}, "unsupported_field", "input", "no model that judges them"),
        ):
            _, answer = await post(http, "/v1/moderations", **body)
            error = answer["error"]
            assert (error["code"], error["param"]) == (code, param)
            assert says in error["message"]


def _data(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


NONSENSE = [
    b"",
    msgpack.packb([]),
    msgpack.packb([[{}, []]]),
    msgpack.packb([[{"violence": float("nan")}, []]]),
    msgpack.packb([[{"violence": 2.0}, []]]),
    msgpack.packb([[{"violence": 0.1}, ["hate"]]]),
    msgpack.packb([[{"violence": "low"}, []]]),
    msgpack.packb([[{"violence": 0.1}, []]] * 2),
]


@pytest.mark.parametrize("payload", NONSENSE)
async def test_nonsense_is_never_a_verdict(payload: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        verdicts_from_wire(payload, 1)
    backend = mesh()
    backend.nodes_by_model["guard"] = answering(payload)
    async with as_key(backend, settings()) as http:
        status, answer = await post(http, "/v1/moderations", input="a word")
        assert (status, answer["error"]["code"]) == (500, "runtime_failed")
        status, answer = await paint(http, "a word")
        assert (status, answer["error"]["code"]) == (503, "unavailable")
        assert answer["error"]["details"]["reason"] == "runtime_failed"
    assert not any(isinstance(value, str) for value in backend.inputs)


# --- policies on pictures --------------------------------------------------------------------


async def test_prompts_are_judged_before_anything_is_painted() -> None:
    backend = mesh()
    async with as_key(backend, settings(words=("tea pot",))) as http:
        assert (await paint(http, "a heart", n=2))[0] == 200
        kinds = [type(value).__name__ for value in backend.inputs]
        assert kinds == ["ModerationInput", "ImageInput", "ImageInput"]
        status, answer = await paint(http, "a grumph")
        assert (status, answer["error"]["code"]) == (400, "content_policy_violation")
        assert answer["error"]["details"] == {
            "categories": ["violence"],
            "scores": {"violence": 0.9},
            "policy": "strict",
        }
        status, answer = await paint(http, "my Tea Pot!")
        assert answer["error"]["details"]["words"] == ["tea pot"]
        assert (await paint(http, "steam potion"))[0] == 200
    assert sum(type(value).__name__ == "ImageInput" for value in backend.inputs) == 3


@pytest.mark.parametrize("trouble", ["gone", "dies", "unknown"])
async def test_no_verdict_no_picture(trouble: str) -> None:
    backend = mesh()
    if trouble == "dies":
        backend.nodes_by_model["guard"] = dies
    elif trouble == "gone":
        del backend.nodes_by_model["guard"]
    else:
        backend.refuse[0] = NoNode("no node is connected")
    async with as_key(backend, settings()) as http:
        status, answer = await paint(http, "a heart")
        assert (status, answer["error"]["code"]) == (503, "unavailable")
        assert "therefore refused" in answer["error"]["message"]
        async with http.get("/v1/models") as response:  # the rest goes on
            assert response.status == 200
    assert not any(type(value).__name__ == "ImageInput" for value in backend.inputs)
    backend = mesh()
    async with as_key(backend, settings(), "studio") as http:  # others do not notice
        assert (await paint(http, "a grumph"))[0] == 200


async def test_pictures_are_judged_too() -> None:
    backend = mesh()
    told = settings(prompts=False, pictures=True)
    async with as_key(backend, told) as http:
        assert (await paint(http, "a grumph", size="16x16", seed=1))[0] == 200
        status, answer = await paint(http, "a", n=2, size="16x16", seed=1, stream=True)
        assert (status, answer["error"]["param"]) == (400, "stream")
        # the memory mesh's seed is the colour
        backend.nodes_by_model["guard"] = answering(
            msgpack.packb([[{"violence": 0.1}, []], [{"violence": 0.7}, ["violence"]]])
        )
        status, answer = await paint(http, "a", n=2)
        assert answer["error"]["code"] == "content_policy_violation"
        assert (
            answer["error"]["message"] == "A picture that was made is not allowed here: violence."
        )
        backend.nodes_by_model["guard"] = dies
        assert (await paint(http, "a"))[0] == 503
        form = aiohttp.FormData({"model": "toy-shapes", "prompt": "a"})
        form.add_field("image", png(8, 8), filename="a.png")
        before = len(backend.inputs)
        async with http.post("/v1/images/edits", data=form) as response:
            assert response.status == 503
        assert len(backend.inputs) == before + 1  # it was not painted over first


async def test_bitinglips_pictures_are_judged_too() -> None:
    path = "/api/v1/inference/image-generation"
    backend = mesh()
    async with as_key(backend, settings(pictures=True)) as http:
        assert (await post(http, path, model="toy-shapes", prompt="a heart"))[0] == 200
        painted = [type(value).__name__ for value in backend.inputs]
        assert painted == ["ModerationInput", "ImageInput", "ModerationInput"]
        for field in ("prompt", "text"):
            status, answer = await post(http, path, model="toy-shapes", **{field: "a grumph"})
            assert (status, answer["error"]["code"]) == (400, "CONTENT_POLICY_VIOLATION")
            assert answer["error"]["details"]["field"] == field
        assert sum(type(value).__name__ == "ImageInput" for value in backend.inputs) == 1
        backend.nodes_by_model["guard"] = dies
        assert (await post(http, path, model="toy-shapes", prompt="a"))[0] == 503


async def test_a_route_that_forgets_the_policy_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from blip.gateway import painting

    async def forgets(*args: Any, **kwargs: Any) -> None: ...

    monkeypatch.setattr(painting, "admit", forgets)
    backend = mesh()
    async with as_key(backend, settings()) as http:
        status, answer = await paint(http, "a heart")
        assert status == 503
        assert "closed to it" in answer["error"]["message"]
    assert not backend.calls


async def test_kinds_and_models() -> None:
    backend = mesh()
    told = settings(prompts=False, kinds=("chat",), models=("par*",))
    async with as_key(backend, told) as http:
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        assert (await post(http, "/v1/chat/completions", model="parrot", **chat))[0] == 200
        for path, body in (
            ("/v1/chat/completions", {"model": "org/parrot", **chat}),
            ("/v1/completions", {"model": "parrot", "prompt": "hi"}),
            ("/v1/moderations", {"model": "guard", "input": "hi"}),
        ):
            status, answer = await post(http, path, **body)
            assert (status, answer["error"]["code"]) == (403, "not_permitted")
            assert answer["error"]["type"] == "permission_error"


# --- the rules themselves --------------------------------------------------------------------


def test_what_a_policy_refuses() -> None:
    verdict = Verdict({"hate": 0.6, "sexual": 0.3, "violence": 0.9}, ["hate", "violence"])
    for fields, refused in (
        ({}, ["hate", "violence"]),
        ({"block": ("violence",)}, ["violence"]),
        ({"allow": ("violence",)}, ["hate"]),
        ({"thresholds": {"sexual": 0.3, "hate": 0.61}}, ["sexual", "violence"]),
        ({"block": ("sexual",), "thresholds": {"sexual": 0.2}}, ["sexual"]),
    ):
        assert Policy("p", **fields).refused(verdict) == refused
    for fields in ({"block": ("illicit",)}, {"thresholds": {"illicit": 0.5}}):
        with pytest.raises(Unavailable, match="illicit"):
            Policy("p", **fields).refused(verdict)


def test_words_are_whole() -> None:
    policy = Policy("p", words=("bomb", "bomb making", "c++"))
    assert policy.words_in("Bomb Making, bombast and a BOMB") == ["bomb making", "bomb"]
    assert policy.words_in("c++ c+") == ["c++"]
    assert Policy("p").words_in("bomb") == []


def test_whose_policy() -> None:
    first, rest = Policy("first", keys=("a", "b")), Policy("rest")
    policies = Policies([first, rest])
    assert [policies.of(key) for key in ("a", "b", "c", "")] == [first, first, rest, rest]
    assert Policies([first]).of("c") is None
    with pytest.raises(ConfigError, match="two policies"):
        Policies([first, Policy("second", keys=("b",))])
    with pytest.raises(ConfigError, match="name no keys"):
        Policies([rest, Policy("again")])
    with pytest.raises(NotPermitted):
        Policy("p", kinds=("ch*",)).permit("image", "x")


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Policy("p", keys=("nobody",), prompts=False), "no API key"),
        (Policy("p"), "prompts is on"),
        (Policy("p", prompts=False, pictures=True), "pictures is on"),
    ],
)
def test_a_policy_that_cannot_be_kept(policy: Policy, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GatewaySettings(api_keys=KEYS, policies=[policy])


def test_policies_in_a_file(tmp_path: Any) -> None:
    file = tmp_path / "blip.toml"
    file.write_text(
        '[policies.classroom]\nkeys = ["school"]\nblock = ["violence"]\nwords = ["teapot"]\n'
        "thresholds = { violence = 0.2 }\nprompts = false\n"
    )
    config = load(file, env={}).config
    assert _policies(config) == [
        Policy(
            "classroom",
            keys=("school",),
            block=("violence",),
            words=("teapot",),
            thresholds={"violence": 0.2},
            prompts=False,
        )
    ]
    file.write_text("[policies.classroom]\nthresholds = { violence = 2.0 }\n")
    with pytest.raises(ConfigError, match="less than or equal to 1"):
        load(file, env={})
    with pytest.raises(ConfigError, match="policies"):
        load(None, env={"BLIP_POLICIES": "[]"}, search=False)


def test_what_the_page_configures(tmp_path: Any) -> None:
    page = Path(__file__).parents[2] / "docs" / "safety.md"
    first, toy, policies = re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    file = tmp_path / "blip.toml"
    file.write_text(f"{first}api_keys = {{ pupils = '{KEYS['school']}' }}\n{policies}")
    config = load(file, env={}).config
    GatewaySettings(
        api_keys=config.gateway.api_keys,
        moderation_model=config.gateway.moderation_model,
        moderation_image_model=config.gateway.moderation_image_model,
        policies=_policies(config),
    )
    file.write_text(toy)
    assert load(file, env={}).config.models["guard"].labels["grim"] == "violence"


# --- SDK and command line --------------------------------------------------------------------


async def test_asking_for_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    red = tmp_path / "red.png"
    red.write_bytes(png(8, 8, 250))
    told = GatewaySettings(moderation_model="guard", moderation_image_model="guard")
    async with served(mesh(), told) as url:

        def ask() -> list[client_safety.Verdict]:
            with Blip(url) as client:
                return client.moderate(["a grumph", "a word"])

        first, second = await asyncio.to_thread(ask)
        assert (first.flagged, first.categories) == (True, ("violence",))
        assert (second.flagged, second.scores) == (False, {"violence": 0.1})
        words = ["moderate", "a grumph", "a " * 60, "--model", "guard", "--url", url]
        assert await asyncio.to_thread(main, words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split() == ["a", "grumph", "violence", "violence", "0.900"]
        assert "nothing" in lines[2]
        words = ["moderate", "a word", "--image", str(red), "--json", "--url", url]
        assert await asyncio.to_thread(main, words) == 0
        [verdict] = json.loads(capsys.readouterr().out)
        assert verdict["categories"] == ["violence"]
        assert await asyncio.to_thread(main, ["moderate", "--url", url]) == 1
        assert "nothing to judge" in capsys.readouterr().err
        assert await asyncio.to_thread(main, ["moderate", "--image", "no.png", "--url", url]) == 1


def test_units_count_pictures() -> None:
    empty = MODERATION.units(ModerationInput())
    assert MODERATION.units(ModerationInput(texts=["abcd" * 10])) == empty + 11
    assert MODERATION.units(ModerationInput(images=[b"x"])) > empty + 100

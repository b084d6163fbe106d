"""Pipelines that look and listen, over HTTP, the SDK and the verb."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from blip.cli import main
from blip.client import AsyncBlip
from blip.errors import InvalidRequest, UnsupportedField
from blip.gateway.mesh import Answer
from blip.gateway.routes.pipelines import ABSENT
from blip.gateway.routes.pipelines.media import FIELDS, MEDIA_TASKS
from blip.kinds import KINDS, input_from_wire, input_to_wire
from blip.kinds.vision import Features, features_from_wire, to_wire
from tests.unit.gateway_mesh import MemoryMesh, failing, mesh, png, served, wav

PICTURE, SOUND = png(8, 6), wav()


@pytest.fixture
def backend() -> MemoryMesh:
    return mesh()


@pytest.fixture
async def http(backend: MemoryMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(backend) as origin, aiohttp.ClientSession(origin) as session:
        yield session


async def ask(
    http: aiohttp.ClientSession, task: str, model: str, file: bytes, **parameters: Any
) -> Any:
    """Return the result of the one input, asked as a form and as JSON, which must be the same."""
    form = aiohttp.FormData({"model": model})
    form.add_field("inputs", file, filename="input")
    if parameters:
        form.add_field("parameters", json.dumps(parameters))
    async with http.post(f"/v1/pipelines/{task}", data=form) as response:
        sent = await response.json()
        assert response.status == 200, sent
    said = {"model": model, "inputs": base64.b64encode(file).decode(), "parameters": parameters}
    async with http.post(f"/v1/pipelines/{task}", json=said) as response:
        assert await response.json() == sent
    assert (sent["task"], sent["model"], len(sent["results"])) == (task, model, 1)
    return sent["results"][0]


async def refusal(http: aiohttp.ClientSession, task: str, **body: Any) -> Any:
    async with http.post(f"/v1/pipelines/{task}", json=body) as response:
        answer = await response.json()
        assert response.status in (400, 404), answer
        return answer["error"]


async def test_sounds_are_labelled(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    found = await ask(
        http, "audio-classification", "ast", SOUND, top_k=3, function_to_apply="sigmoid"
    )
    assert found == [{"label": "bell", "score": 1.0}, {"label": "rain", "score": 0.5}]
    assert backend.inputs[-1] == backend.inputs[-2]
    assert (backend.inputs[-1].top, backend.inputs[-1].activation) == (3, "sigmoid")
    for labels in (["a dog", "rain"], "a dog, rain"):
        found = await ask(
            http, "zero-shot-audio-classification", "clap", SOUND, candidate_labels=labels
        )
        assert [each["label"] for each in found] == ["a dog", "rain"]
    sent = backend.inputs[-1]
    assert sent.template == "This is a sound of {}."
    kind = KINDS["zero-shot-audio-classification"]
    assert input_from_wire(kind, input_to_wire(sent)) == sent
    assert kind.units(sent) == 0.5


async def test_pictures_are_labelled(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    found = await ask(http, "image-classification", "clip", PICTURE, top_k=1)
    assert found == [{"label": "cat", "score": 1.0}]
    found = await ask(
        http,
        "zero-shot-image-classification",
        "clip",
        PICTURE,
        candidate_labels=["a, b", "c"],
        hypothesis_template="one {}",
    )
    assert [each["label"] for each in found] == ["a, b", "c"]
    assert backend.inputs[-1].template == "one {}"


async def test_things_are_found(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    found = await ask(http, "object-detection", "owlv2", PICTURE)
    box = {"xmin": 1.5, "ymin": 2.0, "xmax": 6.0, "ymax": 7.25}
    assert found == [{"score": 0.75, "label": "cat", "box": box}]
    assert backend.inputs[-1].threshold == 0.5
    wanted: dict[str, Any] = {"candidate_labels": ["x", "y", "z"], "top_k": 2, "threshold": 0.25}
    found = await ask(http, "zero-shot-object-detection", "owlv2", PICTURE, **wanted)
    assert [each["label"] for each in found] == ["x", "y"]
    assert backend.inputs[-1].threshold == 0.25


async def test_depths_parts_words_and_vectors(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    file = base64.b64encode(PICTURE).decode()
    found = await ask(http, "depth-estimation", "depth-anything", PICTURE)
    assert found == {"depth": file, "min": 0.5, "max": 4.5, "width": 8, "height": 8}
    found = await ask(
        http, "image-segmentation", "segformer", PICTURE, subtask="panoptic", threshold=0.5
    )
    assert found[0] == {"score": None, "label": "sky", "mask": file}
    assert (backend.inputs[-1].mode, backend.inputs[-1].threshold) == ("panoptic", 0.5)
    found = await ask(http, "image-to-text", "toy-caption", PICTURE, prompt="a", max_new_tokens=9)
    assert found == {"generated_text": f"{len(PICTURE)} bytes a"}
    assert backend.inputs[-1].max_tokens == 9
    found = await ask(http, "image-feature-extraction", "dinov2", PICTURE)
    assert found == [[0, 1], [2, 3], [4, 5]]
    assert await ask(http, "image-feature-extraction", "dinov2", PICTURE, pool=True) == [[0, 1]]


async def test_speech_is_written_down(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    task = "automatic-speech-recognition"
    found = await ask(http, task, "whisper", SOUND)
    assert found == {"text": "Hello there.", "chunks": None}
    found = await ask(http, task, "whisper", SOUND, return_timestamps=True, language="en")
    assert found["chunks"] == [
        {"text": " Hello", "timestamp": [0.0, 0.25]},
        {"text": " there.", "timestamp": [0.25, 0.5]},
    ]
    assert backend.inputs[-1].language == "en"
    found = await ask(http, task, "whisper", SOUND, return_timestamps="word")
    assert [each["text"] for each in found["chunks"]] == ["Hello", "there."]


async def test_speech_is_translated(http: aiohttp.ClientSession) -> None:
    form = aiohttp.FormData({"model": "whisper", "parameters": '{"task": "translate"}'})
    form.add_field("inputs", SOUND, filename="a.wav")
    path = "/v1/pipelines/automatic-speech-recognition"
    async with http.post(path, data=form) as response:
        assert (await response.json())["results"][0]["text"] == "Hello there."
    async with http.get("/metrics") as response:
        text = await response.text()
    assert 'blip_tasks_total{kind="translation",outcome="succeeded"} 1.0' in text


async def test_texts_are_spoken(http: aiohttp.ClientSession, backend: MemoryMesh) -> None:
    said = {"model": "joe", "inputs": "one two", "parameters": {"voice": "anna", "speed": 2.0}}
    async with http.post("/v1/pipelines/text-to-speech", json=said) as response:
        (found,) = (await response.json())["results"]
    assert base64.b64decode(found["audio"]) == b"one/anna/2 two/anna/2"
    assert found["sampling_rate"] == 16_000
    assert (backend.inputs[-1].whole, backend.inputs[-1].format) == (True, "wav")


async def test_tasks_are_listed_and_the_absent_are_explained(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/pipelines") as response:
        listed = {row["task"]: row for row in (await response.json())["data"]}
    assert {task.name for task in MEDIA_TASKS} <= set(listed)
    assert listed["depth-estimation"]["kind"] == "depth"
    for task in ABSENT:
        error = await refusal(http, task, model="m")
        assert error["param"] == "task"
        assert ABSENT[task] in error["hint"]
    error = await refusal(http, "text-to-audio", model="m")
    assert "It is called text-to-speech here." in error["hint"]


@pytest.mark.parametrize(
    ("task", "body", "param"),
    [
        ("audio-classification", {}, "inputs"),
        ("audio-classification", {"inputs": PICTURE}, "inputs"),
        ("image-classification", {"inputs": SOUND}, "inputs"),
        ("image-classification", {"inputs": [PICTURE]}, "inputs"),
        ("image-classification", {"inputs": PICTURE, "parameters": {"top_k": 0}}, "top_k"),
        ("image-classification", {"inputs": PICTURE, "parameters": {"topk": 1}}, "topk"),
        ("zero-shot-image-classification", {"inputs": PICTURE}, "parameters"),
        (
            "zero-shot-audio-classification",
            {"inputs": SOUND, "parameters": {"candidate_labels": ","}},
            "candidate_labels",
        ),
        (
            "zero-shot-audio-classification",
            {
                "inputs": SOUND,
                "parameters": {"candidate_labels": ["a"], "hypothesis_template": "none"},
            },
            "hypothesis_template",
        ),
        (
            "zero-shot-image-classification",
            {"inputs": PICTURE, "parameters": {"candidate_labels": ["a" * 257]}},
            "candidate_labels",
        ),
        (
            "zero-shot-image-classification",
            {"inputs": PICTURE, "parameters": {"candidate_labels": "[1"}},
            "candidate_labels",
        ),
    ],
)
async def test_refusals_name_the_field(
    http: aiohttp.ClientSession, task: str, body: dict[str, Any], param: str
) -> None:
    said = {
        name: base64.b64encode(each).decode() if isinstance(each, bytes) else each
        for name, each in body.items()
        if name != "inputs" or isinstance(each, bytes)
    }
    if isinstance(body.get("inputs"), list):
        said["inputs"] = [base64.b64encode(each).decode() for each in body["inputs"]]
    error = await refusal(http, task, model="m", **said)
    assert error["param"].startswith(("inputs", "parameters"))
    assert error["param"].endswith(param) or "candidate_labels" in error["param"]


@pytest.mark.parametrize("text", ["{", "[1]", '{"top_k": "many"}', '{"top_k": {"a": 1}}'])
async def test_parameters_of_a_form_are_an_object(http: aiohttp.ClientSession, text: str) -> None:
    form = aiohttp.FormData({"model": "ast", "parameters": text})
    form.add_field("inputs", SOUND, filename="a.wav")
    async with http.post("/v1/pipelines/audio-classification", data=form) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"].partition(".")[0]) == (400, "parameters")


async def test_a_nodes_errors_name_the_fields_of_the_request(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    for name in FIELDS:
        backend.nodes_by_model["m"] = failing(UnsupportedField("no", param=name))
        error = await refusal(
            http, "depth-estimation", model="m", inputs=base64.b64encode(PICTURE).decode()
        )
        assert error["param"] == FIELDS[name]


async def test_answers_that_cannot_be_read(
    http: aiohttp.ClientSession, backend: MemoryMesh
) -> None:
    async def broken(value: Any) -> Any:
        yield Answer(to_wire(Features(3, bytes(16))), {}, 1.0)

    backend.nodes_by_model["m"] = broken
    said = {"model": "m", "inputs": base64.b64encode(PICTURE).decode()}
    async with http.post("/v1/pipelines/image-feature-extraction", json=said) as response:
        assert response.status == 500
        assert (await response.json())["error"]["code"] == "runtime_failed"
    for features in (Features(0, b""), Features(1, bytes(3))):
        with pytest.raises(ValueError, match="vectors"):
            features_from_wire(to_wire(features))


async def test_the_sdk_and_the_verb(
    backend: MemoryMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rain.wav").write_bytes(SOUND)
    (tmp_path / "dog.png").write_bytes(PICTURE)
    async with served(backend) as origin:
        async with AsyncBlip(origin) as client:
            answer = await client.pipeline("image-classification", "clip", PICTURE, top_k=1)
            assert answer.results == [[{"label": "cat", "score": 1.0}]]
            assert answer.origin.node == "b?ro-1"
            labels = ["a dog", "rain"]
            answer = await client.pipeline(
                "zero-shot-audio-classification", "clap", SOUND, candidate_labels=labels
            )
            assert [each["label"] for each in answer.results[0]] == labels
            heard = await client.pipeline(
                "automatic-speech-recognition", "whisper", SOUND, task="translate"
            )
            assert heard.results[0]["text"] == "Hello there."
            with pytest.raises(InvalidRequest, match="not a PNG"):
                await client.pipeline("image-classification", "clip", SOUND)
        words = ["pipeline", "zero-shot-audio-classification", "clap", "--url", origin]
        files = ["--file", str(tmp_path / "rain.wav"), "--file", str(tmp_path / "rain.wav")]
        assert await asyncio.to_thread(main, [*words, *files, "--label", "rain"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said == [f"{tmp_path / 'rain.wav'}", " 1.0000  rain"] * 2
        words = ["pipeline", "depth-estimation", "depth-anything", "--url", origin, "--json"]
        assert await asyncio.to_thread(main, [*words, "-f", str(tmp_path / "dog.png")]) == 0
        assert json.loads(capsys.readouterr().out)["results"][0]["max"] == 4.5
        gone = [*words, "--file", str(tmp_path / "none.png")]
        assert await asyncio.to_thread(main, gone) != 0
        assert "none.png" in capsys.readouterr().err
        both = [*words, "text", "--file", str(tmp_path / "dog.png")]
        assert await asyncio.to_thread(main, both) != 0
        assert "--file" in capsys.readouterr().err
